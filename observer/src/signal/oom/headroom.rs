//! How long until memory is gone: the Theil-Sen slope of MemAvailable over half a minute, which a single jump does not
//! bend. A first estimate: garbage collectors' teeth are not yet told from leaks.

use std::collections::VecDeque;

/// Readings kept: half a minute at one a second.
const MAX_READINGS: usize = 30;
/// Readings needed for a slope.
const MIN_READINGS: usize = 6;
/// Slower shrinking than this share of the memory per hour is no trend.
const MIN_SHARE_PER_HOUR: f64 = 0.05;

/// The clock to exhaustion.
#[derive(Debug, Default)]
pub struct Headroom {
    /// (seconds, available bytes), the oldest first.
    readings: VecDeque<(f64, f64)>,
}

impl Headroom {
    /// Adds a reading.
    pub fn add(&mut self, ktime_ns: u64, available_bytes: u64) {
        self.readings.push_back((ktime_ns as f64 / 1e9, available_bytes as f64));
        if self.readings.len() > MAX_READINGS {
            self.readings.pop_front();
        }
    }

    /// Change of the available memory in bytes per second; `None` with too few readings.
    pub fn slope(&self) -> Option<f64> {
        if self.readings.len() < MIN_READINGS {
            return None;
        }
        let mut slopes: Vec<f64> = Vec::with_capacity(MAX_READINGS * MAX_READINGS / 2);
        for (index, (from, before)) in self.readings.iter().enumerate() {
            let later = self.readings.iter().skip(index + 1).filter(|(to, _)| to > from);
            slopes.extend(later.map(|(to, after)| (after - before) / (to - from)));
        }
        let middle = slopes.len() / 2;
        (!slopes.is_empty()).then(|| *slopes.select_nth_unstable_by(middle, f64::total_cmp).1)
    }

    /// Seconds until `headroom_bytes` are gone; `None` while memory does not shrink in earnest.
    pub fn exhaustion_seconds(&self, headroom_bytes: u64, total_bytes: u64) -> Option<f64> {
        let slope = self.slope()?;
        let least = total_bytes as f64 * MIN_SHARE_PER_HOUR / 3600.0;
        (slope < -least).then(|| headroom_bytes as f64 / -slope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn check(available: impl Fn(u64) -> u64, expect: Option<f64>) {
        let mut headroom = Headroom::default();
        (0..40).for_each(|second| headroom.add(second * 1_000_000_000, available(second)));
        let found = headroom.exhaustion_seconds(GIB, 4 * GIB);
        match (found, expect) {
            (Some(found), Some(expect)) => {
                assert!((found / expect - 1.0).abs() < 0.05, "{found} for {expect}")
            }
            _ => assert_eq!(found.is_some(), expect.is_some(), "{found:?}"),
        }
    }

    #[test]
    fn a_steady_leak_has_a_time_left() {
        check(|second| 3 * GIB - second * (10 << 20), Some(102.4));
    }

    #[test]
    fn one_jump_is_no_trend() {
        check(|second| if second < 20 { 3 * GIB } else { 2 * GIB }, None);
    }

    #[test]
    fn flat_and_growing_memory_have_none() {
        check(|_| GIB, None);
        check(|second| GIB + second * (1 << 20), None);
    }
}
