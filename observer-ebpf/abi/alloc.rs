//! Allocations: rows of the task iterator, sampled page faults, exits.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{COMM_LEN, Header, KERNEL_FRAMES};

/// Distinct user stacks kept between two reads; about 4 MiB of kernel memory.
pub const MAX_STACKS: u32 = 4096;

/// Distinct (process, stack) pairs counted between two reads.
pub const MAX_FAULT_SITES: u32 = 4096;

/// Set in [`TaskRow::flags`] for the first thread of a process: the memory fields are filled.
pub const TASK_LEADER: u32 = 1;
/// Set for a watched thread.
pub const TASK_WATCHED: u32 = 2;
/// Set for a kernel thread.
pub const TASK_KERNEL: u32 = 4;
/// Set for uninterruptible sleep: the stack is filled.
pub const TASK_BLOCKED: u32 = 8;

/// One task: every process, and of the other threads the watched and the blocked ones. Pages are the kernel's page size.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TaskRow {
    /// Process id.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
    /// Parent's process id.
    pub parent_tgid: u32,
    /// TASK_* bits.
    pub flags: u32,
    /// Start of the process, CLOCK_BOOTTIME.
    pub start_boottime_ns: u64,
    /// Command name.
    pub comm: [u8; COMM_LEN],
    /// File pages, may be slightly negative on a busy machine (per-CPU counters).
    pub file_pages: i64,
    /// Anonymous pages.
    pub anon_pages: i64,
    /// Swapped pages.
    pub swap_pages: i64,
    /// Shared memory pages.
    pub shmem_pages: i64,
    /// Page tables, bytes.
    pub page_table_bytes: u64,
    /// Time on a CPU of this thread.
    pub on_cpu_ns: u64,
    /// Run-queue delay of this thread, with the wait that is not over.
    pub run_delay_ns: u64,
    /// Voluntary context switches.
    pub voluntary_switches: u64,
    /// Involuntary context switches.
    pub involuntary_switches: u64,
    /// Threads of the process.
    pub threads: u32,
    /// oom_score_adj of the process.
    pub oom_score_adj: i32,
    /// Kernel stack of a blocked task, innermost first, zero-filled.
    pub stack: [u64; KERNEL_FRAMES],
}

/// Key of the table of sampled page faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FaultSite {
    /// Process id.
    pub tgid: u32,
    /// Key of the stack map.
    pub stack_id: u32,
}

/// Sampled faults at a [`FaultSite`].
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Faults {
    /// How many.
    pub samples: u64,
    /// Word at the top of the user stack, or the link register of arm64. In a leaf function without a frame, such as
    /// memset(3), it is the return address, and its caller is missing from the stack that frame pointers give.
    pub leaf_return: u64,
}

/// [`Exit::exit_code`] where the hook does not tell it.
pub const EXIT_CODE_UNKNOWN: u32 = u32::MAX;

/// A watched process has exited.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Exit {
    /// Who.
    pub header: Header,
    /// How long it lived.
    pub lifetime_ns: u64,
    /// As wait(2) encodes it: signal in the low 7 bits, exit status in bits 8 to 15; or [`EXIT_CODE_UNKNOWN`].
    pub exit_code: u32,
    /// Reserved, zero.
    pub reserved: u32,
}
