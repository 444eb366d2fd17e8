//! OOM precursors.
//!
//! Hooks (classic tracepoints): `vmscan/mm_vmscan_{direct,memcg}_reclaim_{begin,end}`,
//! `vmscan/mm_vmscan_kswapd_{wake,sleep}`, `vmscan/mm_vmscan_throttled`, `compaction/mm_compaction_{begin,end}`,
//! `oom/reclaim_retry_zone`, `oom/mark_victim`.
//! Yields: as the full object.
//! Misses: as the full object; before 6.9 `mark_victim` names the victim by pid only.
//! Cost: none of these fires on a host with free memory.

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::tracepoint, programs::TracePointContext};
use observer_abi::{COMM_LEN, Counter, Header, Kind, classic::Place, oom::Kill};

use crate::{
    counters::count,
    emit::emit,
    fields::{self, number, place},
    layout::layout,
    reclaim,
    subject::{Current, Subject},
};

#[tracepoint]
fn direct_reclaim_begin(_ctx: TracePointContext) -> u32 {
    reclaim::begin_reclaim();
    0
}

#[tracepoint]
fn direct_reclaim_end(ctx: TracePointContext) -> u32 {
    reclaim::end_reclaim(number!(&ctx, direct_reclaimed), false);
    0
}

#[tracepoint]
fn memcg_reclaim_begin(_ctx: TracePointContext) -> u32 {
    reclaim::begin_reclaim();
    0
}

#[tracepoint]
fn memcg_reclaim_end(ctx: TracePointContext) -> u32 {
    reclaim::end_reclaim(number!(&ctx, memcg_reclaimed), true);
    0
}

#[tracepoint]
fn kswapd_wake(_ctx: TracePointContext) -> u32 {
    count(Counter::KswapdWakes, 1);
    0
}

#[tracepoint]
fn kswapd_sleep(_ctx: TracePointContext) -> u32 {
    count(Counter::KswapdSleeps, 1);
    0
}

#[tracepoint]
fn reclaim_throttled(ctx: TracePointContext) -> u32 {
    count(Counter::Throttles, 1);
    count(Counter::ThrottleNs, number!(&ctx, throttled_us) * 1000);
    0
}

#[tracepoint]
fn compaction_begin(_ctx: TracePointContext) -> u32 {
    reclaim::begin_compaction();
    0
}

#[tracepoint]
fn compaction_end(_ctx: TracePointContext) -> u32 {
    reclaim::end_compaction();
    0
}

#[tracepoint]
fn oom_retry(_ctx: TracePointContext) -> u32 {
    count(Counter::OomRetries, 1);
    0
}

/// The process that is killed, as the record names it.
struct Victim<'a>(&'a TracePointContext);

impl Subject for Victim<'_> {
    #[inline(always)]
    fn describe(self, header: &mut Header) {
        header.tgid = number!(self.0, victim_pid) as u32;
        header.tid = header.tgid;
        let mut comm = [0; COMM_LEN];
        fields::text(self.0, place!(victim_comm), &mut comm);
        header.comm = comm;
    }
}

#[tracepoint]
fn mark_victim(ctx: TracePointContext) -> u32 {
    let trigger = Current::get();
    let memcg = reclaim::was_for_memcg(trigger.tgid);
    let now = unsafe { bpf_ktime_get_ns() };
    emit(Kind::OomKill, Victim(&ctx), now, |kill: &mut Kill| {
        kill.trigger_tgid = trigger.tgid;
        kill.trigger_tid = trigger.tid;
        trigger.copy_comm(&mut kill.trigger_comm);
        kill.memcg = u32::from(memcg);
        // Zero sizes, where the record has none, tell the agent to take its last row.
        kill.anon_pages = pages(&ctx, place!(victim_anon_kib));
        kill.file_pages = pages(&ctx, place!(victim_file_kib));
        kill.shmem_pages = pages(&ctx, place!(victim_shmem_kib));
        kill.swap_pages = 0;
        kill.page_table_bytes = number!(&ctx, victim_page_tables_kib) << 10;
        kill.start_boottime_ns = 0;
        kill.oom_score_adj = i32::from(number!(&ctx, victim_score_adj) as i16);
    });
    0
}

#[inline(always)]
fn pages(ctx: &TracePointContext, kib: Place) -> i64 {
    // At least one, so that the verifier sees no division by zero.
    (fields::read_number(ctx, kib) / (layout!(page_kib) | u64::from(layout!(page_kib) == 0))) as i64
}
