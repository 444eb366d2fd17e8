//! Stalls in, findings out.

mod blame;
mod loops;

use proptest::prelude::*;

use super::{blocked, event_loop, responsiveness, starvation, steal, throttled};
use crate::{
    detect::{
        Finding, Group, Seen,
        testing::{SECOND, findings, process, told, with},
    },
    identity::{Pm2, Process},
    signal::oom::{self, Pressure, Reclaimer},
    signal::sched::{BlockedTask, Consumer, CpuCgroup, Disk, EventLoop, Thread, View},
    snapshot::Snapshot,
};

const MS: u64 = 1_000_000;

fn host(sched: View) -> Snapshot {
    Snapshot { sched, ..Snapshot::default() }
}

fn thread(pid: u32, name: &str) -> Thread {
    Thread { pid, tid: pid, name: name.into(), listens: Some(true), ..Thread::default() }
}

#[test]
fn a_quota_matters_if_a_service_waits() {
    #[track_caller]
    fn check(throttled_ratio: f64, waits: f64, cgroup: &str, expect: &str) {
        let mut shop = thread(7, "node");
        (shop.run_delay_ratio, shop.on_cpu_ratio) = (waits, 0.1);
        let group = CpuCgroup { path: "/a/shop".into(), throttled_ratio, ..CpuCgroup::default() };
        let sched = View { threads: vec![shop], throttled: vec![group], ..View::default() };
        let owner = Process { cgroup: cgroup.into(), ..process(7, "node") };
        let snapshots = (0..60).map(|_| with(host(sched.clone()), [owner.clone()]));
        assert_eq!(told(&throttled::KIND, SECOND, snapshots), expect, "{throttled_ratio} {waits}");
    }
    check(0.95, 0.9, "/a/shop", "7:WATCH 8:WARN 16:CRITICAL");
    check(0.95, 0.9, "/a/shop/worker", "7:WATCH 8:WARN 16:CRITICAL");
    check(0.4, 0.2, "/a/shop", "8:WATCH 11:WARN");
    check(1.0, 0.0, "/a/shop", "7:WATCH");
    check(1.0, 0.9, "/a/shop-of-others", "7:WATCH");
    check(0.05, 0.9, "/a/shop", "");
    check(f64::NAN, f64::NAN, "/a/shop", "");
}

/// A host on which a shop waits and runs for these shares of its time, and these programs use the CPU.
fn short(waits: f64, runs: f64, consumers: &[(u32, &str, f64, &str)]) -> Snapshot {
    let mut shop = thread(7, "node");
    (shop.run_delay_ratio, shop.on_cpu_ratio) = (waits, runs);
    let row = |(pid, name, cpu_ratio, policy): &(u32, &str, f64, &str)| Consumer {
        pid: *pid,
        name: (*name).into(),
        cpu_ratio: *cpu_ratio,
        policy: (*policy).into(),
        rt_priority: u32::from(*policy == "fifo"),
        ..Consumer::default()
    };
    let known: Vec<_> = consumers.iter().map(|(pid, name, ..)| process(*pid, name)).collect();
    let consumers = consumers.iter().map(row).collect();
    with(host(View { threads: vec![shop], consumers, ..View::default() }), known)
}

