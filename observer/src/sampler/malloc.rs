//! The malloc of a suspect: when a finding names a process whose memory grows, its allocator is probed for some seconds, by a
//! child that a thread of its own waits for, one process at a time.

use std::{
    collections::BTreeMap,
    thread::{self, JoinHandle},
};

use anyhow::{Error, Result, anyhow};
use observer_abi::alloc::TASK_LEADER;

use super::{Sampler, clock::now};
use crate::{
    detect,
    kernel::{malloc::Probed, prober},
    signal::Now,
    snapshot::{Program, Snapshot, Verdict},
};

/// The same process is not probed again for so long.
const AGAIN_NS: u64 = 600_000_000_000;
/// Processes probed within that time. Beyond, none is.
const MAX_PROBED: usize = 64;

/// No less than this must be available: to find malloc in the symbols of a Node.js takes tens of MiB for a moment, which
/// nobody has to give shortly before a hang.
const AVAILABLE_BYTES: u64 = 256 << 20;

/// Pid and start of a process.
type Key = (u32, u64);

/// Who is being probed, and who was.
#[derive(Default)]
pub(super) struct Malloc {
    is_on: bool,
    running: Option<(Key, JoinHandle<Result<Probed>>)>,
    /// When it began.
    probed: BTreeMap<Key, u64>,
}

impl Malloc {
    /// By the row of the probe, if it is wanted.
    pub(super) fn new(row: Option<&Program>) -> Self {
        let is_on = row.is_some_and(|row| row.verdict == Verdict::Standby);
        Self { is_on, ..Self::default() }
    }

    /// Who of these is to be probed now, with so much memory available.
    fn choose(
        &mut self,
        mut suspects: impl Iterator<Item = Key>,
        available_bytes: u64,
        now: Now,
    ) -> Option<Key> {
        self.probed.retain(|_, began| now.since(*began) < AGAIN_NS);
        let is_free = self.is_on && self.running.is_none() && self.probed.len() < MAX_PROBED;
        if !is_free || available_bytes < AVAILABLE_BYTES {
            return None;
        }
        let key = suspects.find(|key| !self.probed.contains_key(key))?;
        self.probed.insert(key, now.ktime_ns);
        Some(key)
    }
}

impl Sampler {
    /// Takes what a probing has told, and begins another if a finding asks for it.
    pub(super) fn probe_malloc(&mut self, snapshot: &Snapshot) {
        let now = now();
        let is_over = |(_, thread): &mut (Key, JoinHandle<_>)| thread.is_finished();
        if let Some(((pid, start), thread)) = self.malloc.running.take_if(is_over) {
            let told = thread.join().unwrap_or_else(|_| Err(anyhow!("its thread failed")));
            tracing::debug!(pid, ?told, "malloc was probed");
            self.tell_probed((pid, start), told, now);
        }
        let suspects = detect::growing_processes(&snapshot.detect);
        let tasks = &self.rows.tasks;
        let suspects = suspects.filter(|pid| *pid != std::process::id()).filter_map(|pid| {
            let row = tasks.iter().find(|row| row.tgid == pid && row.flags & TASK_LEADER != 0)?;
            Some((pid, row.start_boottime_ns))
        });
        let available_bytes = snapshot.oom.memory_available_bytes;
        let Some(key) = self.malloc.choose(suspects, available_bytes, now) else { return };
        let probe = move || prober::probe_in_child(key.0, key.1);
        match thread::Builder::new().name("malloc".to_owned()).spawn(probe) {
            Ok(thread) => self.malloc.running = Some((key, thread)),
            Err(error) => {
                self.tell_probed(key, Err(Error::new(error).context("no thread to do it")), now)
            }
        }
    }

    fn tell_probed(&mut self, key: Key, told: Result<Probed>, now: Now) {
        let told = told.map_err(|error| format!("{error:#}"));
        self.alloc.add_probed(key, told, now, &mut self.who, &mut self.output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than enough memory.
    const AMPLE: u64 = 4 << 30;

    fn at(second: u64) -> Now {
        Now { ktime_ns: second * 1_000_000_000, unix_ns: 0 }
    }

    fn row(verdict: Verdict) -> Program {
        Program { verdict, ..Program::default() }
    }

    #[test]
    fn a_process_is_probed_once_in_a_while_and_no_two_at_once() {
        let mut malloc = Malloc::new(Some(&row(Verdict::Standby)));
        let mut check = |suspects: &[Key], second, expect| {
            let suspects = suspects.iter().copied();
            assert_eq!(malloc.choose(suspects, AMPLE, at(second)), expect, "{second} s");
        };
        check(&[], 1, None);
        check(&[(1, 5), (2, 5)], 2, Some((1, 5)));
        check(&[(1, 5), (2, 5)], 3, Some((2, 5)));
        check(&[(1, 5), (2, 5)], 4, None);
        check(&[(1, 6)], 5, Some((1, 6)));
        check(&[(1, 5), (2, 5)], 601, None);
        check(&[(1, 5), (2, 5)], 602, Some((1, 5)));
        let crowd: Vec<Key> = (10..200).map(|pid| (pid, 0)).collect();
        let probed = (700..900)
            .filter(|at_s| malloc.choose(crowd.iter().copied(), AMPLE, at(*at_s)).is_some());
        assert!(probed.count() <= MAX_PROBED);
        for off in [None, Some(&row(Verdict::Impossible))] {
            assert_eq!(Malloc::new(off).choose([(1, 1)].into_iter(), AMPLE, at(1)), None);
        }
    }

    #[test]
    fn nobody_is_probed_while_memory_is_short() {
        let mut malloc = Malloc::new(Some(&row(Verdict::Standby)));
        let mut check = |suspect: u32, available_bytes: u64, expect: bool| {
            let chosen = malloc.choose([(suspect, 1)].into_iter(), available_bytes, at(1));
            assert_eq!(chosen.is_some(), expect, "{available_bytes} bytes");
        };
        check(1, 0, false);
        check(1, AVAILABLE_BYTES - 1, false);
        // That he was a suspect meanwhile is not held against him.
        check(1, AVAILABLE_BYTES, true);
        check(1, AVAILABLE_BYTES, false);
        check(2, u64::MAX, true);
    }
}
