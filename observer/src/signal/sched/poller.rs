//! Tells event loops that do not turn from loops that poll without ever sleeping.
//!
//! The scheduler sees a turn end only when the loop sleeps in epoll. A loop with work always waiting calls epoll without
//! sleeping and looks like one long turn. Only then, and only for a while, a probe on system calls is asked for; how a
//! thread behaves under it decides what its long turns are for the next minutes.

use std::collections::HashMap;

use observer_abi::sched::{LoopGap, Watch};

use crate::signal::Now;

/// How long the probe stays to learn how a thread behaves.
const WINDOW_NS: u64 = 1_500_000_000;
/// How long it then stays away: it slows every system call of the host.
const REST_NS: u64 = 8_000_000_000;
/// How long it may stay for a gap that is still open.
const MAX_OPEN_NS: u64 = 60_000_000_000;
/// How long what was learned is believed.
const BELIEF_NS: u64 = 300_000_000_000;
/// A gap waits this long for an answer before it is told as unconfirmed.
const PATIENCE_NS: u64 = 15_000_000_000;
/// Gaps waiting for an answer; beyond it they are told as unconfirmed.
const MAX_PENDING: usize = 256;

/// A gap, and whether it is certain that the loop did not poll meanwhile.
#[derive(Debug, Clone, Copy)]
pub struct Judged {
    /// The gap.
    pub gap: LoopGap,
    /// Whether the thread is known to sleep between its turns, or was under the probe all the time.
    pub confirmed: bool,
}

/// Turns and polls of each thread.
type Counts = HashMap<u32, (u64, u64)>;

#[derive(Debug, Clone, Copy)]
struct Belief {
    polls_without_sleep: bool,
    until_ktime_ns: u64,
}

/// What is known of the threads, and the state of the probe.
#[derive(Debug, Default)]
pub struct Poller {
    beliefs: HashMap<u32, Belief>,
    pending: Vec<LoopGap>,
    /// Since when the probe is attached, with (turns, polls) of each thread then.
    on: Option<(u64, Counts)>,
    off_ktime_ns: u64,
    wanted: bool,
    /// Long turns that were busy polling.
    dismissed: u64,
}

impl Poller {
    /// Whether the probe should be attached now.
    pub fn wants_probe(&self) -> bool {
        self.on.is_some()
    }

    /// Long turns that turned out to be busy polling.
    pub fn dismissed(&self) -> u64 {
        self.dismissed
    }

    /// Takes a gap; returns it if it is clear what it is.
    pub fn judge(&mut self, gap: LoopGap, now: Now) -> Option<Judged> {
        let start = gap.header.ktime_ns.saturating_sub(gap.duration_ns);
        if self.on.as_ref().is_some_and(|(since, _)| *since <= start) {
            return Some(Judged { gap, confirmed: true });
        }
        match self.belief(gap.header.tid, now) {
            Some(true) => {
                self.dismissed += 1;
                None
            }
            Some(false) => Some(Judged { gap, confirmed: true }),
            None if self.pending.len() >= MAX_PENDING => Some(Judged { gap, confirmed: false }),
            None => {
                self.pending.push(gap);
                self.wanted = true;
                None
            }
        }
    }

    /// Whether a turn that has lasted for `open_ns` is known to be one.
    pub fn is_open(&mut self, tid: u32, open_ns: u64, now: Now) -> bool {
        let probed = self.on.as_ref().is_some_and(|(since, _)| {
            now.since(*since) >= WINDOW_NS / 3 && now.since(*since) <= open_ns
        });
        let belief = self.belief(tid, now);
        self.wanted |= belief != Some(false);
        probed || belief == Some(false)
    }

    fn belief(&self, tid: u32, now: Now) -> Option<bool> {
        let belief =
            self.beliefs.get(&tid).filter(|belief| belief.until_ktime_ns > now.ktime_ns)?;
        Some(belief.polls_without_sleep)
    }

    /// Folds one tick: begins or ends a window, and returns the gaps that have become clear. `open` tells whether a turn is
    /// open now that only the probe can explain.
    pub fn tick(&mut self, now: Now, watches: &[(u32, Watch)], open: bool) -> Vec<Judged> {
        let wanted = std::mem::take(&mut self.wanted);
        if let Some((since, before)) = &self.on {
            let lasted = now.since(*since);
            if lasted >= WINDOW_NS {
                let learned: Vec<_> = watches
                    .iter()
                    .filter_map(|(tid, watch)| Some((*tid, behaviour(before.get(tid)?, watch)?)))
                    .collect();
                let until_ktime_ns = now.ktime_ns + BELIEF_NS;
                self.beliefs.extend(learned.into_iter().map(|(tid, polls_without_sleep)| {
                    (tid, Belief { polls_without_sleep, until_ktime_ns })
                }));
                if !open || lasted >= MAX_OPEN_NS {
                    self.on = None;
                    self.off_ktime_ns = now.ktime_ns;
                }
            }
        } else if wanted && (self.off_ktime_ns == 0 || now.since(self.off_ktime_ns) >= REST_NS) {
            let counts =
                watches.iter().map(|(tid, watch)| (*tid, (watch.turns, watch.polls))).collect();
            self.on = Some((now.ktime_ns, counts));
        }
        self.beliefs.retain(|_, belief| belief.until_ktime_ns > now.ktime_ns);
        self.settle(now)
    }

