//! Readings and records in; headroom, pressure, reclaim, limits and kills out.

use std::time::Duration;

use observer_abi::{
    Counter, Kind,
    oom::{Kill, Reclaim, Reclaimer as Sum},
};
use proptest::prelude::*;
use zerocopy::FromZeros as _;

use super::*;
use crate::{
    host::{Meminfo, Stall, StallTime, Vmstat},
    kernel::Counters,
    signal::{
        Output, PressureReading, Readings,
        testing::{
            Anyone, Group, SECOND, WALL_AHEAD, at, check_numbers, check_view, comm, header, int,
            pid, quiet, text, value,
        },
    },
    telemetry::{Number, Severity, Value},
};

const LIMITS: Limits = Limits { floor_percent: 10, calm: Duration::from_secs(10) };
const GIB: u64 = 1 << 30;

fn oom() -> Oom {
    Oom::new(LIMITS, 4096)
}

fn fold(oom: &mut Oom, readings: &Readings<'_>) -> Output {
    let mut out = Output::default();
    oom.tick(readings, false, &mut Anyone, &mut out);
    check_view(&oom.view());
    out
}

#[test]
fn a_kill_is_told_with_what_the_victim_held() {
    let record = Kill {
        header: header(Kind::OomKill, 7, "node", 5 * SECOND),
        trigger_tgid: 8,
        trigger_tid: 9,
        trigger_comm: comm("postgres"),
        anon_pages: 512,
        file_pages: -1,
        shmem_pages: 256,
        swap_pages: 3,
        page_table_bytes: 8192,
        start_boottime_ns: 77,
        oom_score_adj: -500,
        memcg: 1,
    };
    let (mut oom, mut out) = (oom(), Output::default());
    oom.kill(&record, None, at(6 * SECOND), &mut Anyone, &mut out);
    let event = &out.batch.events[0];
    assert_eq!((event.name, event.severity), ("observer.oom.kill", Severity::Error));
    assert_eq!((pid(&event.subject), event.time_unix_ns), (7, 5 * SECOND + WALL_AHEAD));
    for (key, expect) in [
        ("process.pid", 7),
        ("observer.oom.victim.pid", 7),
        ("observer.oom.trigger.pid", 8),
        ("observer.oom.anon_bytes", 2 << 20),
        ("observer.oom.file_bytes", 0),
        ("observer.oom.shmem_bytes", 1 << 20),
        ("observer.oom.page_table_bytes", 8192),
        ("observer.oom.score_adj", -500),
    ] {
        assert_eq!(int(&event.attrs, key), expect, "{key}");
    }
    assert_eq!(text(&event.attrs, "observer.oom.victim.name"), "node");
    assert_eq!(text(&event.attrs, "observer.oom.trigger.name"), "postgres");
    assert_eq!(value(&event.attrs, "observer.oom.in_cgroup"), Some(&Value::Bool(true)));
    assert!(event.body.starts_with("node (7) was killed for want of memory, holding 3 MiB"));
    for number in 0..20 {
        let later = Kill { header: header(Kind::OomKill, 100 + number, "x", 9 * SECOND), ..record };
        oom.kill(&later, None, at(9 * SECOND), &mut Anyone, &mut out);
    }
    let kills = oom.view().kills;
    assert_eq!((kills.len(), kills[0].victim_pid, kills[15].victim_pid), (16, 119, 104));
}

#[test]
fn a_long_reclaim_is_a_span_that_ends_with_the_record() {
    let header = header(Kind::Reclaim, 7, "node", 5 * SECOND);
    let record = Reclaim { header, duration_ns: SECOND / 50, pages: 32, memcg: 0 };
    let mut out = Output::default();
    oom().reclaim(&record, at(6 * SECOND), &mut Anyone, &mut out);
    let span = &out.batch.spans[0];
    assert_eq!((span.name, pid(&span.subject)), ("memory.reclaim", 7));
    assert_eq!(span.end_unix_ns, 5 * SECOND + WALL_AHEAD);
    assert_eq!(span.end_unix_ns - span.start_unix_ns, SECOND / 50);
    assert_eq!(int(&span.attrs, "observer.memory.reclaimed_bytes"), 131_072);
    assert_eq!(value(&span.attrs, "observer.memory.for_cgroup"), Some(&Value::Bool(false)));
}

