//! Reads of kernel structures at offsets that the agent found in this kernel's BTF.
//!
//! Safety of every read here: the pointers come from BTF-typed arguments, so the verifier checks each offset against the
//! type and turns loads through chased pointers into fault-tolerant ones (a null or stale pointer reads as zero). Where a
//! kernel has no helper that gives a type, [`peek`] reads, and a fault reads as zero too.

use aya_ebpf::{
    bindings::task_struct,
    helpers::{
        bpf_get_current_task, bpf_get_current_task_btf, bpf_ktime_get_ns, bpf_probe_read_kernel,
        bpf_sock_from_file, bpf_task_pt_regs,
    },
};
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

/// S_IFMT and S_IFSOCK (include/uapi/linux/stat.h).
const KIND_OF_FILE: u16 = 0o170_000;
const SOCKET: u16 = 0o140_000;

/// A kernel object whose type the verifier knows, if it is not said otherwise.
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
    to[..8].copy_from_slice(&load_or_peek::<u64>(task, at).to_ne_bytes());
    to[8..].copy_from_slice(&load_or_peek::<u64>(task, at + 8).to_ne_bytes());
}

/// Reads by a helper, at an address whose type the verifier does not know; zero where nothing can be read.
#[inline(always)]
pub fn peek<T: Copy>(object: Object, offset: u64) -> T {
    let read = unsafe { bpf_probe_read_kernel(object.add(offset as usize).cast::<T>()) };
    read.unwrap_or_else(|_| unsafe { core::mem::zeroed() })
}

/// Loads or reads, as the pointers that helpers give need it on this kernel.
#[inline(always)]
pub fn load_or_peek<T: Copy>(object: Object, offset: u64) -> T {
    if layout!(typed_helpers) != 0 { load(object, offset) } else { peek(object, offset) }
}

/// Loads or reads `$field` of `$object`, which a helper gave, as `$type`.
macro_rules! read {
    ($object:expr, $field:ident as $type:ty) => {
        $crate::kernel::load_or_peek::<$type>($object, $crate::kernel::offset!($field))
    };
}
pub(crate) use read;

/// The running task, for [`read!`].
#[inline(always)]
pub fn current() -> Object {
    if layout!(typed_helpers) != 0 {
        return unsafe { bpf_get_current_task_btf() }.cast::<u8>().cast_const();
    }
    (unsafe { bpf_get_current_task() }) as Object
}

/// The socket of an open file, for [`read!`]; null if it is none.
#[inline(always)]
pub fn socket(file: Object) -> Object {
    if layout!(typed_helpers) != 0 {
        return unsafe { bpf_sock_from_file(file.cast_mut().cast()) }.cast::<u8>().cast_const();
    }
    let mode = get!(get!(file, file_inode as Object), inode_mode as u16);
    if mode & KIND_OF_FILE != SOCKET {
        return core::ptr::null();
    }
    get!(file, file_private_data as Object)
}

/// A word of the user's registers that a task saved when it came into the kernel.
#[inline(always)]
pub fn user_register<T: Copy>(task: Object, offset: u64) -> T {
    let at = layout!(user_registers);
    if at == 0 {
        let registers = unsafe { bpf_task_pt_regs(task.cast::<task_struct>().cast_mut()) };
        return load(registers as Object, offset);
    }
    peek(read!(task, task_stack as Object), at + offset)
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
        0 => resident_counter(mm, at),
        1 => resident_counter(mm, at + layout!(rss_stride)),
        2 => resident_counter(mm, at + 2 * layout!(rss_stride)),
        _ => resident_counter(mm, at + 3 * layout!(rss_stride)),
    }
}

/// Before 6.2 the counters are no structures, and the verifier does not follow a typed pointer into an array of others.
#[inline(always)]
fn resident_counter(mm: Object, at: u64) -> i64 {
    if layout!(rss_stride) != size_of::<i64>() as u64 {
        return load(mm, at);
    }
    peek(mm, at)
}
