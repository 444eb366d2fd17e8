//! Numbers as a person reads them at a glance, in at most eight characters.

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Bytes in binary units: `512B`, `1.2K`, `34M`, `1.5G`.
pub fn bytes(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let mut value = bytes as f64;
    let mut unit = "";
    for next in ["K", "M", "G", "T", "P", "E"] {
        // What would round to 1024 belongs to the next unit.
        if value < 1023.5 && !unit.is_empty() {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value < 9.95 { format!("{value:.1}{unit}") } else { format!("{value:.0}{unit}") }
}

/// Bytes a second with their sign: `+1.2M/s`; empty for no change.
pub fn rate(bytes_per_second: f64) -> String {
    let magnitude = bytes(bytes_per_second.abs() as u64);
    match bytes_per_second {
        rate if rate >= 1.0 => format!("+{magnitude}/s"),
        rate if rate <= -1.0 => format!("-{magnitude}/s"),
        _ => String::new(),
    }
}

/// Nanoseconds in the two largest units that matter: `340us`, `1.2ms`, `3.4s`, `4m10s`, `2h03m`, `3d04h`.
pub fn duration(ns: u64) -> String {
    let seconds = ns / NS_PER_SECOND;
    match ns {
        0 => "0".to_owned(),
        1..1_000 => format!("{ns}ns"),
        1_000..1_000_000 => format!("{}us", ns / 1_000),
        1_000_000..10_000_000 => format!("{}.{}ms", ns / 1_000_000, ns / 100_000 % 10),
        10_000_000..NS_PER_SECOND => format!("{}ms", ns / 1_000_000),
        _ if seconds < 10 => format!("{seconds}.{}s", ns / 100_000_000 % 10),
        _ if seconds < 60 => format!("{seconds}s"),
        _ if seconds < 3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ if seconds < 86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// Seconds as [`duration`]; what is negative or no number counts as none.
pub fn seconds(seconds: f64) -> String {
    // `as` saturates, so that a huge estimate stays huge.
    duration((seconds.max(0.0) * NS_PER_SECOND as f64) as u64)
}

/// A share from 0 to 1 as `12%`, with a decimal below 10.
pub fn percent(ratio: f64) -> String {
    let percent = ratio * 100.0;
    match percent {
        0.0 => "0%".to_owned(),
        _ if percent.abs() < 9.95 => format!("{percent:.1}%"),
        _ => format!("{percent:.0}%"),
    }
}

/// `1 process`, `2 processes`.
pub fn count(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        let check = |value: u64, expect: &str| assert_eq!(bytes(value), expect, "{value}");
        check(0, "0B");
        check(1023, "1023B");
        check(1024, "1.0K");
        check(10 * 1024 - 1, "10K");
        check(1024 * 1024 - 1, "1.0M");
        check(34 << 20, "34M");
        check(3 << 29, "1.5G");
        check(u64::MAX, "16E");
    }

    #[test]
    fn rates() {
        let check = |value: f64, expect: &str| assert_eq!(rate(value), expect, "{value}");
        check(0.0, "");
        check(0.4, "");
        check(2.0 * 1024.0 * 1024.0, "+2.0M/s");
        check(-2048.0, "-2.0K/s");
        check(f64::NAN, "");
    }

    #[test]
    fn times() {
        let check = |ns: u64, expect: &str| assert_eq!(duration(ns), expect, "{ns}");
        check(0, "0");
        check(999, "999ns");
        check(340_000, "340us");
        check(1_290_000, "1.2ms");
        check(250_000_000, "250ms");
        check(3_400_000_000, "3.4s");
        check(59_900_000_000, "59s");
        check(250_000_000_000, "4m10s");
        check(7_380_000_000_000, "2h03m");
        check(273_600_000_000_000, "3d04h");
        assert_eq!(seconds(90.0), "1m30s");
        assert_eq!(seconds(-1.0), "0");
        assert_eq!(seconds(f64::NAN), "0");
    }

    #[test]
    fn shares() {
        let check = |value: f64, expect: &str| assert_eq!(percent(value), expect, "{value}");
        check(0.0, "0%");
        check(0.004, "0.4%");
        check(0.0999, "10%");
        check(1.5, "150%");
    }

    proptest! {
        #[test]
        fn never_wider_than_a_column(value: u64) {
            prop_assert!(bytes(value).len() <= 5);
            prop_assert!(rate(value as f64).len() <= 8);
            // Up to 1,000 days.
            prop_assert!(duration(value % (86_400_000 * NS_PER_SECOND)).len() <= 7);
        }
    }
}