    /// Gaps whose thread has become known, or that have waited long enough.
    fn settle(&mut self, now: Now) -> Vec<Judged> {
        let mut clear = Vec::new();
        for gap in std::mem::take(&mut self.pending) {
            match self.belief(gap.header.tid, now) {
                Some(true) => self.dismissed += 1,
                Some(false) => clear.push(Judged { gap, confirmed: true }),
                None if now.since(gap.header.ktime_ns) >= PATIENCE_NS => {
                    clear.push(Judged { gap, confirmed: false })
                }
                None => self.pending.push(gap),
            }
        }
        self.wanted |= !self.pending.is_empty();
        clear
    }

    /// All gaps that still wait, for the end.
    pub fn take_pending(&mut self) -> Vec<Judged> {
        std::mem::take(&mut self.pending)
            .into_iter()
            .map(|gap| Judged { gap, confirmed: false })
            .collect()
    }
}

/// Whether a thread polled without sleeping: it called epoll much more often than it slept there. `None` if it did neither:
/// a loop that was idle all the time cannot be told.
fn behaviour(before: &(u64, u64), watch: &Watch) -> Option<bool> {
    let turns = watch.turns.saturating_sub(before.0);
    let polls = watch.polls.saturating_sub(before.1);
    (turns + polls > 0).then_some(polls > 2 * turns + 10)
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn now(second: u64) -> Now {
        Now { ktime_ns: second * SECOND, unix_ns: second * SECOND }
    }

    fn gap(tid: u32, end_second: u64) -> LoopGap {
        let mut gap = LoopGap::new_zeroed();
        gap.header.tid = tid;
        gap.header.ktime_ns = end_second * SECOND;
        gap.duration_ns = SECOND / 5;
        gap
    }

    fn watch(turns: u64, polls: u64) -> Watch {
        Watch { turns, polls, ..Watch::default() }
    }

    #[test]
    fn a_loop_that_sleeps_has_its_gap_confirmed() {
        let mut poller = Poller::default();
        assert!(poller.judge(gap(7, 100), now(100)).is_none());
        assert!(poller.tick(now(101), &[(7, watch(5, 0))], false).is_empty());
        assert!(poller.wants_probe());
        let clear = poller.tick(now(103), &[(7, watch(9, 4))], false);
        assert!(clear.len() == 1 && clear[0].confirmed);
        assert!(!poller.wants_probe());
        assert!(poller.judge(gap(7, 104), now(104)).is_some_and(|judged| judged.confirmed));
    }

    #[test]
    fn busy_polling_is_no_gap() {
        let mut poller = Poller::default();
        poller.judge(gap(7, 100), now(100));
        poller.tick(now(101), &[(7, watch(5, 0))], false);
        assert!(poller.tick(now(103), &[(7, watch(5, 4000))], false).is_empty());
        assert_eq!(poller.dismissed(), 1);
        assert!(poller.judge(gap(7, 104), now(104)).is_none());
        assert!(!poller.is_open(7, 5 * SECOND, now(104)));
    }

    #[test]
    fn an_idle_thread_is_told_as_unconfirmed_in_the_end() {
        let mut poller = Poller::default();
        poller.judge(gap(7, 100), now(100));
        let mut told = Vec::new();
        for second in 101..=116 {
            told.extend(poller.tick(now(second), &[(7, watch(5, 0))], false));
        }
        assert!(told.len() == 1 && !told[0].confirmed);
    }

    #[test]
    fn the_probe_rests_between_windows() {
        let mut poller = Poller::default();
        poller.judge(gap(7, 100), now(100));
        poller.tick(now(101), &[(7, watch(5, 0))], false);
        poller.tick(now(103), &[(7, watch(5, 0))], false);
        assert!(!poller.wants_probe());
        poller.tick(now(105), &[(7, watch(5, 0))], false);
        assert!(!poller.wants_probe(), "rests for eight seconds");
        poller.tick(now(112), &[(7, watch(5, 0))], false);
        assert!(poller.wants_probe());
    }
}
