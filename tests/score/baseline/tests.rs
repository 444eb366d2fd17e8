//! The rules of others against their own definitions.

use observer::{
    detect::Level,
    signal::{alloc::ProcessMemory, oom::Pressure},
    snapshot::Snapshot,
};

use super::{Coroot, Earlyoom, Lmkd, Nohang, Oomd, PredictLinear};
use crate::rule::{Alarm, Rule};

const GIB: u64 = 1 << 30;

/// A host of 4 GiB with so much of it available, and one process that has the rest.
fn host(available: u64) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.oom.memory_total_bytes = 4 * GIB;
    snapshot.oom.memory_available_bytes = available;
    let rss_bytes = 4 * GIB - available;
    let row = ProcessMemory { pid: 7, name: "node".into(), rss_bytes, ..ProcessMemory::default() };
    let small = ProcessMemory { pid: 8, rss_bytes: 1, ..ProcessMemory::default() };
    snapshot.alloc.processes = vec![small, row];
    snapshot
}

fn stalled(some_ns: u64, full_percent: f64) -> Snapshot {
    let mut snapshot = host(2 * GIB);
    let row = |scope: &str, total_ns, avg10_percent| Pressure {
        resource: "memory".into(),
        scope: scope.into(),
        avg10_percent,
        total_ns,
        triggers: 0,
    };
    snapshot.oom.pressure = vec![row("some", some_ns, 0.0), row("full", 1, full_percent)];
    snapshot
}

/// The level at the last of some snapshots.
fn level(rule: &mut dyn Rule, snapshots: impl IntoIterator<Item = Snapshot>) -> Option<Level> {
    last(rule, snapshots).first().map(|alarm| alarm.level)
}

fn last(rule: &mut dyn Rule, snapshots: impl IntoIterator<Item = Snapshot>) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    for snapshot in snapshots {
        alarms.clear();
        rule.tick(&snapshot, &mut alarms);
    }
    alarms
}

#[test]
fn thresholds_of_available_memory() {
    let percent = |percent: u64| [host(4 * GIB / 100 * percent)];
    let check = |rule: &mut dyn Rule, free, expected| {
        assert_eq!(level(rule, percent(free)), expected, "{} at {free} %", rule.name());
    };
    check(&mut Earlyoom, 11, None);
    check(&mut Earlyoom, 10, Some(Level::Warn));
    check(&mut Earlyoom, 5, Some(Level::Critical));
    check(&mut Nohang, 21, None);
    check(&mut Nohang, 20, Some(Level::Watch));
    check(&mut Nohang, 5, Some(Level::Warn));
    check(&mut Nohang, 2, Some(Level::Critical));
    let mut swaps = host(GIB / 100);
    (swaps.oom.swap_total_bytes, swaps.oom.swap_free_bytes) = (GIB, GIB / 2);
    assert_eq!(level(&mut Earlyoom, [swaps.clone()]), None, "half of the swap is free");
    assert_eq!(level(&mut Nohang, [swaps]), None, "half of the swap is free");
}

#[test]
fn the_largest_is_to_blame() {
    let alarms = last(&mut Earlyoom, [host(GIB / 10)]);
    let culprit = alarms[0].culprit.as_ref().expect("somebody is blamed");
    assert_eq!((culprit.pid, culprit.name.as_str()), (Some(7), "node"));
}

#[test]
fn thresholds_of_pressure() {
    let full = |percent, seconds| (0..seconds).map(move |_| stalled(1, percent));
    assert_eq!(level(&mut Oomd::default(), full(61.0, 29)), None);
    assert_eq!(level(&mut Oomd::default(), full(61.0, 30)), Some(Level::Critical));
    assert_eq!(level(&mut Oomd::default(), full(59.0, 60)), None);
    let some = |ms: u64| [stalled(1, 0.0), stalled(1 + ms * 1_000_000, 0.0)];
    assert_eq!(level(&mut Lmkd::default(), some(70)), None);
    assert_eq!(level(&mut Lmkd::default(), some(71)), Some(Level::Warn));
    let mut thrash = some(71);
    thrash[1].oom.refault_ratio = 1.01;
    assert_eq!(level(&mut Lmkd::default(), thrash), Some(Level::Critical));
}

#[test]
fn a_straight_line_is_predicted() {
    // 4 GiB that are gone after five hours: it is below zero in four from the first hour on, and told five minutes later.
    let at = |second: u64| host(4 * GIB - 4 * GIB * second / 18_000);
    let mut rule = PredictLinear::new("1h", 3600);
    assert_eq!(level(&mut rule, (0..3800).map(at)), None);
    let alarms = last(&mut rule, (3800..4000).map(at));
    let left_s = alarms[0].time_left_s.expect("it says when");
    assert!((left_s - 14_000.0).abs() < 20.0, "{left_s}");
}

#[test]
fn ten_megabytes_an_hour_are_a_leak() {
    let grow = |per_hour: u64| (0..3700).map(move |s| host(2 * GIB - per_hour * s / 3600));
    assert_eq!(level(&mut Coroot::default(), grow(9_000_000)), None);
    assert_eq!(level(&mut Coroot::default(), grow(11_000_000)), Some(Level::Warn));
}
