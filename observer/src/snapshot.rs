//! The one model of what the agent knows now. `top`, the JSON output, the exporter and later the recorder read it.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    detect,
    identity::Process,
    signal::{alloc, limit, oom, sched, tcp},
};

/// Version of the JSON form; raised when a field changes its meaning or goes away.
pub const VERSION: u32 = 1;

/// Bound of every table in a snapshot. What falls off is counted beside the table.
pub const MAX_ROWS: usize = 4096;

/// What is known at one instant.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`VERSION`].
    pub version: u32,
    /// When it was taken.
    pub time_unix_ns: u64,
    /// Host name.
    pub host_name: String,
    /// Kernel release.
    pub kernel: String,
    /// Time since boot.
    pub uptime_ns: u64,
    /// Allocations.
    pub alloc: alloc::View,
    /// OOM precursors.
    pub oom: oom::View,
    /// TCP lifetimes.
    pub tcp: tcp::View,
    /// Scheduler and event-loop stalls.
    pub sched: sched::View,
    /// Findings.
    #[serde(default)]
    pub detect: detect::View,
    /// How full everything is that has a bound.
    #[serde(default)]
    pub limit: limit::View,
    /// Identity of every process that a row names, by pid.
    pub processes: BTreeMap<u32, Arc<Process>>,
    /// The observer itself.
    pub health: Health,
}

/// What the agent can see and what it costs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Health {
    /// One row a BPF program or kernel interface.
    pub programs: Vec<Program>,
    /// One row a place where something can be lost, also while nothing is.
    pub losses: Vec<Loss>,
    /// CPU of the agent's user side, in cores, over the last ten seconds.
    pub cpu_ratio: f64,
    /// Resident memory of the agent.
    pub rss_bytes: u64,
    /// Memory of its BPF maps.
    pub bpf_map_bytes: u64,
    /// One row a destination.
    pub exporters: Vec<Exporter>,
}

/// Whether a program runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Runs on the best hook.
    #[default]
    Attached,
    /// Waits until it is needed.
    Standby,
    /// Runs on a lesser hook, or sees less.
    Degraded,
    /// Does not run.
    Impossible,
}

/// One BPF program or kernel interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Name, as in the BPF object.
    pub name: String,
    /// Signal that it serves.
    pub signal: String,
    /// Where it is attached, such as `tp_btf/sched_switch`.
    pub hook: String,
    /// Whether it runs.
    pub verdict: Verdict,
    /// Why not, or how degraded; empty if attached.
    pub reason: String,
    /// What to do about it; empty if attached.
    pub remedy: String,
}

/// A place where something can be lost, and how much was.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Loss {
    /// Place, such as `ring.tcp`, `ledger.full`, `export.queue`.
    pub stage: String,
    /// Lost since the agent started.
    pub count: u64,
}

/// State of one destination of telemetry.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Exporter {
    /// `store`, `out` or `otlp`.
    pub name: String,
    /// Where to, without credentials.
    pub destination: String,
    /// `open`, `backoff` or `held`.
    pub state: String,
    /// Why it is not open.
    pub reason: String,
    /// Items accepted by the destination.
    pub sent: u64,
    /// Items dropped.
    pub dropped: u64,
    /// Requests waiting.
    pub queued: u64,
}
