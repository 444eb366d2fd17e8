//! Scheduler and event-loop stalls: who waits for a CPU, who is blocked on what, and which event loop does not turn.

mod disk;
mod fold;
mod poller;
mod recent;
mod span;
#[cfg(test)]
mod tests;
mod view;
mod watchlist;

pub use self::{
    fold::Sched,
    view::{
        BlockedTask, Consumer, CpuCgroup, Disk, EventLoop, Sender, Thread, Uninterruptible, View,
    },
    watchlist::Watchlist,
};
use crate::{
    config::{Kind, Setting},
    signal::Signal,
    telemetry::{Metric, MetricKind},
    top::panes,
};

/// Registry entry.
pub const SIGNAL: Signal = Signal {
    name: "sched",
    help: "run-queue delay, off-CPU stalls, D state, CPU quota and steal, event-loop gaps",
    metrics: &[&RUN_DELAY, &LOOP_GAP, &LOOP_OPEN, &STALLS, &STEAL, &BUSY, &THROTTLED],
    settings: &[GAP_THRESHOLD, STALL_THRESHOLD, RUN_DELAY_THRESHOLD, WATCH],
    table: panes::sched::table,
};

pub(super) const RUN_DELAY: Metric = Metric {
    name: "observer.sched.run_delay",
    unit: "s",
    kind: MetricKind::Counter,
    help: "Time that watched threads of a process were runnable but waited for a CPU.",
};
pub(super) const LOOP_GAP: Metric = Metric {
    name: "observer.event_loop.turn",
    unit: "s",
    kind: MetricKind::Histogram,
    help: "Turns of a process's event loops: from a wake-up to the next wait in epoll.",
};
pub(super) const LOOP_OPEN: Metric = Metric {
    name: "observer.event_loop.open_gap",
    unit: "s",
    kind: MetricKind::Gauge,
    help: "The longest turn that is not over yet.",
};
pub(super) const STALLS: Metric = Metric {
    name: "observer.sched.stalls",
    unit: "{stall}",
    kind: MetricKind::Counter,
    help: "Stalls and event-loop gaps over their thresholds.",
};
pub(super) const STEAL: Metric = Metric {
    name: "observer.cpu.steal",
    unit: "1",
    kind: MetricKind::Gauge,
    help: "Share of CPU time that the hypervisor gave to someone else.",
};
/// Semantic convention.
pub(super) const BUSY: Metric = Metric {
    name: "system.cpu.utilization",
    unit: "1",
    kind: MetricKind::Gauge,
    help: "Share of CPU time in which something ran, over all CPUs.",
};
pub(super) const THROTTLED: Metric = Metric {
    name: "observer.cgroup.cpu.throttled",
    unit: "s",
    kind: MetricKind::Counter,
    help: "Time that a control group was held back by its CPU quota.",
};

/// Event-loop gaps.
pub const GAP_THRESHOLD: Setting = Setting {
    key: "sched.gap_threshold",
    kind: Kind::Duration { min_ms: 1, max_ms: 60_000 },
    default: "40ms",
    otel: &[],
    help: "turn of an event loop that makes a span",
};
/// Off-CPU stalls.
pub const STALL_THRESHOLD: Setting = Setting {
    key: "sched.stall_threshold",
    kind: Kind::Duration { min_ms: 1, max_ms: 60_000 },
    default: "100ms",
    otel: &[],
    help: "time that a watched thread is blocked that makes a span",
};
/// Run-queue delay.
pub const RUN_DELAY_THRESHOLD: Setting = Setting {
    key: "sched.run_delay_threshold",
    kind: Kind::Duration { min_ms: 1, max_ms: 60_000 },
    default: "50ms",
    otel: &[],
    help: "one wait of a watched thread for a CPU that makes a span",
};
/// Further processes to watch.
pub const WATCH: Setting = Setting {
    key: "sched.watch",
    kind: Kind::List,
    default: "",
    otel: &[],
    help: "command names of processes to watch, beside those that listen or own connections to databases",
};
