//! A recorded run as the detectors of today would have told it: `observer replay` in place of the findings of its day.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value};

use super::timeline::{Event, Timeline};
use crate::command::{command, output};

/// The recording in the folder of a run.
const RECORDING: &str = "agent/recording.jsonl";

/// The log event that is a finding, and the key of its time.
const FINDING: &str = "observer.finding";
const TIME: &str = "time_unix_ns";

/// Attributes of it, and what they are called on a time line (docs/lab.md).
const ATTRIBUTES: [(&str, &str); 5] = [
    ("observer.finding.kind", "kind"),
    ("observer.finding.level", "level"),
    ("observer.culprit.pid", "culprit_pid"),
    ("observer.culprit.name", "culprit_name"),
    ("observer.time_left", "time_left_s"),
];

/// Puts what this agent finds in the recording of a run in place of what the agent of that day found.
pub(super) fn retell(run: &mut Timeline, out: &Path, agent: &Path) -> Result<()> {
    let recording = out.join(RECORDING);
    let words =
        [&*agent.to_string_lossy(), "replay", &*recording.to_string_lossy()].map(str::to_owned);
    // It is ours; the agent takes no variable for one of its own that it does not know.
    let mut replay = command(&words);
    replay.args(["--findings", "--json"]).env_remove("OBSERVER_BIN");
    let text = output(&mut replay)?;
    let clock_s =
        run.header["unix_minus_monotonic_s"].as_f64().context("no clock in the header")?;
    replace(run, &text, clock_s).with_context(|| recording.display().to_string())
}

/// `text`: log events as JSON lines. `unix_minus_monotonic_s` brings their times to the clock of the time line.
fn replace(run: &mut Timeline, text: &str, unix_minus_monotonic_s: f64) -> Result<()> {
    run.events.retain(|event| (&*event.source, &*event.what) != ("agent", "finding"));
    for line in text.lines() {
        let log: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        if log["name"] != FINDING {
            continue;
        }
        let unix_ns = log[TIME].as_f64().with_context(|| format!("no {TIME}: {line}"))?;
        let named = ATTRIBUTES
            .iter()
            .filter_map(|(key, name)| Some(((*name).to_owned(), log["attrs"].get(*key)?.clone())));
        run.events.push(Event {
            t_s: unix_ns / 1e9 - unix_minus_monotonic_s,
            source: "agent".to_owned(),
            what: "finding".to_owned(),
            values: Value::Object(named.collect::<Map<_, _>>()),
        });
    }
    run.events.sort_by(|a, b| a.t_s.total_cmp(&b.t_s));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = r#"{"lab":1,"unix_minus_monotonic_s":1000.0}
{"t_s":3,"source":"agent","what":"finding","kind":"of.that.day","level":"WARN"}
{"t_s":4,"source":"agent","what":"first_span","name":"memory.reclaim"}
{"t_s":5,"source":"scenario","what":"fault_start"}"#;

    #[test]
    fn findings_of_the_day_give_way_to_those_of_today() {
        let log = |name: &str, unix_s: u64, attrs: &str| {
            format!(r#"{{"time_unix_ns":{unix_s}500000000,"name":"{name}","attrs":{{{attrs}}}}}"#)
        };
        let mut run = Timeline::parse(RUN).expect("a time line");
        let attrs = r#""observer.finding.kind":"a.b","observer.finding.level":"WARN","observer.culprit.pid":7"#;
        let text =
            [log("observer.finding", 1004, attrs), log("observer.finding.cleared", 1009, "")];
        replace(&mut run, &text.join("\n"), 1000.0).expect("log events");
        let told: Vec<_> =
            run.events.iter().map(|event| (event.t_s, event.what.as_str())).collect();
        assert_eq!(told, [(4.0, "first_span"), (4.5, "finding"), (5.0, "fault_start")]);
        let finding = &run.events[1];
        assert_eq!((finding.text("kind"), finding.number("culprit_pid")), ("a.b", Some(7.0)));
        assert!(replace(&mut run, "{}\nno JSON", 0.0).is_err());
    }
}
