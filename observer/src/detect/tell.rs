//! Findings as OTLP log events.

use super::{Finding, Group, Level, Party, track::Change};
use crate::{
    snapshot::Snapshot,
    telemetry::{Attr, Event, Severity, SpanContext, Subject, Value, attr},
};

/// Name of the event of a finding that is raised or has changed.
pub const FINDING: &str = "observer.finding";
/// Name of the event of a finding that is over.
pub const CLEARED: &str = "observer.finding.cleared";

/// What an event says of a finding, for those who print it.
#[derive(Debug, Clone, PartialEq)]
pub struct Told<'a> {
    /// Level that the finding has, or had when it was cleared.
    pub level: Level,
    /// `raised`, `worse`, `better`, `culprit` or `cleared`.
    pub state: &'a str,
    /// What to do.
    pub advice: &'a str,
    /// `WARN memory.exhaustion: memory is gone in 95 s: ...`, or `cleared memory.exhaustion: ...`.
    pub sentence: String,
}

/// Reads a finding's event; `None` if it is another event.
pub fn told(event: &Event) -> Option<Told<'_>> {
    if event.name != FINDING && event.name != CLEARED {
        return None;
    }
    let text = |key| match &event.attrs.iter().find(|attr| attr.key == key)?.value {
        Value::Static(text) => Some(*text),
        Value::Str(text) => Some(&**text),
        _ => None,
    };
    let level = text("observer.finding.level")?;
    let (word, message) = event.body.split_once(": ")?;
    Some(Told {
        level: Level::ALL.into_iter().find(|known| known.text() == level)?,
        state: text("observer.finding.state")?,
        advice: text("observer.finding.advice")?,
        sentence: format!("{word} {}: {message}", text("observer.finding.kind")?),
    })
}

/// The event of a change.
pub(super) fn event(
    finding: &Finding,
    change: &Change,
    snapshot: &Snapshot,
    context: Option<SpanContext>,
) -> Event {
    let cleared = *change == Change::Cleared;
    let severity = match finding.level {
        _ if cleared => Severity::Info,
        Level::Watch => Severity::Info,
        Level::Warn => Severity::Warn,
        Level::Critical | Level::Emergency => Severity::Error,
    };
    Event {
        name: if cleared { CLEARED } else { FINDING },
        severity,
        time_unix_ns: snapshot.time_unix_ns,
        body: body(finding, cleared),
        attrs: attrs(finding, change),
        context,
        subject: subject(finding.culprit.as_ref(), snapshot),
    }
}

/// The sentence for a person, with the level in front.
fn body(finding: &Finding, cleared: bool) -> String {
    if cleared {
        return format!("cleared: {}", finding.message);
    }
    format!("{}: {}", finding.level.text(), finding.message)
}

fn attrs(finding: &Finding, change: &Change) -> Vec<Attr> {
    let state = match change {
        Change::Raised => "raised",
        Change::Level(before) if *before < finding.level => "worse",
        Change::Level(_) => "better",
        Change::Culprit => "culprit",
        Change::Cleared => "cleared",
    };
    let mut attrs = vec![
        attr("observer.finding.kind", finding.kind.clone()),
        attr("observer.finding.level", finding.level.text()),
        attr("observer.finding.state", state),
        attr("observer.finding.id", finding.id.clone()),
        attr("observer.finding.subject", finding.subject.clone()),
        attr("observer.finding.advice", finding.advice.clone()),
    ];
    attrs.extend(finding.time_left_seconds.map(|seconds| attr("observer.time_left", seconds)));
    if let Some(party) = &finding.culprit {
        attrs.push(attr("observer.culprit.name", party.name.clone()));
        attrs.push(attr("observer.culprit.title", party.title.clone()));
        attrs.push(attr("observer.culprit.share", party.share_ratio));
        attrs.extend(party.pid.map(|pid| attr("observer.culprit.pid", pid)));
    }
    let list = |texts: Vec<String>| {
        Value::List(texts.into_iter().map(|text| text.as_str().into()).collect())
    };
    let evidence = finding.evidence.iter().map(|e| {
        format!("{} = {} {} ({}, {:?})", e.name, e.value, e.unit, e.source, e.quality)
            .to_lowercase()
    });
    attrs.push(Attr { key: "observer.finding.evidence", value: list(evidence.collect()) });
    if !finding.victims.is_empty() {
        let victims = finding.victims.iter().map(|party| party.title.clone()).collect();
        attrs.push(Attr { key: "observer.finding.victims", value: list(victims) });
    }
    attrs
}

/// The process that is to blame, if it is one; else the host.
fn subject(culprit: Option<&Party>, snapshot: &Snapshot) -> Subject {
    culprit
        .filter(|party| party.group == Group::Process)
        .and_then(|party| snapshot.processes.get(&party.pid?))
        .map_or(Subject::Host, |process| Subject::Process(process.clone()))
}
