//! Ends, starts and managers of processes in, findings out.

use proptest::prelude::*;

use super::{crash_loop, duplicate_managers, fork_storm};
use crate::{
    detect::{
        Seen,
        testing::{SECOND, findings, process, told, with},
    },
    identity::{Pm2, Process},
    signal::{
        alloc::{self, Failure, ProcessMemory},
        limit,
        oom::OomKill,
        sched::{Consumer, Thread},
    },
    snapshot::Snapshot,
};

fn worker(pid: u32, parent_pid: u32, app: &str, home: &str) -> Process {
    let pm2 = Pm2 { app: app.into(), home: home.into(), ..Pm2::default() };
    Process { parent_pid, pm2: Some(pm2), ..process(pid, "node") }
}

fn daemon(pid: u32, user: &str, home: &str) -> Process {
    let start_unix_ns = u64::from(pid);
    Process {
        start_unix_ns,
        user_name: user.into(),
        pm2_daemon_home: Some(home.into()),
        ..process(pid, "PM2 v5: God Dae")
    }
}

fn at(second: u64) -> Snapshot {
    Snapshot { time_unix_ns: (second + 1) * SECOND, ..Snapshot::default() }
}

/// A death every so many seconds, as the table of failures has it.
fn dying(
    every_s: u64,
    seconds: u64,
    code: Option<u32>,
    signal: Option<u32>,
    who: impl Fn(u32) -> Option<Process>,
) -> Vec<Snapshot> {
    let snapshot = |second: u64| {
        let mut snapshot = at(second);
        for death in (1..=second / every_s).rev().take(50) {
            let pid = 100 + death as u32;
            snapshot.alloc.failures.push(Failure {
                time_unix_ns: (death * every_s + 1) * SECOND,
                pid,
                name: "node".into(),
                exit_code: code,
                signal,
                lived_ns: every_s * SECOND,
                ..Failure::default()
            });
            if let Some(process) = who(pid) {
                snapshot = with(snapshot, [process]);
            }
        }
        with(snapshot, [daemon(50, "node", "/h")])
    };
    (0..seconds).map(snapshot).collect()
}

#[test]
fn the_third_death_in_a_minute_is_a_crash_loop() {
    #[track_caller]
    fn check(every_s: u64, code: Option<u32>, signal: Option<u32>, pm2: bool, expect: &str) {
        let who =
            |pid| Some(if pm2 { worker(pid, 50, "shop", "/h") } else { process(pid, "node") });
        let snapshots = dying(every_s, 130, code, signal, who);
        assert_eq!(told(&crash_loop::KIND, SECOND, snapshots), expect, "{code:?} {signal:?}");
    }
    check(5, Some(1), None, true, "11:WATCH 16:WARN 51:CRITICAL");
    check(20, Some(1), None, true, "41:WATCH 61:WARN");
    check(50, Some(1), None, true, "101:WATCH");
    check(70, Some(1), None, true, "");
    // A deployment: ended by its manager.
    check(5, None, Some(2), true, "");
    check(5, None, Some(9), true, "");
    check(5, Some(143), None, true, "");
    // What a worker starts may fail.
    let child = dying(5, 60, Some(1), None, |pid| Some(worker(pid, 77, "shop", "/h")));
    assert_eq!(told(&crash_loop::KIND, SECOND, child), "");
    // A script's command that finds nothing is no crash; a broken program is, whoever it is.
    check(5, Some(1), None, false, "");
    check(20, None, Some(11), false, "41:WATCH 61:WARN");
}

#[test]
fn a_crash_loop_has_the_name_of_its_app() {
    let found = findings(
        &crash_loop::KIND,
        SECOND,
        dying(5, 40, Some(7), None, |pid| Some(worker(pid, 50, "shop", "/h"))),
    );
    let (_, _, finding) = found.last().expect("it is told");
    let party = finding.culprit.as_ref().expect("a culprit");
    assert_eq!((party.name.as_str(), party.title.as_str()), ("shop", "PM2 app shop"));
    assert!(party.pids.len() >= 3 && finding.message.contains("exit code 7"), "{finding:?}");
}

