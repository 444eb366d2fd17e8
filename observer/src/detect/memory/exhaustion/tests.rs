//! Hosts that lose their memory, and hosts that only look like it.

use std::sync::Arc;

use super::super::testing::{Actor, Host, MIB, actor, guest, jitter};
use super::*;
use crate::{
    config::{Sources, all_settings},
    detect::Detector as _,
    identity::Process,
    signal::alloc::ProcessMemory,
    snapshot::Snapshot,
};

fn told(host: &Host, for_s: f64) -> super::super::testing::Told {
    host.run("memory.exhaustion", for_s)
}

fn calm() -> Vec<Actor> {
    vec![
        actor(10, "postgres", |_| 400.0),
        // V8: teeth of some twenty seconds.
        actor(11, "node", |second| 150.0 + second * 4.0 % 90.0),
        actor(12, "redis-server", |second| 120.0 + 3.0 * jitter(second)),
    ]
}

/// A leak of so many MiB a second after an hour; levels with the least lead that each must have.
#[track_caller]
fn check_leak(rate: f64, base: f64, leads: &[(Level, f64)]) {
    let mut actors = calm();
    actors.push(actor(4711, "node", move |second| {
        base + rate * (second - 3600.0).max(0.0) + 5.0 * jitter(second)
    }));
    let tick_s = if rate < 1.0 { 5.0 } else { 1.0 };
    let host = Host { tick_s, actors, ..Host::default() };
    let told = told(&host, 3600.0 + 5000.0 / rate);
    assert!(told.gone_s.is_some(), "{rate} MiB/s: memory was not gone");
    for (level, least) in leads {
        let lead = told.lead(*level);
        assert!(
            lead.is_some_and(|lead| lead >= *least),
            "{rate} MiB/s: {level:?} {lead:?} s before: {told:?}"
        );
    }
    let (at, finding) =
        told.levels.iter().find(|(_, finding)| finding.level >= Level::Warn).unwrap();
    assert!(*at > 3600.0, "{rate}: {finding:?}");
    assert_eq!(finding.culprit.as_ref().and_then(|party| party.pid), Some(4711), "{finding:?}");
    assert!(finding.message.contains("node 4711"), "{}", finding.message);
}

#[test]
fn a_leak_is_told_in_time_with_its_culprit() {
    check_leak(0.1, 300.0, &[(Level::Warn, 600.0), (Level::Critical, 60.0)]);
    check_leak(1.0, 300.0, &[(Level::Warn, 300.0), (Level::Critical, 60.0)]);
    check_leak(5.0, 300.0, &[(Level::Warn, 120.0), (Level::Critical, 50.0)]);
    check_leak(20.0, 300.0, &[(Level::Warn, 40.0), (Level::Critical, 12.0)]);
    check_leak(60.0, 300.0, &[(Level::Warn, 12.0), (Level::Critical, 10.0)]);
    // A host that has only a quarter left before.
    check_leak(1.0, 2000.0, &[(Level::Warn, 300.0), (Level::Critical, 60.0)]);
    check_leak(5.0, 2000.0, &[(Level::Warn, 60.0), (Level::Critical, 30.0)]);
}

/// A healthy host of half a day raises nothing worse than a WATCH.
#[track_caller]
fn check_healthy(what: &str, actors: Vec<Actor>) {
    let mut all = calm();
    all.extend(actors);
    let host = Host { tick_s: 5.0, actors: all, ..Host::default() };
    let told = told(&host, 3.0 * 3600.0);
    assert!(told.gone_s.is_none(), "{what}: memory was gone");
    assert!(told.worst().is_none_or(|level| level < Level::Warn), "{what}: {told:?}");
}

