//! Watched threads and records in; ratios, loops, gaps, stalls and throttling out.

use observer_abi::{
    Kind,
    alloc::{TASK_BLOCKED, TASK_LEADER, TASK_WATCHED, TaskRow},
    sched::{LoopGap, Stall, Watch, phase},
};
use proptest::prelude::*;
use zerocopy::{FromBytes as _, FromZeros as _};

use super::*;
use crate::{
    host::Times,
    signal::{
        Output, Readings,
        testing::{
            Anyone, Group, SECOND, WALL_AHEAD, at, check_numbers, check_view, comm, header, int,
            pid, quiet, text, value,
        },
    },
    telemetry::{Number, Span, Value},
};

const MS: u64 = 1_000_000;

fn sched() -> Sched {
    Sched::new(40 * MS)
}

fn row(tid: u32, flags: u32) -> TaskRow {
    let mut row = TaskRow::new_zeroed();
    (row.tgid, row.tid, row.flags, row.comm) = (7, tid, flags | TASK_LEADER, comm("node"));
    row
}

fn watched(tid: u32, run_delay_ns: u64) -> TaskRow {
    TaskRow { run_delay_ns, on_cpu_ns: 2 * run_delay_ns, ..row(tid, TASK_WATCHED) }
}

/// State of a loop that waits for events.
fn turning(turns: u64, sleeps: u64) -> Watch {
    Watch { turns, sleeps, phase: phase::POLLING, ..Watch::default() }
}

fn tick(sched: &mut Sched, ktime_ns: u64, tasks: &[TaskRow], watches: &[(u32, Watch)]) -> Output {
    fold(sched, &Readings { tasks, watches, ..quiet(at(ktime_ns)) }, false)
}

fn fold(sched: &mut Sched, readings: &Readings<'_>, ends: bool) -> Output {
    let mut out = Output::default();
    sched.tick(readings, ends, &mut Anyone, &mut out);
    check_view(&sched.view());
    out
}

fn points(sched: &Sched, name: &str) -> Vec<(u32, Number)> {
    let mut out = Output::default();
    sched.points(0, 0, &mut Anyone, &mut out);
    assert!(out.batch.points.iter().all(|point| SIGNAL.metrics.contains(&point.metric)));
    let named = out.batch.points.iter().filter(|point| point.metric.name == name);
    named.map(|point| (pid(&point.subject), point.number.clone())).collect()
}

#[test]
fn ratios_are_of_the_time_between_two_ticks() {
    let mut sched = sched();
    let watches = [(7, turning(1, 0)), (8, Watch::default())];
    tick(&mut sched, SECOND, &[watched(7, 5 * SECOND), watched(8, 0)], &watches);
    let thread = sched.view().threads.remove(0);
    assert_eq!((thread.run_delay_ratio, thread.on_cpu_ratio, thread.run_delay_ns), (0.0, 0.0, 0));
    let later = [watched(7, 5 * SECOND + SECOND / 4), watched(8, SECOND / 100), row(9, 0)];
    tick(&mut sched, 2 * SECOND, &later, &watches);
    let view = sched.view();
    let ratios: Vec<_> =
        view.threads.iter().map(|t| (t.tid, t.run_delay_ratio, t.on_cpu_ratio)).collect();
    assert_eq!(ratios, [(7, 0.25, 0.5), (8, 0.01, 0.02)], "the longest waiting first");
    assert_eq!((view.threads[0].run_delay_ns, view.watched), (SECOND / 4, 2));
}

