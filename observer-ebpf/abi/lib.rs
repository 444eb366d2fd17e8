//! The contract between the BPF programs and the agent: every record, map key, map value and bound, once.
//!
//! Compiled for the host and for BPF. All types are `#[repr(C)]` without padding: zerocopy refuses a padded struct at
//! compile time, which is also what the verifier wants of what a program hands out. All integers are native-endian.

#![no_std]
#![forbid(unsafe_code)]

pub mod alloc;
pub mod classic;
pub mod histogram;
pub mod malloc;
pub mod offsets;
pub mod oom;
pub mod reply;
pub mod sched;
pub mod tcp;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Raised with every change of a type in this crate. The agent embeds its programs, so that the two cannot differ in one
/// binary; recordings carry it.
pub const ABI_VERSION: u32 = 3;

/// Size of the event ring in bytes by default: a burst of 1,000 closing connections takes a fifth of it.
pub const RING_BYTES: u32 = 1 << 20;

/// Length of a command name (`TASK_COMM_LEN`, include/linux/sched.h).
pub const COMM_LEN: usize = 16;

/// Frames kept of a kernel stack. Deeper frames are the system call entry and add nothing to a reason.
pub const KERNEL_FRAMES: usize = 12;

/// What a ring record is. Also the index of its loss counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// [`tcp::Closed`].
    TcpClosed = 0,
    /// [`tcp::Listening`].
    TcpListening = 1,
    /// [`sched::LoopGap`].
    LoopGap = 2,
    /// [`sched::Stall`].
    Stall = 3,
    /// [`oom::Reclaim`].
    Reclaim = 4,
    /// [`oom::Kill`].
    OomKill = 5,
    /// [`alloc::Exit`].
    Exit = 6,
}

/// Number of [`Kind`]s.
pub const KINDS: usize = 7;

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; KINDS] = [
        Self::TcpClosed,
        Self::TcpListening,
        Self::LoopGap,
        Self::Stall,
        Self::Reclaim,
        Self::OomKill,
        Self::Exit,
    ];

    /// The kind with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    /// Name in loss counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcpClosed => "tcp_closed",
            Self::TcpListening => "tcp_listening",
            Self::LoopGap => "loop_gap",
            Self::Stall => "stall",
            Self::Reclaim => "reclaim",
            Self::OomKill => "oom_kill",
            Self::Exit => "exit",
        }
    }
}

/// First field of every ring record.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// [`Kind`] as a number.
    pub kind: u32,
    /// Process that the record is about.
    pub tgid: u32,
    /// Its thread.
    pub tid: u32,
    /// Reserved, zero.
    pub reserved: u32,
    /// When it was written (CLOCK_MONOTONIC).
    pub ktime_ns: u64,
    /// Command name of the thread.
    pub comm: [u8; COMM_LEN],
}

/// Per-CPU counters that every program may raise; index into the COUNTERS map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Ring records lost, first of [`KINDS`] slots in the order of [`Kind`].
    RingLost = 0,
    /// Processes and threads forked.
    Forks = 8,
    /// Programs executed.
    Execs = 9,
    /// Processes that exited.
    Exits = 10,
    /// Of these, within a second of their birth.
    ShortLived = 11,
    /// Connections opened.
    TcpOpened = 12,
    /// Connections closed.
    TcpClosed = 13,
    /// Connections that found the ledger full.
    LedgerFull = 14,
    /// Direct reclaims.
    DirectReclaims = 15,
    /// Nanoseconds in direct reclaim.
    DirectReclaimNs = 16,
    /// kswapd wake-ups.
    KswapdWakes = 17,
    /// kswapd going to sleep.
    KswapdSleeps = 18,
    /// Compactions.
    Compactions = 19,
    /// Nanoseconds in compaction.
    CompactionNs = 20,
    /// Reclaim throttles.
    Throttles = 21,
    /// Nanoseconds throttled.
    ThrottleNs = 22,
    /// Last retries of the allocator before an OOM kill.
    OomRetries = 23,
    /// Reclaims for a memory cgroup.
    MemcgReclaims = 24,
    /// Nanoseconds in reclaim for a memory cgroup.
    MemcgReclaimNs = 25,
    /// Sampled page faults.
    FaultSamples = 26,
    /// Sampled page faults whose stack could not be kept.
    FaultsLost = 27,
    /// Reclaimers that found their table full.
    ReclaimersFull = 28,
    /// Failures of processes that nobody watches, beyond [`alloc::MAX_FAILURES`].
    FailuresUntold = 29,
    /// Connections whose end was found out later, and how it came was not seen.
    TcpUnseen = 30,
}

/// Slots of the COUNTERS map.
pub const COUNTERS: u32 = 32;

const _: () =
    assert!(KINDS <= Counter::Forks as usize, "loss counters would run into the next counter");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_numbered_by_their_place() {
        for (index, kind) in Kind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, index);
            assert_eq!(Kind::from_number(index as u32), Some(*kind));
        }
        assert_eq!(Kind::from_number(KINDS as u32), None);
    }

    proptest::proptest! {
        #[test]
        fn malformed_bytes_never_decode_beyond_their_end(bytes in proptest::collection::vec(0u8.., 0..512)) {
            fn check<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8]) {
                assert_eq!(T::ref_from_prefix(bytes).is_ok(), bytes.len() >= size_of::<T>() && bytes.as_ptr().addr().is_multiple_of(align_of::<T>()));
            }
            check::<Header>(&bytes);
            check::<tcp::Closed>(&bytes);
            check::<tcp::SocketRow>(&bytes);
            check::<sched::LoopGap>(&bytes);
            check::<sched::Stall>(&bytes);
            check::<alloc::TaskRow>(&bytes);
            check::<alloc::Exit>(&bytes);
            check::<oom::Kill>(&bytes);
            check::<classic::Slot>(&bytes);
        }
    }
}