#[test]
fn healthy_programs_are_left_alone() {
    // Calm processes and the kernel hold 1.1 GB: three quarters are left.
    check_healthy("nothing", vec![]);
    for (base, room) in [(500.0, 1200.0), (1200.0, 700.0)] {
        for period in [45.0, 300.0, 1500.0] {
            check_healthy(
                "a collected heap",
                vec![actor(20, "java", move |second| base + second % period * room / period)],
            );
        }
        for tau in [60.0, 600.0, 2400.0] {
            check_healthy(
                "a cache that fills",
                vec![actor(21, "java", move |second| base + room * (1.0 - (-second / tau).exp()))],
            );
        }
        check_healthy(
            "a deploy each half hour",
            (0..24_u32)
                .map(|number| {
                    let start = 1800.0 * f64::from(number);
                    guest(100 + number, "node", move |second| {
                        let age = second - start;
                        (0.0..1810.0)
                            .contains(&age)
                            .then(|| base * 0.7 * (1.0 - (-age / 20.0).exp()))
                    })
                })
                .collect(),
        );
        check_healthy(
            "a batch each two hours",
            (0..6_u32)
                .map(|number| {
                    let start = 7200.0 * f64::from(number) + 1000.0;
                    guest(200 + number, "python", move |second| {
                        let age = second - start;
                        (0.0..1500.0).contains(&age).then(|| (age * 1.0).min(room))
                    })
                })
                .collect(),
        );
    }
}

#[test]
fn swap_is_room_for_a_while() {
    let leak = |second: f64| 300.0 + 5.0 * (second - 3600.0).max(0.0);
    let host = Host { swap: 2048.0, actors: vec![actor(4711, "node", leak)], ..Host::default() };
    let told = told(&host, 6000.0);
    let (warned, gone) = (told.at(Level::Warn).unwrap(), told.gone_s.unwrap());
    // Without swap it would have been gone 400 s before.
    assert!((120.0..500.0).contains(&(gone - warned)), "{warned} {gone}");
}

#[test]
fn slow_ticks_see_it_too() {
    for tick_s in [0.2, 5.0, 30.0] {
        // Flat for as long as it then takes: 3400 MiB at 4 MiB/s.
        let leak = |second: f64| 300.0 + 4.0 * (second - 900.0).max(0.0);
        let host = Host { tick_s, actors: vec![actor(4711, "node", leak)], ..Host::default() };
        let lead = told(&host, 2000.0).lead(Level::Warn);
        assert!(lead.is_some_and(|lead| lead > 150.0), "ticks of {tick_s} s: {lead:?}");
    }
}

#[test]
fn what_cannot_be_judged_is_said() {
    let mut detector = Growth::new(&Config::default_for_tests(&all_settings()));
    let mut look = |snapshot: &crate::snapshot::Snapshot, second: u64| {
        let mut found = Vec::new();
        let now_ns = second * 1_000_000_000;
        detector.look(&Seen { snapshot, now_ns, elapsed_ns: 1_000_000_000 }, &mut found);
        found.pop().map(|judgement| judgement.state)
    };
    let host = Host::default();
    assert!(matches!(look(&crate::snapshot::Snapshot::default(), 1), Some(State::Undecided(_))));
    assert!(matches!(look(&host.snapshot(0.0), 2), Some(State::Undecided(_))));
    (3..20).for_each(|second| drop(look(&host.snapshot(0.0), second)));
    assert_eq!(look(&host.snapshot(0.0), 20), None);
}

#[test]
fn a_size_is_written_for_people() {
    assert_eq!(bytes(4.2e6), "4.2 MB");
    assert_eq!(bytes(35e9), "35 GB");
    assert_eq!((seconds(95.0).as_str(), seconds(1200.0).as_str()), ("95 s", "20 min"));
}

#[test]
fn little_memory_is_told_without_a_trend() {
    /// So many MiB left for good, and the share of the time that somebody waits.
    #[track_caller]
    fn check(left: f64, waits: f64, expect: Option<Level>) {
        let held = 4096.0 - 300.0 - left;
        let mut host = Host { actors: vec![actor(1, "java", move |_| held)], ..Host::default() };
        host.also = Box::new(move |second, snapshot| {
            snapshot.oom.pressure = vec![crate::signal::oom::Pressure {
                resource: "memory".into(),
                scope: "some".into(),
                total_ns: (waits * second * 1e9) as u64,
                ..crate::signal::oom::Pressure::default()
            }];
        });
        assert_eq!(told(&host, 60.0).worst(), expect, "{left} MiB left, {waits} waits");
    }
    check(1000.0, 0.3, None);
    check(300.0, 0.0, Some(Level::Watch));
    check(300.0, 0.3, Some(Level::Warn));
    check(160.0, 0.3, Some(Level::Critical));
}

