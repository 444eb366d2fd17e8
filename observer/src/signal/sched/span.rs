//! Spans of gaps and stalls, as long as what they tell of.

use observer_abi::{
    KERNEL_FRAMES,
    sched::{Stall, phase},
};

use super::poller::Judged;
use crate::{
    signal::{Now, Who, comm_text, span_context},
    telemetry::{Span, Subject, Value, attr},
};

/// futex(2) on x86-64 and on the generic table.
const FUTEX: u32 = if cfg!(target_arch = "x86_64") { 202 } else { 98 };

/// Why a thread was off its CPU.
pub fn reason(record: &Stall) -> &'static str {
    match (record.phase, record.syscall, record.io_wait != 0) {
        (phase::RUNNING, ..) => "runnable",
        (phase::BLOCKED, u32::MAX, _) => "page_fault",
        (phase::BLOCKED, _, true) => "io",
        (phase::BLOCKED, _, false) | (_, FUTEX, _) => "lock",
        _ => "blocked",
    }
}

/// Span of an event-loop gap.
pub fn gap(judged: &Judged, now: Now, who: &mut dyn Who) -> Span {
    let gap = &judged.gap;
    let blocked_ns = gap.duration_ns.saturating_sub(gap.on_cpu_ns + gap.waiting_ns);
    let mut span = base("event_loop.stall", &gap.header, gap.duration_ns, now, who);
    span.attrs.extend([
        attr("observer.stall.on_cpu_ns", gap.on_cpu_ns),
        attr("observer.stall.waiting_ns", gap.waiting_ns),
        attr("observer.stall.blocked_ns", blocked_ns),
        attr("observer.stall.confirmed", judged.confirmed),
    ]);
    span
}

/// Span of an off-CPU stall; its stack is added once it has names.
pub fn stall(record: &Stall, now: Now, who: &mut dyn Who) -> Span {
    let mut span = base("sched.stall", &record.header, record.duration_ns, now, who);
    span.attrs.push(attr("observer.stall.reason", reason(record)));
    if record.syscall != u32::MAX {
        span.attrs.push(attr("observer.stall.syscall", record.syscall));
    }
    span
}

/// Adds a kernel stack.
pub fn add_stack(span: &mut Span, frames: Vec<String>) {
    if !frames.is_empty() {
        let frames: Vec<std::sync::Arc<str>> = frames.into_iter().map(Into::into).collect();
        span.attrs.push(attr("observer.stall.stack", Value::List(frames.into())));
    }
}

/// The frames of a zero-filled stack.
pub fn frames(stack: &[u64; KERNEL_FRAMES]) -> Vec<u64> {
    stack.iter().copied().take_while(|address| *address != 0).collect()
}

fn base(
    name: &'static str,
    header: &observer_abi::Header,
    duration_ns: u64,
    now: Now,
    who: &mut dyn Who,
) -> Span {
    let comm = comm_text(&header.comm);
    let process = who.process(header.tgid, None, &comm);
    let end_unix_ns = now.unix_of(header.ktime_ns);
    Span {
        name,
        context: span_context([u64::from(header.tid), header.ktime_ns], duration_ns),
        parent_span_id: None,
        links: Vec::new(),
        start_unix_ns: end_unix_ns.saturating_sub(duration_ns),
        end_unix_ns,
        error: None,
        attrs: vec![
            attr("process.pid", header.tgid),
            attr("thread.id", header.tid),
            attr("thread.name", comm),
        ],
        subject: Subject::Process(process),
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    #[test]
    fn reasons_come_from_state_and_system_call() {
        let check = |phase, syscall, io_wait, expect| {
            let record = Stall { phase, syscall, io_wait, ..Stall::new_zeroed() };
            assert_eq!(reason(&record), expect);
        };
        check(phase::RUNNING, 0, 0, "runnable");
        check(phase::BLOCKED, u32::MAX, 1, "page_fault");
        check(phase::BLOCKED, 0, 1, "io");
        check(phase::BLOCKED, 9, 0, "lock");
        check(phase::SLEEPING, FUTEX, 0, "lock");
        check(phase::SLEEPING, 0, 0, "blocked");
    }
}