#[test]
fn who_has_the_cpu_is_named_if_a_service_waits_for_it() {
    #[track_caller]
    fn check(snapshot: Snapshot, expect: &str, culprit: Option<&str>) {
        let run = || (0..60).map(|_| snapshot.clone());
        assert_eq!(told(&starvation::KIND, SECOND, run()), expect, "{:?}", snapshot.sched);
        let found = findings(&starvation::KIND, SECOND, run());
        let named = found.last().and_then(|(_, _, finding)| finding.culprit.as_ref());
        assert_eq!(named.map(|party| party.title.as_str()), culprit);
    }
    let gzip: Vec<_> = (20..30).map(|pid| (pid, "gzip", 0.09, "other")).collect();
    check(short(0.9, 0.05, &gzip), "12:WATCH 14:WARN 17:CRITICAL", Some("gzip (10 processes)"));
    check(short(0.35, 0.1, &gzip), "13:WATCH 21:WARN", Some("gzip (10 processes)"));
    // A compiler beside a service: a tenth of a second, or not much more than its own work.
    check(short(0.15, 0.05, &gzip), "17:WATCH", Some("gzip (10 processes)"));
    check(short(0.4, 0.4, &gzip), "13:WATCH", Some("gzip (10 processes)"));
    check(short(0.08, 0.01, &gzip), "", None);
    // It has too much to do itself.
    check(short(0.9, 0.1, &[(7, "node", 1.0, "other")]), "12:WATCH", Some("node 7"));
    // Who takes what is left is not to blame; a real-time program is.
    let idle: Vec<_> = gzip.iter().map(|row| (row.0, row.1, 9.0, "idle")).collect();
    let with = |row| [&idle[..], &[row]].concat();
    let cc = with((9, "cc1", 0.5, "other"));
    check(short(0.9, 0.05, &cc), "12:WATCH 14:WARN 17:CRITICAL", Some("cc1 9"));
    let poller = with((9, "poller", 0.5, "fifo"));
    check(short(0.9, 0.05, &poller), "12:WATCH 14:WARN 17:CRITICAL", Some("poller 9"));
    // It waits for its own threads at least as much: alone on one CPU it would take four times as long.
    let mut many = short(0.9, 0.09, &gzip);
    many.sched.threads =
        (0..4).map(|tid| Thread { tid, ..many.sched.threads[0].clone() }).collect();
    many.limit.host.cpus = 1;
    check(many.clone(), "12:WATCH", Some("gzip (10 processes)"));
    many.limit.host.cpus = 4;
    check(many.clone(), "12:WATCH 14:WARN 17:CRITICAL", Some("gzip (10 processes)"));
    many.limit.host.cpus = 1;
    many.sched.consumers = short(0.0, 0.0, &[(9, "poller", 0.5, "fifo")]).sched.consumers;
    check(many, "12:WATCH 14:WARN 17:CRITICAL", Some("poller 9"));
    let mut stolen = short(0.9, 0.05, &gzip);
    stolen.sched.steal_ratio = 0.3;
    check(stolen, "12:WATCH", Some("hypervisor (steal)"));
    let mut held = short(0.9, 0.05, &gzip);
    let group = CpuCgroup { path: "/shop".into(), throttled_ratio: 0.5, ..CpuCgroup::default() };
    held.sched.throttled.push(group);
    let owner = Process { cgroup: "/shop".into(), ..process(7, "node") };
    check(self::with(held, [owner]), "", None);
}

#[test]
fn of_processes_that_come_and_go_the_program_is_to_blame() {
    let build = |second: u32| {
        let pid = 100 + second / 3 * 2;
        short(0.9, 0.05, &[(pid, "cc1plus", 0.4, "other"), (pid + 1, "cc1plus", 0.1, "other")])
    };
    let found = findings(&starvation::KIND, SECOND, (0..90).map(build));
    let told: Vec<_> = found.iter().map(|(second, what, _)| format!("{second}:{what}")).collect();
    assert_eq!(told.join(" "), "12:WATCH 14:WARN 17:CRITICAL");
    let culprit = found.last().and_then(|(.., finding)| finding.culprit.clone()).expect("one");
    assert_eq!(
        (culprit.group, culprit.name.as_str(), culprit.pid),
        (Group::Program, "cc1plus", None)
    );
}

