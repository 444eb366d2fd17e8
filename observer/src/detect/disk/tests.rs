//! Disks in, findings out.

use super::{KIND, WAIT};
use crate::{
    config::{Config, all_settings},
    detect::{
        Seen,
        testing::{SECOND, findings, process, with},
    },
    identity::Process,
    signal::{
        oom::{self, Pressure},
        sched::{Disk, Sender, Thread, Uninterruptible, View},
    },
    snapshot::Snapshot,
};

/// What a disk does for some seconds, and who waits.
#[derive(Debug, Clone, Copy)]
struct Phase {
    seconds: u32,
    /// Milliseconds of a write.
    wait_ms: f64,
    writes: f64,
    megabytes: f64,
    /// Share of the looks at which a task of the service waits.
    service: f64,
    /// Share of the time in which anybody does.
    pressure: f64,
    /// Who sends how many megabytes a second.
    sender: Option<(u32, f64)>,
}

/// A database commits, and nothing is wrong.
const fn well(seconds: u32, wait_ms: f64) -> Phase {
    Phase {
        seconds,
        wait_ms,
        writes: 20.0,
        megabytes: 0.5,
        service: 0.1,
        pressure: 0.1,
        sender: None,
    }
}

/// The disk answers late at the same load.
const fn slow(seconds: u32, wait_ms: f64) -> Phase {
    Phase { writes: 15.0, service: 0.9, pressure: 0.95, ..well(seconds, wait_ms) }
}

/// Another has it write a hundred megabytes a second, and it answers this late.
const fn busy(seconds: u32, wait_ms: f64, service: f64) -> Phase {
    let sender = Some((30, 100.0));
    let writes = 500.0;
    Phase { writes, megabytes: 100.0, service, pressure: 0.95, sender, ..well(seconds, wait_ms) }
}

const SERVER: u32 = 7;
const SESSION: u32 = 8;
const CHECKPOINTER: u32 = 9;

fn server(pid: u32, parent_pid: u32, title: &str) -> Process {
    Process { parent_pid, command_line: title.into(), ..process(pid, "postgres") }
}

/// What is shown in a second of a phase; `round` counts them all.
fn shown(phase: &Phase, round: u32, waiter: u32, pressure_ns: u64) -> Snapshot {
    let disk = Disk {
        name: "nvme0n1".into(),
        write_wait_ns: (phase.wait_ms * 1e6) as u64,
        wait_ns: (phase.wait_ms * 1e6) as u64,
        writes_per_second: phase.writes,
        written_bytes_per_second: phase.megabytes * 1e6,
        busy_ratio: 0.5,
        ..Disk::default()
    };
    // As even as can be.
    let waits = (f64::from(round) * phase.service).fract() < phase.service;
    let waiting = Uninterruptible { pid: waiter, name: "postgres".into(), tasks: 1 };
    let sender = |(pid, megabytes): (u32, f64)| Sender {
        pid,
        name: "tar".into(),
        written_bytes_per_second: megabytes * 1e6,
        ..Sender::default()
    };
    let sched = View {
        threads: vec![Thread {
            pid: SERVER,
            tid: SERVER,
            name: "postgres".into(),
            ..Thread::default()
        }],
        uninterruptible: waits.then_some(waiting).into_iter().collect(),
        disks: vec![disk],
        senders: phase.sender.map(sender).into_iter().collect(),
        ..View::default()
    };
    let io = Pressure {
        resource: "io".into(),
        scope: "some".into(),
        total_ns: pressure_ns,
        ..Pressure::default()
    };
    let oom = oom::View {
        memory_total_bytes: 1000,
        memory_available_bytes: 500,
        disk_written_bytes_per_second: phase.megabytes * 1e6,
        pressure: vec![io],
        ..oom::View::default()
    };
    let known = [
        server(SERVER, 1, "/usr/lib/postgresql/15/bin/postgres -D /data"),
        server(SESSION, SERVER, "postgres: shop shop 127.0.0.1(4711) COMMIT"),
        server(CHECKPOINTER, SERVER, "postgres: checkpointer"),
        process(30, "tar"),
    ];
    with(Snapshot { sched, oom, ..Snapshot::default() }, known)
}

/// The host of these phases, of which a process waits.
fn host(phases: &[Phase], waiter: u32) -> Vec<Snapshot> {
    let mut pressure_ns = 0;
    let seconds = phases.iter().flat_map(|phase| (0..phase.seconds).map(move |_| phase));
    let mut show = |(phase, round): (&Phase, u32)| {
        pressure_ns += (phase.pressure * 1e9) as u64;
        shown(phase, round, waiter, pressure_ns)
    };
    seconds.zip(0..).map(&mut show).collect()
}

