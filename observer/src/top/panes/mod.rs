//! The panes: findings, then one a signal, each a table from the snapshot alone. Files and functions carry the signal's word.
//!
//! Rows that need a person come first; colours follow thresholds that are named at the top of each file.

pub mod alloc;
pub mod findings;
pub mod limit;
pub mod oom;
pub mod sched;
pub mod tcp;

use super::{Cell, Table, Tone};
use crate::{signal, snapshot::Snapshot};

/// One pane of the screen.
pub(super) struct Pane {
    /// Its word.
    pub(super) name: &'static str,
    /// One sentence for people.
    pub(super) help: &'static str,
    /// What it shows.
    pub(super) table: fn(&Snapshot) -> Table,
    /// All that is known of a row of the table; nothing if the table has it all.
    pub(super) details: fn(&Snapshot, usize) -> Vec<String>,
}

/// How many panes there are.
pub(super) const COUNT: usize = 1 + signal::ALL.len();

/// All panes, in their order: findings, then the registry of signals.
pub(super) fn all() -> impl Iterator<Item = Pane> {
    let findings = Pane {
        name: "findings",
        help: "what is about to break, by whom, and what to do",
        table: findings::table,
        details: findings::details,
    };
    let of_signal = |signal: &&'static signal::Signal| Pane {
        name: signal.name,
        help: signal.help,
        table: signal.table,
        details: |_snapshot, _row| Vec::new(),
    };
    std::iter::once(findings).chain(signal::ALL.iter().map(of_signal))
}

/// A cell without urgency.
fn plain(text: impl Into<String>) -> Cell {
    Cell { text: text.into(), tone: Tone::Plain }
}

/// A cell with a tone.
fn toned(text: impl Into<String>, tone: Tone) -> Cell {
    Cell { text: text.into(), tone }
}

/// A number that may be missing: 0 is an empty cell.
fn id(number: u32) -> Cell {
    plain(if number == 0 { String::new() } else { number.to_string() })
}

/// The tone of a value that is worse the larger it is.
fn level<T: PartialOrd>(value: T, warn: T, bad: T) -> Tone {
    if value >= bad {
        Tone::Bad
    } else if value >= warn {
        Tone::Warn
    } else {
        Tone::Plain
    }
}

/// What a person calls the process: PM2 application and worker, container, unit, or service name; empty if only the
/// command name is known.
fn group(snapshot: &Snapshot, pid: u32) -> String {
    let Some(process) = snapshot.processes.get(&pid) else { return String::new() };
    match &process.pm2 {
        Some(pm2) => format!("pm2 {}/{}", pm2.app, pm2.worker),
        None if !process.container_id.is_empty() => {
            format!("container {:.12}", process.container_id)
        }
        None if !process.unit.is_empty() => process.unit.clone(),
        None if process.service_name != process.name => process.service_name.clone(),
        None => String::new(),
    }
}

/// Command name and pid, as `node 4711`.
fn named(name: &str, pid: u32) -> String {
    match (name, pid) {
        ("", 0) => "?".to_owned(),
        ("", pid) => format!("pid {pid}"),
        (name, 0) => name.to_owned(),
        (name, pid) => format!("{name} {pid}"),
    }
}

/// Both texts, or the one that is not empty.
fn joined(first: &str, second: &str) -> String {
    let separator = if first.is_empty() || second.is_empty() { "" } else { "; " };
    format!("{first}{separator}{second}")
}
