//! OOM precursors: memory pressure from the first reclaim to the kill, and how long until memory is gone.

mod episode;
mod fold;
#[cfg(test)]
mod tests;
mod view;

use std::time::Duration;

pub use self::{
    fold::Oom,
    view::{MemoryCgroup, OomKill, Pressure, Reclaimer, View},
};
use crate::{
    config::{Config, Kind, Setting},
    signal::Signal,
    telemetry::{Metric, MetricKind},
    top::panes,
};

/// Registry entry.
pub const SIGNAL: Signal = Signal {
    name: "oom",
    help: "memory pressure: headroom, time to exhaustion, reclaim, PSI, memory cgroups, OOM kills",
    metrics: &[
        &AVAILABLE,
        &HEADROOM,
        &EXHAUSTION,
        &PRESSURE,
        &DIRECT_RECLAIMS,
        &DIRECT_RECLAIM_TIME,
        &KSWAPD_WAKES,
        &COMPACTIONS,
        &THROTTLES,
        &OOM_RETRIES,
        &REFAULTS,
        &KILLS,
        &CGROUP_USAGE,
        &CGROUP_LIMIT,
        &CGROUP_LIMIT_HITS,
    ],
    settings: &[RECLAIM_THRESHOLD, FLOOR],
    table: panes::oom::table,
};

macro_rules! metrics {
    ($($name:ident = $otel:literal, $unit:literal, $kind:ident, $help:literal;)+) => {
        $(pub(super) const $name: Metric = Metric { name: $otel, unit: $unit, kind: MetricKind::$kind, help: $help };)+
    };
}

metrics! {
    AVAILABLE = "system.memory.linux.available", "By", UpDownCounter, "MemAvailable.";
    HEADROOM = "observer.memory.headroom", "By", UpDownCounter, "MemAvailable above the floor at which a host begins to thrash.";
    EXHAUSTION = "observer.memory.exhaustion", "s", Gauge, "Time until memory is gone, as finding memory.exhaustion says; absent while it is not raised.";
    PRESSURE = "observer.pressure.stall_time", "s", Counter, "Time that tasks were stalled, by resource and scope (PSI).";
    DIRECT_RECLAIMS = "observer.memory.direct_reclaims", "{reclaim}", Counter, "Allocations that had to free memory themselves.";
    DIRECT_RECLAIM_TIME = "observer.memory.direct_reclaim_time", "s", Counter, "Time in direct reclaim.";
    KSWAPD_WAKES = "observer.memory.kswapd_wakes", "{wake}", Counter, "Wake-ups of kswapd.";
    COMPACTIONS = "observer.memory.compactions", "{compaction}", Counter, "Runs of memory compaction.";
    THROTTLES = "observer.memory.throttles", "{throttle}", Counter, "Times a task was held back in reclaim.";
    OOM_RETRIES = "observer.memory.oom_retries", "{retry}", Counter, "Last retries of the allocator before an OOM kill.";
    REFAULTS = "observer.memory.file_refaults", "{page}", Counter, "File pages read back soon after their eviction.";
    KILLS = "observer.oom.kills", "{process}", Counter, "Processes killed by the OOM killer.";
    CGROUP_USAGE = "observer.cgroup.memory.usage", "By", UpDownCounter, "Memory of a control group with a limit.";
    CGROUP_LIMIT = "observer.cgroup.memory.limit", "By", UpDownCounter, "Its limit.";
    CGROUP_LIMIT_HITS = "observer.cgroup.memory.limit_hits", "{hit}", Counter, "Times the limit was hit.";
}

/// Span for a long reclaim.
pub const RECLAIM_THRESHOLD: Setting = Setting {
    key: "oom.reclaim_threshold",
    kind: Kind::Duration { min_ms: 1, max_ms: 60_000 },
    default: "10ms",
    otel: &[],
    help: "direct reclaim of one allocation that makes a span",
};
/// Share of memory below which a host counts as exhausted.
pub const FLOOR: Setting = Setting {
    key: "oom.floor_percent",
    kind: Kind::Integer { min: 0, max: 50 },
    default: "8",
    otel: &[],
    help: "share of the memory, in percent, that must stay available: below it a host without swap begins to thrash",
};

/// The settings, read once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// [`FLOOR`].
    pub floor_percent: u64,
    /// A pressure episode is over after this long without a trigger.
    pub calm: Duration,
}

impl Limits {
    /// From the configuration.
    pub fn new(config: &Config) -> Self {
        Self { floor_percent: config.integer(&FLOOR), calm: Duration::from_secs(10) }
    }
}