#[test]
fn limit_hits_are_told_at_most_every_ten_seconds() {
    let (mut oom, mut group) = (oom(), Group::new());
    group.set(5, (0, 0));
    let mut told = Vec::new();
    for second in 1..=25 {
        // One hit a second, from the third second to the fifteenth.
        group.set(5 + second.clamp(2, 15) - 2, (0, 0));
        let cgroups = group.cgroups.read();
        let out = fold(&mut oom, &Readings { cgroups, ..quiet(at(second * SECOND)) });
        told.extend(out.batch.events.iter().map(|event| {
            assert_eq!(event.name, "observer.memory.limit_hit");
            assert_eq!(text(&event.attrs, "process.linux.cgroup"), "/api");
            assert_eq!(int(&event.attrs, "observer.cgroup.limit_bytes"), 1000);
            (second, int(&event.attrs, "observer.cgroup.limit_hits"))
        }));
    }
    assert_eq!(told, [(3, 1), (13, 10), (23, 2)], "hits before the first reading are not news");
    group.set(0, (0, 0));
    fold(&mut oom, &Readings { cgroups: group.cgroups.read(), ..quiet(at(40 * SECOND)) });
    group.set(1, (0, 0));
    let out = fold(&mut oom, &Readings { cgroups: group.cgroups.read(), ..quiet(at(41 * SECOND)) });
    assert_eq!(out.batch.events.len(), 1, "the counter was set to zero in between");
}

#[test]
fn headroom_is_what_lies_above_the_floor() {
    let mut oom = oom();
    let mut leak = |second: u64, available_bytes| {
        let meminfo = Meminfo {
            total_bytes: 10 * GIB,
            available_bytes,
            swap_total_bytes: GIB,
            swap_free_bytes: GIB,
            ..Meminfo::default()
        };
        fold(&mut oom, &Readings { meminfo, ..quiet(at(second * SECOND)) });
        oom.view()
    };
    let view = leak(1, 5 * GIB);
    assert!(view.headroom_bytes.abs_diff(5 * GIB) < 100, "{} above the floor", view.headroom_bytes);
    let view = leak(2, GIB);
    assert!(view.headroom_bytes.abs_diff(GIB) < 100, "{} above the floor", view.headroom_bytes);
}

#[test]
fn the_clock_is_the_findings_and_stays_until_it_says_otherwise() {
    let mut oom = oom();
    oom.foretell(Some(20.0), Some(42));
    fold(&mut oom, &quiet(at(SECOND)));
    assert_eq!((oom.view().exhaustion_seconds, oom.view().culprit_pid), (Some(20.0), Some(42)));
    let mut out = Output::default();
    oom.points(5, 2, &mut out);
    let point = out.batch.points.iter().find(|p| p.metric.name == "observer.memory.exhaustion");
    assert_eq!(point.map(|point| point.number.clone()), Some(Number::Float(20.0)));
    oom.foretell(None, None);
    assert_eq!((oom.view().exhaustion_seconds, oom.view().culprit_pid), (None, None));
}

