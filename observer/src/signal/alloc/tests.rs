//! Rows of processes in; memory, growth, steps and stacks out.

use std::{sync::Arc, time::Duration};

use observer_abi::{
    Header, Kind,
    alloc::{EXIT_CODE_UNKNOWN, Exit, TASK_BLOCKED, TASK_KERNEL, TASK_LEADER, TaskRow},
};
use proptest::prelude::*;
use zerocopy::FromZeros as _;

use super::*;
use crate::{
    identity::Process,
    signal::{
        Output, Who,
        testing::{
            Anyone, SECOND, WALL_AHEAD, at, check_numbers, check_view, comm, header, int, pid,
            quiet, value,
        },
    },
    telemetry::{Number, Severity, Value},
};

const LIMITS: Limits = Limits {
    step_bytes: 64 << 20,
    growth_bytes_per_second: 1048576.0,
    exported: 2,
    window: Duration::from_secs(10),
};
const PAGES_PER_MIB: i64 = 256;

/// A process that holds this much anonymous memory.
fn row(pid: u32, anon_mib: i64) -> TaskRow {
    let mut row = TaskRow::new_zeroed();
    (row.tgid, row.tid, row.flags) = (pid, pid, TASK_LEADER);
    row.start_boottime_ns = u64::from(pid) * 10;
    row.comm = comm("node");
    row.anon_pages = anon_mib * PAGES_PER_MIB;
    row
}

/// Ticks `rows` at this time.
fn tick(alloc: &mut Alloc, ktime_ns: u64, rows: &[TaskRow]) -> Output {
    let mut out = Output::default();
    alloc.tick(
        &crate::signal::Readings { tasks: rows, ..quiet(at(ktime_ns)) },
        &mut Anyone,
        &mut out,
    );
    check_view(&alloc.view());
    out
}

