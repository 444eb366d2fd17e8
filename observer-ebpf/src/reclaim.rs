//! Reclaim and compaction: from begin to end, summed by process. Shared by both objects, which bring the hooks.
//!
//! Yields: counters, RECLAIMERS, a [`Reclaim`] record for a reclaim over the threshold.
//! Misses: a reclaim that never ends (its begin is in RECLAIMING, which the agent may read).
//! Cost: nothing fires on a host with free memory; two clock calls a reclaim.

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::map, maps::LruHashMap};
use observer_abi::{
    Counter, Kind,
    oom::{MAX_RECLAIMERS, MAX_RECLAIMING, Reclaim, Reclaimer, Reclaiming},
};

use crate::{counters::count, emit::emit, layout::layout, subject::Current};

/// Task in reclaim or compaction -> since when. Keyed by thread id, high bit set for compaction.
#[map]
static RECLAIMING: LruHashMap<u32, Reclaiming> = LruHashMap::with_max_entries(MAX_RECLAIMING, 0);

#[map]
static RECLAIMERS: LruHashMap<u32, Reclaimer> = LruHashMap::with_max_entries(MAX_RECLAIMERS, 0);

const COMPACTION: u32 = 1 << 31;

/// The running task goes into reclaim.
#[inline(always)]
pub fn begin_reclaim() {
    begin(Current::get().tid);
}

/// It comes out of it.
#[inline(always)]
pub fn end_reclaim(pages: u64, memcg: bool) {
    let current = Current::get();
    let Some((duration_ns, now)) = end(current.tid) else { return };
    let (number, time) = if memcg {
        (Counter::MemcgReclaims, Counter::MemcgReclaimNs)
    } else {
        (Counter::DirectReclaims, Counter::DirectReclaimNs)
    };
    count(number, 1);
    count(time, duration_ns);
    add(current.tgid, duration_ns, pages, memcg, now);
    if duration_ns >= layout!(reclaim_threshold_ns) {
        emit(Kind::Reclaim, current, now, |record: &mut Reclaim| {
            record.duration_ns = duration_ns;
            record.pages = pages;
            record.memcg = u64::from(memcg);
        });
    }
}

/// The running task begins to compact memory.
#[inline(always)]
pub fn begin_compaction() {
    begin(Current::get().tid | COMPACTION);
}

/// It is done with that.
#[inline(always)]
pub fn end_compaction() {
    if let Some((duration_ns, _)) = end(Current::get().tid | COMPACTION) {
        count(Counter::Compactions, 1);
        count(Counter::CompactionNs, duration_ns);
    }
}

/// Whether the last reclaim of a process was for a memory cgroup.
#[inline(always)]
pub fn was_for_memcg(tgid: u32) -> bool {
    unsafe { RECLAIMERS.get(tgid) }.is_some_and(|sum| sum.last_was_memcg != 0)
}

#[inline(always)]
fn begin(key: u32) {
    let now = Reclaiming { start_ktime_ns: unsafe { bpf_ktime_get_ns() } };
    // A full LRU map evicts; losing the begin loses one duration, which is counted where it ends.
    let _ = RECLAIMING.insert(key, now, 0);
}

/// Duration since the matching [`begin`], and now.
#[inline(always)]
fn end(key: u32) -> Option<(u64, u64)> {
    let since = unsafe { RECLAIMING.get(key) }?.start_ktime_ns;
    let _ = RECLAIMING.remove(key);
    let now = unsafe { bpf_ktime_get_ns() };
    Some((now.saturating_sub(since), now))
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