#[test]
fn stolen_time_is_told_when_it_lasts() {
    #[track_caller]
    fn check(steal: &[(u64, f64, f64)], expect: &str) -> Option<Finding> {
        let snapshots = steal.iter().flat_map(|(seconds, steal_ratio, busy_ratio)| {
            let sched =
                View { steal_ratio: *steal_ratio, busy_ratio: *busy_ratio, ..View::default() };
            (0..*seconds).map(move |_| host(sched.clone()))
        });
        let snapshots: Vec<_> = snapshots.collect();
        assert_eq!(told(&steal::KIND, SECOND, snapshots.clone()), expect, "{steal:?}");
        findings(&steal::KIND, SECOND, snapshots).pop().map(|(_, _, finding)| finding)
    }
    check(&[(600, 0.04, 0.5)], "");
    check(&[(60, 0.0, 0.5), (15, 0.3, 0.5), (120, 0.0, 0.5)], "");
    let told = check(&[(60, 0.0, 0.1), (120, 0.3, 0.3)], "102:WATCH 104:WARN");
    assert_eq!(told.and_then(|f| f.culprit).map(|p| p.group), Some(Group::Kernel));
    check(&[(60, 0.0, 0.1), (300, 0.85, 0.05)], "101:WATCH 102:WARN 104:CRITICAL");
    let told = check(&[(3600, 0.0, 0.9), (200, 0.7, 0.2)], "3641:WATCH 3642:WARN");
    let message = told.map(|finding| finding.message).unwrap_or_default();
    assert!(message.contains("credits are spent"), "{message}");
    // It was held at a fifth once. What was saved since then, and how long that lasts, is known.
    let spent = [(3600, 0.0, 0.9), (200, 0.7, 0.2), (1800, 0.0, 0.1)];
    let told = check(
        &[&spent[..], &[(300, 0.0, 0.9)]].concat(),
        "3641:WATCH 3642:WARN 3876:clear 5673:WATCH",
    );
    let told = told.expect("it is told");
    let says = |part| assert!(told.message.contains(part), "{}", told.message);
    says("20 % is what it may always use (learned");
    says("CPU credits end in 9 min at the latest, if that goes on");
}

/// Tasks as (pid, seconds that it waits, stack).
fn hanging(tasks: &[(u32, u64, &str)]) -> Snapshot {
    let row = |(pid, seconds, stack): &(u32, u64, &str)| BlockedTask {
        pid: *pid,
        tid: *pid,
        name: "task".into(),
        blocked_ns: seconds * SECOND,
        stack: stack.split(' ').map(str::to_owned).collect(),
    };
    let sched = View {
        blocked: tasks.iter().map(row).collect(),
        threads: vec![thread(7, "postgres")],
        ..View::default()
    };
    let kernel = Process { parent_pid: 2, ..process(50, "kworker/0:1") };
    with(host(sched), [process(7, "postgres"), kernel])
}

#[test]
fn tasks_that_hang_count_by_who_and_how_long() {
    #[track_caller]
    fn check(tasks: &[(u32, u64, &str)], expect: &str) {
        let found = findings(&blocked::KIND, SECOND, [hanging(tasks)]);
        let told: Vec<_> = found
            .iter()
            .map(|(_, level, finding)| format!("{level} {}", finding.subject))
            .collect();
        assert_eq!(told.join(", "), expect, "{tasks:?}");
    }
    const DISK: &str = "io_schedule ext4_file_write_iter";
    check(&[(7, 2, DISK)], "");
    check(&[(7, 3, DISK)], "WATCH disk");
    check(&[(7, 10, DISK)], "WARN disk");
    check(&[(7, 60, DISK)], "CRITICAL disk");
    // A backup's sync: nobody waits for it.
    check(&[(8, 59, DISK)], "WATCH disk");
    check(&[(8, 60, DISK)], "WARN disk");
    check(&[(8, 10, DISK), (9, 3, DISK), (10, 3, DISK)], "WARN disk");
    let many: Vec<_> = (100..116).map(|pid| (pid, 10, DISK)).collect();
    check(&many, "CRITICAL disk");
    // What nobody waits for, or waits by design.
    check(&[(50, 600, DISK)], "");
    check(&[(7, 600, "wait_for_vfork_done kernel_clone")], "");
    // Locks count with what explains them.
    check(&[(8, 5, DISK), (7, 12, "__mutex_lock ext4_sync")], "WARN disk");
    check(&[(7, 12, "__mutex_lock foo")], "WARN kernel lock");
    check(
        &[(7, 12, "rpc_wait_bit_killable nfs_x"), (8, 4, DISK)],
        "WATCH disk, WARN network file system",
    );
    check(&[(7, 12, "0xffff")], "WARN unknown");
}