/// Names of the events of one process that holds `mib(second)`, for a minute, read at this interval.
fn events(interval_ms: u64, mib: impl Fn(f64) -> f64) -> (Alloc, Vec<(&'static str, u64)>) {
    let mut alloc = Alloc::new(LIMITS);
    let mut events = Vec::new();
    for n in 0..=60_000 / interval_ms {
        let ktime_ns = SECOND + n * interval_ms * 1_000_000;
        let mut grown = row(7, 0);
        grown.anon_pages = (mib(n as f64 * interval_ms as f64 / 1e3) * PAGES_PER_MIB as f64) as i64;
        let out = tick(&mut alloc, ktime_ns, &[grown]);
        events.extend(out.batch.events.iter().map(|event| (event.name, event.time_unix_ns)));
    }
    (alloc, events)
}

#[test]
fn growth_is_the_slope_of_the_window_at_any_interval() {
    #[track_caller]
    fn check(interval_ms: u64, mib_per_second: f64, grows: bool) {
        let (alloc, events) = events(interval_ms, |second| 100.0 + second * mib_per_second);
        let growth = alloc.view().processes[0].growth_bytes_per_second;
        assert!((growth / 1048576.0 - mib_per_second).abs() < 0.05, "{growth} at {interval_ms} ms");
        let told = events.iter().filter(|(name, _)| *name == "observer.memory.growth").count();
        assert_eq!(told > 0, grows, "{events:?} at {interval_ms} ms");
        assert_eq!(alloc.growers(), if grows { vec![7] } else { vec![] });
    }
    for interval_ms in [200, 500, 1000, 3000, 6000, 20_000] {
        check(interval_ms, 2.0, true);
        check(interval_ms, 0.9, false);
        check(interval_ms, -1.0, false);
    }
}

#[test]
fn growth_is_told_after_most_of_the_window_and_then_once_a_minute() {
    let (_, events) = events(1000, |second| 2.0 * second);
    let told: Vec<u64> = events.iter().map(|(_, at)| (at - WALL_AHEAD) / SECOND).collect();
    assert_eq!(told, [9]);
    let mut alloc = Alloc::new(LIMITS);
    let told: usize = (1..=200)
        .map(|second| tick(&mut alloc, second * SECOND, &[row(7, 2 * second as i64)]))
        .map(|out| out.batch.events.len())
        .sum();
    assert_eq!(told, 4, "at 9, 69, 129 and 189 s");
}

#[test]
fn a_step_is_told_at_the_bound_and_not_below() {
    #[track_caller]
    fn check(from_mib: i64, to: i64, expect: Option<i64>) {
        let mut alloc = Alloc::new(LIMITS);
        tick(&mut alloc, SECOND, &[row(7, from_mib)]);
        let mut after = row(7, 0);
        after.anon_pages = to;
        let out = tick(&mut alloc, 2 * SECOND, &[after]);
        let step = out.batch.events.iter().find(|event| event.name == "observer.memory.step");
        assert_eq!(step.map(|event| int(&event.attrs, "observer.memory.step_bytes")), expect);
        if let Some(event) = step {
            assert_eq!((pid(&event.subject), int(&event.attrs, "process.pid")), (7, 7));
        }
    }
    check(10, 74 * PAGES_PER_MIB, Some(64 << 20));
    check(10, 74 * PAGES_PER_MIB - 1, None);
    check(74, 10 * PAGES_PER_MIB, None);
    let mut alloc = Alloc::new(LIMITS);
    let first = tick(&mut alloc, SECOND, &[row(7, 500)]);
    assert!(first.batch.events.is_empty(), "what was there at the first reading is no step");
    let other = TaskRow { start_boottime_ns: 99, ..row(7, 900) };
    let second = tick(&mut alloc, 2 * SECOND, &[other]);
    assert!(second.batch.events.is_empty(), "another process took the pid");
}

#[test]
fn a_step_is_seen_between_readings_that_are_not_kept() {
    let (_, events) = events(200, |second| if second < 30.1 { 10.0 } else { 90.0 });
    assert_eq!(events.iter().filter(|(name, _)| *name == "observer.memory.step").count(), 1);
}

#[test]
fn rows_are_processes_the_largest_first() {
    let mut alloc = Alloc::new(LIMITS);
    let thread = TaskRow { flags: TASK_BLOCKED, ..row(9, 900) };
    let kernel = TaskRow { flags: TASK_LEADER | TASK_KERNEL | TASK_BLOCKED, ..row(2, 900) };
    let lagging = TaskRow { file_pages: -3, shmem_pages: 256, swap_pages: 512, ..row(3, 2) };
    tick(&mut alloc, SECOND, &[row(4, 1), thread, kernel, lagging]);
    let view = alloc.view();
    assert_eq!(view.process_count, 2);
    let [large, small] = &view.processes[..] else { panic!("{view:?}") };
    assert_eq!((large.pid, large.rss_bytes, large.file_bytes), (3, 3 << 20, 0));
    assert_eq!((large.swap_bytes, small.pid), (2 << 20, 4));
}

#[test]
fn stacks_have_their_share_and_the_largest_stands_first() {
    let mut alloc = Alloc::new(LIMITS);
    (1..=3)
        .for_each(|second| drop(tick(&mut alloc, second * SECOND, &[row(7, 10 * second as i64)])));
    alloc.add_stack(7, vec![1, 2], 0, 4);
    alloc.add_stack(7, vec![3], 0, 3);
    tick(&mut alloc, 4 * SECOND, &[row(7, 40)]);
    assert!(alloc.view().processes[0].stacks.is_empty(), "seven samples say nothing");
    alloc.add_stack(7, vec![3], 0, 9);
    alloc.add_stack(99, vec![3], 0, 9);
    assert_eq!(alloc.unnamed(), [(7, vec![(vec![3], 0), (vec![1, 2], 0)])]);
    alloc.name_stack(7, &[3], vec!["parse".to_owned()]);
    assert_eq!(alloc.unnamed(), [(7, vec![(vec![1, 2], 0)])]);
    tick(&mut alloc, 5 * SECOND, &[row(7, 50)]);
    let view = alloc.view();
    let [first, second] = &view.processes[0].stacks[..] else { panic!("{view:?}") };
    assert_eq!((first.frames[0].as_str(), first.samples, first.share), ("parse", 12, 0.75));
    assert_eq!((second.frames.join(" ").as_str(), second.share), ("0x1 0x2", 0.25));
    (6..30).for_each(|second| drop(tick(&mut alloc, second * SECOND, &[row(7, 50)])));
    assert!(alloc.view().processes[0].stacks.is_empty(), "it has stopped to grow");
}

#[test]
fn the_growth_event_names_the_stack() {
    let mut alloc = Alloc::new(LIMITS);
    let mut told = Vec::new();
    for second in 1..=12 {
        told.extend(tick(&mut alloc, second * SECOND, &[row(7, 10 * second as i64)]).batch.events);
        alloc.add_stack(7, vec![16], 0, 10);
    }
    let [event] = &told[..] else { panic!("{told:?}") };
    assert_eq!(
        value(&event.attrs, "observer.memory.stack"),
        Some(&Value::List(["0x10".into()].into()))
    );
    assert_eq!(value(&event.attrs, "observer.memory.stack_share"), Some(&Value::Float(1.0)));
    assert!(event.body.ends_with("100 % from 0x10"), "{}", event.body);
}

fn exited(header: Header, exit_code: u32) -> Exit {
    Exit {
        header,
        lifetime_ns: 3 * SECOND / 2,
        exit_code,
        parent_tgid: 2,
        start_boottime_ns: 9 * SECOND,
        watched: 0,
        reserved: 0,
    }
}

#[test]
fn failures_are_kept_with_what_they_ended_by() {
    let mut alloc = Alloc::new(LIMITS);
    let mut out = Output::default();
    let mut exit = |alloc: &mut Alloc, pid, code| {
        let header = header(Kind::Exit, pid, "grep", 5 * SECOND);
        alloc.exit(&exited(header, code), at(6 * SECOND), &mut Anyone, &mut out);
    };
    for (pid, code) in [(1, 7 << 8), (2, 0x80 | 11), (3, 0), (4, EXIT_CODE_UNKNOWN)] {
        exit(&mut alloc, pid, code);
    }
    let failures = alloc.view().failures;
    let found: Vec<_> = failures.iter().map(|row| (row.pid, row.exit_code, row.signal)).collect();
    assert_eq!(found, [(2, None, Some(11)), (1, Some(7), None)]);
    let row = &failures[0];
    assert_eq!((row.time_unix_ns, row.lived_ns), (5 * SECOND + WALL_AHEAD, 3 * SECOND / 2));
    assert_eq!((row.start_unix_ns, row.parent_pid, row.name.as_str()), (9 * SECOND, 2, "grep"));
    (10..200).for_each(|pid| exit(&mut alloc, pid, 1 << 8));
    tick(&mut alloc, 7 * SECOND, &[]);
    let kept = alloc.view().failures;
    assert_eq!((kept.len(), kept[0].pid), (super::MAX_FAILURES, 199), "a tick keeps them");
    assert!(out.batch.events.is_empty(), "nobody keeps these running");
}

/// Everybody runs the same program, as a child does until it has run exec.
struct Forked;

impl Who for Forked {
    fn process(&mut self, pid: u32, _start: Option<u64>, _comm: &str) -> Arc<Process> {
        let (name, executable) = ("test".to_owned(), "/bin/test".to_owned());
        Arc::new(Process { pid, name, executable, ..Process::default() })
    }
}

#[test]
fn a_failure_that_was_looked_at_before_its_exec_is_named_as_it_ended() {
    let (mut alloc, mut out) = (Alloc::new(LIMITS), Output::default());
    let record = exited(header(Kind::Exit, 9, "node", 5 * SECOND), 7 << 8);
    alloc.exit(&record, at(6 * SECOND), &mut Forked, &mut out);
    assert_eq!(alloc.view().failures[0].name, "node");
}

/// A host with a daemon of PM2 (2), a service (3), a container (4) and what they have started.
struct Keepers;

impl Who for Keepers {
    fn process(&mut self, pid: u32, _start: Option<u64>, _comm: &str) -> Arc<Process> {
        let mut process = Process { pid, ..Process::default() };
        match pid {
            2 => process.pm2_daemon_home = Some("/h".to_owned()),
            3 | 30 => process.unit = "api.service".to_owned(),
            4 | 40 => process.container_id = "c".to_owned(),
            _ => {}
        }
        Arc::new(process)
    }
}

#[test]
fn the_end_of_what_somebody_keeps_running_is_an_event() {
    let check = |pid, parent_tgid, expected: bool| {
        let header = header(Kind::Exit, pid, "x", 5 * SECOND);
        let record = Exit { parent_tgid, ..exited(header, 1 << 8) };
        let mut out = Output::default();
        Alloc::new(LIMITS).exit(&record, at(6 * SECOND), &mut Keepers, &mut out);
        assert_eq!(out.batch.events.len() == 1, expected, "{pid} of {parent_tgid}");
    };
    check(20, 2, true);
    check(3, 1, true);
    check(30, 3, false);
    check(4, 9, true);
    check(40, 4, false);
    check(9, 1, false);
    check(20, 0, false);
}

#[test]
fn an_exit_says_how() {
    #[track_caller]
    fn check(exit_code: u32, code: i64, signal: i64, severity: Severity, body: &str) {
        let header = header(Kind::Exit, 7, "node", 5 * SECOND);
        let record = Exit { watched: 1, ..exited(header, exit_code) };
        let mut out = Output::default();
        Alloc::new(LIMITS).exit(&record, at(6 * SECOND), &mut Anyone, &mut out);
        let event = &out.batch.events[0];
        assert_eq!((event.severity, event.time_unix_ns), (severity, 5 * SECOND + WALL_AHEAD));
        assert_eq!(int(&event.attrs, "process.exit.code"), code);
        assert_eq!(int(&event.attrs, "observer.process.exit_signal"), signal);
        assert_eq!((pid(&event.subject), event.body.as_str()), (7, body));
    }
    check(0, 0, 0, Severity::Info, "node (7) exited with 0 after 1.5 s");
    check(3 << 8, 3, 0, Severity::Warn, "node (7) exited with 3 after 1.5 s");
    check(0x80 | 11, 0, 11, Severity::Warn, "node (7) killed by signal 11 after 1.5 s");
}

#[test]
fn the_largest_and_the_growing_processes_are_exported() {
    let mut alloc = Alloc::new(LIMITS);
    for second in 1..=4 {
        let grows = second as i64 * 2;
        tick(&mut alloc, second * SECOND, &[row(1, 500), row(2, 400), row(3, 300), row(4, grows)]);
    }
    let mut out = Output::default();
    alloc.points(5, &mut Anyone, &mut out);
    let usage = out.batch.points.iter().filter(|point| point.metric.name == "process.memory.usage");
    let usage: Vec<_> = usage.map(|point| (pid(&point.subject), point.number.clone())).collect();
    let mib = |count: i64| Number::Int(count << 20);
    assert_eq!(usage, [(1, mib(500)), (2, mib(400)), (4, mib(8))]);
    assert!(
        out.batch.points.iter().all(|point| point.start_unix_ns == 5 && point.attrs.is_empty())
    );
}

#[test]
fn stacks_of_a_process_are_bounded() {
    let mut alloc = Alloc::new(LIMITS);
    tick(&mut alloc, SECOND, &[row(7, 1)]);
    tick(&mut alloc, 2 * SECOND, &[row(7, 10)]);
    (0..100).for_each(|address| alloc.add_stack(7, vec![address], 0, address + 1));
    tick(&mut alloc, 3 * SECOND, &[row(7, 20)]);
    let view = alloc.view();
    let kept: u64 = (69..=100).sum();
    assert_eq!(view.processes[0].stacks[0].share, 100.0 / kept as f64, "the 32 most frequent");
}

fn extreme() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), Just(u64::MAX), Just(i64::MAX as u64), any::<u64>()]
}

