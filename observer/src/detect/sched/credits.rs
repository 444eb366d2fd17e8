//! CPU credits of a burstable instance, counted as its provider does: what is used below the baseline is saved, for a day at
//! most, and what is used above it is taken from that. Nobody tells the guest how much there was at its start; so the count is
//! an upper bound until credits were seen to end.
//!
//! T3 of Amazon, B of Azure: a credit is a minute of one CPU, the baseline is what is earned, a day's earnings are kept
//! (t3.medium: 2 CPUs, 20 %, 24 credits an hour, 576 at most).

use std::time::Duration;

use crate::detect::mean::Mean;

/// Earnings are kept for this long.
const KEPT_S: f64 = 86_400.0;
/// Use over this time is taken to go on.
const USE: Duration = Duration::from_secs(120);
/// Nobody knows what was used in a pause that is longer.
const PAUSE_NS: u64 = 60_000_000_000;
/// For so long more may be used than there can be credits, until the count is known to be wrong: a provider takes the CPU away
/// step by step.
const DOUBT_NS: u64 = 600_000_000_000;

/// Credits, in seconds of all CPUs.
#[derive(Debug)]
pub(super) struct Credits {
    /// Share of all CPUs that is earned.
    baseline: f64,
    /// Whether somebody has set it.
    told: bool,
    /// There are no more.
    most_s: f64,
    busy: Mean,
    /// For how long it has gone on without any.
    doubt_ns: u64,
}

impl Credits {
    /// With a baseline that somebody has set.
    pub(super) fn told(baseline: f64) -> Self {
        Self { baseline, told: true, most_s: baseline * KEPT_S, busy: Mean::default(), doubt_ns: 0 }
    }

    /// With the baseline at which the machine was held.
    pub(super) fn learned(baseline: f64) -> Self {
        Self { told: false, ..Self::told(baseline) }
    }

    /// The machine is held at its baseline: there are none.
    pub(super) fn spent(&mut self, baseline: f64) {
        if !self.told {
            self.baseline = baseline;
        }
        (self.most_s, self.doubt_ns) = (0.0, 0);
    }

    /// Counts what was used since the tick before.
    pub(super) fn count(&mut self, busy_ratio: f64, is_stolen: bool, elapsed_ns: u64) {
        let elapsed_s = elapsed_ns as f64 / 1e9;
        let busy_ratio = if busy_ratio.is_finite() { busy_ratio.clamp(0.0, 1.0) } else { 0.0 };
        let used = if elapsed_ns > PAUSE_NS { 0.0 } else { busy_ratio };
        let most_s = self.most_s + (self.baseline - used) * elapsed_s;
        self.most_s = most_s.clamp(0.0, self.baseline * KEPT_S);
        let burns = self.busy.add(busy_ratio, elapsed_ns, USE) > self.baseline;
        if is_stolen || self.most_s > 0.0 {
            self.doubt_ns = 0;
        } else if burns {
            self.doubt_ns = self.doubt_ns.saturating_add(elapsed_ns);
        }
    }

    /// Seconds until they end at the latest, if it goes on so; `None` if they do not end, or the count is known to be wrong.
    pub(super) fn left_s(&self) -> Option<f64> {
        let burns = self.busy.value() - self.baseline;
        (burns > 0.0 && self.doubt_ns < DOUBT_NS).then(|| self.most_s / burns)
    }

    pub(super) fn is_told(&self) -> bool {
        self.told
    }

    pub(super) fn baseline(&self) -> f64 {
        self.baseline
    }

    /// Share of all CPUs that is used.
    pub(super) fn busy(&self) -> f64 {
        self.busy.value()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Uses so much for so many minutes each; gives the minutes that are left at the end.
    fn left_min(mut credits: Credits, uses: &[(u64, f64)]) -> Option<u64> {
        for (minutes, busy_ratio) in uses {
            (0..minutes * 60).for_each(|_| credits.count(*busy_ratio, false, SECOND));
        }
        credits.left_s().map(|left_s| (left_s / 60.0).round() as u64)
    }

    #[test]
    fn what_is_used_above_the_baseline_ends_what_was_saved() {
        #[track_caller]
        fn check(uses: &[(u64, f64)], expect: Option<u64>) {
            assert_eq!(left_min(Credits::told(0.2), uses), expect, "{uses:?}");
        }
        check(&[(60, 0.1)], None);
        // A day's earnings are 4.8 hours of all CPUs; all of them in use take 0.8 an hour more than is earned.
        check(&[(60, 0.1), (30, 1.0)], Some(330));
        check(&[(60, 0.1), (330, 1.0)], Some(30));
        check(&[(60, 0.1), (330, 1.0), (600, 0.0), (10, 0.6)], Some(354));
        check(&[(345, 1.0), (60, 0.1)], None);
        // It ought to have ended: unlimited mode, or another baseline.
        check(&[(365, 1.0)], Some(0));
        check(&[(400, 1.0)], None);
    }

    #[test]
    fn what_was_seen_to_end_is_counted_exactly() {
        let mut credits = Credits::learned(0.2);
        credits.spent(0.3);
        assert_eq!(left_min(credits, &[(60, 0.1), (5, 0.9)]), Some(17));
    }

    #[test]
    fn in_a_pause_nothing_may_have_been_used() {
        let mut credits = Credits::told(0.2);
        credits.spent(0.2);
        credits.count(1.0, false, 3600 * SECOND);
        assert!((credits.most_s - 720.0).abs() < 1e-6, "{credits:?}");
    }

    proptest! {
        #[test]
        fn they_stay_within_a_day(uses: Vec<(f64, bool, u64)>, baseline in 0.0..1.0_f64) {
            let mut credits = Credits::told(baseline);
            for (busy_ratio, is_stolen, elapsed_ns) in uses {
                credits.count(busy_ratio, is_stolen, elapsed_ns);
                prop_assert!((0.0..=baseline * KEPT_S).contains(&credits.most_s), "{credits:?}");
                prop_assert!(credits.left_s().is_none_or(|left_s| left_s >= 0.0));
            }
        }
    }
}