#[test]
fn counters_of_a_process_do_not_fall_when_a_thread_ends() {
    let mut sched = sched();
    let turned = |turns, total_ns| {
        let mut watch = Watch { total_ns, max_ns: 3 * MS, ..turning(turns, 0) };
        watch.histogram[1] = turns as u32;
        watch
    };
    let both = [(7, turned(4, SECOND)), (8, turned(6, SECOND))];
    tick(&mut sched, SECOND, &[watched(7, 0), watched(8, 0)], &both);
    tick(&mut sched, 2 * SECOND, &[watched(7, SECOND / 2), watched(8, SECOND / 2)], &both);
    let check = |sched: &Sched, turns: u64, sum: f64| {
        assert_eq!(points(sched, "observer.sched.run_delay"), [(7, Number::Float(1.0))]);
        let turn = points(sched, "observer.event_loop.turn");
        let [(7, Number::Histogram(all))] = &turn[..] else { panic!("{turn:?}") };
        assert_eq!((all.counts[1], all.counts.iter().sum::<u64>(), all.sum), (turns, turns, sum));
        assert_eq!((all.bounds.len() + 1, all.max), (all.counts.len(), 0.003));
    };
    check(&sched, 10, 2.0);
    tick(&mut sched, 3 * SECOND, &[watched(7, SECOND / 2)], &both[..1]);
    check(&sched, 10, 2.0);
    let anew = [(7, turned(1, SECOND / 2))];
    tick(&mut sched, 4 * SECOND, &[watched(7, SECOND / 2)], &anew);
    check(&sched, 11, 2.5);
    let other = TaskRow { start_boottime_ns: 99, ..watched(7, SECOND) };
    tick(&mut sched, 5 * SECOND, &[other], &[(7, turning(1, 0))]);
    let delay = points(&sched, "observer.sched.run_delay");
    assert_eq!(delay, [(7, Number::Float(0.5))], "another process");
}

#[test]
fn a_loop_sleeps_in_epoll_at_least_one_time_in_five() {
    #[track_caller]
    fn check(turns: u64, sleeps: u64, name: &str, expect: bool) {
        let mut sched = sched();
        let row = TaskRow { comm: comm(name), ..watched(7, 0) };
        tick(&mut sched, SECOND, &[row], &[(7, turning(turns, sleeps))]);
        assert_eq!(sched.view().threads[0].event_loop.is_some(), expect, "{turns} {sleeps} {name}");
    }
    check(1, 0, "node", true);
    check(10, 40, "node", true);
    check(10, 41, "node", false);
    check(0, 0, "node", false);
    check(u64::MAX, u64::MAX, "node", true);
    check(10, 0, "postgres", false);
}

#[test]
fn a_turn_that_does_not_end_is_open_once_the_probe_is_sure() {
    let mut sched = sched();
    let turn = Watch {
        phase: phase::RUNNING,
        turn_ktime_ns: 9 * SECOND,
        turn_on_cpu_ns: SECOND,
        turn_run_delay_ns: 0,
        ..turning(5, 0)
    };
    let task = |on_cpu_ns, run_delay_ns| TaskRow { on_cpu_ns, run_delay_ns, ..watched(7, 0) };
    let open = |sched: &Sched| sched.view().threads[0].event_loop.clone().unwrap();
    tick(&mut sched, 9 * SECOND + 30 * MS, &[task(SECOND, 0)], &[(7, turn)]);
    assert!(!sched.wants_epoll_probe(), "below the threshold");
    tick(&mut sched, 10 * SECOND, &[task(3 * SECOND / 2, SECOND / 4)], &[(7, turn)]);
    assert_eq!(open(&sched).open_ns, 0, "it may be polling");
    assert!(sched.wants_epoll_probe());
    tick(&mut sched, 11 * SECOND, &[task(2 * SECOND, SECOND / 4)], &[(7, turn)]);
    let parts = open(&sched);
    assert_eq!((parts.open_ns, parts.open_on_cpu_ns), (2 * SECOND, SECOND));
    assert_eq!(parts.open_waiting_ns, SECOND / 4);
    assert_eq!(parts.open_blocked_ns, 3 * SECOND / 4);
    assert_eq!(points(&sched, "observer.event_loop.open_gap"), [(7, Number::Float(2.0))]);
    (12..20).for_each(|s| drop(tick(&mut sched, s * SECOND, &[task(0, 0)], &[(7, turn)])));
    assert!(sched.wants_epoll_probe(), "as long as it is open");
    tick(&mut sched, 20 * SECOND, &[task(0, 0)], &[(7, turning(6, 0))]);
    assert_eq!(open(&sched).open_ns, 0);
    assert!(!sched.wants_epoll_probe());
}