proptest! {
    #[test]
    fn no_row_makes_a_number_that_is_none(
        rows in prop::collection::vec((0_u32..3, any::<u32>(), extreme(), extreme(), extreme(), extreme()), 0..20),
        times in prop::collection::vec(extreme(), 1..6),
    ) {
        let mut alloc = Alloc::new(LIMITS);
        let rows: Vec<TaskRow> = rows.into_iter().map(|(pid, flags, anon, file, swap, start)| TaskRow {
            flags: flags | TASK_LEADER,
            anon_pages: anon as i64,
            file_pages: file as i64,
            swap_pages: swap as i64,
            shmem_pages: anon as i64,
            page_table_bytes: file,
            start_boottime_ns: start,
            ..row(pid, 0)
        }).collect();
        for (index, ktime_ns) in times.into_iter().enumerate() {
            let shown = rows.get(index..).unwrap_or_default();
            let mut out = tick(&mut alloc, ktime_ns, shown);
            (0..3).for_each(|pid| alloc.add_stack(pid, vec![ktime_ns], 0, ktime_ns));
            alloc.points(ktime_ns, &mut Anyone, &mut out);
            check_numbers(&out);
        }
    }
}

#[test]
fn what_malloc_was_asked_for_is_told_once_and_with_names() {
    use crate::kernel::malloc::{Outstanding, Probed};
    let probed = |stacks: &[(u64, u64)]| Probed {
        time: Duration::from_secs(10),
        outstanding_bytes: stacks.iter().map(|(_, mib)| mib << 20).sum(),
        stacks: stacks
            .iter()
            .map(|(caller, mib)| Outstanding {
                addresses: vec![1, *caller],
                bytes: mib << 20,
                samples: 4,
            })
            .collect(),
        ..Probed::default()
    };
    let bodies = |out: &Output| -> Vec<String> {
        let events = out.batch.events.iter();
        events.filter(|of| of.name == "observer.memory.malloc").map(|of| of.body.clone()).collect()
    };
    // What is told at once.
    let add = |alloc: &mut Alloc, key, told, second: u64| {
        let mut out = Output::default();
        alloc.add_probed(key, told, at(second * SECOND), &mut Anyone, &mut out);
        bodies(&out)
    };
    let mut alloc = Alloc::new(LIMITS);
    tick(&mut alloc, SECOND, &[row(7, 100)]);
    let gone = Probed { ended_early: "the process has ended".into(), ..probed(&[]) };
    let told = add(&mut alloc, (7, 1), Ok(gone), 1);
    assert!(told[0].ends_with("(7): ended after 10.0 s: the process has ended"), "{told:?}");
    assert_eq!(alloc.unnamed(), [], "of another process with this pid");
    assert!(add(&mut alloc, (7, 70), Ok(probed(&[(3, 9), (4, 1)])), 1).is_empty());
    assert_eq!(alloc.unnamed(), [(7, vec![(vec![1, 3], 0), (vec![1, 4], 0)])]);
    assert!(bodies(&tick(&mut alloc, 2 * SECOND, &[row(7, 100)])).is_empty(), "not without names");
    let shown = alloc.view().processes[0].malloc.clone().unwrap();
    assert_eq!((shown.stacks[0].share, &*shown.stacks[0].frames[1]), (0.9, "0x3"));
    for (caller, name) in [(3, "keep"), (4, "cache")] {
        alloc.name_stack(7, &[1, caller], vec!["malloc".into(), name.into()]);
    }
    let told = bodies(&tick(&mut alloc, 3 * SECOND, &[row(7, 100)]));
    let body =
        "malloc of node (7): probed for 10.0 s; 10.0 MiB were not freed, 90 % of them from keep";
    assert_eq!(told, [body]);
    assert!(bodies(&tick(&mut alloc, 60 * SECOND, &[row(7, 100)])).is_empty(), "once");

    assert!(add(&mut alloc, (7, 70), Ok(probed(&[(5, 1)])), 60).is_empty());
    assert!(bodies(&tick(&mut alloc, 89 * SECOND, &[row(7, 100)])).is_empty());
    assert_eq!(bodies(&tick(&mut alloc, 90 * SECOND, &[row(7, 100)])).len(), 1, "nobody knows it");
    assert!(add(&mut alloc, (7, 70), Err("malloc not found in /app".into()), 90).is_empty());
    let told = bodies(&tick(&mut alloc, 91 * SECOND, &[row(7, 100)]));
    assert_eq!(told, ["malloc of node (7): malloc not found in /app"]);
    tick(&mut alloc, 92 * SECOND, &[]);
    assert!(alloc.unnamed().is_empty(), "it is gone");
}
