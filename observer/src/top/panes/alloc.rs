//! Allocations: who holds memory, who grows, and from where.

use super::{group, id, joined, level, plain, toned};
use crate::{
    signal::alloc::ProcessMemory,
    snapshot::Snapshot,
    top::{
        Cell, Table, Tone,
        format::{bytes, count, percent, rate},
    },
};

/// Growth below this is noise: it would take a day to fill 1 GiB.
const GROWTH_MIN_BYTES_PER_SECOND: f64 = 16.0 * 1024.0;

/// A process that fills the host's headroom within this many seconds, at its present growth, deserves a look.
const FILLS_WARN_SECONDS: f64 = 30.0 * 60.0;

/// Within this many seconds it is an emergency.
const FILLS_BAD_SECONDS: f64 = 5.0 * 60.0;

/// Share of the host's memory that one process holds before it is coloured.
const SHARE_WARN: f64 = 0.5;

/// Share at which there is hardly room for anything else.
const SHARE_BAD: f64 = 0.8;

const COLUMNS: &[(&str, u16)] = &[
    (" PID", 7),
    ("NAME", 15),
    (" GROWTH", 8),
    (" RSS", 5),
    (" ANON", 5),
    (" SHMEM", 5),
    (" SWAP", 5),
    ("FROM", 0),
];

/// The pane of allocations: growing processes first, then the largest.
pub fn table(snapshot: &Snapshot) -> Table {
    let processes = &snapshot.alloc.processes;
    let urgent = |process: &&ProcessMemory| growth_tone(snapshot, process) != Tone::Plain;
    let mut growing: Vec<_> = processes.iter().filter(urgent).collect();
    growing.sort_by(|a, b| b.growth_bytes_per_second.total_cmp(&a.growth_bytes_per_second));
    let rest = processes.iter().filter(|process| !urgent(process));
    let rows: Vec<_> =
        growing.iter().copied().chain(rest).map(|process| row(snapshot, process)).collect();
    Table { summary: summary(snapshot), columns: COLUMNS, rows }
}

fn summary(snapshot: &Snapshot) -> String {
    let view = &snapshot.alloc;
    let grower = view
        .processes
        .iter()
        .filter(|process| process.growth_bytes_per_second >= GROWTH_MIN_BYTES_PER_SECOND)
        .max_by(|a, b| a.growth_bytes_per_second.total_cmp(&b.growth_bytes_per_second));
    let grows = match grower {
        Some(process) => {
            format!(
                "{} {} grows {}",
                process.name,
                process.pid,
                rate(process.growth_bytes_per_second)
            )
        }
        None => "nobody grows".to_owned(),
    };
    format!(
        "{grows}; {}, {}, {}, {} short-lived",
        count(view.process_count, "process", "processes"),
        count(view.forks, "fork", "forks"),
        count(view.execs, "exec", "execs"),
        view.short_lived
    )
}

fn row(snapshot: &Snapshot, process: &ProcessMemory) -> Vec<Cell> {
    let share = process.rss_bytes as f64 / snapshot.oom.memory_total_bytes.max(1) as f64;
    let share_tone = if snapshot.oom.memory_total_bytes == 0 {
        Tone::Plain
    } else {
        level(share, SHARE_WARN, SHARE_BAD)
    };
    let growth = process.growth_bytes_per_second;
    let shown =
        if growth.abs() >= GROWTH_MIN_BYTES_PER_SECOND { rate(growth) } else { String::new() };
    vec![
        id(process.pid),
        plain(&process.name),
        toned(shown, growth_tone(snapshot, process)),
        toned(bytes(process.rss_bytes), share_tone),
        plain(bytes(process.anon_bytes)),
        plain(bytes(process.shmem_bytes)),
        plain(bytes(process.swap_bytes)),
        plain(from(snapshot, process)),
    ]
}

/// How soon this growth alone would use up what the host has left.
fn growth_tone(snapshot: &Snapshot, process: &ProcessMemory) -> Tone {
    let growth = process.growth_bytes_per_second;
    if snapshot.oom.memory_total_bytes == 0 || growth < GROWTH_MIN_BYTES_PER_SECOND {
        return Tone::Plain;
    }
    let seconds = snapshot.oom.headroom_bytes as f64 / growth;
    if seconds <= FILLS_BAD_SECONDS {
        Tone::Bad
    } else if seconds <= FILLS_WARN_SECONDS {
        Tone::Warn
    } else {
        Tone::Plain
    }
}

/// What the process belongs to, and the stack that touched most new pages.
fn from(snapshot: &Snapshot, process: &ProcessMemory) -> String {
    let stack = process.stacks.first();
    let stack = stack.map(|stack| format!("{} {}", percent(stack.share), stack.frames.join(" < ")));
    joined(&group(snapshot, process.pid), &stack.unwrap_or_default())
}
