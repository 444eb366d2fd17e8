//! Scheduler and event-loop stalls.
//!
//! Hooks: tp_btf `sched_switch`, always; only while a loop thread is ambiguous fentry `do_epoll_wait`, or tp_btf
//! `sys_enter` where the kernel has no fentry (it slows every system call of the host).
//! Yields: [`LoopGap`] for a turn of an epoll loop over the threshold, [`Stall`] for a watched thread off its CPU for
//! longer than the threshold, and the state, turns and histogram in the WATCH table.
//! How: a thread that leaves its CPU by its own will tells in which system call it is (the saved user registers); in
//! epoll, its turn is over. The turn began when it was last woken from there. How long it was runnable before it got a CPU
//! is `sched_info.last_queued` on the run-queue clock, which is loaded, not called. Unwatched tasks cost two array
//! look-ups and no clock.
//! Misses: a loop that polls without ever sleeping looks like one long turn until the epoll probe tells; loops on
//! io_uring or poll(2); 32-bit programs, whose system calls have other numbers; a kernel without CONFIG_SCHED_INFO or
//! CONFIG_FAIR_GROUP_SCHED.
//! Cost: 33 ns a switch of tasks that are not watched, where an empty program takes 28 (docs/measurements.md).

use aya_ebpf::{
    bindings::task_struct,
    helpers::bpf_get_task_stack,
    macros::{btf_tracepoint, fentry, map},
    maps::Array,
    programs::{BtfTracePointContext, FEntryContext},
};
use observer_abi::{
    KERNEL_FRAMES, Kind, histogram,
    sched::{LOOP_SCORE, LoopGap, PARTIAL, POLLED, Stall, WATCH_SLOTS, WATCHED, Watch, phase},
};

use crate::{
    emit::emit,
    kernel::{Object, current, get, ktime_ns, load, offset, read, run_queue_clock, user_register},
    layout::layout,
};

#[map]
static WATCH: Array<Watch> = Array::with_max_entries(WATCH_SLOTS, 0);

/// TASK_UNINTERRUPTIBLE (include/linux/sched.h).
const UNINTERRUPTIBLE: u32 = 2;
/// TASK_NOLOAD: an idle kernel-style sleep, not a stall.
const NO_LOAD: u32 = 0x400;
/// No system call: a fault or an interrupt led here.
const NO_SYSCALL: u32 = u32::MAX;
/// From the entry of a call of epoll to the sleep in it.
const SAME_CALL_NS: u64 = 50_000;

#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let preempted = ctx.arg::<u64>(0) & 0xff != 0;
    let prev: Object = ctx.arg(1);
    let next: Object = ctx.arg(2);
    let prev_tid = get!(prev, task_pid as u32);
    let next_tid = get!(next, task_pid as u32);
    if let Some(watch) = watched(prev_tid) {
        // The argument came with 5.18; before it the field was still the state at the switch.
        let state = if layout!(sched_switch_has_state) != 0 {
            ctx.arg::<u32>(3)
        } else {
            get!(prev, task_state as u32)
        };
        leave(watch, prev, if preempted { 0 } else { state });
    }
    if let Some(watch) = watched(next_tid) {
        enter(watch, next);
    }
    0
}

/// Entry of a thread, if it is watched.
#[inline(always)]
fn watched(tid: u32) -> Option<&'static mut Watch> {
    let slot = WATCH.get_ptr_mut(tid & (WATCH_SLOTS - 1))?;
    // Entries are written by the thread's own CPU only, and by the agent when it takes or frees the slot.
    let watch = unsafe { &mut *slot };
    (watch.key == tid | WATCHED).then_some(watch)
}

/// Whether a thread is watched; for other signals.
#[inline(always)]
pub fn is_watched(tid: u32) -> bool {
    watched(tid).is_some()
}

