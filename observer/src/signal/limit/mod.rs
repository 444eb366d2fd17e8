//! Limits: how full everything is that has a bound, and how the host is set.

mod fold;
#[cfg(test)]
mod tests;
mod view;

pub use self::{
    fold::Limit,
    view::{Bound, Facts, Host, Jvm, Node, Pm2Daemon, Postgres, Redis, Runtime, View},
};
use crate::{
    config::{Kind, Setting},
    signal::Signal,
    telemetry::{Metric, MetricKind},
    top::panes,
};

/// Registry entry.
pub const SIGNAL: Signal = Signal {
    name: "limit",
    help: "how full everything is that has a bound: files, threads, ports, heaps of runtimes",
    metrics: &[&USAGE],
    settings: &[INTERVAL],
    table: panes::limit::table,
};

/// Of each row that has a limit.
pub(super) const USAGE: Metric = Metric {
    name: "observer.limit.usage",
    unit: "1",
    kind: MetricKind::Gauge,
    help: "Share of a limit that is in use: open files, threads, ports, heaps, as observer.limit.resource says.",
};

/// How often limits are read.
pub const INTERVAL: Setting = Setting {
    key: "limit.interval",
    kind: Kind::Duration { min_ms: 1000, max_ms: 600_000 },
    default: "10s",
    otel: &[],
    help: "how often open files, heaps and other limits are read; less often where a reading takes more than 1 % of a CPU",
};