/// What is told, and of whom at last.
#[track_caller]
fn check_of(snapshots: Vec<Snapshot>, expect: &str, culprit: Option<&str>, what: &str) {
    let found = findings(&KIND, SECOND, snapshots);
    let told: Vec<_> = found.iter().map(|(second, what, _)| format!("{second}:{what}")).collect();
    assert_eq!(told.join(" "), expect, "{what}");
    let named = found.last().and_then(|(.., finding)| finding.culprit.as_ref());
    assert_eq!(named.map(|party| party.title.as_str()), culprit, "{what}");
}

#[track_caller]
fn check(phases: &[Phase], expect: &str, culprit: Option<&str>) {
    check_of(host(phases, SESSION), expect, culprit, &format!("{phases:?}"));
}

#[test]
fn a_disk_that_answers_later_than_it_is_used_to() {
    let disk = Some("disk nvme0n1");
    // Of every kind of disk, each by its own habit: NVMe, EBS, a spinning one.
    check(&[well(60, 0.2), slow(60, 80.0)], "66:WATCH 74:WARN", disk);
    check(&[well(60, 1.0), slow(60, 30.0)], "67:WATCH", disk);
    check(&[well(60, 15.0), slow(60, 45.0)], "", None);
    check(&[well(60, 15.0), slow(60, 120.0)], "66:WATCH 74:WARN", disk);
    // Later and later.
    let steps =
        [well(20, 0.5), slow(6, 8.0), slow(6, 16.0), slow(6, 32.0), slow(6, 64.0), slow(20, 128.0)];
    check(&steps, "39:WATCH 44:WARN", disk);
    // Requests fail long before.
    check(&[well(60, 0.2), slow(60, 800.0)], "66:WATCH 74:WARN 78:CRITICAL", disk);
    // Well again.
    check(&[well(60, 0.2), slow(60, 80.0), well(60, 0.2)], "66:WATCH 74:WARN 132:clear", disk);
    // It stays slow: that is no habit within the hour.
    check(&[well(600, 0.2), slow(3600, 80.0)], "606:WATCH 614:WARN", disk);
}

#[test]
fn a_disk_that_is_busy_and_harms_nobody() {
    // Backup, upgrade, build, batch: long queues, and the service commits as before, or a little later.
    check(&[well(60, 0.5), busy(600, 200.0, 0.1)], "", None);
    check(&[well(60, 0.5), busy(600, 15.0, 0.9)], "", None);
    check(&[well(600, 8.0), busy(600, 25.0, 0.9)], "", None);
    // The service was always in the kernel for that long, on a spinning disk.
    let loaded = Phase { service: 0.5, pressure: 0.6, ..well(600, 12.0) };
    check(&[loaded, Phase { wait_ms: 60.0, service: 0.8, pressure: 0.9, ..loaded }], "", None);
    // The disk was never seen before: nobody knows what it is used to.
    check(&[busy(8, 200.0, 0.9)], "", None);
    // A checkpoint: its process waits, nobody's request does.
    let checkpoint = host(&[well(60, 0.5), busy(300, 200.0, 0.9)], CHECKPOINTER);
    check_of(checkpoint, "", None, "checkpoint");
    // Who waits is no service.
    check_of(host(&[well(60, 0.5), busy(300, 200.0, 0.9)], 30), "", None, "tar waits");
    // Nobody waits for long in all.
    let phase = Phase { pressure: 0.2, ..busy(300, 200.0, 0.9) };
    check(&[well(60, 0.5), phase], "", None);
}

#[test]
fn who_sends_what_makes_it_slow_is_named() {
    check(&[well(60, 0.5), busy(60, 100.0, 0.9)], "66:WATCH 74:WARN", Some("tar 30"));
    // The load has been there all the time.
    let before = Phase { pressure: 0.1, service: 0.1, ..busy(60, 0.5, 0.1) };
    check(&[before, busy(60, 100.0, 0.9)], "66:WATCH 74:WARN", Some("disk nvme0n1"));
    // Nobody is known to send it.
    let unknown = Phase { sender: None, ..busy(60, 100.0, 0.9) };
    check(&[well(60, 0.5), unknown], "66:WATCH 74:WARN", Some("disk nvme0n1"));
    // A service that asks too much waits for itself.
    let own = |pid| Phase { sender: Some((pid, 100.0)), ..busy(60, 100.0, 0.9) };
    check(&[well(60, 0.5), own(SERVER)], "66:WATCH", Some("postgres 7"));
    check(&[well(60, 0.5), own(SESSION)], "66:WATCH", Some("postgres 8"));
    check(&[well(60, 0.5), own(CHECKPOINTER)], "66:WATCH", Some("postgres 9"));
}

