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

/// Failures that one CPU tells of in a second or so ([`EXIT_PERIOD_SHIFT`]): a crash loop of every process on a small host.
/// What is beyond, as of a build that runs `grep` ten thousand times, is counted.
pub const MAX_FAILURES: u64 = 32;
/// The time that [`MAX_FAILURES`] is for, as a shift: 2^30 ns.
pub const EXIT_PERIOD_SHIFT: u32 = 30;

/// Processes with several threads whose last ones exit at the same instant. Each counts once; what falls off, after so many
/// others, is long gone.
pub const MAX_GROUP_EXITS: u32 = 1024;

/// How many failures a CPU has told of in the present period.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FailureBudget {
    /// Which period, counted from boot.
    pub period: u64,
    /// Failures told in it.
    pub told: u64,
}

impl FailureBudget {
    /// Whether one more may be told at this time; it then counts.
    pub fn take(&mut self, ktime_ns: u64) -> bool {
        let period = ktime_ns >> EXIT_PERIOD_SHIFT;
        if self.period != period {
            *self = Self { period, told: 0 };
        }
        let has_room = self.told < MAX_FAILURES;
        self.told += u64::from(has_room);
        has_room
    }
}

/// Whether an [`Exit::exit_code`] is of a process that failed: it did not exit with 0.
pub const fn has_failed(exit_code: u32) -> bool {
    exit_code != EXIT_CODE_UNKNOWN && exit_code & 0xff7f != 0
}

/// A process has exited: one that is watched, or one that failed.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Exit {
    /// Who.
    pub header: Header,
    /// How long it lived.
    pub lifetime_ns: u64,
    /// As wait(2) encodes it: signal in the low 7 bits, exit status in bits 8 to 15; or [`EXIT_CODE_UNKNOWN`].
    pub exit_code: u32,
    /// Its parent's process id; 0 where the hook does not tell it.
    pub parent_tgid: u32,
    /// Start of the process, CLOCK_BOOTTIME; 0 where the hook does not tell it.
    pub start_boottime_ns: u64,
    /// Whether it was watched.
    pub watched: u32,
    /// Reserved, zero.
    pub reserved: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_has_its_failures() {
        let mut budget = FailureBudget::default();
        let period = 1_u64 << EXIT_PERIOD_SHIFT;
        for start in [0, period, 7 * period, u64::MAX - period + 1] {
            let told = (0..1000).filter(|at| budget.take(start + at)).count();
            assert_eq!(told as u64, MAX_FAILURES);
        }
    }

    #[test]
    fn failures_as_wait_encodes_them() {
        for (code, expected) in [
            (0, false),
            (7 << 8, true),
            (9, true),
            (0x80 | 11, true),
            (0x80, false),
            (EXIT_CODE_UNKNOWN, false),
        ] {
            assert_eq!(has_failed(code), expected, "{code:#x}");
        }
    }
}