/// The task gives up its CPU, by its will if `state` is not running (0).
#[inline(always)]
fn leave(watch: &mut Watch, task: Object, state: u32) {
    watch.left_clock = run_queue_clock(task);
    let syscall = syscall(task);
    watch.syscall = syscall;
    if state == 0 {
        watch.phase = phase::RUNNING;
        if watch.turn_ktime_ns == 0 && !is_epoll(syscall) {
            begin_turn(watch, task, ktime_ns());
            watch.flags |= PARTIAL;
        }
    } else if is_epoll(syscall)
        && state & UNINTERRUPTIBLE == 0
        && is_own_loop(watch, argument(task))
    {
        watch.phase = phase::POLLING;
        if watch.turn_ktime_ns != 0 {
            let now = ktime_ns();
            // Else the turn ended when the epoll probe saw this very call.
            if watch.flags & POLLED == 0 || now.saturating_sub(watch.turn_ktime_ns) > SAME_CALL_NS {
                end_turn(watch, task, now);
            }
        }
        watch.turn_ktime_ns = 0;
        watch.turns += 1;
    } else if state & UNINTERRUPTIBLE != 0 && state & NO_LOAD == 0 {
        watch.phase = phase::BLOCKED;
    } else {
        watch.phase = phase::SLEEPING;
        watch.sleeps += 1;
    }
}

/// The task gets a CPU.
#[inline(always)]
fn enter(watch: &mut Watch, task: Object) {
    let now = run_queue_clock(task);
    let queued = match get!(task, task_last_queued as u64) {
        0 => now,
        clock => clock,
    };
    let waited = now.saturating_sub(queued);
    let was = watch.phase;
    watch.phase = phase::RUNNING;
    if was == phase::POLLING || (was == phase::UNKNOWN && is_epoll(syscall(task))) {
        begin_turn(watch, task, ktime_ns().saturating_sub(waited));
    }
    if waited >= layout!(run_delay_threshold_ns) {
        stall(watch, task, phase::RUNNING, waited);
    }
    let slept = queued.saturating_sub(watch.left_clock);
    let in_turn = was == phase::SLEEPING && watch.turns != 0;
    if (was == phase::BLOCKED || in_turn) && slept >= layout!(stall_threshold_ns) {
        stall(watch, task, was, slept);
    }
}

#[inline(always)]
fn begin_turn(watch: &mut Watch, task: Object, ktime_ns: u64) {
    watch.flags &= !(PARTIAL | POLLED);
    watch.turn_ktime_ns = ktime_ns;
    watch.turn_on_cpu_ns = read!(task, task_sum_exec_runtime as u64);
    watch.turn_run_delay_ns = read!(task, task_run_delay as u64);
}

#[inline(always)]
fn end_turn(watch: &mut Watch, task: Object, now: u64) {
    let duration_ns = now.saturating_sub(watch.turn_ktime_ns);
    watch.total_ns += duration_ns;
    watch.max_ns = if duration_ns > watch.max_ns { duration_ns } else { watch.max_ns };
    let bucket = histogram::bucket(duration_ns) as usize;
    if let Some(count) = watch.histogram.get_mut(bucket) {
        *count += 1;
    }
    if duration_ns < layout!(gap_threshold_ns) {
        return;
    }
    watch.gaps += 1;
    let on_cpu_ns = read!(task, task_sum_exec_runtime as u64).saturating_sub(watch.turn_on_cpu_ns);
    let waiting_ns = read!(task, task_run_delay as u64).saturating_sub(watch.turn_run_delay_ns);
    emit(Kind::LoopGap, task, now, |gap: &mut LoopGap| {
        gap.duration_ns = duration_ns;
        gap.on_cpu_ns = on_cpu_ns;
        gap.waiting_ns = waiting_ns;
        gap.turns = watch.turns;
        gap.sleeps = watch.sleeps;
        gap.polls = watch.polls;
        gap.partial = u64::from(watch.flags & PARTIAL);
    });
}

