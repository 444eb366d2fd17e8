//! OOM precursors.
//!
//! Hooks (tp_btf): `mm_vmscan_{direct,memcg}_reclaim_{begin,end}`, `mm_vmscan_kswapd_{wake,sleep}`,
//! `mm_vmscan_throttled`, `mm_compaction_{begin,end}`, `reclaim_retry_zone`, `mark_victim`.
//! Yields: counters, what `reclaim.rs` makes of begin and end, a [`Kill`] record for every OOM kill with victim, sizes
//! and trigger.
//! Misses: see `reclaim.rs`; before 6.9 `mark_victim` names the victim by pid only, and the agent fills in the sizes from
//! its last row.
//! Cost: none of these fires on a host with free memory; two clock calls a reclaim.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use aya_log_ebpf::info;
use observer_abi::{COMM_LEN, Counter, Header, Kind, oom::Kill};

use crate::{
    counters::count,
    emit::emit,
    kernel::{Object, get, ktime_ns, resident_pages},
    layout::layout,
    reclaim,
    subject::{Current, Subject},
};

#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_begin")]
fn direct_reclaim_begin(_ctx: BtfTracePointContext) -> i32 {
    reclaim::begin_reclaim();
    0
}

#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_end")]
fn direct_reclaim_end(ctx: BtfTracePointContext) -> i32 {
    reclaim::end_reclaim(ctx.arg(0), false);
    0
}

#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_begin")]
fn memcg_reclaim_begin(_ctx: BtfTracePointContext) -> i32 {
    reclaim::begin_reclaim();
    0
}

#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_end")]
fn memcg_reclaim_end(ctx: BtfTracePointContext) -> i32 {
    reclaim::end_reclaim(ctx.arg(0), true);
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
    reclaim::begin_compaction();
    0
}

#[btf_tracepoint(function = "mm_compaction_end")]
fn compaction_end(_ctx: BtfTracePointContext) -> i32 {
    reclaim::end_compaction();
    0
}

#[btf_tracepoint(function = "reclaim_retry_zone")]
fn oom_retry(_ctx: BtfTracePointContext) -> i32 {
    count(Counter::OomRetries, 1);
    0
}

#[btf_tracepoint(function = "mark_victim")]
fn mark_victim(ctx: BtfTracePointContext) -> i32 {
    let trigger = Current::get();
    info!((), "an allocation of {} sets off an OOM kill", trigger.tgid);
    if layout!(mark_victim_has_task) != 0 {
        let victim: Object = ctx.arg(0);
        tell(victim, trigger, |kill| read_victim(victim, kill));
    } else {
        tell(Pid(ctx.arg(0)), trigger, forget_victim);
    }
    0
}

#[inline(always)]
fn tell(victim: impl Subject, trigger: Current, fill: impl FnOnce(&mut Kill)) {
    let memcg = reclaim::was_for_memcg(trigger.tgid);
    emit(Kind::OomKill, victim, ktime_ns(), |kill: &mut Kill| {
        kill.trigger_tgid = trigger.tgid;
        kill.trigger_tid = trigger.tid;
        trigger.copy_comm(&mut kill.trigger_comm);
        kill.memcg = u32::from(memcg);
        fill(kill);
    });
}

/// Before 6.9 the victim is a pid.
struct Pid(u32);

impl Subject for Pid {
    #[inline(always)]
    fn describe(self, header: &mut Header) {
        header.tgid = self.0;
        header.tid = self.0;
        header.comm = [0; COMM_LEN];
    }
}

/// Zero sizes tell the agent to take its last row.
#[inline(always)]
fn forget_victim(kill: &mut Kill) {
    kill.file_pages = 0;
    kill.anon_pages = 0;
    kill.swap_pages = 0;
    kill.shmem_pages = 0;
    kill.page_table_bytes = 0;
    kill.start_boottime_ns = 0;
    kill.oom_score_adj = 0;
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
