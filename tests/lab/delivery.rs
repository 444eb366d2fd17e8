//! Whether a collector got everything that the agent had to tell: item by item, by content.

use std::collections::BTreeMap;

use observer_tests::otlp::Telemetry;
use serde_json::{Value, json};

/// Compares what the agent wrote to its `--out` file with what the collector took, both as OTLP JSON lines. Items that are
/// younger than `until_unix_ns` may still be on their way, and do not count.
pub fn compare(made: &str, taken: &str, until_unix_ns: u64) -> Value {
    let mut balance: BTreeMap<(&str, String), i64> = BTreeMap::new();
    let (made, taken) = (items(made, until_unix_ns), items(taken, until_unix_ns));
    let counts = [made.len(), taken.len()];
    made.into_iter().for_each(|item| *balance.entry(item).or_default() += 1);
    taken.into_iter().for_each(|item| *balance.entry(item).or_default() -= 1);
    let sum = |kind: Option<&str>, sign: i64| -> i64 {
        let of_kind = balance.iter().filter(|((of, _), _)| kind.is_none_or(|kind| kind == *of));
        of_kind.map(|(_, count)| (count * sign).max(0)).sum()
    };
    let first_missing = balance.iter().find(|(_, count)| **count > 0);
    json!({
        "made": counts[0],
        "taken": counts[1],
        "missing": sum(None, 1),
        "missing_spans": sum(Some("span"), 1),
        "missing_logs": sum(Some("log"), 1),
        "missing_points": sum(Some("point"), 1),
        "not_made": sum(None, -1),
        "first_missing": first_missing.map(|((_, item), _)| item.chars().take(300).collect::<String>()),
    })
}

/// Kind and content of each item.
fn items(lines: &str, until_unix_ns: u64) -> Vec<(&'static str, String)> {
    let telemetry = Telemetry::parse(lines);
    let spans = telemetry.spans.iter().map(|span| ("span", span.end_unix_ns, format!("{span:?}")));
    let logs = telemetry.logs.iter().map(|log| ("log", log.time_unix_ns, format!("{log:?}")));
    let points =
        telemetry.points.iter().map(|point| ("point", point.time_unix_ns, format!("{point:?}")));
    let all = spans.chain(logs).chain(points);
    all.filter(|(_, at, _)| *at <= until_unix_ns).map(|(kind, _, item)| (kind, item)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, at: u64) -> String {
        let log = format!(r#"{{"eventName":"{name}","timeUnixNano":"{at}"}}"#);
        format!("{{\"resourceLogs\":[{{\"scopeLogs\":[{{\"logRecords\":[{log}]}}]}}]}}\n")
    }

    #[test]
    fn what_is_missing_and_what_nobody_made_is_counted() {
        let made = line("a", 1) + &line("b", 2) + &line("late", 9);
        let balance = compare(&made, &(line("b", 2) + &line("c", 3)), 5);
        assert_eq!((&balance["made"], &balance["taken"]), (&json!(2), &json!(2)));
        assert_eq!((&balance["missing"], &balance["missing_logs"]), (&json!(1), &json!(1)));
        assert_eq!((&balance["missing_spans"], &balance["not_made"]), (&json!(0), &json!(1)));
        assert_eq!(compare(&made, &made, 9)["missing"], json!(0));
    }
}
