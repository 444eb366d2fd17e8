//! The counters: per CPU, read by the agent once a second. Shared by both objects.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use observer_abi::{COUNTERS, Counter, Kind};

#[map]
static COUNTERS_MAP: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS, 0);

/// Raises a counter.
#[inline(always)]
pub fn count(counter: Counter, by: u64) {
    raise(counter as u32, by);
}

/// Counts a record that found no room.
#[inline(always)]
pub fn count_lost(kind: Kind) {
    raise(Counter::RingLost as u32 + kind as u32, 1);
}

#[inline(always)]
fn raise(index: u32, by: u64) {
    if let Some(slot) = COUNTERS_MAP.get_ptr_mut(index) {
        unsafe { *slot += by };
    }
}
