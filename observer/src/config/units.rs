//! Durations and sizes with their units, as people write them: `10s`, `1m30s`, `64MiB`.

use std::time::Duration;

use super::Fault;

/// Units of time with their nanoseconds, the longest first.
const TIME: &[(&str, u128)] = &[
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Units of size with their bytes, the largest first; binary before decimal.
const SIZE: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Reads a duration: whole numbers each followed by a unit (`d h m s ms us ns`), such as `10s` or `1m30s`.
///
/// # Errors
/// Says what is wrong with the text and how to write it.
pub fn parse_duration(text: &str) -> Result<Duration, Fault> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(no_time_unit(text));
    }
    let fault = || {
        Fault::new(
            format!("{text:?} is not a duration"),
            "write whole numbers with units (d h m s ms us ns), such as \"10s\" or \"1m30s\"",
        )
    };
    let mut rest = text;
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (number, unit, after) = split(rest).ok_or_else(fault)?;
        let (_, scale) = TIME.iter().find(|(name, _)| *name == unit).ok_or_else(fault)?;
        total = u128::from(number)
            .checked_mul(*scale)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(fault)?;
        rest = after;
    }
    if text.is_empty() {
        return Err(fault());
    }
    u64::try_from(total).map(Duration::from_nanos).map_err(|_too_long| {
        Fault::new(format!("{text:?} is longer than 584 years"), "write a shorter duration")
    })
}

/// A bare number where a duration stands.
pub(super) fn no_time_unit(number: &str) -> Fault {
    Fault::new(
        format!("{number} has no unit"),
        format!("write \"{number}s\" for seconds or \"{number}ms\" for milliseconds"),
    )
}

/// Reads a size: one whole number with its unit (`B KiB MiB GiB TiB`, or decimal `kB MB GB TB`).
///
/// # Errors
/// Says what is wrong with the text and how to write it.
pub fn parse_bytes(text: &str) -> Result<u64, Fault> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(no_size_unit(text));
    }
    let fault = || {
        Fault::new(
            format!("{text:?} is not a size"),
            "write one whole number with its unit (B KiB MiB GiB TiB), such as \"64MiB\"",
        )
    };
    let (number, unit, after) = split(text).ok_or_else(fault)?;
    let (_, scale) = SIZE.iter().find(|(name, _)| *name == unit).ok_or_else(fault)?;
    if !after.is_empty() {
        return Err(fault());
    }
    number.checked_mul(*scale).ok_or_else(fault)
}

/// A bare number where a size stands.
pub(super) fn no_size_unit(number: &str) -> Fault {
    Fault::new(
        format!("{number} has no unit"),
        format!("write \"{number}B\" for bytes or \"{number}MiB\" for mebibytes"),
    )
}

/// Number, unit and what follows them; blanks between number and unit are allowed.
fn split(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..digits].parse().ok()?;
    let rest = text[digits..].trim_start();
    let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    Some((number, &rest[..letters], rest[letters..].trim_start()))
}

/// Writes a duration exactly, in the fewest units: [`parse_duration`] reads it back.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = duration.as_nanos();
    let mut text = String::new();
    for (unit, scale) in TIME {
        if rest >= *scale {
            text += &format!("{}{unit}", rest / scale);
            rest %= scale;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Writes a size exactly, in the largest binary unit that divides it: [`parse_bytes`] reads it back.
pub fn format_bytes(bytes: u64) -> String {
    let binary = SIZE.iter().filter(|(unit, _)| unit.ends_with("iB"));
    match binary.clone().find(|(_, scale)| bytes != 0 && bytes.is_multiple_of(*scale)) {
        Some((unit, scale)) => format!("{}{unit}", bytes / scale),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(parse_duration(text).ok(), expect.map(Duration::from_millis), "{text}");
        };
        check("10s", Some(10_000));
        check("250ms", Some(250));
        check("5m", Some(300_000));
        check("1m30s", Some(90_000));
        check(" 2 h ", Some(7_200_000));
        check("1d", Some(86_400_000));
        check("0s", Some(0));
        for bad in [
            "",
            " ",
            "s",
            "10",
            "10x",
            "-1s",
            "1.5s",
            "10s!",
            "99999999999999999999s",
            "600000d",
            "10 s 5",
            "1µs",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn sizes() {
        let check =
            |text: &str, expect: Option<u64>| assert_eq!(parse_bytes(text).ok(), expect, "{text}");
        check("64MiB", Some(64 << 20));
        check("1 GiB", Some(1 << 30));
        check("5kB", Some(5_000));
        check("0B", Some(0));
        for bad in ["", "64", "64mib", "MiB", "1.5GiB", "1GiB2MiB", "99999999999TiB", "-1B"] {
            check(bad, None);
        }
    }

    #[test]
    fn bare_numbers_are_told_their_unit() {
        let check = |fault: Fault, mend: &str| assert!(fault.mend.contains(mend), "{fault:?}");
        check(parse_duration("30").unwrap_err(), "\"30s\"");
        check(parse_bytes("30").unwrap_err(), "\"30MiB\"");
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(number: u64) {
            let duration = Duration::from_nanos(number);
            prop_assert_eq!(parse_duration(&format_duration(duration)).ok(), Some(duration));
            prop_assert_eq!(parse_bytes(&format_bytes(number)).ok(), Some(number));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            prop_assert!(parse_duration(&text).is_ok() || !parse_duration(&text).unwrap_err().mend.is_empty());
            prop_assert!(parse_bytes(&text).is_ok() || !parse_bytes(&text).unwrap_err().mend.is_empty());
        }
    }
}