/// The rare path: says why, with the kernel stack at which the task left its CPU.
#[inline(always)]
fn stall(watch: &Watch, task: Object, phase: u32, duration_ns: u64) {
    emit(Kind::Stall, task, ktime_ns(), |record: &mut Stall| {
        record.duration_ns = duration_ns;
        record.phase = phase;
        record.syscall = watch.syscall;
        record.io_wait = u32::from(in_io_wait(task));
        record.reserved = 0;
        record.turns = watch.turns;
        kernel_stack(task, &mut record.stack);
    });
}

/// Kernel stack of a task that is not running.
#[inline(always)]
pub fn kernel_stack(task: Object, stack: &mut [u64; KERNEL_FRAMES]) {
    unsafe {
        bpf_get_task_stack(
            task.cast::<task_struct>().cast_mut(),
            stack.as_mut_ptr().cast(),
            size_of_val(stack) as u32,
            0,
        )
    };
}

/// System call that a task is in, from its saved user registers.
#[inline(always)]
fn syscall(task: Object) -> u32 {
    // 32 bits on either architecture: arm64 keeps no more, and what lies beside them is not written.
    let number = user_register::<u32>(task, offset!(pt_regs_syscall));
    if number > 0xffff { NO_SYSCALL } else { number }
}

/// First argument of the system call that a task is in.
#[inline(always)]
fn argument(task: Object) -> u32 {
    user_register::<u64>(task, offset!(pt_regs_argument)) as u32
}

/// Whether a wait in this epoll instance ends a turn; by majority (Boyer and Moore), in two words.
#[inline(always)]
fn is_own_loop(watch: &mut Watch, fd: u32) -> bool {
    if watch.loop_score == 0 {
        watch.loop_fd = fd;
    }
    let own = watch.loop_fd == fd;
    if !own {
        watch.loop_score -= 1;
    } else if watch.loop_score < LOOP_SCORE {
        watch.loop_score += 1;
    }
    own
}

/// How long a task has been runnable without a CPU; 0 if it has one or sleeps.
#[inline(always)]
pub fn open_wait(task: Object) -> u64 {
    match get!(task, task_last_queued as u64) {
        0 => 0,
        queued => run_queue_clock(task).saturating_sub(queued),
    }
}

#[inline(always)]
fn is_epoll(syscall: u32) -> bool {
    let syscall = u64::from(syscall);
    syscall == layout!(epoll_wait)
        || syscall == layout!(epoll_pwait)
        || syscall == layout!(epoll_pwait2)
}

/// `in_iowait` is a bit field: its byte and mask are given as constants.
#[inline(always)]
fn in_io_wait(task: Object) -> bool {
    let at = layout!(io_wait_byte);
    let mask = layout!(io_wait_mask);
    if at == 0 {
        return false;
    }
    u64::from(load::<u8>(task, at)) & mask != 0
}

/// Attached for seconds at a time, to tell a loop that polls without sleeping from one that does not turn. Slows every
/// system call of the host meanwhile.
#[btf_tracepoint(function = "sys_enter")]
fn epoll_enter(ctx: BtfTracePointContext) -> i32 {
    let syscall = ctx.arg::<u64>(1);
    if syscall <= 0xffff && is_epoll(syscall as u32) {
        let regs: Object = ctx.arg(0);
        poll(|| load::<u64>(regs, offset!(pt_regs_argument)) as u32);
    }
    0
}

/// The same where the kernel takes programs on functions: only calls of epoll pay.
#[fentry(function = "do_epoll_wait")]
fn epoll_wait_enter(ctx: FEntryContext) -> i32 {
    poll(|| ctx.arg(0));
    0
}

/// The running task calls epoll.
#[inline(always)]
fn poll(fd: impl FnOnce() -> u32) {
    let task = current();
    let Some(watch) = watched(read!(task, task_pid as u32)) else { return };
    if !is_own_loop(watch, fd()) {
        return;
    }
    let now = ktime_ns();
    watch.polls += 1;
    if watch.turn_ktime_ns != 0 {
        end_turn(watch, task, now);
    }
    begin_turn(watch, task, now);
    watch.flags |= POLLED;
}