#[test]
fn who_listened_is_a_service_and_who_was_killed_for_memory_crashed() {
    let unit =
        |pid| Some(Process { unit: "api.service".into(), parent_pid: 77, ..process(pid, "api") });
    let mut served = dying(10, 60, Some(1), None, unit);
    assert_eq!(told(&crash_loop::KIND, SECOND, served.clone()), "");
    for snapshot in &mut served {
        for pid in 100..120 {
            let name = "api".to_owned();
            snapshot.sched.threads.push(Thread { pid, tid: pid, name, ..Thread::default() });
        }
    }
    assert_eq!(told(&crash_loop::KIND, SECOND, served), "21:WATCH 31:WARN");
    let mut killed = dying(10, 60, None, Some(9), unit);
    for snapshot in &mut killed {
        let kill = |victim_pid| OomKill { victim_pid, ..OomKill::default() };
        snapshot.oom.kills = (100..120).map(kill).collect();
    }
    assert_eq!(told(&crash_loop::KIND, SECOND, killed), "21:WATCH 31:WARN");
}

#[test]
fn old_failures_are_not_new_when_the_agent_starts() {
    let all = dying(2, 100, Some(1), None, |pid| Some(worker(pid, 50, "shop", "/h")));
    let mut last = all.last().cloned().expect("a snapshot");
    // Seen by an agent that starts ten minutes later.
    last.time_unix_ns += 600 * SECOND;
    let snapshots: Vec<_> = (0..5).map(|_| last.clone()).collect();
    assert_eq!(told(&crash_loop::KIND, SECOND, snapshots), "");
}

#[test]
fn workers_that_are_replaced_soon_are_told_without_a_hook() {
    let replaced = |every_s: u64| {
        let snapshot = move |second: u64| {
            let pid = 100 + (second / every_s) as u32;
            with(at(second), [daemon(50, "node", "/h"), worker(pid, 50, "shop", "/h")])
        };
        told(&crash_loop::KIND, SECOND, (0..100).map(snapshot))
    };
    assert_eq!([replaced(8), replaced(20)], ["17:WATCH 25:WARN", ""]);
}

#[test]
fn several_daemons_with_one_app_are_one_too_many() {
    #[track_caller]
    fn check(processes: &[Process], expect: &str, culprit: &[u32]) {
        let snapshots = (0..30).map(|second| {
            let mut snapshot = with(at(second), processes.to_vec());
            let rows =
                processes.iter().map(|p| ProcessMemory { pid: p.pid, ..ProcessMemory::default() });
            snapshot.alloc.processes = rows.collect();
            snapshot.alloc.process_count = processes.len() as u64;
            snapshot
        });
        let found = findings(&duplicate_managers::KIND, SECOND, snapshots);
        let told: Vec<_> = found.iter().map(|(at, what, _)| format!("{at}:{what}")).collect();
        assert_eq!(told.join(" "), expect);
        let named = found.first().and_then(|(.., finding)| finding.culprit.as_ref());
        assert_eq!(named.map_or(&[][..], |party| &party.pids), culprit);
    }
    let one = [daemon(50, "ubuntu", "/u"), worker(51, 50, "api", "/u")];
    let two =
        [daemon(60, "jenkins", "/j"), worker(61, 60, "api", "/j"), worker(62, 60, "api", "/j")];
    check(&one, "", &[]);
    check(&[&one[..], &[worker(52, 50, "shop", "/u")]].concat(), "", &[]);
    check(&[&one[..], &two].concat(), "11:WARN", &[61, 62, 60]);
    check(&[&one[..], &[daemon(60, "jenkins", "/j")]].concat(), "11:WATCH", &[60]);
    let other = [daemon(60, "jenkins", "/j"), worker(61, 60, "ci", "/j")];
    check(&[&one[..], &other].concat(), "11:WATCH", &[60]);
    // Two daemons of one home.
    let same = [daemon(60, "ubuntu", "/u"), worker(61, 60, "api", "/u")];
    check(&[&one[..], &same].concat(), "11:WARN", &[61, 60]);
}