#[test]
fn what_could_not_be_read_is_not_zero() {
    let mut oom = oom();
    let vmstat = |refault_file_pages| Vmstat { refault_file_pages, ..quiet(at(0)).vmstat };
    fold(&mut oom, &Readings { vmstat: vmstat(5000), ..quiet(at(SECOND)) });
    fold(&mut oom, &Readings { vmstat: vmstat(5100), ..quiet(at(2 * SECOND)) });
    assert_eq!((oom.view().refault_per_second, oom.view().refault_ratio), (100.0, 0.1));
    let before = oom.view();
    let unread =
        Readings { meminfo: Meminfo::default(), vmstat: vmstat(0), ..quiet(at(3 * SECOND)) };
    fold(&mut oom, &unread);
    assert_eq!(oom.view().headroom_bytes, before.headroom_bytes);
    fold(&mut oom, &Readings { vmstat: vmstat(5150), ..quiet(at(4 * SECOND)) });
    assert_eq!(oom.view().refault_per_second, 50.0);
}

#[test]
fn what_goes_to_and_from_disks_is_a_rate() {
    let mut oom = oom();
    let mut check = |second: u64, paged_in_kib, paged_out_kib, expect: (f64, f64)| {
        let vmstat = Vmstat { paged_in_kib, paged_out_kib, ..quiet(at(0)).vmstat };
        fold(&mut oom, &Readings { vmstat, ..quiet(at(second * SECOND)) });
        let view = oom.view();
        let rates = (view.disk_read_bytes_per_second, view.disk_written_bytes_per_second);
        assert_eq!(rates, expect, "{second}");
    };
    check(1, 5000, 70, (0.0, 0.0));
    check(2, 5100, 80, (102_400.0, 10_240.0));
    // It could not be read.
    check(3, 0, 0, (102_400.0, 10_240.0));
    check(4, 5100, 81, (0.0, 1024.0));
}

#[test]
fn kswapd_is_awake_from_a_wake_to_a_sleep() {
    let mut oom = oom();
    let mut check = |wakes, sleeps, awake| {
        let counters =
            Counters::from([(Counter::KswapdWakes, wakes), (Counter::KswapdSleeps, sleeps)]);
        fold(&mut oom, &Readings { counters, ..quiet(at(SECOND)) });
        assert_eq!(oom.view().kswapd_awake, awake, "{wakes} {sleeps}");
    };
    check(0, 1, false);
    check(1, 1, true);
    check(3, 1, true);
    check(3, 1, true);
    check(3, 2, false);
    check(3, 2, false);
    check(4, 3, true);
}

#[test]
fn a_pressure_episode_is_one_span() {
    let mut oom = oom();
    let mut told = Vec::new();
    let mut tick = |second: u64, triggers, ends| {
        let some = StallTime { avg10_percent: 1.0, total_ns: 1000 * SECOND + second };
        let stall = Stall { some, full: Some(some) };
        let reading = |resource, some_triggers| PressureReading {
            resource,
            stall,
            some_triggers,
            full_triggers: 0,
        };
        let pressure = &[reading("io", 9), reading("memory", triggers)];
        let mut out = Output::default();
        let readings = Readings { pressure, ..quiet(at(second * SECOND)) };
        oom.tick(&readings, ends, &mut Anyone, &mut out);
        told.extend(out.batch.spans);
    };
    tick(1, 2, false);
    tick(2, 3, false);
    (3..20).for_each(|second| tick(second, 3, false));
    tick(20, 4, false);
    tick(21, 4, true);
    let [first, last] = &told[..] else { panic!("{told:?}") };
    assert_eq!((first.name, pid(&first.subject)), ("memory.pressure", 0));
    assert_eq!(first.end_unix_ns - first.start_unix_ns, SECOND);
    assert_eq!(int(&first.attrs, "observer.pressure.triggers"), 3);
    let stall_ns = int(&first.attrs, "observer.pressure.stall_ns");
    assert!(stall_ns < 20, "{stall_ns} ns are since boot, not since the episode began");
    assert_eq!(value(&last.attrs, "observer.open"), Some(&Value::Bool(true)));
    assert_eq!(oom.view().pressure.len(), 4, "some and full of two resources");
}

