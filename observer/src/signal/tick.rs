//! What a tick brings to the signals and what they make of it. All time is an argument here.

use std::{collections::BTreeSet, sync::Arc};

use observer_abi::{
    COMM_LEN, alloc::TaskRow, oom::Reclaimer, reply::Reply, sched::Watch, tcp::SocketRow,
};

use crate::{
    host::{Meminfo, Stall, Times, Vmstat, cgroup::Watched},
    identity::Process,
    kernel::Counters,
    limits::Reading,
    telemetry::{Batch, Event, Point, Span, SpanContext},
};

/// Spans and events that one tick may make. What falls off is counted.
pub const MAX_ITEMS: usize = 16384;

/// One instant on both clocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// CLOCK_MONOTONIC, the kernel side's clock.
    pub ktime_ns: u64,
    /// Since the Unix epoch.
    pub unix_ns: u64,
}

impl Now {
    /// Unix time of an instant that the kernel side stamped.
    pub fn unix_of(&self, ktime_ns: u64) -> u64 {
        let shift = self.unix_ns.wrapping_sub(self.ktime_ns);
        ktime_ns.wrapping_add(shift)
    }

    /// Time since an instant that the kernel side stamped; 0 if it lies ahead.
    pub fn since(&self, ktime_ns: u64) -> u64 {
        self.ktime_ns.saturating_sub(ktime_ns)
    }
}

/// Finds the identity of processes. The agent's implementation reads `/proc`; tests bring their own.
pub trait Who {
    /// The process with this pid and start (CLOCK_BOOTTIME), or the one that has this pid now; `comm` names one that is
    /// gone already.
    fn process(&mut self, pid: u32, start_boottime_ns: Option<u64>, comm: &str) -> Arc<Process>;
}

/// PSI of one resource and how often its trigger fired.
#[derive(Debug, Clone, Copy)]
pub struct PressureReading {
    /// `memory`, `io` or `cpu`.
    pub resource: &'static str,
    /// Stall times.
    pub stall: Stall,
    /// Times the `some` trigger fired since the agent started.
    pub some_triggers: u64,
    /// Times the `full` trigger fired since the agent started.
    pub full_triggers: u64,
}

/// Everything that was read for one tick.
pub struct Readings<'a> {
    /// When.
    pub now: Now,
    /// Since boot, the clock of process starts (CLOCK_BOOTTIME).
    pub boottime_ns: u64,
    /// Since the tick before; 0 at the first.
    pub elapsed_ns: u64,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Ticks a second of the kernel's jiffies.
    pub hz: u64,
    /// Counters since the agent started.
    pub counters: Counters,
    /// Every process, and watched or blocked threads.
    pub tasks: &'a [TaskRow],
    /// Open connections of the ledger.
    pub sockets: &'a [SocketRow],
    /// Last replies of those that are silent, as far as they came by; one a row of `sockets`, or none at all.
    pub replies: &'a [Option<Reply>],
    /// Watched threads by id.
    pub watches: &'a [(u32, Watch)],
    /// Sums of reclaim by pid.
    pub reclaimers: &'a [(u32, Reclaimer)],
    /// /proc/meminfo.
    pub meminfo: Meminfo,
    /// /proc/vmstat.
    pub vmstat: Vmstat,
    /// /proc/stat, all CPUs.
    pub times: Times,
    /// PSI, as far as the kernel has it.
    pub pressure: &'a [PressureReading],
    /// Processes that hold a listening TCP socket; `None` until that was read.
    pub listeners: Option<&'a BTreeSet<u32>>,
    /// Processes that use the CPU most, if [`super::sched::Sched::wants_consumers`].
    pub consumers: &'a [super::sched::Consumer],
    /// Disks that have requests.
    pub disks: &'a [super::sched::Disk],
    /// Processes that have disks read and write most, if [`super::sched::Sched::wants_senders`].
    pub senders: &'a [super::sched::Sender],
    /// Control groups of watched processes.
    pub cgroups: &'a [Watched],
    /// What has a bound, if it was read since the last tick.
    pub limits: Option<&'a Reading>,
}

/// What the signals make of records and ticks, until the agent takes it.
#[derive(Debug, Default)]
pub struct Output {
    /// Spans, events and points.
    pub batch: Batch,
    /// Spans and events beyond [`MAX_ITEMS`].
    pub dropped: u64,
}

impl Output {
    /// Adds a span.
    pub fn span(&mut self, span: Span) {
        if self.has_room() {
            self.batch.spans.push(span);
        }
    }

    /// Adds an event.
    pub fn event(&mut self, event: Event) {
        if self.has_room() {
            self.batch.events.push(event);
        }
    }

    /// Adds a metric point.
    pub fn point(&mut self, point: Point) {
        self.batch.points.push(point);
    }

    fn has_room(&mut self) -> bool {
        let room = self.batch.spans.len() + self.batch.events.len() < MAX_ITEMS;
        self.dropped += u64::from(!room);
        room
    }
}

/// Command name as text: up to the first zero byte, anything that is not UTF-8 replaced.
pub fn comm_text(comm: &[u8; COMM_LEN]) -> String {
    String::from_utf8_lossy(comm_bytes(comm)).into_owned()
}

/// A command name as the kernel has it.
pub fn comm_bytes(comm: &[u8; COMM_LEN]) -> &[u8] {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(COMM_LEN);
    &comm[..end]
}

/// Ids of a span from what it is about, so that the same thing has the same ids after a restart or a replay, and segments
/// of one connection share a trace. Never zero.
pub fn span_context(trace: [u64; 2], span: u64) -> SpanContext {
    let high = mix(trace[0] ^ 0x6f62_7365_7276_6572);
    let low = mix(trace[1].wrapping_add(high));
    let span_id = mix(span ^ low) | 1;
    SpanContext { trace_id: u128::from(high | 1) << 64 | u128::from(low), span_id }
}

/// The finalizer of SplitMix64 (Steele et al., 2014): every input bit changes half of the output's.
fn mix(mut word: u64) -> u64 {
    word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// `amount` per second of `elapsed_ns`.
pub fn per_second(amount: f64, elapsed_ns: u64) -> f64 {
    if elapsed_ns == 0 { 0.0 } else { amount * 1e9 / elapsed_ns as f64 }
}

/// Share that `part_ns` is of `whole_ns`, 0 to 1.
pub fn ratio(part_ns: u64, whole_ns: u64) -> f64 {
    if whole_ns == 0 { 0.0 } else { (part_ns as f64 / whole_ns as f64).clamp(0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_by_thing_and_are_stable() {
        let one = span_context([1, 2], 3);
        assert_eq!(one, span_context([1, 2], 3));
        assert_eq!(one.trace_id, span_context([1, 2], 4).trace_id);
        assert_ne!(one.span_id, span_context([1, 2], 4).span_id);
        assert_ne!(one.trace_id, span_context([2, 1], 3).trace_id);
    }

    #[test]
    fn kernel_time_becomes_unix_time() {
        let now = Now { ktime_ns: 1_000, unix_ns: 5_000 };
        assert_eq!(now.unix_of(400), 4_400);
        assert_eq!((now.since(400), now.since(2_000)), (600, 0));
    }

    #[test]
    fn command_names_end_at_zero() {
        let mut comm = [0; COMM_LEN];
        comm[..4].copy_from_slice(b"node");
        assert_eq!(comm_text(&comm), "node");
        assert_eq!(comm_text(&[b'x'; COMM_LEN]).len(), COMM_LEN);
    }
}
