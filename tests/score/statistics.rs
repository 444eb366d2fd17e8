//! Sums that the tables need.

/// The value at a share (0 to 1) of a sorted sample, by linear interpolation; `None` of nothing.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = share.clamp(0.0, 1.0) * last as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let high = sorted.get(low + 1).unwrap_or(&sorted[low]);
    Some(sorted[low] + (high - sorted[low]) * part)
}

/// A sample in order.
pub(crate) fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// Exact 95 % interval of the mean of a Poisson count (Garwood 1936), found by bisection of its distribution.
pub(crate) fn poisson_interval(count: u32) -> (f64, f64) {
    let tail = 0.025;
    let n = f64::from(count);
    let widest = n + 10.0 * (n + 1.0).sqrt() + 10.0;
    // P(X <= count) falls with the mean; P(X >= count) is what is left of P(X <= count - 1).
    let high = bisect(0.0, widest, |mean| poisson_at_most(count, mean) > tail);
    let low = match count.checked_sub(1) {
        None => 0.0,
        Some(fewer) => bisect(0.0, widest, |mean| 1.0 - poisson_at_most(fewer, mean) < tail),
    };
    (low, high)
}

fn poisson_at_most(count: u32, mean: f64) -> f64 {
    // In logarithms: e^-mean is zero beyond 745.
    let (mut term, mut sum) = (-mean, (-mean).exp());
    for k in 1..=count {
        term += mean.ln() - f64::from(k).ln();
        sum += term.exp();
    }
    sum.min(1.0)
}

/// Where a condition that holds at `low` stops to hold.
fn bisect(mut low: f64, mut high: f64, holds: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..80 {
        let middle = f64::midpoint(low, high);
        if holds(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// 95 % interval of a share by Wilson (1927).
pub(crate) fn share_interval(hits: usize, of: usize) -> (f64, f64) {
    if of == 0 {
        return (0.0, 1.0);
    }
    let (n, z) = (of as f64, 1.959_964);
    let share = hits as f64 / n;
    let middle = share + z * z / (2.0 * n);
    let half = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    ((middle - half) / scale, (middle + half) / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_between_neighbours() {
        let check = |values: &[f64], share, expected| assert_eq!(quantile(values, share), expected);
        check(&[], 0.5, None);
        check(&[3.0], 0.9, Some(3.0));
        check(&[1.0, 2.0, 4.0], 0.5, Some(2.0));
        check(&[1.0, 2.0, 4.0], 0.75, Some(3.0));
    }

    #[test]
    fn poisson_intervals_are_those_of_the_tables() {
        let check = |count, low: f64, high: f64| {
            let found = poisson_interval(count);
            assert!((found.0 - low).abs() < 0.005 && (found.1 - high).abs() < 0.005, "{found:?}");
        };
        check(0, 0.0, 3.689);
        check(1, 0.0253, 5.572);
        check(3, 0.619, 8.767);
        check(10, 4.795, 18.390);
        check(100, 81.364, 121.627);
    }

    #[test]
    fn wilson_intervals_stay_between_nothing_and_all() {
        let (low, high) = share_interval(10, 10);
        assert!((low - 0.722).abs() < 0.001 && high <= 1.0 + 1e-9, "{low} {high}");
        assert_eq!(share_interval(0, 0), (0.0, 1.0));
    }
}
