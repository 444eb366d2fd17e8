//! How often something is read, given what a reading costs.

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};

use super::Brought;
use crate::signal::Now;

/// Share of one CPU that one kind of reading may take.
const SHARE: f64 = 0.01;
/// A reading comes at the latest after this time, whatever it costs.
const LONGEST_NS: u64 = 30_000_000_000;

/// Spaces readings so that they take [`SHARE`] of a CPU at most.
#[derive(Debug, Default)]
pub(super) struct Pace {
    last_ns: Option<u64>,
    cost_ns: u64,
}

impl Pace {
    /// Reads, if it is time for it.
    pub(super) fn read(&mut self, now: Now, read: impl FnOnce() -> Result<()>) -> Result<Brought> {
        if self.last_ns.is_some_and(|last| now.since(last) < pause_ns(self.cost_ns)) {
            return Ok(Brought::Same);
        }
        self.last_ns = Some(now.ktime_ns);
        let before = cpu_ns();
        let result = read();
        self.cost_ns = cpu_ns().saturating_sub(before);
        result.map(|()| Brought::Fresh)
    }

    /// Seconds between two readings and milliseconds of CPU of one, if that is more than a tick.
    pub(super) fn pause(&self) -> Option<(f64, f64)> {
        const TOLD_FROM_NS: u64 = 2_000_000_000;
        let pause_ns = pause_ns(self.cost_ns);
        (pause_ns >= TOLD_FROM_NS).then(|| (pause_ns as f64 / 1e9, self.cost_ns as f64 / 1e6))
    }
}

fn pause_ns(cost_ns: u64) -> u64 {
    ((cost_ns as f64 / SHARE) as u64).min(LONGEST_NS)
}

/// CPU time of this thread.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dear_is_read_less_often() {
        let at = |ktime_ns| Now { ktime_ns, unix_ns: ktime_ns };
        let mut pace = Pace::default();
        let read = |pace: &mut Pace, ktime_ns| pace.read(at(ktime_ns), || Ok(())).unwrap();
        assert_eq!(read(&mut pace, 5), Brought::Fresh);
        pace.cost_ns = 30_000_000;
        assert_eq!(read(&mut pace, 2_999_000_000), Brought::Same);
        assert_eq!(pace.pause(), Some((3.0, 30.0)));
        assert_eq!(read(&mut pace, 3_000_000_005), Brought::Fresh);
        pace.cost_ns = u64::MAX;
        assert_eq!(pace.pause().unwrap().0, 30.0);
        pace.cost_ns = 1_000_000;
        assert_eq!(pace.pause(), None);
    }
}
