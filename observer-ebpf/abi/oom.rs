//! OOM precursors: reclaim and the kill.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Header;

/// Tasks inside reclaim or compaction at one instant.
pub const MAX_RECLAIMING: u32 = 4096;

/// Processes whose reclaim is summed; the least recent goes first.
pub const MAX_RECLAIMERS: u32 = 1024;

/// What a task is inside of.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Reclaiming {
    /// Since when, CLOCK_MONOTONIC.
    pub start_ktime_ns: u64,
}

/// Reclaim done by one process.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Reclaimer {
    /// Reclaims.
    pub count: u64,
    /// Of these, for a memory cgroup.
    pub memcg_count: u64,
    /// Time in them.
    pub total_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// Pages freed.
    pub pages: u64,
    /// End of the last one, CLOCK_MONOTONIC.
    pub last_ktime_ns: u64,
    /// Whether the last one was for a memory cgroup.
    pub last_was_memcg: u64,
}

/// A reclaim longer than the threshold; the header's time is its end.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Reclaim {
    /// Who.
    pub header: Header,
    /// How long.
    pub duration_ns: u64,
    /// Pages freed.
    pub pages: u64,
    /// 1 if for a memory cgroup.
    pub memcg: u64,
}

/// An OOM kill. The header names the victim.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Kill {
    /// The victim.
    pub header: Header,
    /// Process whose allocation set it off.
    pub trigger_tgid: u32,
    /// Its thread.
    pub trigger_tid: u32,
    /// Its command name.
    pub trigger_comm: [u8; crate::COMM_LEN],
    /// The victim's anonymous pages.
    pub anon_pages: i64,
    /// The victim's file pages.
    pub file_pages: i64,
    /// The victim's shared memory pages.
    pub shmem_pages: i64,
    /// The victim's swapped pages.
    pub swap_pages: i64,
    /// The victim's page tables, bytes.
    pub page_table_bytes: u64,
    /// The victim's start, CLOCK_BOOTTIME.
    pub start_boottime_ns: u64,
    /// The victim's oom_score_adj.
    pub oom_score_adj: i32,
    /// 1 if the trigger was reclaiming for a memory cgroup.
    pub memcg: u32,
}
