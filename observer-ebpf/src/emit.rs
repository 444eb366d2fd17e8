//! The only code that touches the ring. A record is written without waking the agent, which drains the ring by a timer; a
//! record that finds the ring full is counted under its kind.

use aya_ebpf::{bindings::BPF_RB_NO_WAKEUP, macros::map, maps::RingBuf};
use observer_abi::{Header, Kind, RING_BYTES};

use crate::{
    counters::count_lost,
    kernel::{self, Object, read},
    subject::Subject,
};

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

impl Subject for Object {
    #[inline(always)]
    fn describe(self, header: &mut Header) {
        header.tgid = read!(self, task_tgid as u32);
        header.tid = read!(self, task_pid as u32);
        kernel::copy_comm(self, &mut header.comm);
    }
}

/// Writes a record about a task straight into the ring (the BPF stack is too small for one) and hands it to the agent, or
/// counts its loss. `fill` must set every field but the header: the memory is not cleared.
#[inline(always)]
pub fn emit<T: 'static>(
    kind: Kind,
    subject: impl Subject,
    ktime_ns: u64,
    fill: impl FnOnce(&mut T),
) {
    let Some(mut entry) = EVENTS.reserve::<T>(0) else {
        count_lost(kind);
        return;
    };
    let record = entry.as_mut_ptr();
    let header = unsafe { &mut *record.cast::<Header>() };
    header.kind = kind as u32;
    header.reserved = 0;
    header.ktime_ns = ktime_ns;
    subject.describe(header);
    fill(unsafe { &mut *record });
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}