/// A gap of 200 ms that ended at this second.
fn gap(turns: u64, partial: u64, second: u64) -> LoopGap {
    let mut gap = LoopGap::new_zeroed();
    gap.header = header(Kind::LoopGap, 7, "node", second * SECOND);
    (gap.duration_ns, gap.on_cpu_ns, gap.waiting_ns) = (200 * MS, 150 * MS, 20 * MS);
    (gap.turns, gap.partial) = (turns, partial);
    gap
}

#[test]
fn a_gap_is_told_once_it_is_clear_what_it_was() {
    let mut sched = sched();
    let mut out = Output::default();
    sched.gap(gap(0, 1, 5), at(5 * SECOND), &mut Anyone, &mut out);
    sched.gap(gap(5, 0, 6), at(6 * SECOND), &mut Anyone, &mut out);
    assert!(out.batch.spans.is_empty() && sched.view().stalls == 0, "a start is no gap; one waits");
    for second in 6..=8 {
        let watch = turning(5 + second, 0);
        out.batch
            .spans
            .extend(tick(&mut sched, second * SECOND, &[watched(7, 0)], &[(7, watch)]).batch.spans);
    }
    let [span] = &out.batch.spans[..] else { panic!("{out:?}") };
    assert_eq!((span.name, pid(&span.subject)), ("event_loop.stall", 7));
    assert_eq!(span.end_unix_ns, 6 * SECOND + WALL_AHEAD);
    assert_eq!(span.end_unix_ns - span.start_unix_ns, 200 * MS);
    for (key, expect) in [("on_cpu_ns", 150), ("waiting_ns", 20), ("blocked_ns", 30)] {
        let key = format!("observer.stall.{key}");
        assert_eq!(int(&span.attrs, &key), expect * MS as i64);
    }
    assert_eq!(value(&span.attrs, "observer.stall.confirmed"), Some(&Value::Bool(true)));
    assert_eq!((int(&span.attrs, "thread.id"), text(&span.attrs, "thread.name")), (7, "node"));
    tick(&mut sched, 9 * SECOND, &[watched(7, 0)], &[(7, turning(20, 0))]);
    let view = sched.view();
    assert_eq!(view.threads[0].event_loop.as_ref().map(|l| l.max_ns), Some(200 * MS));
    assert_eq!(view.stalls, 1);
    tick(&mut sched, 67 * SECOND, &[watched(7, 0)], &[(7, turning(20, 0))]);
    assert_eq!(sched.view().threads[0].event_loop.as_ref().map(|l| l.max_ns), Some(0));
}

#[test]
fn a_gap_that_still_waits_is_told_at_the_end() {
    let mut sched = sched();
    let mut out = Output::default();
    sched.gap(gap(5, 0, 6), at(6 * SECOND), &mut Anyone, &mut out);
    let last = fold(&mut sched, &quiet(at(7 * SECOND)), true);
    let attrs = &last.batch.spans[0].attrs;
    assert_eq!(value(attrs, "observer.stall.confirmed"), Some(&Value::Bool(false)));
}

fn stall(phase: u32, turns: u64, address: u64) -> Stall {
    let mut stall = Stall::new_zeroed();
    stall.header = header(Kind::Stall, 7, "node", SECOND);
    (stall.duration_ns, stall.phase, stall.turns) = (300 * MS, phase, turns);
    stall.stack[0] = address;
    stall
}