#[test]
fn of_a_stack_of_disks_the_lowest_is_told() {
    let stacked =
        host(&[well(60, 0.5), slow(60, 100.0)], SESSION).into_iter().map(|mut snapshot| {
            let below = vec!["nvme0n1".to_owned()];
            let volume = snapshot.sched.disks.first().cloned().unwrap_or_default();
            snapshot.sched.disks.push(Disk { name: "dm-0".into(), below, ..volume });
            snapshot
        });
    check_of(stacked.collect(), "66:WATCH 74:WARN", Some("disk nvme0n1"), "stack");
}

#[test]
fn want_of_memory_and_suspended_disks_are_told_by_others() {
    let changed = |change: fn(&mut Snapshot)| {
        let mut snapshots = host(&[well(60, 0.5), slow(60, 100.0)], SESSION);
        snapshots.iter_mut().for_each(change);
        snapshots
    };
    let mut read_back = host(&[well(60, 0.5), busy(60, 100.0, 0.9)], SESSION);
    read_back.iter_mut().for_each(|snapshot| snapshot.oom.refault_per_second = 10_000.0);
    check_of(read_back, "", None, "pages are read back");
    // As many as ever, at the same load: not they are why.
    let few = changed(|snapshot| snapshot.oom.refault_per_second = 100.0);
    check_of(few, "66:WATCH 74:WARN", Some("disk nvme0n1"), "a few pages are read back");
    let little = changed(|snapshot| snapshot.oom.memory_available_bytes = 50);
    check_of(little, "", None, "memory is short");
    let suspended = changed(|snapshot| snapshot.sched.disks[0].suspended = true);
    check_of(suspended, "", None, "suspended");
    // What counts is what services lack, where the kernel has no PSI.
    let old = changed(|snapshot| snapshot.oom.pressure.clear());
    check_of(old, "66:WATCH 74:WARN", Some("disk nvme0n1"), "no PSI");
}

#[test]
fn a_service_that_has_just_begun_reads_its_own_files() {
    let start = |at: u64| {
        let mut snapshots = host(&[well(60, 0.5), slow(20, 100.0)], SESSION);
        for (snapshot, second) in snapshots.iter_mut().zip(0_u64..) {
            snapshot.time_unix_ns = (1000 + second) * SECOND;
            let start_unix_ns = (1000 + at) * SECOND;
            let begun = Process { start_unix_ns, ..server(SERVER, 1, "postgres") };
            snapshot.processes.insert(SERVER, begun.into());
        }
        snapshots
    };
    check_of(start(55), "", None, "young");
    check_of(start(10), "66:WATCH 74:WARN", Some("disk nvme0n1"), "old enough");
}

proptest::proptest! {
    #[test]
    fn no_disk_is_too_strange(
        rows in proptest::collection::vec(proptest::prelude::any::<([f64; 4], [u64; 4], u64)>(), 1..12),
    ) {
        let config = Config::default_for_tests(&all_settings());
        assert!(config.duration(&WAIT).as_millis() > 0);
        let mut detector = (KIND.detector)(&config);
        for (rates, times, elapsed_ns) in rows {
            let mut snapshot = shown(&slow(1, 1.0), 1, SESSION, times[3]);
            let [reads, writes, read_bytes, written_bytes] = rates;
            snapshot.sched.disks[0] = Disk {
                name: "sda".into(),
                reads_per_second: reads,
                writes_per_second: writes,
                read_bytes_per_second: read_bytes,
                written_bytes_per_second: written_bytes,
                read_wait_ns: times[0],
                write_wait_ns: times[1],
                silent_ns: times[2],
                ..Disk::default()
            };
            let mut found = Vec::new();
            detector.look(&Seen { snapshot: &snapshot, now_ns: elapsed_ns, elapsed_ns }, &mut found);
            for judgement in found {
                proptest::prop_assert!(judgement.evidence.iter().all(|e| e.value.is_finite()), "{judgement:?}");
            }
        }
    }
}