/// A host with this much memory left, on which tasks wait for it for so long in a second, some and all at once.
fn pressed(second: u64, available: f64, some: f64, full: f64, refault_ratio: f64) -> Snapshot {
    let row = |scope: &str, share: f64| Pressure {
        resource: "memory".into(),
        scope: scope.into(),
        total_ns: (second as f64 * share * 1e9) as u64,
        ..Pressure::default()
    };
    let oom = oom::View {
        memory_total_bytes: 1000,
        memory_available_bytes: (1000.0 * available) as u64,
        refault_ratio,
        pressure: vec![row("some", some), row("full", full)],
        culprit_pid: Some(9),
        ..oom::View::default()
    };
    with(Snapshot { oom, ..Snapshot::default() }, [process(9, "leaker")])
}

#[test]
fn a_host_stops_answering_in_steps() {
    #[track_caller]
    fn check(state: [f64; 4], expect: &str) {
        let [available, some, full, refaults] = state;
        let snapshots = (0..30).map(|second| pressed(second, available, some, full, refaults));
        let found = findings(&responsiveness::KIND, SECOND, snapshots);
        let told: Vec<_> = found.iter().map(|(at, what, _)| format!("{at}:{what}")).collect();
        assert_eq!(told.join(" "), expect, "{state:?}");
        let named = found.iter().filter_map(|(.., finding)| finding.culprit.as_ref());
        assert!(named.map(|party| party.title.as_str()).all(|title| title == "leaker 9"));
    }
    check([0.05, 0.03, 0.0, 0.0], "");
    check([0.05, 0.15, 0.0, 0.0], "5:WATCH");
    check([0.05, 0.5, 0.12, 0.0], "4:WATCH 6:WARN");
    check([0.05, 0.9, 0.5, 0.3], "3:WARN 5:CRITICAL");
    // A group at its own limit stalls, and the host has memory.
    check([0.6, 0.9, 0.9, 0.0], "");
}

#[test]
fn a_system_service_that_hangs_is_told() {
    #[track_caller]
    fn check(name: &str, seconds: u64, available: f64, expect: &str) {
        let task = BlockedTask {
            pid: 50,
            tid: 50,
            name: name.into(),
            blocked_ns: seconds * SECOND,
            stack: vec!["io_schedule".into(), "filemap_fault".into()],
        };
        let snapshots = (0..5).map(|_| {
            let mut snapshot = pressed(0, available, 0.0, 0.0, 0.0);
            snapshot.sched.blocked.push(task.clone());
            snapshot
        });
        assert_eq!(told(&responsiveness::KIND, SECOND, snapshots), expect, "{name} {seconds} s");
    }
    check("sshd", 1, 0.05, "3:WARN");
    check("systemd-journal", 1, 0.5, "");
    check("systemd-journal", 6, 0.5, "3:WARN");
    check("systemd-journal", 25, 0.5, "3:CRITICAL");
    check("postgres", 25, 0.5, "");
}

#[test]
fn system_services_that_free_memory_are_told() {
    let reclaiming = |name: &str| {
        let snapshots: Vec<_> = (0..20_u64)
            .map(|second| {
                let mut snapshot = pressed(second, 0.05, 0.0, 0.0, 0.0);
                snapshot.oom.reclaimers.push(Reclaimer {
                    pid: 50,
                    name: name.into(),
                    total_ns: second * SECOND / 4,
                    ..Reclaimer::default()
                });
                snapshot
            })
            .collect();
        told(&responsiveness::KIND, SECOND, snapshots)
    };
    assert_eq!([reclaiming("sshd"), reclaiming("node")], ["5:WARN", ""]);
}

