//! OOM precursors.
//!
//! Hooks (tp_btf): `mm_vmscan_{direct,memcg}_reclaim_{begin,end}`, `mm_vmscan_kswapd_{wake,sleep}`,
//! `mm_vmscan_throttled`, `mm_compaction_{begin,end}`, `reclaim_retry_zone`, `mark_victim`.
//! Yields: counters, reclaim summed by process in RECLAIMERS, a [`Reclaim`] record for a reclaim over the threshold, a
//! [`Kill`] record for every OOM kill with victim, sizes and trigger.
//! Misses: a reclaim that never ends (its begin is in RECLAIMING, which the agent may read); before 6.9 `mark_victim`
//! names the victim by pid only, and the agent fills in the sizes from its last row.
//! Cost: none of these fires on a host with free memory; two clock calls a reclaim.

use aya_ebpf::{
    macros::{btf_tracepoint, map},
    maps::LruHashMap,
    programs::BtfTracePointContext,
};
use aya_log_ebpf::info;
use observer_abi::{
    COMM_LEN, Counter, Kind,
    oom::{Kill, MAX_RECLAIMERS, MAX_RECLAIMING, Reclaim, Reclaimer, Reclaiming},
};

use crate::{
    emit::{count, emit},
    kernel::{Object, copy_comm, current, get, ktime_ns, layout, resident_pages},
};

/// Task in reclaim or compaction -> since when. Keyed by thread id, high bit set for compaction.
#[map]
static RECLAIMING: LruHashMap<u32, Reclaiming> = LruHashMap::with_max_entries(MAX_RECLAIMING, 0);

#[map]
static RECLAIMERS: LruHashMap<u32, Reclaimer> = LruHashMap::with_max_entries(MAX_RECLAIMERS, 0);

const COMPACTION: u32 = 1 << 31;

#[inline(always)]
fn begin(key: u32) {
    let now = Reclaiming { start_ktime_ns: ktime_ns() };
    // A full LRU map evicts; losing the begin loses one duration, which is counted where it ends.
    let _ = RECLAIMING.insert(key, now, 0);
}

/// Duration since the matching [`begin`], and now.
#[inline(always)]
fn end(key: u32) -> Option<(u64, u64)> {
    let since = unsafe { RECLAIMING.get(key) }?.start_ktime_ns;
    let _ = RECLAIMING.remove(key);
    let now = ktime_ns();
    Some((now.saturating_sub(since), now))
}

#[inline(always)]
fn end_reclaim(pages: u64, memcg: bool) {
    let task = current();
    let Some((duration_ns, now)) = end(get!(task, task_pid as u32)) else { return };
    let (number, time) = if memcg {
        (Counter::MemcgReclaims, Counter::MemcgReclaimNs)
    } else {
        (Counter::DirectReclaims, Counter::DirectReclaimNs)
    };
    count(number, 1);
    count(time, duration_ns);
    add(get!(task, task_tgid as u32), duration_ns, pages, memcg, now);
    if duration_ns >= layout!(reclaim_threshold_ns) {
        emit(Kind::Reclaim, task, now, |record: &mut Reclaim| {
            record.duration_ns = duration_ns;
            record.pages = pages;
            record.memcg = u64::from(memcg);
        });
    }
}

#[inline(always)]
fn add(tgid: u32, duration_ns: u64, pages: u64, memcg: bool, now: u64) {
    if let Some(sum) = RECLAIMERS.get_ptr_mut(tgid) {
        // Threads of one process may race here; a lost addition changes a sum by one reclaim.
        let sum = unsafe { &mut *sum };
        sum.count += 1;
        sum.memcg_count += u64::from(memcg);
        sum.total_ns += duration_ns;
        sum.max_ns = if duration_ns > sum.max_ns { duration_ns } else { sum.max_ns };
        sum.pages += pages;
        sum.last_ktime_ns = now;
        sum.last_was_memcg = u64::from(memcg);
        return;
    }
    let first = Reclaimer {
        count: 1,
        memcg_count: u64::from(memcg),
        total_ns: duration_ns,
        max_ns: duration_ns,
        pages,
        last_ktime_ns: now,
        last_was_memcg: u64::from(memcg),
    };
    if RECLAIMERS.insert(tgid, first, 0).is_err() {
        count(Counter::ReclaimersFull, 1);
    }
}

