//! What a guest says on its console, and which of it ends the run.

use std::fmt;

/// Lines of the guest's PID 1 (`init.sh`).
const STATUS: &str = "VM-STATUS ";

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The job ended.
    Finished,
    /// The kernel panicked.
    Panic,
    /// A CPU did nothing for RCU for long.
    RcuStall,
    /// A CPU did not schedule for long, twice.
    SoftLockup,
    /// The time limit was reached.
    TimeLimit,
    /// QEMU ended without a word of the job.
    Died,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Finished => "finished",
            Self::Panic => "kernel panic",
            Self::RcuStall => "RCU stall",
            Self::SoftLockup => "soft lockup",
            Self::TimeLimit => "time limit",
            Self::Died => "ended without a status",
        })
    }
}

/// Follows the console line by line.
#[derive(Default)]
pub(super) struct Console {
    /// Exit status of the job.
    pub(super) status: Option<i32>,
    lockups: u32,
}

impl Console {
    /// Takes a line; says how the run ended if this line is its end.
    pub(super) fn line(&mut self, line: &str) -> Option<Ended> {
        if let Some(at) = line.find(STATUS) {
            self.status = line[at + STATUS.len()..].trim().parse().ok();
            return Some(Ended::Finished);
        }
        if line.contains("Kernel panic - not syncing") {
            return Some(Ended::Panic);
        }
        if line.contains("detected stalls on CPUs") || line.contains("self-detected stall") {
            return Some(Ended::RcuStall);
        }
        // One may come of a host that gave the guest no CPU; it recovers.
        self.lockups += u32::from(line.contains("BUG: soft lockup"));
        (self.lockups > 1).then_some(Ended::SoftLockup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&str], ended: Option<Ended>, status: Option<i32>) {
        let mut console = Console::default();
        let found = lines.iter().find_map(|line| console.line(line));
        assert_eq!((found, console.status), (ended, status), "{lines:?}");
    }

    #[test]
    fn the_end_is_read_from_the_console() {
        check(&["[    1.0] Linux version", "VM-START"], None, None);
        check(&["VM-STATUS 7\r"], Some(Ended::Finished), Some(7));
        check(&["[    9.1] Kernel panic - not syncing: Fatal exception"], Some(Ended::Panic), None);
        check(
            &["[   80.0] rcu: INFO: rcu_sched self-detected stall on CPU"],
            Some(Ended::RcuStall),
            None,
        );
        let lockup = "[   80.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!";
        check(&[lockup, "[   81.0] fine"], None, None);
        check(&[lockup, lockup], Some(Ended::SoftLockup), None);
    }
}
