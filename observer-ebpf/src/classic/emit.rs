//! The only code that touches the queue. A record is put together in a slot of this CPU, which no other program uses at the
//! same time: the kernel runs no classic tracepoint inside another. A record that finds the queue full is counted under its
//! kind.

use aya_ebpf::{
    macros::map,
    maps::{PerCpuArray, Queue},
};
use observer_abi::{
    Header, Kind,
    classic::{MAX_QUEUED, SLOT_WORDS, Slot},
};

use crate::{counters::count_lost, subject::Subject};

#[map]
static QUEUE: Queue<Slot> = Queue::with_max_entries(MAX_QUEUED, 0);

#[map]
static SLOT: PerCpuArray<Slot> = PerCpuArray::with_max_entries(1, 0);

/// Hands a record about a task to the agent, or counts its loss. `fill` must set every field but the header.
#[inline(always)]
pub fn emit<T: 'static>(
    kind: Kind,
    subject: impl Subject,
    ktime_ns: u64,
    fill: impl FnOnce(&mut T),
) {
    const { assert!(size_of::<T>() <= SLOT_WORDS * 8, "a record is longer than a slot") };
    let Some(slot) = SLOT.get_ptr_mut(0) else { return };
    let slot = unsafe { &mut *slot };
    slot.used = size_of::<T>() as u64;
    let record = slot.words.as_mut_ptr().cast::<T>();
    let header = unsafe { &mut *record.cast::<Header>() };
    header.kind = kind as u32;
    header.reserved = 0;
    header.ktime_ns = ktime_ns;
    subject.describe(header);
    fill(unsafe { &mut *record });
    if QUEUE.push(&*slot, 0).is_err() {
        count_lost(kind);
    }
}
