//! Allocations.
//!
//! Hooks: bpf iterator `task`, read once a second; perf software event page-faults, one in N; tp_btf
//! `sched_process_{fork,exec,exit}`.
//! Yields: a [`TaskRow`] for every process (memory) and every watched or blocked thread; sampled faults by process and
//! user stack in FAULTS and STACKS; counters; an [`Exit`] record for a watched process, and for one that fails, of which each CPU
//! tells some a second.
//! Misses: memory that is reserved but not touched; freed memory that the allocator keeps; user stacks without frame
//! pointers are cut after the first frame. Before 6.2 page counters lag by up to 64 pages a thread, since then by 32 to
//! 64 pages a CPU.
//! Cost: no program runs on the allocator's fast path; see docs/measurements.md.

use aya_ebpf::{
    bindings::{BPF_NOEXIST, seq_file},
    helpers::{bpf_probe_read_user, bpf_seq_write},
    macros::{btf_tracepoint, map, perf_event},
    maps::{LruHashMap, PerCpuArray},
    programs::{BtfTracePointContext, PerfEventContext},
};
use observer_abi::{
    Counter, KERNEL_FRAMES, Kind,
    alloc::{
        Exit, FailureBudget, MAX_GROUP_EXITS, TASK_BLOCKED, TASK_KERNEL, TASK_LEADER, TASK_WATCHED,
        TaskRow, has_failed,
    },
};

use crate::{
    counters::count,
    emit::emit,
    faults,
    kernel::{self, Object, get, ktime_ns, offset, resident_pages, user_register},
    layout::layout,
    sched,
};

/// Where a row is put together: the BPF stack is too small. Only the agent reads iterators, one at a time.
#[map]
static TASK_ROW: PerCpuArray<TaskRow> = PerCpuArray::with_max_entries(1, 0);

/// Failures told by each CPU.
#[map]
static FAILURES: PerCpuArray<FailureBudget> = PerCpuArray::with_max_entries(1, 0);

/// Processes whose last threads exit together, as far as the kernel does not say which is the last; by
/// the nanosecond of their start.
#[map]
static GROUP_EXITS: LruHashMap<u64, u8> = LruHashMap::with_max_entries(MAX_GROUP_EXITS, 0);

/// PF_KTHREAD (include/linux/sched.h).
const KERNEL_THREAD: u32 = 0x0020_0000;
/// TASK_UNINTERRUPTIBLE without TASK_NOLOAD.
const UNINTERRUPTIBLE: u32 = 2;
const NO_LOAD: u32 = 0x400;
/// Bits of a user address of arm64; those above may sign it (pointer authentication).
const CODE_ADDRESS: u64 = (1 << 48) - 1;
/// A process that lives shorter than this never shows in a table that is read once a second.
const SHORT_LIFE_NS: u64 = 1_000_000_000;

/// Context of an iterator program: the kernel passes pointers, null at the end of the walk (kernel/bpf/task_iter.c).
#[repr(C)]
pub struct IterContext {
    /// `struct bpf_iter_meta`, whose first member is the output file.
    meta: *const *mut seq_file,
    pub object: Object,
}

