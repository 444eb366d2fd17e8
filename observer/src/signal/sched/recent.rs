//! How long the turns of a loop were lately, from the kernel's histogram of all of them.

use observer_abi::{
    histogram::{BUCKETS, upper_bound_ns},
    sched::Watch,
};

/// The window is between this and twice as long.
const STEP_NS: u64 = 5_000_000_000;

/// The histogram as it was at the begin of the window, and as it will be at the begin of the next.
#[derive(Debug, Clone, Copy, Default)]
pub struct Recent {
    base: [u32; BUCKETS],
    next: [u32; BUCKETS],
    next_ktime_ns: u64,
}

impl Recent {
    /// Turns within the window, and the least that one in a hundred of them took.
    pub fn turns(&mut self, watch: &Watch, ktime_ns: u64) -> (u64, u64) {
        let all = watch.histogram;
        let fell = all.iter().zip(self.next).any(|(now, then)| *now < then);
        if fell || self.next_ktime_ns == 0 {
            *self = Self { base: all, next: all, next_ktime_ns: ktime_ns };
        } else if ktime_ns.saturating_sub(self.next_ktime_ns) >= STEP_NS {
            *self = Self { base: self.next, next: all, next_ktime_ns: ktime_ns };
        }
        let mut counts =
            all.iter().zip(self.base).map(|(now, then)| u64::from(now.saturating_sub(then)));
        let turns: u64 = counts.clone().sum();
        let mut below = 0;
        let bucket = counts.position(|count| {
            below += count;
            below * 100 >= turns * 99
        });
        let lower = bucket.and_then(|bucket| bucket.checked_sub(1)).and_then(upper_bound_ns);
        (turns, if turns == 0 { 0 } else { lower.unwrap_or(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn watch(histogram: &[u32]) -> Watch {
        let mut watch = Watch::default();
        watch.histogram[..histogram.len()].copy_from_slice(histogram);
        watch
    }

    #[test]
    fn one_in_a_hundred_is_found() {
        #[track_caller]
        fn check(later: &[u32], expect: (u64, u64)) {
            let mut recent = Recent::default();
            assert_eq!(recent.turns(&watch(&[1000, 0, 5]), SECOND), (0, 0));
            assert_eq!(recent.turns(&watch(later), 4 * SECOND), expect, "{later:?}");
        }
        check(&[1000, 0, 5], (0, 0));
        check(&[1099, 0, 6], (100, 0));
        check(&[1098, 0, 7], (100, 1 << 21));
        check(&[1000, 0, 5, 0, 0, 0, 0, 1], (1, 1 << 26));
        check(&[1, 0, 0], (0, 0));
    }

    #[test]
    fn what_was_long_ago_does_not_count() {
        let mut recent = Recent::default();
        let mut at = |second: u64, slow| recent.turns(&watch(&[0, 0, slow]), second * SECOND).0;
        let turns = [at(1, 7), at(3, 9), at(6, 9), at(10, 9), at(11, 9), at(12, 12)];
        assert_eq!(turns, [0, 2, 2, 2, 0, 3]);
    }
}
