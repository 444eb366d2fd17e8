//! Processes that come and go, and sampled page faults.
//!
//! Hooks: classic tracepoints `sched/sched_process_{fork,exec,exit}`; perf software event page-faults, one in N.
//! Yields: counters; an [`Exit`] record for a watched process; faults as the full object.
//! Misses: the exit code, and so which processes fail; the lifetime of a process that is older than the agent; before 6.17 the exit of a process is
//! that of its first thread. Where a leaf function was called from.
//! Cost: a map insert a thread that begins or ends.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::{map, perf_event, tracepoint},
    maps::{HashMap, LruHashMap},
    programs::{PerfEventContext, TracePointContext},
};
use observer_abi::{
    Counter, Kind,
    alloc::{EXIT_CODE_UNKNOWN, Exit},
    classic::{MAX_BIRTHS, MAX_EXITING, MAX_WATCHED},
};

use crate::{
    counters::count,
    emit::emit,
    faults,
    fields::{number, place},
    subject::Current,
};

/// A process that lives shorter than this never shows in a table that is read once a second.
const SHORT_LIFE_NS: u64 = 1_000_000_000;

/// Thread -> its begin, CLOCK_MONOTONIC.
#[map]
static BIRTHS: LruHashMap<u32, u64> = LruHashMap::with_max_entries(MAX_BIRTHS, 0);

/// Threads inside exit(2), which closes their sockets after its tracepoint.
#[map]
static EXITING: LruHashMap<u32, u32> = LruHashMap::with_max_entries(MAX_EXITING, 0);

/// Processes whose exit the agent wants to hear of; it writes the keys.
#[map]
static WATCHED: HashMap<u32, u32> = HashMap::with_max_entries(MAX_WATCHED, 0);

#[perf_event]
fn page_fault(ctx: PerfEventContext) -> u32 {
    faults::sample(&ctx, || 0);
    0
}

#[tracepoint]
fn process_fork(ctx: TracePointContext) -> u32 {
    count(Counter::Forks, 1);
    let child = number!(&ctx, child_pid) as u32;
    let now = unsafe { bpf_ktime_get_ns() };
    // A full LRU map evicts: a lifetime is then not known.
    let _ = BIRTHS.insert(child, now, 0);
    // The number may have been that of a thread that exited.
    let _ = EXITING.remove(child);
    0
}

#[tracepoint]
fn process_exec(_ctx: TracePointContext) -> u32 {
    count(Counter::Execs, 1);
    0
}

#[tracepoint]
fn process_exit(ctx: TracePointContext) -> u32 {
    let current = Current::get();
    // A full LRU map evicts: a close is then told as one by the owner's will.
    let _ = EXITING.insert(current.tid, 1, 0);
    if !is_last_thread(&ctx, current) {
        let _ = BIRTHS.remove(current.tid);
        return 0;
    }
    let now = unsafe { bpf_ktime_get_ns() };
    let birth = unsafe { BIRTHS.get(current.tgid) }.copied();
    let _ = BIRTHS.remove(current.tgid);
    count(Counter::Exits, 1);
    let lifetime_ns = birth.map_or(0, |birth| now.saturating_sub(birth));
    if birth.is_some() && lifetime_ns < SHORT_LIFE_NS {
        count(Counter::ShortLived, 1);
    }
    if unsafe { WATCHED.get(current.tgid) }.is_some() {
        emit(Kind::Exit, current, now, |record: &mut Exit| {
            record.lifetime_ns = lifetime_ns;
            record.exit_code = EXIT_CODE_UNKNOWN;
            record.parent_tgid = 0;
            record.start_boottime_ns = 0;
            record.watched = 1;
            record.reserved = 0;
        });
    }
    0
}

#[inline(always)]
fn is_last_thread(ctx: &TracePointContext, current: Current) -> bool {
    if place!(group_dead).bytes != 0 {
        return number!(ctx, group_dead) & 0xff != 0;
    }
    current.tid == current.tgid
}

/// Whether the running task is inside exit(2).
#[inline(always)]
pub fn is_exiting() -> bool {
    unsafe { EXITING.get(Current::get().tid) }.is_some()
}
