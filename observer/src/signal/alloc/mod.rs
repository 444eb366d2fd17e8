//! Allocations: which process holds how much memory, who grows, and from where in its code.

mod exit;
mod fold;
mod malloc;
#[cfg(test)]
mod tests;
mod view;

use std::time::Duration;

pub use self::{
    fold::{Alloc, Stack},
    malloc::asker,
    view::{AllocationStack, Failure, MallocProbe, ProcessMemory, View},
};
use crate::{
    config::{Config, Kind, Setting},
    signal::Signal,
    telemetry::{Metric, MetricKind},
    top::panes,
};

/// Failures kept for the snapshot: a crash loop of some workers over a minute.
pub const MAX_FAILURES: usize = 64;

/// Registry entry.
pub const SIGNAL: Signal = Signal {
    name: "alloc",
    help: "memory of each process, who grows, and the stacks that touch new pages",
    metrics: &[
        &MEMORY_USAGE,
        &MEMORY_ANON,
        &MEMORY_SWAP,
        &MEMORY_GROWTH,
        &CREATED,
        &EXITED,
        &SHORT_LIVED,
    ],
    settings: &[FAULT_PERIOD, STEP, GROWTH, EXPORTED, MALLOC_PROBE],
    table: panes::alloc::table,
};

/// Semantic convention.
pub(super) const MEMORY_USAGE: Metric = Metric {
    name: "process.memory.usage",
    unit: "By",
    kind: MetricKind::UpDownCounter,
    help: "Resident memory: anonymous, file and shared pages.",
};
pub(super) const MEMORY_ANON: Metric = Metric {
    name: "observer.process.memory.anon",
    unit: "By",
    kind: MetricKind::UpDownCounter,
    help: "Anonymous resident memory: heap, stacks, what only swap could free.",
};
pub(super) const MEMORY_SWAP: Metric = Metric {
    name: "observer.process.memory.swap",
    unit: "By",
    kind: MetricKind::UpDownCounter,
    help: "Memory swapped out.",
};
pub(super) const MEMORY_GROWTH: Metric = Metric {
    name: "observer.process.memory.growth",
    unit: "By/s",
    kind: MetricKind::Gauge,
    help: "Growth of anonymous, shared and swapped memory over the last ten seconds.",
};
/// Semantic convention.
pub(super) const CREATED: Metric = Metric {
    name: "system.process.created",
    unit: "{process}",
    kind: MetricKind::Counter,
    help: "Processes and threads forked since the agent started.",
};
pub(super) const EXITED: Metric = Metric {
    name: "observer.process.exited",
    unit: "{process}",
    kind: MetricKind::Counter,
    help: "Processes that exited since the agent started.",
};
pub(super) const SHORT_LIVED: Metric = Metric {
    name: "observer.process.short_lived",
    unit: "{process}",
    kind: MetricKind::Counter,
    help: "Of the processes that exited, those that lived less than a second.",
};

/// Sampling of page faults.
pub const FAULT_PERIOD: Setting = Setting {
    key: "alloc.fault_period",
    kind: Kind::Integer { min: 0, max: 1_000_000 },
    default: "64",
    otel: &[],
    help: "one page fault in this many is sampled with its user stack; 0 switches sampling off",
};
/// Event for a step.
pub const STEP: Setting = Setting {
    key: "alloc.step",
    kind: Kind::Bytes { min: 1 << 20, max: 1 << 40 },
    default: "64MiB",
    otel: &[],
    help: "growth of one process between two ticks that makes an event",
};
/// Who counts as growing.
pub const GROWTH: Setting = Setting {
    key: "alloc.growth",
    kind: Kind::Bytes { min: 1 << 10, max: 1 << 40 },
    default: "1MiB",
    otel: &[],
    help: "growth a second from which on a process's allocating stacks are collected",
};
/// How many processes are exported.
pub const EXPORTED: Setting = Setting {
    key: "alloc.exported_processes",
    kind: Kind::Integer { min: 1, max: 4096 },
    default: "64",
    otel: &[],
    help: "the largest processes whose memory is exported as metrics; growing ones are always exported",
};

/// Probing of a suspect.
pub const MALLOC_PROBE: Setting = Setting {
    key: "alloc.malloc_probe",
    kind: Kind::Bool,
    default: "true",
    otel: &[],
    help: "whether the malloc of a process is probed for up to ten seconds, once, when a finding says at WARN that its memory grows",
};

/// The settings, read once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// [`STEP`].
    pub step_bytes: u64,
    /// [`GROWTH`].
    pub growth_bytes_per_second: f64,
    /// [`EXPORTED`].
    pub exported: usize,
    /// How long growth is measured.
    pub window: Duration,
}

impl Limits {
    /// From the configuration.
    pub fn new(config: &Config) -> Self {
        Self {
            step_bytes: config.bytes(&STEP),
            growth_bytes_per_second: config.bytes(&GROWTH) as f64,
            exported: usize::try_from(config.integer(&EXPORTED)).unwrap_or(usize::MAX),
            window: Duration::from_secs(10),
        }
    }
}