/// A leak of so many MiB a second after 40 min on a host of this size; the lead of WARN, which must be within bounds.
#[track_caller]
fn check_size(
    total: f64,
    rate: f64,
    settings: &'static [&'static str],
    lead: std::ops::Range<f64>,
) {
    let actors = vec![
        actor(10, "postgres", move |_| total * 0.3),
        actor(4711, "node", move |s| total * 0.1 + rate * (s - 2400.0).max(0.0)),
    ];
    let host =
        Host { total, kernel: total * 0.05, tick_s: 2.0, actors, settings, ..Host::default() };
    let told = told(&host, 2400.0 + total / rate);
    let found = told.lead(Level::Warn);
    assert!(found.is_some_and(|found| lead.contains(&found)), "{total} {settings:?}: {told:?}");
}

#[test]
fn the_smallest_host_and_the_largest_are_told_alike() {
    for total in [1024.0, 512.0 * 1024.0] {
        // All of it in 2000 s: a third is left 700 s before the end.
        check_size(total, total / 2000.0, &[], 500.0..700.0);
        check_size(total, total / 2000.0, &["detect.memory_warn=5m"], 250.0..330.0);
        check_size(total, total / 2000.0, &["detect.memory_free=20"], 250.0..420.0);
    }
}

#[test]
fn levels_cannot_be_put_out_of_order() {
    #[track_caller]
    fn check(flag: &str, expect: Option<&str>) {
        let sources = Sources { flags: vec![flag.to_owned()], ..Sources::default() };
        let error = Config::load(&all_settings(), &sources).err().map(|error| error.to_string());
        let found = error.as_deref();
        assert_eq!(found.is_some(), expect.is_some(), "{flag}: {found:?}");
        assert!(found.zip(expect).is_none_or(|(found, part)| found.contains(part)), "{found:?}");
    }
    check("detect.memory_warn=15m", None);
    check("detect.memory_warn=2h", Some("30m"));
    check("detect.memory_critical=10s", Some("detect.memory_critical"));
    check("detect.memory_free=90", Some("60"));
    check("detect.memory_little=much", Some("detect.memory_little"));
}

/// So many workers of 150 MiB, one each minute, beside two that have lived with 90 to 150 MiB for an hour.
fn workers(count: u32) -> Vec<Actor> {
    let tooth = |second: f64| 90.0 + second * 2.0 % 60.0;
    let old = (0..2).map(|number| actor(50 + number, "node", tooth));
    let more = (0..count).map(|number| {
        let start = 3600.0 + 60.0 * f64::from(number);
        guest(100 + number, "node", move |second| (second >= start).then(|| tooth(second - start)))
    });
    old.chain(more).collect()
}

#[test]
fn more_workers_are_somebodys_decision_until_they_are_too_many() {
    let run = |count| {
        let mut actors = workers(count);
        actors.push(actor(1, "postgres", |_| 800.0));
        told(&Host { tick_s: 2.0, actors, ..Host::default() }, 9000.0)
    };
    // Twelve leave a quarter of the memory.
    let few = run(12);
    assert!(few.worst().is_none_or(|level| level < Level::Warn), "{few:?}");
    let many = run(60);
    assert!(many.lead(Level::Warn).is_some_and(|lead| lead > 60.0), "{many:?}");
}

