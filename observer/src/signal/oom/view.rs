//! What the snapshot holds of `oom`; field names and units are those of docs/snapshot-json.md.

use serde::{Deserialize, Serialize};

/// What `top` and the JSON snapshot show of memory pressure.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct View {
    /// MemTotal.
    pub memory_total_bytes: u64,
    /// MemAvailable.
    pub memory_available_bytes: u64,
    /// SwapTotal.
    pub swap_total_bytes: u64,
    /// SwapFree.
    pub swap_free_bytes: u64,
    /// MemAvailable above the floor at which a host without swap begins to thrash.
    pub headroom_bytes: u64,
    /// Seconds until memory is gone, as finding `memory.exhaustion` says; `None` while it is not raised, or without a trend.
    pub exhaustion_seconds: Option<f64>,
    /// The process that finding `memory.exhaustion` blames.
    pub culprit_pid: Option<u32>,
    /// Pressure stall information, one row a resource and scope.
    pub pressure: Vec<Pressure>,
    /// Whether kswapd is reclaiming now on any node.
    pub kswapd_awake: bool,
    /// Times kswapd was woken since the agent started.
    pub kswapd_wakes: u64,
    /// Direct reclaims since the agent started.
    pub direct_reclaims: u64,
    /// Time spent in direct reclaim since the agent started.
    pub direct_reclaim_ns: u64,
    /// Compactions since the agent started.
    pub compactions: u64,
    /// Times a task was throttled in reclaim since the agent started.
    pub throttles: u64,
    /// Rounds of the allocator's last retries before an OOM kill.
    pub oom_retries: u64,
    /// File pages read back soon after their eviction, per second.
    pub refault_per_second: f64,
    /// Refaults per second divided by the pages of the file LRU lists.
    pub refault_ratio: f64,
    /// Bytes read from disks for files and swap, per second.
    #[serde(default)]
    pub disk_read_bytes_per_second: f64,
    /// Bytes written to disks, per second.
    #[serde(default)]
    pub disk_written_bytes_per_second: f64,
    /// Pages of files on the LRU lists: what reclaim can take first.
    #[serde(default)]
    pub file_lru_bytes: u64,
    /// Anonymous pages (AnonPages).
    #[serde(default)]
    pub anon_bytes: u64,
    /// Shared memory and tmpfs (Shmem).
    #[serde(default)]
    pub shmem_bytes: u64,
    /// Kernel objects that reclaim cannot take (SUnreclaim).
    #[serde(default)]
    pub slab_unreclaimable_bytes: u64,
    /// Page tables of all processes (PageTables).
    #[serde(default)]
    pub page_table_bytes: u64,
    /// Memory that processes were promised (Committed_AS).
    #[serde(default)]
    pub committed_bytes: u64,
    /// Page faults that had to read from disk, per second.
    #[serde(default)]
    pub major_faults_per_second: f64,
    /// Cores that kswapd, kcompactd and khugepaged used over the last second.
    #[serde(default)]
    pub reclaim_cpu_ratio: f64,
    /// Processes that reclaimed, the longest first.
    pub reclaimers: Vec<Reclaimer>,
    /// Memory cgroups of watched processes and of those near their limit.
    pub cgroups: Vec<MemoryCgroup>,
    /// The last OOM kills, the newest first.
    pub kills: Vec<OomKill>,
}

/// One line of `/proc/pressure/*` (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Pressure {
    /// `memory`, `io` or `cpu`.
    pub resource: String,
    /// `some` or `full`.
    pub scope: String,
    /// Share of the last ten seconds that was stalled, in percent.
    pub avg10_percent: f64,
    /// Total stalled time since boot.
    pub total_ns: u64,
    /// Times the kernel's trigger fired since the agent started.
    pub triggers: u64,
}

/// Direct reclaim done by one process since the agent started.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Reclaimer {
    /// Process id.
    pub pid: u32,
    /// Command name.
    pub name: String,
    /// Direct reclaims.
    pub count: u64,
    /// Time in them.
    pub total_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// Pages freed.
    pub pages: u64,
}

/// A memory cgroup, v1 or v2.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct MemoryCgroup {
    /// Path below the hierarchy's root.
    pub path: String,
    /// Usage.
    pub usage_bytes: u64,
    /// Limit; `None` if unlimited.
    pub limit_bytes: Option<u64>,
    /// Times the limit was hit (v1 failcnt, v2 memory.events max).
    pub limit_hits: u64,
    /// OOM kills in it.
    pub oom_kills: u64,
}

/// One OOM kill (tracepoint oom:mark_victim).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct OomKill {
    /// When.
    pub time_unix_ns: u64,
    /// Who was killed.
    pub victim_pid: u32,
    /// Its command name.
    pub victim_name: String,
    /// Whose allocation set it off.
    pub trigger_pid: u32,
    /// Its command name.
    pub trigger_name: String,
    /// The victim's anonymous memory.
    pub anon_bytes: u64,
    /// The victim's mapped file pages.
    pub file_bytes: u64,
    /// The victim's shared memory.
    pub shmem_bytes: u64,
    /// The victim's page tables.
    pub page_table_bytes: u64,
    /// The victim's oom_score_adj.
    pub oom_score_adj: i32,
    /// Whether a memory cgroup's limit caused it, not the host's memory.
    pub in_cgroup: bool,
}
