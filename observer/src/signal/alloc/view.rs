//! What the snapshot holds of `alloc`; field names and units are those of docs/snapshot-json.md.

use serde::{Deserialize, Serialize};

/// What `top` and the JSON snapshot show of allocations.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct View {
    /// Processes, the largest first; bounded by [`crate::snapshot::MAX_ROWS`].
    pub processes: Vec<ProcessMemory>,
    /// Processes on the host, also those beyond the bound.
    pub process_count: u64,
    /// Forks since the agent started.
    pub forks: u64,
    /// Execs since the agent started.
    pub execs: u64,
    /// Process exits since the agent started.
    pub exits: u64,
    /// Of these, processes that lived less than a second.
    pub short_lived: u64,
    /// Page faults sampled with their stacks since the agent started, those included whose stack was lost (`alloc.stacks`).
    #[serde(default)]
    pub fault_samples: u64,
    /// Processes that ended with an exit code or by a signal, the newest first; bounded by [`super::MAX_FAILURES`].
    #[serde(default)]
    pub failures: Vec<Failure>,
}

/// Memory of one process. `pid` finds its identity in [`Snapshot::processes`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ProcessMemory {
    /// Process id.
    pub pid: u32,
    /// Command name.
    pub name: String,
    /// Anonymous + file + shared memory that is resident.
    pub rss_bytes: u64,
    /// Anonymous memory.
    pub anon_bytes: u64,
    /// Mapped file pages.
    pub file_bytes: u64,
    /// Shared memory.
    pub shmem_bytes: u64,
    /// Swapped out.
    pub swap_bytes: u64,
    /// Page tables.
    pub page_table_bytes: u64,
    /// Growth of anon + shmem + swap over the last ten seconds.
    pub growth_bytes_per_second: f64,
    /// Stacks that touched new pages most, only for processes that grow.
    pub stacks: Vec<AllocationStack>,
    /// What was found in its allocator when it was last probed; null if it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub malloc: Option<MallocProbe>,
}

/// The allocator of a process, probed for some seconds because a finding named it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MallocProbe {
    /// When it was over.
    pub time_unix_ns: u64,
    /// One sentence: how long it took and what ended it, or why it could not be done.
    pub outcome: String,
    /// For how long allocations were seen.
    pub probed_ns: u64,
    /// Hits of probes: calls, and returns of functions that allocate.
    pub hits: u64,
    /// Allocations that were sampled, freed ones included.
    pub samples: u64,
    /// Samples that found no room.
    pub lost: u64,
    /// Bytes that were allocated meanwhile and not freed, as estimated from the samples.
    pub outstanding_bytes: u64,
    /// Who asked for most of them; `share` is of these bytes, `samples` those of the stack that were not freed.
    pub stacks: Vec<AllocationStack>,
}

/// A process that ended abnormally. `pid` finds its identity in [`Snapshot::processes`], if it was known.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    /// When.
    pub time_unix_ns: u64,
    /// Process id.
    pub pid: u32,
    /// Command name.
    pub name: String,
    /// What it passed to exit(2); null if a signal ended it, or the hook does not tell.
    pub exit_code: Option<u32>,
    /// The signal that ended it; null if none did, or the hook does not tell.
    pub signal: Option<u32>,
    /// How long it lived; 0 if not known.
    pub lived_ns: u64,
    /// When it started, as in [`crate::identity::Process`]: who has its pid now may be another; 0 if not known.
    pub start_unix_ns: u64,
    /// Its parent, such as the daemon of PM2; 0 if not known.
    pub parent_pid: u32,
    /// Its `service_name`; the command name, if it ended before it was looked at.
    pub service_name: String,
}

/// One stack of sampled page faults, or of allocations that were sampled in [`MallocProbe`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AllocationStack {
    /// Function names, innermost first; an address where no symbol is known.
    pub frames: Vec<String>,
    /// Share of the process's sampled faults, or of its bytes that were not freed, 0 to 1.
    pub share: f64,
    /// Sampled faults, or allocations.
    pub samples: u64,
}
