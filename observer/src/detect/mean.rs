//! What a value was lately, whatever the time between two ticks.

use std::time::Duration;

/// Mean that forgets: a step is taken in by 63 % after the time constant, by 95 % after three. It begins at zero, so that
/// what has only begun counts little.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mean {
    value: f64,
}

impl Mean {
    /// Takes what the value was since the tick before; returns the mean. What is no number is taken as zero.
    pub fn add(&mut self, value: f64, elapsed_ns: u64, constant: Duration) -> f64 {
        let value = if value.is_finite() { value } else { 0.0 };
        let elapsed = elapsed_ns as f64 / constant.as_nanos().max(1) as f64;
        self.value += (value - self.value) * -(-elapsed).exp_m1();
        self.value
    }

    /// The mean.
    pub fn value(&self) -> f64 {
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_does_not_depend_on_the_time_between_two_ticks() {
        #[track_caller]
        fn check(ticks: u64, tick_ns: u64) {
            let mut mean = Mean::default();
            (0..ticks).for_each(|_| _ = mean.add(1.0, tick_ns, Duration::from_secs(10)));
            assert!((mean.value() - 0.864_66).abs() < 1e-4, "{ticks} of {tick_ns} ns: {mean:?}");
        }
        check(100, 200_000_000);
        check(20, 1_000_000_000);
        check(1, 20_000_000_000);
    }

    proptest::proptest! {
        #[test]
        fn it_stays_within_what_it_was_given(values: Vec<(f64, u64)>) {
            let mut mean = Mean::default();
            let (mut low, mut high) = (0.0_f64, 0.0_f64);
            for (value, elapsed_ns) in values {
                let value = value.clamp(-1e9, 1e9);
                if value.is_finite() {
                    (low, high) = (low.min(value), high.max(value));
                }
                let now = mean.add(value, elapsed_ns, Duration::from_secs(10));
                proptest::prop_assert!(now >= low - 1.0 && now <= high + 1.0);
            }
        }
    }
}
