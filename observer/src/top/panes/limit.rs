//! Limits: what is nearly full, then what runtimes tell of themselves.

use super::{group, id, joined, level, plain, toned};
use crate::{
    signal::limit::{Bound, Facts, Runtime, View},
    snapshot::Snapshot,
    top::{
        Cell, Table, Tone,
        format::{bytes, count, duration, percent},
    },
};

/// Share of a limit from which on somebody should look.
const WARN: f64 = 0.80;

/// Share at which the next request may fail.
const BAD: f64 = 0.95;

/// Rows without urgency shown: the rest is in the JSON.
const MAX_PLAIN: usize = 64;

const COLUMNS: &[(&str, u16)] = &[
    (" PID", 7),
    ("NAME", 15),
    ("WHAT", 15),
    (" USED", 6),
    (" LIMIT", 6),
    (" FULL", 5),
    ("DETAIL", 0),
];

/// The pane of limits, the fullest first.
pub fn table(snapshot: &Snapshot) -> Table {
    let view = &snapshot.limit;
    let rows = view.rows.iter().take(MAX_PLAIN.max(urgent(view)));
    let rows = rows.map(|row| bound_row(snapshot, row));
    let runtimes = view.runtimes.iter().filter_map(|runtime| runtime_row(snapshot, runtime));
    Table { summary: summary(view), columns: COLUMNS, rows: rows.chain(runtimes).collect() }
}

fn urgent(view: &View) -> usize {
    view.rows.iter().filter(|row| tone(row) > Tone::Plain).count()
}

fn summary(view: &View) -> String {
    let host = &view.host;
    let fullest = view.rows.iter().find_map(|row| Some((row, row.share()?)));
    let fullest = fullest.map_or_else(
        || "nothing has a limit yet".to_owned(),
        |(row, share)| format!("{} is {} full", row.resource, percent(share)),
    );
    let mut parts = vec![fullest, count(view.rows.len() as u64, "limit", "limits")];
    parts.extend(host.overcommit_memory.map(|mode| format!("overcommit {mode}")));
    if !host.thp_enabled.is_empty() {
        parts.push(format!("huge pages {}", host.thp_enabled));
    }
    parts.join(", ")
}

/// What can be the most that there is, and not what there is, is no reason for an alarm.
fn tone(row: &Bound) -> Tone {
    match row.share() {
        Some(share) if !row.upper_estimate => level(share, WARN, BAD),
        _ => Tone::Plain,
    }
}

fn bound_row(snapshot: &Snapshot, row: &Bound) -> Vec<Cell> {
    let amount = |amount: u64| match row.unit.as_str() {
        "bytes" => bytes(amount),
        _ => amount.to_string(),
    };
    let limit = match (row.limit, row.source.as_str()) {
        (Some(limit), _) => amount(limit),
        (None, "unknown") => "?".to_owned(),
        (None, _) => "none".to_owned(),
    };
    let scope = if row.scope == "process" { "" } else { &row.scope };
    let estimate = if row.upper_estimate { "at most" } else { "" };
    let detail = joined(&joined(estimate, scope), &group(snapshot, row.pid));
    vec![
        id(row.pid),
        plain(&row.name),
        plain(&row.resource),
        plain(amount(row.used)),
        plain(limit),
        toned(row.share().map_or_else(String::new, percent), tone(row)),
        plain(detail),
    ]
}

/// What a runtime tells beside its limits.
fn runtime_row(snapshot: &Snapshot, runtime: &Runtime) -> Option<Vec<Cell>> {
    let detail = match &runtime.facts {
        Facts::Jvm(jvm) => format!(
            "Java {}, {} ({}), {} young ({})",
            jvm.version,
            count(jvm.full_collections, "full collection", "full collections"),
            duration(jvm.full_collection_ns),
            jvm.young_collections,
            duration(jvm.young_collection_ns)
        ),
        Facts::Redis(redis) if redis.maxmemory_known => {
            let save = if redis.save == Some(true) { ", saves" } else { "" };
            format!("{}{save}", redis.maxmemory_policy)
        }
        Facts::Postgres(postgres) => {
            format!("at most {} connections", postgres.max_connections?)
        }
        Facts::Pm2(daemon) => {
            format!("daemon of {}, {}", daemon.home, count(daemon.workers, "worker", "workers"))
        }
        Facts::Redis(_) | Facts::Node(_) => return None,
    };
    let mut cells = vec![id(runtime.pid), plain(&runtime.name)];
    cells.resize(COLUMNS.len() - 1, plain(""));
    cells.push(plain(joined(&detail, &group(snapshot, runtime.pid))));
    Some(cells)
}
