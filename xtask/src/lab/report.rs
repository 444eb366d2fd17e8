//! What the runs have shown, for people.

use super::{
    runs::{Outcome, Row},
    score::{Hang, Score},
    sums,
};
use crate::bench::markdown;

const HEADING: [&str; 11] = [
    "scenario",
    "incident",
    "place",
    "hang after",
    "length",
    "OOM kill after",
    "first failed request after",
    "warned after",
    "lead",
    "false alarms",
    "host s",
];

/// A row a scenario, the table of all runs, and below it what the agent told and what its signals showed.
pub(super) fn table(rows: &[Row]) -> String {
    let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let mut text = format!("{}\n{}", sums::table(rows), markdown(&HEADING, &cells));
    type Shown = fn(&Score) -> &[(String, f64)];
    let lists: [(&str, Shown); 3] = [
        ("Findings of WARN and worse that named the culprit", |score| &score.told),
        ("False alarms", |score| &score.wrong),
        ("What the agent's signals showed", |score| &score.signals),
    ];
    for (title, shown) in lists {
        text += &format!("\n{title}, the first of each, in seconds after the fault:\n\n");
        for row in rows {
            match &row.result {
                Outcome::Scored(score) if !shown(score).is_empty() => {
                    text += &format!("- {}: {}\n", name(row), listed(shown(score)));
                }
                _ => {}
            }
        }
    }
    text
}

/// The file of the report.
pub(super) fn page(table: &str) -> String {
    format!(
        "# The hang laboratory: what the runs have shown\n\n\
         Made by `cargo xtask lab --all --report`, also of recorded runs; the form of a run is in [lab.md](../lab.md). Times \
         are seconds of the run's own clock since the fault began. A twin is the same software in good health. A lead is from \
         the first correct warning to the sending of the first request that failed.\n\n{table}"
    )
}

/// One run in a sentence.
pub(super) fn sentence(score: &Score) -> String {
    let seconds = |at: Option<f64>| at.map_or("never".to_owned(), |at| format!("after {at:.1} s"));
    format!(
        "hang {} ({}), OOM kill {}, first failed request {}, warned {}, {}, {} false alarms; signals: {}; \
         witness: {} samples, longest gap {:.2} s{}",
        seconds(score.hang.map(|hang| hang.onset_s)),
        score.hang.map_or("none".to_owned(), length),
        seconds(score.oom_kill_s),
        seconds(score.failed_s),
        seconds(score.warned_s),
        if score.findings == 0 {
            "no findings".to_owned()
        } else {
            format!("{} findings", score.findings)
        },
        score.false_alarms,
        listed(&score.signals),
        score.witness.samples,
        score.witness.longest_gap_s,
        if score.witness.hardened { "" } else { ", not locked or not real-time" },
    )
}

fn name(row: &Row) -> String {
    format!("{}{}", row.scenario.name(), if row.twin { " (twin)" } else { "" })
}

fn cells(row: &Row) -> Vec<String> {
    let mut cells =
        vec![name(row), row.scenario.text("incident").to_owned(), row.host.place.clone()];
    match &row.result {
        Outcome::Scored(score) => cells.extend([
            seconds(score.hang.map(|hang| hang.onset_s)),
            score.hang.map_or("-".to_owned(), length),
            seconds(score.oom_kill_s),
            seconds(score.failed_s),
            if score.findings == 0 { "no findings".to_owned() } else { seconds(score.warned_s) },
            seconds(score.lead_s()),
            score.false_alarms.to_string(),
        ]),
        Outcome::Skipped(why) => cells.push(format!("skipped: {}", in_a_cell(why))),
        Outcome::Failed(why) => cells.push(format!("failed: {}", in_a_cell(why))),
    }
    cells.resize(HEADING.len() - 1, String::new());
    cells.push(format!("{:.0}", row.host.wall_s));
    cells
}

fn in_a_cell(text: &str) -> String {
    text.lines().next().unwrap_or_default().replace('|', "/")
}

fn seconds(at: Option<f64>) -> String {
    at.map_or("-".to_owned(), |at| format!("{at:.1}"))
}

fn length(hang: Hang) -> String {
    format!("{}{:.0} s", if hang.open { "over " } else { "" }, hang.length_s)
}

fn listed(shown: &[(String, f64)]) -> String {
    if shown.is_empty() {
        return "nothing".to_owned();
    }
    let shown = shown.iter().map(|(what, at)| format!("{what} ({at:.1})"));
    shown.collect::<Vec<_>>().join(", ")
}
