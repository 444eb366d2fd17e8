//! What the agent told, as events of the time line: findings, and what its signals showed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use observer::{
    record::{self, Line, ReadError},
    snapshot::Snapshot,
};
use serde_json::{Map, Value, json};

use crate::timeline::{Event, Source};

/// Log events that go on the time line, and what they are called there.
const LOGS: &[(&str, &str)] = &[
    ("observer.finding", "finding"),
    ("observer.oom.kill", "oom_kill"),
    ("observer.memory.limit_hit", "limit_hit"),
];

/// Attributes that go along, and what they are called there.
const ATTRIBUTES: &[(&str, &str)] = &[
    ("observer.finding.kind", "kind"),
    ("observer.finding.level", "level"),
    ("observer.culprit.pid", "culprit_pid"),
    ("observer.culprit.name", "culprit_name"),
    ("observer.time_left", "time_left_s"),
    ("observer.oom.victim.pid", "victim_pid"),
    ("observer.oom.victim.name", "victim_name"),
];

/// Reads the agent's recording. `unix_minus_monotonic_s` brings its times to the clock of the time line; spans are told
/// from the fault on, the first of each name.
pub fn read(
    recording: &Path,
    unix_minus_monotonic_s: f64,
    fault_s: f64,
) -> Result<Vec<Event>, ReadError> {
    let at = |unix_ns: u64| unix_ns as f64 / 1e9 - unix_minus_monotonic_s;
    let mut events = Vec::new();
    let mut seen = BTreeSet::new();
    for line in record::read(recording)? {
        match line? {
            Line::Header(_) => {}
            Line::Event(event) => {
                let known = LOGS.iter().find(|(name, _)| *name == event.name);
                let what = known.map(|(_, what)| told(what, at(event.time_unix_ns), &event.attrs));
                events.extend(what);
            }
            Line::Spans(spans) => {
                let t_s = at(spans.time_unix_ns);
                for (name, sum) in spans.names {
                    if t_s >= fault_s && seen.insert(name.clone()) {
                        let longest_s = sum.longest_ns as f64 / 1e9;
                        let values = json!({ "name": name, "longest_s": longest_s });
                        events.push(Event::new(t_s, Source::Agent, "first_span", values));
                    }
                }
            }
            Line::Snapshot(snapshot) => events.extend(time_left(&snapshot, at)),
        }
    }
    Ok(events)
}

fn told(what: &str, t_s: f64, attrs: &BTreeMap<String, Value>) -> Event {
    let named = ATTRIBUTES
        .iter()
        .filter_map(|(key, name)| Some(((*name).to_owned(), attrs.get(*key)?.clone())));
    let values: Map<_, _> = named.collect();
    Event::new(t_s, Source::Agent, what, Value::Object(values))
}

/// What signal `oom` estimates while memory shrinks.
fn time_left(snapshot: &Snapshot, at: impl Fn(u64) -> f64) -> Option<Event> {
    let values = json!({
        "time_left_s": snapshot.oom.exhaustion_seconds?,
        "culprit_pid": snapshot.oom.culprit_pid,
        "culprit_name": snapshot.oom.culprit_pid.and_then(|pid| Some(&snapshot.processes.get(&pid)?.name)),
    });
    Some(Event::new(at(snapshot.time_unix_ns), Source::Agent, "time_left", values))
}
