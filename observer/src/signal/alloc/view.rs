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
}

/// One stack of sampled page faults.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct AllocationStack {
    /// Function names, innermost first; an address where no symbol is known.
    pub frames: Vec<String>,
    /// Share of the process's sampled faults, 0 to 1.
    pub share: f64,
    /// Sampled faults.
    pub samples: u64,
}
