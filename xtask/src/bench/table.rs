//! Medians, quartiles, and tables in Markdown.

/// Middle and quartiles of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    /// A quarter is below.
    pub(super) low: f64,
    /// Half is below.
    pub(super) median: f64,
    /// A quarter is above.
    pub(super) high: f64,
}

impl Spread {
    /// Of any number of values but none.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (first, last) = (sorted.first()?, sorted.len() - 1);
        debug_assert!(first.is_finite(), "a ratio of two measured times");
        // Between two values, in proportion.
        let at = |part: f64| {
            let place = part * last as f64;
            let (below, above) = (place.floor() as usize, place.ceil() as usize);
            sorted[below] + (sorted[above] - sorted[below]) * place.fract()
        };
        Some(Self { low: at(0.25), median: at(0.5), high: at(0.75) })
    }

    /// As a factor.
    pub(super) fn factor(values: &[f64]) -> String {
        Self::of(values).map_or_else(String::new, |spread| {
            format!("x{:.3} [{:.3}-{:.3}]", spread.median, spread.low, spread.high)
        })
    }
}

/// A table with a heading, as Markdown.
pub(crate) fn markdown(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    let mut line = |cells: &[String]| {
        text += &format!("| {} |\n", cells.join(" | "));
    };
    line(&heading.iter().map(ToString::to_string).collect::<Vec<_>>());
    line(&vec!["---".to_owned(); heading.len()]);
    rows.iter().for_each(|row| line(row));
    text
}

/// Nanoseconds in a unit that one can read.
pub(super) fn duration(ns: f64) -> String {
    let (scale, unit) = match ns.abs() {
        ns if ns >= 1e9 => (1e9, "s"),
        ns if ns >= 1e6 => (1e6, "ms"),
        ns if ns >= 1e4 => (1e3, "us"),
        _ => (1.0, "ns"),
    };
    format!("{:.2} {unit}", ns / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_values() {
        let check = |values: &[f64], expected: Option<(f64, f64, f64)>| {
            let spread = Spread::of(values).map(|spread| (spread.low, spread.median, spread.high));
            assert_eq!(spread, expected, "{values:?}");
        };
        check(&[], None);
        check(&[3.0], Some((3.0, 3.0, 3.0)));
        check(&[5.0, 1.0, 3.0, 2.0, 4.0], Some((2.0, 3.0, 4.0)));
        check(&[1.0, 2.0], Some((1.25, 1.5, 1.75)));
        assert_eq!(Spread::factor(&[1.0]), "x1.000 [1.000-1.000]");
    }

    #[test]
    fn tables_are_markdown() {
        let rows = [vec!["1".to_owned(), "2".to_owned()]];
        assert_eq!(markdown(&["a", "b"], &rows), "| a | b |\n| --- | --- |\n| 1 | 2 |\n");
    }

    #[test]
    fn times_have_a_unit() {
        let check = |ns, expected: &str| assert_eq!(duration(ns), expected);
        check(0.0, "0.00 ns");
        check(4430.0, "4430.00 ns");
        check(16_400.0, "16.40 us");
        check(-2.5e6, "-2.50 ms");
        check(1.5e9, "1.50 s");
    }
}