#[test]
fn the_disk_that_does_not_answer_is_named() {
    #[track_caller]
    fn check(disk: Disk, expect: &str) {
        let mut snapshot = hanging(&[(7, 12, "io_schedule ext4_sync_file")]);
        snapshot.sched.disks.push(Disk { name: "dm-0".into(), ..disk });
        let found = findings(&blocked::KIND, SECOND, [snapshot]);
        let named = found.first().and_then(|(.., finding)| finding.culprit.clone());
        assert_eq!(named.map(|party| party.title).as_deref(), Some(expect));
    }
    check(
        Disk { suspended: true, ..Disk::default() },
        "disk dm-0 (suspended by the device-mapper)",
    );
    check(Disk { silent_ns: 9 * SECOND, ..Disk::default() }, "disk dm-0 (no answer for 9 s)");
    check(Disk { wait_ns: 2 * SECOND, ..Disk::default() }, "disk dm-0 (2.0 s a request)");
    check(Disk { wait_ns: 20 * MS, ..Disk::default() }, "disk");
}

#[test]
fn a_disk_that_is_slow_again_and_again_is_told() {
    const DISK: &str = "jbd2_log_wait_commit ext4_sync_file";
    let slow = |second: u64| hanging(if second % 5 == 4 { &[] } else { &[(7, 2, DISK)] });
    let once = |second: u64| hanging(if second % 5 == 4 { &[(7, 2, DISK)] } else { &[] });
    assert_eq!(told(&blocked::KIND, SECOND, (0..60).map(slow)), "22:WARN");
    assert_eq!(told(&blocked::KIND, SECOND, (0..60).map(once)), "");
}

fn anything() -> impl Strategy<Value = Snapshot> {
    let numbers = proptest::collection::vec(any::<u64>(), 8);
    let ratios = proptest::collection::vec(any::<f64>(), 5);
    (numbers, ratios, any::<Option<bool>>()).prop_map(|(numbers, ratios, listens)| {
        let [turns, gaps, max_ns, open_ns, on_cpu, waiting, recent_turns, p99_ns] = numbers[..]
        else {
            return Snapshot::default();
        };
        let event_loop = EventLoop {
            turns,
            gaps,
            max_ns,
            open_ns,
            open_on_cpu_ns: on_cpu,
            open_waiting_ns: waiting,
            recent_turns,
            p99_ns,
            ..EventLoop::default()
        };
        let mut one = thread(turns as u32 % 3, "node");
        (one.on_cpu_ratio, one.run_delay_ratio, one.listens) = (ratios[0], ratios[1], listens);
        one.event_loop = Some(event_loop);
        let task =
            BlockedTask { pid: gaps as u32 % 3, blocked_ns: open_ns, ..BlockedTask::default() };
        let group = CpuCgroup { throttled_ratio: ratios[2], ..CpuCgroup::default() };
        host(View {
            threads: vec![one.clone(), one],
            blocked: vec![task],
            throttled: vec![group],
            consumers: vec![Consumer { cpu_ratio: ratios[3], ..Consumer::default() }],
            steal_ratio: ratios[3],
            busy_ratio: ratios[4],
            ..View::default()
        })
    })
}

proptest! {
    #[test]
    fn no_snapshot_is_too_strange(snapshots in proptest::collection::vec((anything(), any::<u64>()), 0..8)) {
        let config = crate::config::Config::default_for_tests(&crate::config::all_settings());
        for kind in [&event_loop::KIND, &starvation::KIND, &throttled::KIND, &steal::KIND, &blocked::KIND] {
            let mut detector = (kind.detector)(&config);
            for (snapshot, elapsed_ns) in &snapshots {
                let mut found = Vec::new();
                let seen = Seen { snapshot, now_ns: *elapsed_ns, elapsed_ns: *elapsed_ns };
                detector.look(&seen, &mut found);
                for judgement in found {
                    prop_assert!(!judgement.subject.is_empty() || kind.name == "sched.throttled");
                    prop_assert!(judgement.evidence.iter().all(|e| e.value.is_finite()), "{judgement:?}");
                }
            }
        }
    }
}