fn stack(span: &Span) -> Vec<String> {
    match value(&span.attrs, "observer.stall.stack") {
        Some(Value::List(frames)) => frames.iter().map(|frame| frame.to_string()).collect(),
        None => Vec::new(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stall_waits_for_the_names_of_its_stack() {
    let mut sched = sched();
    let mut out = Output::default();
    let mut record = |sched: &mut Sched, record: Stall| {
        sched.stall(&record, at(2 * SECOND), &mut Anyone, &mut out);
        std::mem::take(&mut out.batch.spans)
    };
    assert!(record(&mut sched, stall(phase::BLOCKED, 0, 16)).is_empty());
    assert_eq!(sched.unnamed(), [16]);
    assert!(tick(&mut sched, 2 * SECOND, &[], &[]).batch.spans.is_empty());
    sched.name(16, "io_schedule".to_owned());
    let told = tick(&mut sched, 3 * SECOND, &[], &[]).batch.spans;
    assert_eq!((told.len(), stack(&told[0])), (1, vec!["io_schedule".to_owned()]));
    assert_eq!(
        (told[0].name, text(&told[0].attrs, "observer.stall.reason")),
        ("sched.stall", "lock")
    );
    assert_eq!(stack(&record(&mut sched, stall(phase::BLOCKED, 0, 16))[0]), ["io_schedule"]);
    let waited = record(&mut sched, stall(phase::RUNNING, 0, 32));
    assert!(stack(&waited[0]).is_empty(), "where it was preempted says nothing");

    // However many come at once: each waits for some ticks.
    for _ in 0..20 {
        assert!(record(&mut sched, stall(phase::BLOCKED, 0, 48)).is_empty());
    }
    let told: Vec<_> =
        (4..12).map(|s| tick(&mut sched, s * SECOND, &[], &[]).batch.spans.len()).collect();
    assert_eq!(told, [0, 0, 0, 20, 0, 0, 0, 0], "then they go with addresses");
    assert!(record(&mut sched, stall(phase::BLOCKED, 0, 64)).is_empty());
    let last = fold(&mut sched, &quiet(at(20 * SECOND)), true).batch.spans;
    assert_eq!(stack(&last[0]), ["0x40"]);
    assert_eq!(sched.view().stalls, 24);
}

#[test]
fn an_idle_thread_that_sleeps_is_no_stall() {
    let mut sched = sched();
    let mut out = Output::default();
    sched.stall(&stall(phase::SLEEPING, 0, 0), at(SECOND), &mut Anyone, &mut out);
    assert_eq!((out.batch.spans.len(), sched.view().stalls), (0, 0));
    sched.stall(&stall(phase::SLEEPING, 3, 0), at(SECOND), &mut Anyone, &mut out);
    assert_eq!((out.batch.spans.len(), sched.view().stalls), (1, 1), "within the turn of a loop");
}

#[test]
fn waits_for_a_cpu_make_so_many_spans_and_no_more() {
    let mut sched = sched();
    let mut out = Output::default();
    for second in [1, 2, 12] {
        for _ in 0..30 {
            sched.stall(&stall(phase::RUNNING, 0, 0), at(second * SECOND), &mut Anyone, &mut out);
        }
    }
    assert_eq!((out.batch.spans.len(), sched.limited(), sched.view().stalls), (62, 28, 90));
}

#[test]
fn stalls_waiting_for_names_are_bounded() {
    let mut sched = sched();
    let mut out = Output::default();
    for address in 1..=300 {
        sched.stall(&stall(phase::BLOCKED, 0, address), at(SECOND), &mut Anyone, &mut out);
    }
    assert_eq!((out.batch.spans.len(), sched.unnamed().len()), (44, 256));
}

#[test]
fn uninterruptible_sleep_is_shown_from_a_second_on() {
    let mut sched = sched();
    let mut blocked = row(9, TASK_BLOCKED);
    (blocked.stack[0], blocked.voluntary_switches) = (16, 5);
    let mut shown = |ktime_ns, row: TaskRow| {
        tick(&mut sched, ktime_ns, &[row], &[]);
        let rows = sched.view().blocked;
        rows.iter().for_each(|row| assert_eq!((row.pid, row.tid, &*row.stack[0]), (7, 9, "0x10")));
        assert_eq!(sched.unnamed().is_empty(), rows.is_empty());
        rows.iter().map(|row| row.blocked_ns).collect::<Vec<_>>()
    };
    assert!(shown(SECOND, blocked).is_empty());
    assert!(shown(2 * SECOND - 1, blocked).is_empty());
    assert_eq!(shown(2 * SECOND, blocked), [SECOND]);
    assert_eq!(shown(9 * SECOND, blocked), [8 * SECOND]);
    blocked.voluntary_switches += 1;
    assert!(shown(10 * SECOND, blocked).is_empty(), "it ran in between");
}

#[test]
fn throttling_is_a_share_of_the_periods_since_the_last_tick() {
    let (mut sched, mut group) = (sched(), Group::new());
    let mut check = |second: u64, periods, expect: Option<f64>| {
        group.set(0, periods);
        let cgroups = group.cgroups.read();
        fold(&mut sched, &Readings { cgroups, ..quiet(at(second * SECOND)) }, false);
        let rows = sched.view().throttled;
        assert_eq!(rows.first().map(|row| row.throttled_ratio), expect, "{periods:?}");
        assert!(rows.iter().all(|row| row.path == "/api" && row.throttled_periods == periods.1));
    };
    check(1, (100, 0), None);
    check(2, (110, 4), Some(0.4));
    check(3, (120, 14), Some(1.0));
    check(4, (130, 14), Some(0.0));
    check(5, (130, 14), Some(0.0));
    let throttled = points(&sched, "observer.cgroup.cpu.throttled");
    assert_eq!(throttled, [(0, Number::Float(0.014))]);
}

#[test]
fn busy_and_stolen_time_are_shares_of_all_time() {
    let mut sched = sched();
    let mut check = |total_ticks, busy_ticks, steal_ticks, expect| {
        let times = Times { total_ticks, busy_ticks, steal_ticks, iowait_ticks: 0 };
        fold(&mut sched, &Readings { times, ..quiet(at(SECOND)) }, false);
        assert_eq!((sched.view().busy_ratio, sched.view().steal_ratio), expect);
    };
    check(1000, 500, 0, (0.0, 0.0));
    check(1200, 600, 50, (0.5, 0.25));
    check(0, 0, 0, (0.5, 0.25));
    check(1300, 600, 50, (0.0, 0.0));
}

fn bytes(length: usize) -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![4 => Just(0_u8), 1 => Just(1), 2 => Just(255), 1 => any::<u8>()];
    prop::collection::vec(byte, length)
}

proptest! {
    #[test]
    fn no_row_panics_or_makes_a_number_that_is_none(
        task in bytes(size_of::<TaskRow>()),
        watch in bytes(size_of::<Watch>()),
        gap in bytes(size_of::<LoopGap>()),
        stall in bytes(size_of::<Stall>()),
        clock: u64,
        elapsed_ns: u64,
        ticks in prop::array::uniform4(any::<u64>()),
    ) {
        let mut sched = sched();
        let task = TaskRow::read_from_bytes(&task).unwrap();
        let watch = Watch::read_from_bytes(&watch).unwrap();
        let (gap, stall) = (LoopGap::read_from_bytes(&gap).unwrap(), Stall::read_from_bytes(&stall).unwrap());
        let [total_ticks, busy_ticks, steal_ticks, iowait_ticks] = ticks;
        for round in 0..4 {
            let now = at((clock >> 2) + round * SECOND);
            let mut out = Output::default();
            sched.gap(gap, now, &mut Anyone, &mut out);
            sched.stall(&stall, now, &mut Anyone, &mut out);
            let tasks = [task, TaskRow { flags: TASK_WATCHED | TASK_BLOCKED, ..task }];
            let watches = [(task.tid, if round == 2 { Watch::default() } else { watch })];
            let times = Times { total_ticks: total_ticks >> round, busy_ticks, steal_ticks, iowait_ticks };
            let readings = Readings { tasks: &tasks, watches: &watches, times, elapsed_ns, ..quiet(now) };
            sched.tick(&readings, round == 3, &mut Anyone, &mut out);
            sched.points(0, 0, &mut Anyone, &mut out);
            check_numbers(&out);
            check_view(&sched.view());
        }
    }
}
