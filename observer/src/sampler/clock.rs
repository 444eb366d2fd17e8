//! The sampler's clocks; with `agent.rs` the only place that reads them.

use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};

use crate::signal::Now;

fn nanos(time: Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Now on both clocks.
pub fn now() -> Now {
    Now {
        ktime_ns: nanos(clock_gettime(ClockId::Monotonic)),
        unix_ns: nanos(clock_gettime(ClockId::Realtime)),
    }
}

/// Time since boot.
pub(super) fn boottime_ns() -> u64 {
    nanos(clock_gettime(ClockId::Boottime))
}

/// Ticks a second of the kernel: the coarse clock moves once a tick (kernel/time/posix-timers.c).
pub(super) fn hz() -> u64 {
    let tick_ns = nanos(clock_getres(ClockId::MonotonicCoarse)).max(1);
    (1_000_000_000 + tick_ns / 2) / tick_ns
}
