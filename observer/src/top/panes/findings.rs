//! Findings: what is about to break, by whom, how long is left, what to do. The most urgent first, then standing hazards,
//! then what cannot be judged yet.

use std::collections::BTreeSet;

use super::{plain, toned};
use crate::{
    detect::{ALL, Evidence, Finding, Level, Party, Undecided, View},
    snapshot::Snapshot,
    top::{
        Cell, Table, Tone,
        format::{bytes, count, duration, percent, seconds},
    },
};

const COLUMNS: &[(&str, u16)] =
    &[("LEVEL", 9), (" AGE", 6), ("KIND", 19), ("WHO", 24), (" LEFT", 6), ("MESSAGE", 0)];

/// The pane of findings.
pub fn table(snapshot: &Snapshot) -> Table {
    let rows = ordered(&snapshot.detect).map(|finding| row(finding, snapshot.time_unix_ns));
    let rows = rows.chain(snapshot.detect.undecided.iter().map(undecided_row)).collect();
    Table { summary: summary(&snapshot.detect), columns: COLUMNS, rows }
}

/// All that is known of a row of the table.
pub fn details(snapshot: &Snapshot, row: usize) -> Vec<String> {
    let view = &snapshot.detect;
    if let Some(finding) = ordered(view).nth(row) {
        return of_finding(finding);
    }
    let undecided = row.checked_sub(view.findings.len()).and_then(|row| view.undecided.get(row));
    let line = |row: &Undecided| {
        format!("{} of {} cannot be judged: {}", row.kind, row.subject, row.reason)
    };
    undecided.map(line).into_iter().collect()
}

/// The most urgent finding that is no standing hazard.
pub fn worst(view: &View) -> Option<&Finding> {
    ordered(view).find(|finding| !finding.hazard)
}

/// How a level looks.
pub fn tone(level: Level) -> Tone {
    match level {
        Level::Watch => Tone::Plain,
        Level::Warn => Tone::Warn,
        Level::Critical | Level::Emergency => Tone::Bad,
    }
}

/// In the order of the snapshot, standing hazards last.
fn ordered(view: &View) -> impl Iterator<Item = &Finding> {
    let all = || view.findings.iter().map(|finding| &**finding);
    let with = |hazard| all().filter(move |finding| finding.hazard == hazard);
    with(false).chain(with(true))
}

fn summary(view: &View) -> String {
    let hazards = view.findings.iter().filter(|finding| finding.hazard).count() as u64;
    let mut text = match worst(view) {
        Some(finding) => {
            let advice = Some(&finding.advice).filter(|advice| !advice.is_empty());
            let advice = advice.map(|advice| format!("; do: {advice}")).unwrap_or_default();
            format!("{}: {}{advice}", finding.level.text(), finding.message)
        }
        None => nothing(view),
    };
    if hazards > 0 {
        text += &format!(" ({})", count(hazards, "standing hazard", "standing hazards"));
    }
    if view.dropped > 0 {
        text += &format!("; {} beyond the bound, not shown", view.dropped);
    }
    text
}

fn nothing(view: &View) -> String {
    let undecided: BTreeSet<_> = view.undecided.iter().map(|row| row.kind.as_str()).collect();
    let judged = ALL.iter().filter(|kind| !undecided.contains(kind.name)).count() as u64;
    let judged = count(judged, "kind", "kinds");
    format!("nothing found; {judged} judged, {} undecided", undecided.len())
}

fn row(finding: &Finding, now_unix_ns: u64) -> Vec<Cell> {
    let tone = tone(finding.level);
    let who = finding.culprit.as_ref().map_or(&finding.subject, |party| &party.title);
    vec![
        toned(finding.level.text(), tone),
        plain(duration(now_unix_ns.saturating_sub(finding.since_unix_ns))),
        plain(&finding.kind),
        plain(who),
        toned(finding.time_left_seconds.map(seconds).unwrap_or_default(), tone),
        plain(&finding.message),
    ]
}

fn undecided_row(undecided: &Undecided) -> Vec<Cell> {
    vec![
        plain("undecided"),
        plain(""),
        plain(&undecided.kind),
        plain(&undecided.subject),
        plain(""),
        plain(&undecided.reason),
    ]
}

fn of_finding(finding: &Finding) -> Vec<String> {
    let hazard = if finding.hazard { ", a standing hazard" } else { "" };
    let mut lines = vec![
        format!("{} {} of {}{hazard}", finding.level.text(), finding.kind, finding.subject),
        finding.message.clone(),
    ];
    if !finding.advice.is_empty() {
        lines.push(format!("do: {}", finding.advice));
    }
    lines.extend(finding.culprit.as_ref().map(culprit));
    if !finding.victims.is_empty() {
        let victims: Vec<_> = finding.victims.iter().map(|party| party.title.as_str()).collect();
        lines.push(format!("suffers: {}", victims.join(", ")));
    }
    lines.extend(finding.evidence.iter().map(evidence));
    let link = finding.links.first();
    lines.extend(link.map(|link| format!("trace: {} span {}", link.trace_id, link.span_id)));
    lines
}

fn culprit(party: &Party) -> String {
    format!("who: {}, {} of the cause", party.title, percent(party.share_ratio))
}

/// `because: memory_available 200M (exact, /proc/meminfo)`.
fn evidence(evidence: &Evidence) -> String {
    let value = match &*evidence.unit {
        // `as` saturates, and makes 0 of what is no number.
        "By" => bytes(evidence.value as u64),
        "By/s" => format!("{}/s", bytes(evidence.value as u64)),
        "s" => seconds(evidence.value),
        "1" => number(evidence.value),
        unit => format!("{} {unit}", number(evidence.value)),
    };
    let quality = format!("{:?}", evidence.quality).to_lowercase();
    format!("because: {} {value} ({quality}, {})", evidence.name, evidence.source)
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}