impl IterContext {
    /// Appends a row to what the agent reads.
    #[inline(always)]
    pub fn write<T>(&self, row: &T) {
        let seq = unsafe { *self.meta };
        // A full buffer makes the kernel call again for the same object once the agent has read it.
        unsafe {
            bpf_seq_write(seq, core::ptr::from_ref(row).cast_mut().cast(), size_of::<T>() as u32)
        };
    }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter")]
extern "C" fn task_rows(ctx: &IterContext) -> i32 {
    let task = ctx.object;
    if task.is_null() {
        return 0;
    }
    let tid = get!(task, task_pid as u32);
    let tgid = get!(task, task_tgid as u32);
    let state = get!(task, task_state as u32);
    let kernel_thread = get!(task, task_flags as u32) & KERNEL_THREAD != 0;
    let mut flags = if tid == tgid { TASK_LEADER } else { 0 };
    if sched::is_watched(tid) {
        flags |= TASK_WATCHED;
    }
    if state & UNINTERRUPTIBLE != 0 && state & NO_LOAD == 0 {
        flags |= TASK_BLOCKED;
    }
    if flags == 0 || (kernel_thread && flags & TASK_BLOCKED == 0) {
        return 0;
    }
    if kernel_thread {
        flags |= TASK_KERNEL;
    }
    let Some(row) = TASK_ROW.get_ptr_mut(0) else { return 0 };
    let row = unsafe { &mut *row };
    fill(row, task, flags);
    ctx.write(row);
    0
}

#[inline(always)]
fn fill(row: &mut TaskRow, task: Object, flags: u32) {
    let leader = get!(task, task_group_leader as Object);
    let parent = get!(task, task_real_parent as Object);
    let signal = get!(task, task_signal as Object);
    let mm = get!(task, task_mm as Object);
    row.tgid = get!(task, task_tgid as u32);
    row.tid = get!(task, task_pid as u32);
    row.parent_tgid = get!(parent, task_tgid as u32);
    row.flags = flags;
    row.start_boottime_ns = get!(leader, task_start_boottime as u64);
    kernel::copy_comm(task, &mut row.comm);
    row.file_pages = resident_pages(mm, 0);
    row.anon_pages = resident_pages(mm, 1);
    row.swap_pages = resident_pages(mm, 2);
    row.shmem_pages = resident_pages(mm, 3);
    row.page_table_bytes = get!(mm, mm_pgtables_bytes as u64);
    row.on_cpu_ns = get!(task, task_sum_exec_runtime as u64);
    row.run_delay_ns = get!(task, task_run_delay as u64) + sched::open_wait(task);
    row.voluntary_switches = get!(task, task_nvcsw as u64);
    row.involuntary_switches = get!(task, task_nivcsw as u64);
    row.threads = get!(signal, signal_nr_threads as u32);
    row.oom_score_adj = i32::from(get!(signal, signal_oom_score_adj as i16));
    if flags & TASK_BLOCKED != 0 {
        sched::kernel_stack(task, &mut row.stack);
    } else {
        row.stack = [0; KERNEL_FRAMES];
    }
}

#[perf_event]
fn page_fault(ctx: PerfEventContext) -> u32 {
    faults::sample(&ctx, leaf_return);
    0
}

/// Where a user function without a frame returns to: the link register, else the word at the top of the current task's
/// user stack; 0 if that cannot be read without a fault.
#[inline(always)]
fn leaf_return() -> u64 {
    let task = kernel::current();
    let link_register = layout!(link_register);
    if link_register != 0 {
        return user_register::<u64>(task, link_register) & CODE_ADDRESS;
    }
    if layout!(user_memory) == 0 {
        return 0;
    }
    let top: u64 = user_register(task, offset!(pt_regs_sp));
    unsafe { bpf_probe_read_user(top as *const u64) }.unwrap_or(0)
}

#[btf_tracepoint(function = "sched_process_fork")]
fn process_fork(_ctx: BtfTracePointContext) -> i32 {
    count(Counter::Forks, 1);
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
fn process_exec(_ctx: BtfTracePointContext) -> i32 {
    count(Counter::Execs, 1);
    0
}

#[btf_tracepoint(function = "sched_process_exit")]
fn process_exit(ctx: BtfTracePointContext) -> i32 {
    let task: Object = ctx.arg(0);
    let leader = get!(task, task_group_leader as Object);
    if !is_last_thread(&ctx, task, leader) {
        return 0;
    }
    let now = ktime_ns();
    let lifetime_ns = now.saturating_sub(get!(leader, task_start_time as u64));
    count(Counter::Exits, 1);
    if lifetime_ns < SHORT_LIFE_NS {
        count(Counter::ShortLived, 1);
    }
    let exit_code = get!(task, task_exit_code as u32);
    let watched = sched::is_watched(get!(task, task_tgid as u32));
    if watched || (has_failed(exit_code) && may_tell_failure(task, now)) {
        let parent = get!(task, task_real_parent as Object);
        let parent_tgid = get!(parent, task_tgid as u32);
        let start_boottime_ns = get!(leader, task_start_boottime as u64);
        // The other threads may have names of their own.
        emit(Kind::Exit, leader, now, |record: &mut Exit| {
            record.lifetime_ns = lifetime_ns;
            record.exit_code = exit_code;
            record.parent_tgid = parent_tgid;
            record.start_boottime_ns = start_boottime_ns;
            record.watched = u32::from(watched);
            record.reserved = 0;
        });
    }
    0
}

/// Whether this CPU may tell of one more failure now, of a process and not of the kernel's; else it counts it.
#[inline(always)]
fn may_tell_failure(task: Object, now: u64) -> bool {
    if get!(task, task_flags as u32) & KERNEL_THREAD != 0 {
        return false;
    }
    let Some(budget) = FAILURES.get_ptr_mut(0) else { return false };
    let may_tell = unsafe { &mut *budget }.take(now);
    if !may_tell {
        count(Counter::FailuresUntold, 1);
    }
    may_tell
}

/// The tracepoint fires for each thread (kernel/exit.c, do_exit). Kernels that do not say which is the last have the count of
/// threads that live, and not in their order: of threads that exit together several may read zero, or the first thread none.
/// So whoever reads zero first speaks for all.
#[inline(always)]
fn is_last_thread(ctx: &BtfTracePointContext, task: Object, leader: Object) -> bool {
    if layout!(process_exit_has_group_dead) != 0 {
        return ctx.arg::<u64>(1) & 0xff != 0;
    }
    let signal = get!(task, task_signal as Object);
    if get!(signal, signal_live as u32) != 0 {
        return false;
    }
    let start_ns = get!(leader, task_start_time as u64);
    if get!(signal, signal_nr_threads as u32) == 1 {
        // Nobody is left that could come later, so nothing need be kept.
        return unsafe { GROUP_EXITS.get(start_ns) }.is_none();
    }
    GROUP_EXITS.insert(start_ns, 0, u64::from(BPF_NOEXIST)).is_ok()
}
