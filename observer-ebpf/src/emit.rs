//! The only code that touches the ring and the counters. A record is written without waking the agent, which drains the
//! ring by a timer; a record that finds the ring full is counted under its kind.

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP,
    macros::map,
    maps::{PerCpuArray, RingBuf},
};
use observer_abi::{COUNTERS, Counter, Header, Kind, RING_BYTES};

use crate::kernel::{self, Object, get};

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

#[map]
static COUNTERS_MAP: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS, 0);

/// Raises a counter.
#[inline(always)]
pub fn count(counter: Counter, by: u64) {
    raise(counter as u32, by);
}

#[inline(always)]
fn raise(index: u32, by: u64) {
    if let Some(slot) = COUNTERS_MAP.get_ptr_mut(index) {
        unsafe { *slot += by };
    }
}

/// Writes a record about a task straight into the ring (the BPF stack is too small for one) and hands it to the agent, or
/// counts its loss. `fill` must set every field but the header: the memory is not cleared.
#[inline(always)]
pub fn emit<T: 'static>(kind: Kind, task: Object, ktime_ns: u64, fill: impl FnOnce(&mut T)) {
    let Some(mut entry) = EVENTS.reserve::<T>(0) else {
        raise(Counter::RingLost as u32 + kind as u32, 1);
        return;
    };
    let record = entry.as_mut_ptr();
    let header = unsafe { &mut *record.cast::<Header>() };
    header.kind = kind as u32;
    header.tgid = get!(task, task_tgid as u32);
    header.tid = get!(task, task_pid as u32);
    header.reserved = 0;
    header.ktime_ns = ktime_ns;
    kernel::copy_comm(task, &mut header.comm);
    fill(unsafe { &mut *record });
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}
