//! Scheduler and event-loop stalls: who is blocked, which loop does not turn, who waits for a CPU.

use super::{group, id, joined, level, plain, toned};
use crate::{
    signal::sched::{BlockedTask, CpuCgroup, EventLoop, Thread},
    snapshot::Snapshot,
    top::{
        Cell, Table, Tone,
        format::{count, duration, percent},
    },
};

/// Share of a second that a thread waits for a CPU before its latency is felt.
const RUN_DELAY_WARN: f64 = 0.10;

/// Share at which it is starved.
const RUN_DELAY_BAD: f64 = 0.40;

/// A gap of an event loop that every request of that second feels.
const GAP_WARN_NS: u64 = 100_000_000;

/// A gap at which health checks begin to fail.
const GAP_BAD_NS: u64 = 1_000_000_000;

/// A task in uninterruptible sleep for this long waits for a disk that hardly answers. The view has none below 1 s.
const BLOCKED_BAD_NS: u64 = 10_000_000_000;

/// Share of CPU quota periods that were throttled.
const THROTTLED_WARN: f64 = 0.05;

/// Share at which the quota sets the latency.
const THROTTLED_BAD: f64 = 0.25;

/// A thread that is never off its CPU has no turn left for anything else.
const ON_CPU_WARN: f64 = 0.95;

const COLUMNS: &[(&str, u16)] = &[
    (" PID", 7),
    (" TID", 7),
    ("THREAD", 15),
    (" CPU", 5),
    (" DELAY", 5),
    (" GAP", 6),
    ("WHY", 0),
];

/// The pane of stalls: blocked tasks, throttled cgroups, then threads in the order of the view.
pub fn table(snapshot: &Snapshot) -> Table {
    let view = &snapshot.sched;
    let blocked = view.blocked.iter().map(blocked_row);
    let throttled = view.throttled.iter().map(throttled_row);
    let threads = view.threads.iter().map(|thread| thread_row(snapshot, thread));
    Table {
        summary: summary(snapshot),
        columns: COLUMNS,
        rows: blocked.chain(throttled).chain(threads).collect(),
    }
}

fn summary(snapshot: &Snapshot) -> String {
    let view = &snapshot.sched;
    let stuck = view.threads.iter().filter(|thread| open_ns(thread) >= GAP_WARN_NS).count() as u64;
    let mut parts = vec![
        format!("CPUs {} busy, {} stolen", percent(view.busy_ratio), percent(view.steal_ratio)),
        count(view.watched, "thread watched", "threads watched"),
        format!("{} since start", count(view.stalls, "stall", "stalls")),
    ];
    if stuck > 0 {
        parts.push(count(stuck, "event loop stands still", "event loops stand still"));
    }
    if !view.blocked.is_empty() {
        parts.push(count(view.blocked.len() as u64, "task in D state", "tasks in D state"));
    }
    parts.join(", ")
}

fn open_ns(thread: &Thread) -> u64 {
    thread.event_loop.as_ref().map_or(0, |event_loop| event_loop.open_ns)
}

fn blocked_row(task: &BlockedTask) -> Vec<Cell> {
    let tone = if task.blocked_ns >= BLOCKED_BAD_NS { Tone::Bad } else { Tone::Warn };
    vec![
        id(task.pid),
        id(task.tid),
        plain(&task.name),
        plain(""),
        plain(""),
        toned(duration(task.blocked_ns), tone),
        toned(format!("D state: {}", task.stack.join(" < ")), tone),
    ]
}

fn throttled_row(cgroup: &CpuCgroup) -> Vec<Cell> {
    let tone = level(cgroup.throttled_ratio, THROTTLED_WARN, THROTTLED_BAD);
    vec![
        plain(""),
        plain(""),
        plain("CPU quota"),
        plain(""),
        toned(percent(cgroup.throttled_ratio), tone),
        plain(""),
        plain(format!("{} throttled, {} since boot", cgroup.path, duration(cgroup.throttled_ns))),
    ]
}

fn thread_row(snapshot: &Snapshot, thread: &Thread) -> Vec<Cell> {
    let (gap, why) = match &thread.event_loop {
        Some(event_loop) => gap_cells(event_loop),
        None => (plain(""), String::new()),
    };
    vec![
        id(thread.pid),
        id(thread.tid),
        plain(&thread.name),
        toned(percent(thread.on_cpu_ratio), level(thread.on_cpu_ratio, ON_CPU_WARN, f64::INFINITY)),
        toned(
            percent(thread.run_delay_ratio),
            level(thread.run_delay_ratio, RUN_DELAY_WARN, RUN_DELAY_BAD),
        ),
        gap,
        plain(joined(&why, &group(snapshot, thread.pid))),
    ]
}

/// A gap that is still open, with what it consists of; else the longest of the last minute.
fn gap_cells(event_loop: &EventLoop) -> (Cell, String) {
    let tone = |ns| level(ns, GAP_WARN_NS, GAP_BAD_NS);
    if event_loop.open_ns >= GAP_WARN_NS {
        let why = format!(
            "stands still: {} on CPU, {} waiting for one, {} blocked",
            duration(event_loop.open_on_cpu_ns),
            duration(event_loop.open_waiting_ns),
            duration(event_loop.open_blocked_ns)
        );
        return (toned(duration(event_loop.open_ns), tone(event_loop.open_ns)), why);
    }
    let why = format!(
        "event loop, {} in {}",
        count(event_loop.gaps, "gap", "gaps"),
        count(event_loop.turns, "turn", "turns")
    );
    (toned(duration(event_loop.max_ns), tone(event_loop.max_ns)), why)
}
