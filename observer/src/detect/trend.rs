//! How fast something fills, and how long that can go on.

use std::time::Duration;

use super::mean::Mean;

/// Slope of a value over some readings; as robust as a mean that forgets is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trend {
    last: Option<(u64, f64)>,
    rate: Mean,
    observed_ns: u64,
    /// Readings in a row that were higher than the one before.
    rises: u32,
}

impl Trend {
    /// Takes a reading of this instant. One that is not later than the last is not taken.
    pub fn add(&mut self, at_ns: u64, value: f64, constant: Duration) {
        let Some((before_ns, before)) = self.last else {
            self.last = Some((at_ns, value));
            return;
        };
        let elapsed_ns = at_ns.saturating_sub(before_ns);
        if elapsed_ns == 0 {
            return;
        }
        self.last = Some((at_ns, value));
        self.rises = if value > before { self.rises.saturating_add(1) } else { 0 };
        self.observed_ns = self.observed_ns.saturating_add(elapsed_ns);
        self.rate.add((value - before) * 1e9 / elapsed_ns as f64, elapsed_ns, constant);
    }

    /// Change a second.
    pub fn rate(&self) -> f64 {
        self.rate.value()
    }

    /// For how long it has been followed.
    pub fn observed(&self) -> Duration {
        Duration::from_nanos(self.observed_ns)
    }

    /// Whether it has risen from reading to reading of late: no single step.
    pub fn rises(&self) -> bool {
        const READINGS: u32 = 3;
        self.rises >= READINGS
    }

    /// Seconds until `room` is gone; `None` if it does not fill, or takes a month.
    pub fn seconds_left(&self, room: f64) -> Option<f64> {
        const MONTH_S: f64 = 30.0 * 86_400.0;
        let seconds = room.max(0.0) / self.rate();
        (self.rate() > 0.0 && seconds < MONTH_S).then_some(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fills_evenly_has_a_time_left() {
        let mut trend = Trend::default();
        assert_eq!(trend.seconds_left(1.0), None);
        for second in 0..=100_u64 {
            trend.add(second * 1_000_000_000, second as f64 * 5.0, Duration::from_secs(10));
        }
        assert!((trend.rate() - 5.0).abs() < 0.01 && trend.rises(), "{trend:?}");
        assert!(trend.seconds_left(500.0).is_some_and(|left| (left - 100.0).abs() < 1.0));
        assert_eq!(trend.seconds_left(-3.0), Some(0.0));
        assert_eq!(trend.observed(), Duration::from_secs(100));
        (101..200_u64)
            .for_each(|second| trend.add(second * 1_000_000_000, 500.0, Duration::from_secs(10)));
        assert!(trend.seconds_left(500.0).is_none_or(|left| left > 1e5), "it stands still");
        assert!(!trend.rises(), "{trend:?}");
    }
}