#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_begin")]
fn direct_reclaim_begin(_ctx: BtfTracePointContext) -> i32 {
    begin(get!(current(), task_pid as u32));
    0
}

#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_end")]
fn direct_reclaim_end(ctx: BtfTracePointContext) -> i32 {
    end_reclaim(ctx.arg(0), false);
    0
}

#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_begin")]
fn memcg_reclaim_begin(_ctx: BtfTracePointContext) -> i32 {
    begin(get!(current(), task_pid as u32));
    0
}

#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_end")]
fn memcg_reclaim_end(ctx: BtfTracePointContext) -> i32 {
    end_reclaim(ctx.arg(0), true);
    0
}

#[btf_tracepoint(function = "mm_vmscan_kswapd_wake")]
fn kswapd_wake(_ctx: BtfTracePointContext) -> i32 {
    count(Counter::KswapdWakes, 1);
    0
}

#[btf_tracepoint(function = "mm_vmscan_kswapd_sleep")]
fn kswapd_sleep(_ctx: BtfTracePointContext) -> i32 {
    count(Counter::KswapdSleeps, 1);
    0
}

#[btf_tracepoint(function = "mm_vmscan_throttled")]
fn reclaim_throttled(ctx: BtfTracePointContext) -> i32 {
    count(Counter::Throttles, 1);
    count(Counter::ThrottleNs, u64::from(ctx.arg::<u32>(2)) * 1000);
    0
}

#[btf_tracepoint(function = "mm_compaction_begin")]
fn compaction_begin(_ctx: BtfTracePointContext) -> i32 {
    begin(get!(current(), task_pid as u32) | COMPACTION);
    0
}

#[btf_tracepoint(function = "mm_compaction_end")]
fn compaction_end(_ctx: BtfTracePointContext) -> i32 {
    if let Some((duration_ns, _)) = end(get!(current(), task_pid as u32) | COMPACTION) {
        count(Counter::Compactions, 1);
        count(Counter::CompactionNs, duration_ns);
    }
    0
}

#[btf_tracepoint(function = "reclaim_retry_zone")]
fn oom_retry(_ctx: BtfTracePointContext) -> i32 {
    count(Counter::OomRetries, 1);
    0
}

#[btf_tracepoint(function = "mark_victim")]
fn mark_victim(ctx: BtfTracePointContext) -> i32 {
    let trigger = current();
    let trigger_tgid = get!(trigger, task_tgid as u32);
    let memcg = unsafe { RECLAIMERS.get(trigger_tgid) }.is_some_and(|sum| sum.last_was_memcg != 0);
    info!((), "an allocation of {} sets off an OOM kill", trigger_tgid);
    let has_task = layout!(mark_victim_has_task) != 0;
    let victim: Object = if has_task { ctx.arg(0) } else { trigger };
    emit(Kind::OomKill, victim, ktime_ns(), |kill: &mut Kill| {
        kill.trigger_tgid = trigger_tgid;
        kill.trigger_tid = get!(trigger, task_pid as u32);
        copy_comm(trigger, &mut kill.trigger_comm);
        kill.memcg = u32::from(memcg);
        read_victim(victim, kill);
        if !has_task {
            // Before 6.9 the argument is the victim's pid; zero sizes tell the agent to take its last row.
            kill.header.tgid = ctx.arg(0);
            kill.header.tid = ctx.arg(0);
            kill.header.comm = [0; COMM_LEN];
            kill.file_pages = 0;
            kill.anon_pages = 0;
            kill.swap_pages = 0;
            kill.shmem_pages = 0;
            kill.page_table_bytes = 0;
            kill.start_boottime_ns = 0;
            kill.oom_score_adj = 0;
        }
    });
    0
}

#[inline(always)]
fn read_victim(victim: Object, kill: &mut Kill) {
    let mm = get!(victim, task_mm as Object);
    kill.file_pages = resident_pages(mm, 0);
    kill.anon_pages = resident_pages(mm, 1);
    kill.swap_pages = resident_pages(mm, 2);
    kill.shmem_pages = resident_pages(mm, 3);
    kill.page_table_bytes = get!(mm, mm_pgtables_bytes as u64);
    let leader = get!(victim, task_group_leader as Object);
    kill.start_boottime_ns = get!(leader, task_start_boottime as u64);
    let signal = get!(victim, task_signal as Object);
    kill.oom_score_adj = i32::from(get!(signal, signal_oom_score_adj as i16));
}