#[test]
fn reclaimers_are_named_and_the_longest_stands_first() {
    let sum = |total_ns| Sum { count: 1, total_ns, ..Sum::default() };
    let reclaimers: Vec<_> = (1..=100).map(|pid| (pid, sum(u64::from(pid)))).collect();
    let mut oom = oom();
    fold(&mut oom, &Readings { reclaimers: &reclaimers, ..quiet(at(SECOND)) });
    let shown = oom.view().reclaimers;
    assert_eq!((shown.len(), shown[0].pid, shown[0].total_ns), (64, 100, 100));
}

#[test]
fn points_are_those_of_the_registry() {
    let (mut oom, mut group) = (oom(), Group::new());
    group.set(3, (0, 0));
    let counters = Counters::from([(Counter::DirectReclaimNs, SECOND / 2)]);
    let cgroups = group.cgroups.read();
    fold(&mut oom, &Readings { counters, cgroups, ..quiet(at(SECOND)) });
    let mut out = Output::default();
    oom.points(5, 2, &mut out);
    let number = |name: &str| {
        let points: Vec<_> = out.batch.points.iter().filter(|p| p.metric.name == name).collect();
        assert!(points.len() < 2, "{points:?}");
        points.first().map(|point| point.number.clone())
    };
    assert_eq!(number("observer.memory.direct_reclaim_time"), Some(Number::Float(0.5)));
    assert_eq!(number("observer.memory.exhaustion"), None);
    assert_eq!(number("observer.cgroup.memory.limit"), Some(Number::Int(1000)));
    assert_eq!(number("observer.cgroup.memory.limit_hits"), Some(Number::Int(3)));
    for point in &out.batch.points {
        assert!(SIGNAL.metrics.contains(&point.metric), "{} is not registered", point.metric.name);
    }
}

fn extreme() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), Just(u64::MAX), any::<u64>()]
}

proptest! {
    #[test]
    fn no_reading_makes_a_number_that_is_none(
        mut ticks in prop::collection::vec(prop::array::uniform8(extreme()), 1..12),
        ends: bool,
    ) {
        let mut oom = oom();
        // The clock does not go back, and 2^62 ns are 146 years.
        ticks.sort_unstable_by_key(|tick| tick[0] >> 2);
        for [clock, elapsed_ns, total, available, swap, refaults, pages, triggers] in ticks {
            let meminfo = Meminfo {
                total_bytes: total,
                available_bytes: available,
                swap_total_bytes: swap,
                swap_free_bytes: swap,
                ..Meminfo::default()
            };
            let vmstat =
                Vmstat { refault_file_pages: refaults, file_lru_pages: pages, ..Vmstat::default() };
            let stall = StallTime { avg10_percent: 100.0, total_ns: triggers };
            let pressure = &[PressureReading {
                resource: "memory",
                stall: Stall { some: stall, full: Some(stall) },
                some_triggers: triggers,
                full_triggers: triggers,
            }];
            let sum = Sum { count: pages, total_ns: pages, max_ns: pages, pages, ..Sum::default() };
            let reclaimers = &[(1, sum)];
            let counters = Counters::from([(Counter::KswapdWakes, pages), (Counter::DirectReclaimNs, total)]);
            let now = at(clock >> 2);
            let readings = Readings { elapsed_ns, meminfo, vmstat, pressure, reclaimers, counters, ..quiet(now) };
            let mut out = Output::default();
            oom.tick(&readings, ends, &mut Anyone, &mut out);
            let mut kill = Kill::new_zeroed();
            (kill.anon_pages, kill.file_pages, kill.shmem_pages) = (pages as i64, total as i64, swap as i64);
            oom.kill(&kill, None, now, &mut Anyone, &mut out);
            let mut reclaim = Reclaim::new_zeroed();
            (reclaim.pages, reclaim.duration_ns, reclaim.header.ktime_ns) = (pages, total, swap);
            oom.reclaim(&reclaim, now, &mut Anyone, &mut out);
            oom.points(0, 0, &mut out);
            check_numbers(&out);
            check_view(&oom.view());
        }
    }
}
