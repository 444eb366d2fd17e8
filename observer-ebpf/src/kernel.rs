//! Reads of kernel structures at offsets that the agent found in this kernel's BTF.
//!
//! Safety of every read here: the pointers come from BTF-typed arguments, so the verifier checks each offset against the
//! type and turns loads through chased pointers into fault-tolerant ones (a null or stale pointer reads as zero).

use aya_ebpf::helpers::{bpf_get_current_task_btf, bpf_ktime_get_ns};
use observer_abi::{COMM_LEN, offsets::Offsets};

use crate::layout::layout;

/// Given by the agent before loading.
#[unsafe(no_mangle)]
pub static OFFSETS: Offsets = Offsets::NONE;

/// Value of a field of [`OFFSETS`], a constant to the verifier.
macro_rules! offset {
    ($field:ident) => {
        unsafe { core::ptr::read_volatile(&raw const $crate::kernel::OFFSETS.$field) }
    };
}
pub(crate) use offset;

/// A kernel object whose type the verifier knows.
pub type Object = *const u8;

/// Loads a field.
#[inline(always)]
pub fn load<T: Copy>(object: Object, offset: u64) -> T {
    unsafe { core::ptr::read_volatile(object.add(offset as usize).cast::<T>()) }
}

/// Loads `$field` of `$object` as `$type`.
macro_rules! get {
    ($object:expr, $field:ident as $type:ty) => {
        $crate::kernel::load::<$type>($object, $crate::kernel::offset!($field))
    };
}
pub(crate) use get;

/// Clock of the run queue that the task belongs to: nanoseconds, monotonic on one CPU and near it across CPUs.
#[inline(always)]
pub fn run_queue_clock(task: Object) -> u64 {
    let cfs_rq = get!(task, task_cfs_rq as Object);
    let rq = get!(cfs_rq, cfs_rq_rq as Object);
    get!(rq, rq_clock as u64)
}

/// Copies the command name of a task.
#[inline(always)]
pub fn copy_comm(task: Object, to: &mut [u8; COMM_LEN]) {
    let at = offset!(task_comm);
    to[..8].copy_from_slice(&load::<u64>(task, at).to_ne_bytes());
    to[8..].copy_from_slice(&load::<u64>(task, at + 8).to_ne_bytes());
}

/// The running task.
#[inline(always)]
pub fn current() -> Object {
    unsafe { bpf_get_current_task_btf() }.cast::<u8>().cast_const()
}

/// CLOCK_MONOTONIC. Some 50 ns: for rare paths.
#[inline(always)]
pub fn ktime_ns() -> u64 {
    unsafe { bpf_ktime_get_ns() }
}

/// One of the counters of resident pages.
#[inline(always)]
pub fn resident_pages(mm: Object, member: u64) -> i64 {
    let at = offset!(mm_rss_stat) + offset!(percpu_counter_count);
    match member {
        0 => load(mm, at),
        1 => load(mm, at + layout!(rss_stride)),
        2 => load(mm, at + 2 * layout!(rss_stride)),
        _ => load(mm, at + 3 * layout!(rss_stride)),
    }
}