/// A host with so many processes, of which a script has started the young ones.
fn crowd(second: u64, count: u64, forks: u64, waits: f64) -> Snapshot {
    let child = |pid: u32| Process {
        start_unix_ns: second * SECOND,
        parent_pid: 9,
        ..process(pid, "false")
    };
    let mut snapshot = with(at(second), (1000..1100).map(child).chain([process(9, "retry.sh")]));
    let rows = (1000..1100).map(|pid| ProcessMemory { pid, ..ProcessMemory::default() });
    snapshot.alloc = alloc::View {
        processes: rows.collect(),
        process_count: count,
        forks,
        ..alloc::View::default()
    };
    let thread = Thread { pid: 7, tid: 7, run_delay_ratio: waits, ..Thread::default() };
    snapshot.sched.threads.push(thread);
    let consumer = Consumer { pid: 9, children_cpu_ratio: 1.0, ..Consumer::default() };
    snapshot.sched.consumers.push(consumer);
    snapshot.limit.host = limit::Host { cpus: 2, pid_max: Some(4000), ..limit::Host::default() };
    snapshot
}

#[test]
fn processes_that_become_too_many_are_told_with_who_starts_them() {
    #[track_caller]
    fn check(run: impl Fn(u64) -> Snapshot, expect: &str) {
        let found = findings(&fork_storm::KIND, SECOND, (0..60).map(run));
        let told: Vec<_> = found.iter().map(|(at, what, _)| format!("{at}:{what}")).collect();
        assert_eq!(told.join(" "), expect);
        let named = found.iter().filter_map(|(.., finding)| finding.culprit.as_ref());
        assert!(named.map(|party| party.title.as_str()).all(|title| title == "retry.sh 9"));
    }
    // A bomb, a pool that fills, a build, and a build that starves a service.
    let grows = |second: u64| second.saturating_sub(10) * 60;
    check(|second| crowd(second, 200 + grows(second), 0, 0.0), "20:WATCH 25:WARN 27:CRITICAL");
    check(|second| crowd(second, 200 + grows(second).min(240), 0, 0.0), "");
    check(|second| crowd(second, 200, second * 400, 0.0), "8:WATCH");
    check(|second| crowd(second, 200, second * 400, 0.8), "8:WATCH 9:WARN");
    check(|second| crowd(second, 200, second * 80, 0.8), "");
}

proptest! {
    #[test]
    fn no_snapshot_is_too_strange(
        ticks in proptest::collection::vec((any::<[u64; 5]>(), any::<f64>(), any::<u64>()), 0..8)
    ) {
        let config = crate::config::Config::default_for_tests(&crate::config::all_settings());
        for kind in [&crash_loop::KIND, &fork_storm::KIND, &duplicate_managers::KIND] {
            let mut detector = (kind.detector)(&config);
            for (numbers, ratio, elapsed_ns) in &ticks {
                let [time, count, forks, lived_ns, pid] = *numbers;
                let mut snapshot = crowd(pid % 1000, count, forks, *ratio);
                snapshot.time_unix_ns = time;
                let failure = Failure { time_unix_ns: forks, pid: pid as u32, lived_ns, signal: Some(11), ..Failure::default() };
                snapshot.alloc.failures = vec![failure; 3];
                let mut found = Vec::new();
                detector.look(&Seen { snapshot: &snapshot, now_ns: time, elapsed_ns: *elapsed_ns }, &mut found);
                for judgement in found {
                    prop_assert!(judgement.evidence.iter().all(|e| e.value.is_finite()), "{judgement:?}");
                }
            }
        }
    }
}
