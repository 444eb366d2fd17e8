//! How fast something grows, and how sure that is: the median of all pair slopes (Theil 1950, Sen 1968), which a few wild
//! readings do not bend, with the interval that goes with Kendall's rank test. No distribution is assumed.

/// Most points of one estimate: 66 pairs.
pub const MAX_POINTS: usize = 12;

const MAX_PAIRS: usize = MAX_POINTS * (MAX_POINTS - 1) / 2;

/// Fewer points cannot be told from chance: with three, all orders are likely enough.
const MIN_POINTS: usize = 4;

/// Standard deviations of a two-sided interval of 90 %.
const DEVIATIONS: f64 = 1.645;

/// A robust slope with its interval, in the unit of the values per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slope {
    /// The middle of all pair slopes.
    pub per_second: f64,
    /// Lower end of the 90 % interval.
    pub least: f64,
    /// Upper end.
    pub most: f64,
}

impl Slope {
    /// Whether it grows for sure.
    pub fn grows(&self) -> bool {
        self.least > 0.0
    }
}

/// The slope through points of (seconds, value); only the last [`MAX_POINTS`] count. `None` with too few, or without time
/// between them.
pub fn slope(points: &[(f64, f64)]) -> Option<Slope> {
    let points = &points[points.len().saturating_sub(MAX_POINTS)..];
    if points.len() < MIN_POINTS {
        return None;
    }
    let mut slopes = [0.0; MAX_PAIRS];
    let mut count = 0;
    for (index, (from, before)) in points.iter().enumerate() {
        for (to, after) in points.iter().skip(index + 1) {
            let pair = (after - before) / (to - from);
            if to > from
                && pair.is_finite()
                && let Some(slot) = slopes.get_mut(count)
            {
                *slot = pair;
                count += 1;
            }
        }
    }
    let slopes = slopes.get_mut(..count).filter(|slopes| !slopes.is_empty())?;
    slopes.sort_unstable_by(f64::total_cmp);
    let (pairs, number) = (count as f64, points.len() as f64);
    let spread = DEVIATIONS * (number * (number - 1.0) * (2.0 * number + 5.0) / 18.0).sqrt();
    let at = |rank: f64| {
        let last = count.saturating_sub(1);
        slopes.get((rank.max(0.0) as usize).min(last)).copied().unwrap_or(0.0)
    };
    Some(Slope {
        per_second: at(pairs / 2.0),
        least: at((pairs - spread) / 2.0),
        most: at((pairs + spread) / 2.0),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(values: &[f64], expect: Option<(f64, bool)>) {
        let points: Vec<_> = values.iter().enumerate().map(|(at, v)| (at as f64, *v)).collect();
        let found = slope(&points).map(|slope| (slope.per_second, slope.grows()));
        assert_eq!(found, expect, "{values:?}");
    }

    #[test]
    fn the_middle_slope_and_whether_it_is_sure() {
        check(&[0.0, 1.0, 2.0], None);
        check(&[0.0, 1.0, 2.0, 3.0], Some((1.0, true)));
        check(&[5.0; 12], Some((0.0, false)));
        // One wild reading does not bend it.
        check(&[0.0, 1.0, 2.0, 90.0, 4.0, 5.0, 6.0, 7.0], Some((1.0, true)));
        // One step is no trend: most pairs lie on one side of it.
        check(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 9.0, 9.0, 9.0], Some((0.0, false)));
        check(&[3.0, 1.0, 4.0, 1.0, 5.0, 2.0, 4.0, 3.0], Some((0.25, false)));
    }

    #[test]
    fn points_of_one_instant_have_none() {
        assert_eq!(slope(&[(1.0, 1.0), (1.0, 2.0), (1.0, 3.0), (1.0, 4.0)]), None);
    }

    proptest! {
        #[test]
        fn the_interval_holds_the_slope(points in prop::collection::vec((any::<f64>(), any::<f64>()), 0..20)) {
            if let Some(found) = slope(&points) {
                prop_assert!(found.least <= found.per_second && found.per_second <= found.most, "{:?}", found);
            }
        }

        #[test]
        fn a_line_is_found_whatever_lies_off_it(rate in -1e6..1e6f64, at in 0..12usize, wild in -1e9..1e9f64) {
            let mut points: Vec<_> = (0..12).map(|s| (f64::from(s), rate * f64::from(s))).collect();
            points[at].1 = wild;
            let found = slope(&points).unwrap();
            prop_assert!((found.per_second - rate).abs() <= rate.abs() * 1e-6 + 1e-6, "{:?}", found);
        }
    }
}
