//! Scheduler and event-loop stalls: the table of watched threads and the records of gaps and stalls.
//!
//! Turns are timed by CLOCK_MONOTONIC; waits and sleeps by the run-queue clock, which is loaded without a call but may
//! differ by some milliseconds between CPUs where the TSC is not stable.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Header, KERNEL_FRAMES, histogram::BUCKETS};

/// Slots of the table of watched threads; a thread's slot is its id modulo this. 4 MiB of kernel memory.
pub const WATCH_SLOTS: u32 = 32768;

/// Threads watched at once.
pub const MAX_WATCHED: usize = 4096;

/// Set in [`Watch::key`] beside the thread id, so that an empty slot never matches (the idle task has id 0).
pub const WATCHED: u32 = 1 << 31;

/// Set in [`Watch::flags`] while the present turn was not seen to begin: the thread was watched in the middle of it.
pub const PARTIAL: u32 = 1;

/// Set in [`Watch::flags`] while the present turn began at a call of epoll that the probe saw.
pub const POLLED: u32 = 2;

/// Bound of [`Watch::loop_score`], so that a thread that changes its loop is understood after this many waits.
pub const LOOP_SCORE: u32 = 8;

/// Where a watched thread is. Values of [`Watch::phase`].
pub mod phase {
    /// Not known yet: watched while it slept or ran.
    pub const UNKNOWN: u32 = 0;
    /// On a CPU or preempted.
    pub const RUNNING: u32 = 1;
    /// Asleep in epoll: the loop waits for events.
    pub const POLLING: u32 = 2;
    /// Asleep elsewhere, interruptible.
    pub const SLEEPING: u32 = 3;
    /// Uninterruptible sleep.
    pub const BLOCKED: u32 = 4;
}

/// State of one watched thread, written by the kernel side after the agent has set `key`.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Watch {
    /// Thread id with [`WATCHED`]; 0 if the slot is free.
    pub key: u32,
    /// [`PARTIAL`].
    pub flags: u32,
    /// See [`phase`].
    pub phase: u32,
    /// System call in which it sleeps; `u32::MAX` for none (page fault).
    pub syscall: u32,
    /// Descriptor of the epoll instance that is the thread's own loop: the one it waits in most. A wait in another one, such
    /// as the loop in which Node waits for a child process, is a part of a turn.
    pub loop_fd: u32,
    /// How much more often it waited in `loop_fd` than in others, at most [`LOOP_SCORE`]; 0 if it never did.
    pub loop_score: u32,
    /// When it last left a CPU, run-queue clock.
    pub left_clock: u64,
    /// Begin of the present turn of its loop: its wake-up; 0 while it waits in epoll. CLOCK_MONOTONIC.
    pub turn_ktime_ns: u64,
    /// Its time on a CPU at that begin.
    pub turn_on_cpu_ns: u64,
    /// Its run-queue delay at that begin.
    pub turn_run_delay_ns: u64,
    /// Turns that ended in a sleep in epoll.
    pub turns: u64,
    /// Calls of epoll seen by the epoll probe, while it is attached.
    pub polls: u64,
    /// Sleeps elsewhere.
    pub sleeps: u64,
    /// Turns over the threshold.
    pub gaps: u64,
    /// Sum of all turns.
    pub total_ns: u64,
    /// The longest turn.
    pub max_ns: u64,
    /// Turns by length, see [`crate::histogram`].
    pub histogram: [u32; BUCKETS],
}

/// A turn of an event loop that was longer than the threshold. The header's time is its end.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LoopGap {
    /// Thread.
    pub header: Header,
    /// From the wake-up to the next wait in epoll.
    pub duration_ns: u64,
    /// Of it, on a CPU.
    pub on_cpu_ns: u64,
    /// Of it, runnable but waiting for a CPU.
    pub waiting_ns: u64,
    /// Turns before this one.
    pub turns: u64,
    /// Sleeps outside epoll before its end.
    pub sleeps: u64,
    /// Calls of epoll seen by the probe.
    pub polls: u64,
    /// 1 if its begin was not seen.
    pub partial: u64,
}

/// A watched thread was off its CPU for longer than the threshold. The header's time is its return.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Stall {
    /// Thread.
    pub header: Header,
    /// How long.
    pub duration_ns: u64,
    /// [`phase`] that it was in; [`phase::RUNNING`] means runnable, waiting for a CPU.
    pub phase: u32,
    /// System call in which it slept; `u32::MAX` for none (page fault).
    pub syscall: u32,
    /// 1 if it waited for I/O (`in_iowait`).
    pub io_wait: u32,
    /// Reserved, zero.
    pub reserved: u32,
    /// Turns of its event loop so far; 0 if it has none.
    pub turns: u64,
    /// Kernel stack at which it slept, innermost first, zero-filled.
    pub stack: [u64; KERNEL_FRAMES],
}