#[test]
fn swap_is_no_help_to_who_waits_already() {
    let mut host =
        Host { swap: 4096.0, actors: vec![actor(1, "java", |_| 3800.0)], ..Host::default() };
    host.also = Box::new(|second, snapshot| {
        let row = |scope: &str| crate::signal::oom::Pressure {
            resource: "memory".into(),
            scope: scope.into(),
            total_ns: (0.3 * second * 1e9) as u64,
            ..crate::signal::oom::Pressure::default()
        };
        snapshot.oom.memory_available_bytes = 100 << 20;
        snapshot.oom.pressure = vec![row("some"), row("full")];
    });
    assert_eq!(told(&host, 60.0).worst(), Some(Level::Warn));
}

/// A job takes half of the memory within a minute, and ends; an hour later another one of its program does.
#[track_caller]
fn check_second_job(also: impl Fn(f64, &mut crate::snapshot::Snapshot) + 'static, expect: bool) {
    let job = |pid, from_s: f64| {
        guest(pid, "php", move |second| {
            let age_s = second - from_s;
            (0.0..200.0).contains(&age_s).then(|| 20.0 + 36.0 * age_s.min(60.0))
        })
    };
    let mut actors = calm();
    actors.extend([job(90, 1800.0), job(91, 5400.0)]);
    let host = Host { actors, also: Box::new(also), ..Host::default() };
    let told = told(&host, 6000.0);
    let warned =
        |from_s| told.levels.iter().any(|(at, one)| *at > from_s && one.level >= Level::Warn);
    assert!(warned(1800.0), "nothing is known of the first: {told:?}");
    assert_eq!(warned(5400.0), expect, "{told:?}");
}

#[test]
fn a_job_like_one_that_has_ended_well_must_go_further() {
    check_second_job(|_, _| (), false);
    // The first was killed, or had crashed, or was ended when memory was short.
    check_second_job(
        |second, snapshot| {
            if second >= 1999.0 {
                let kill = crate::signal::oom::OomKill { victim_pid: 90, ..Default::default() };
                snapshot.oom.kills = vec![kill];
            }
        },
        true,
    );
    check_second_job(
        |second, snapshot| {
            if second >= 2000.0 {
                let failure = crate::signal::alloc::Failure { pid: 90, ..Default::default() };
                snapshot.alloc.failures = vec![failure];
            }
        },
        true,
    );
    check_second_job(
        |second, snapshot| {
            if (1990.0..2010.0).contains(&second) {
                snapshot.oom.memory_available_bytes = 500 << 20;
            }
        },
        true,
    );
}

/// Redis saves: its child holds the same pages, and each that Redis writes to is copied. Neither grows, as far as one sees.
#[test]
fn pages_that_a_program_and_its_child_copy_are_theirs() {
    let copied = |second: f64| (4.0 * (second - 3600.0)).clamp(0.0, 1400.0);
    let saving = move |second: f64, snapshot: &mut Snapshot| {
        if second < 3600.0 {
            return;
        }
        let parent = snapshot.alloc.processes.iter().find(|row| row.pid == 30).cloned();
        snapshot.alloc.processes.extend(parent.map(|row| ProcessMemory { pid: 31, ..row }));
        let name = || "redis-server".into();
        let child = Process { pid: 31, parent_pid: 30, name: name(), ..Process::default() };
        snapshot.processes.insert(31, Arc::new(child));
        let bytes = (copied(second) * MIB) as u64;
        let available = &mut snapshot.oom.memory_available_bytes;
        *available = available.saturating_sub(bytes);
    };
    let mut actors = calm();
    actors.push(actor(30, "redis-server", |_| 1400.0));
    actors.push(actor(40, "python", |second| 50.0 + 0.1 * (second - 3600.0).max(0.0)));
    let host = Host { actors, also: Box::new(saving), ..Host::default() };
    let told = told(&host, 3990.0);
    let warned: Vec<_> =
        told.levels.iter().filter(|(_, finding)| finding.level >= Level::Warn).collect();
    assert!(!warned.is_empty(), "{told:?}");
    for (_, finding) in warned {
        let culprit = finding.culprit.as_ref().expect("somebody");
        assert_eq!(culprit.name, "redis-server", "{told:?}");
        assert!(finding.message.contains("redis-server (2 processes)"), "{told:?}");
    }
}
