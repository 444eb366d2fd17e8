//! Bounds and settings in, findings out.

mod heap;

use proptest::prelude::*;

use super::{hazard, jvm, near, runtime};
use crate::{
    detect::{
        Judgement, Kind, Level, Seen, State,
        testing::{SECOND, findings, process, told, with},
    },
    identity::{Pm2, Process},
    signal::{
        alloc::ProcessMemory,
        limit::{self, Bound, Facts, Host, Jvm, Node, Redis, Runtime},
        oom, sched, tcp,
    },
    snapshot::Snapshot,
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn bound(resource: &str, pid: u32, scope: &str, used: u64, limit: u64) -> Bound {
    Bound {
        resource: resource.into(),
        pid,
        name: "node".into(),
        scope: scope.into(),
        used,
        limit: Some(limit),
        source: "kernel".into(),
        ..Bound::default()
    }
}

/// What is read every ten seconds, as the agent does.
fn read(second: u64, rows: Vec<Bound>, facts: Option<Facts>) -> Snapshot {
    let runtimes = facts.map(|facts| Runtime { pid: 7, name: "x".into(), facts });
    let limit = limit::View {
        read_unix_ns: (second / 10 * 10 + 1) * SECOND,
        rows,
        runtimes: runtimes.into_iter().collect(),
        ..limit::View::default()
    };
    with(Snapshot { limit, ..Snapshot::default() }, [process(7, "x")])
}

/// Numbers that change in steps of ten seconds.
fn step(second: u64) -> u64 {
    second / 10 * 10
}

#[test]
fn what_runs_out_is_told_by_how_full_it_is_and_how_fast_it_fills() {
    #[track_caller]
    fn check(used: impl Fn(u64) -> u64, upper_estimate: bool, expect: &str) {
        let snapshot = |second: u64| {
            let row =
                Bound { upper_estimate, ..bound("files", 7, "process", used(step(second)), 1000) };
            read(second, vec![row], None)
        };
        assert_eq!(told(&near::KIND, SECOND, (0..200).map(snapshot)), expect);
    }
    check(|_| 790, false, "");
    check(|_| 850, false, "1:WATCH");
    check(|_| 950, false, "1:WARN");
    check(|_| 980, false, "1:CRITICAL");
    // A slow leak, and a fast one, of which the last third is told sooner.
    check(|second| 700 + second, false, "51:WARN");
    check(|second| (second * 10).min(1000), false, "71:WARN 81:CRITICAL");
    // A pool that fills to its size.
    check(|second| (second * 20).min(600), false, "");
    check(|_| 980, true, "1:WATCH");
}

/// What is read every two seconds, as the agent does while something fills.
fn hurried(second: u64, rows: Vec<Bound>, facts: Option<Facts>) -> Snapshot {
    let mut snapshot = read(second, rows, facts);
    snapshot.limit.read_unix_ns = (second / 2 * 2 + 1) * SECOND;
    snapshot
}

#[test]
fn what_rises_at_each_reading_is_told_at_once_and_a_step_is_not() {
    #[track_caller]
    fn check(seconds: u64, used: impl Fn(u64) -> u64, files: &str, metaspace: &str) {
        let used = |second: u64| used(second / 2 * 2);
        let file_rows = |second| vec![bound("files", 7, "process", used(second), 100)];
        let snapshots = (0..seconds).map(|second| hurried(second, file_rows(second), None));
        assert_eq!(told(&near::KIND, SECOND, snapshots), files);
        let jvm = |second| Jvm {
            metaspace_used_bytes: used(second) * MIB,
            metaspace_max_bytes: Some(100 * MIB),
            ..Jvm::default()
        };
        let snapshots =
            (0..seconds).map(|second| hurried(second, Vec::new(), Some(Facts::Jvm(jvm(second)))));
        assert_eq!(told(&jvm::KIND, SECOND, snapshots), metaspace);
    }
    check(14, |second| 40 + second * 4, "9:WARN 11:CRITICAL", "9:WARN");
    check(14, |second| if second < 8 { 40 } else { 75 }, "", "9:WATCH");
}

#[test]
fn of_thousands_of_control_groups_the_fullest_are_told_and_the_rest_is_counted() {
    let group = |number: u64, used| {
        let row = bound("processes", 0, "", used, 1000);
        Bound { scope: format!("/kubepods/pod{number}"), ..row }
    };
    let mut detector = (near::KIND.detector)(&crate::config::Config::default_for_tests(
        &crate::config::all_settings(),
    ));
    let mut look = |second: u64, rows: Vec<Bound>| {
        let snapshot = read(second, rows, None);
        let mut found = Vec::new();
        let seen = Seen { snapshot: &snapshot, now_ns: second * SECOND, elapsed_ns: SECOND };
        detector.look(&seen, &mut found);
        found
    };
    // 4,000 that are half full: nothing to tell, but that their rates are not all followed.
    let half = || (0..4000).map(|number| group(number, 500));
    let told: Vec<_> = look(10, half().collect()).into_iter().map(|one| one.subject).collect();
    assert_eq!(told, ["rates of 2976 bounds"]);
    // Of 50 full ones that come when there is no room, all count.
    let full = (9000..9050).map(|number| group(number, 980 + number % 10));
    let found = look(20, full.chain(half()).collect());
    let is_firing = |one: &&Judgement| matches!(one.state, State::Firing(Level::Critical));
    let firing: Vec<_> = found.iter().filter(is_firing).map(|one| one.subject.as_str()).collect();
    assert_eq!(firing.len(), 32, "{firing:?}");
    assert!(firing.iter().all(|subject| subject.starts_with("processes /kubepods/pod90")));
    let counted: Vec<_> =
        found.iter().filter(|one| !is_firing(one)).map(|one| one.subject.as_str()).collect();
    assert_eq!(counted, ["18 more", "rates of 3026 bounds"]);
    // When they are gone, there is room again.
    assert!(look(30, Vec::new()).is_empty());
    let told: Vec<_> = look(40, (0..1024).map(|n| group(n, 500)).collect());
    assert!(told.is_empty(), "{told:?}");
}

#[test]
fn who_uses_up_a_shared_bound_is_named() {
    let child =
        |pid| Process { parent_pid: 9, cgroup: "/pids/x".into(), ..process(pid, "convert") };
    let mut snapshot = read(0, vec![bound("processes", 0, "/pids", 125, 128)], None);
    snapshot = with(snapshot, (100..200).map(child).chain([process(9, "thumbnails")]));
    let rows = (100..200).map(|pid| ProcessMemory { pid, ..ProcessMemory::default() });
    snapshot.alloc.processes = rows.collect();
    let found = findings(&near::KIND, SECOND, [snapshot]);
    let (_, level, finding) = found.first().expect("it is told");
    assert_eq!((*level, finding.subject.as_str()), ("CRITICAL", "processes /pids"));
    assert_eq!(finding.culprit.as_ref().map(|party| party.title.as_str()), Some("thumbnails 9"));
}

#[test]
fn who_has_the_sockets_has_the_ports() {
    #[track_caller]
    fn check(files: &[(u32, u64, bool)], expect: Option<u32>) {
        let ports = bound("ports", 0, "10.0.0.1:443", 250, 256);
        let rows =
            files.iter().map(|(pid, used, _)| bound("files", *pid, "process", *used, 65_536));
        let mut snapshot = read(0, [ports].into_iter().chain(rows).collect(), None);
        let thread = |(pid, _, listens): &(u32, u64, bool)| sched::Thread {
            pid: *pid,
            listens: Some(*listens),
            ..sched::Thread::default()
        };
        snapshot.sched.threads = files.iter().map(thread).collect();
        let found = findings(&near::KIND, SECOND, [snapshot]);
        let culprit = found.first().and_then(|(.., finding)| finding.culprit.clone());
        assert_eq!(culprit.and_then(|party| party.pid), expect, "{files:?}");
    }
    check(&[(7, 300, false), (8, 20, false)], Some(7));
    // A server on this host has the other ends.
    check(&[(7, 300, false), (8, 320, true)], Some(7));
    check(&[(8, 320, true)], Some(8));
    check(&[(8, 20, false)], None);
    check(&[], None);
}

#[test]
fn who_closed_the_connections_has_their_ports() {
    #[track_caller]
    fn check(to: &str, closed: &[(u32, u64)], expect: Option<u32>) {
        let ports = bound("ports", 0, to, 250, 256);
        let mut snapshot = read(0, vec![ports], None);
        let row = |(pid, count): &(u32, u64)| tcp::Closing {
            pid: *pid,
            name: "node".into(),
            address: to.rsplit_once(':').unwrap().0.trim_matches(['[', ']']).into(),
            port: 6379,
            count: *count,
        };
        snapshot.tcp.closing = closed.iter().map(row).collect();
        let found = findings(&near::KIND, SECOND, [snapshot]);
        let culprit = found.first().and_then(|(.., finding)| finding.culprit.clone());
        assert_eq!(culprit.and_then(|party| party.pid), expect, "{to} {closed:?}");
    }
    check("10.0.0.1:6379", &[(7, 240), (8, 10)], Some(7));
    check("[fd00::1]:6379", &[(7, 10), (8, 240)], Some(8));
    // Fewer than half: another, whom nobody saw, may have the most.
    check("10.0.0.1:6379", &[(7, 124)], None);
    check("10.0.0.1:443", &[(7, 240)], None);
}

#[test]
fn heaps_and_caches_have_limits_of_their_own() {
    #[track_caller]
    fn check(kind: &'static Kind, facts: &Facts, row: Bound, per_s: u64, expect: &str) {
        let snapshot = |second: u64| {
            let row = Bound { used: row.used + step(second) * per_s, ..row.clone() };
            let mut snapshot = read(second, vec![row], Some(facts.clone()));
            snapshot.oom.memory_total_bytes = 4 * GIB;
            snapshot.oom.memory_available_bytes = GIB;
            snapshot
        };
        assert_eq!(told(kind, SECOND, (0..200).map(snapshot)), expect, "{facts:?} {per_s}");
    }
    let node = Facts::Node(Node::default());
    let heap = |used| bound("node_heap", 7, "process", used * MIB, 1000 * MIB);
    check(&runtime::NODE, &node, heap(500), 0, "");
    check(&runtime::NODE, &node, heap(920), 0, "11:WATCH");
    check(&runtime::NODE, &node, heap(880), MIB, "31:WATCH 101:WARN");
    let redis = |policy: &str, known| {
        let redis =
            Redis { maxmemory_policy: policy.into(), maxmemory_known: known, ..Redis::default() };
        Facts::Redis(redis)
    };
    let memory = |used, limit: Option<u64>| {
        let row = bound("redis_memory", 7, "process", used * MIB, 1);
        Bound { limit: limit.map(|limit| limit * MIB), ..row }
    };
    let of = |facts: &Facts, row, per_s, expect| check(&runtime::REDIS, facts, row, per_s, expect);
    of(&redis("allkeys-lru", true), memory(1000, Some(1000)), 0, "");
    of(&redis("noeviction", true), memory(950, Some(1000)), 0, "11:WATCH");
    of(&redis("noeviction", true), memory(950, Some(1000)), MIB / 2, "11:WATCH 71:WARN");
    of(&redis("", true), memory(1500, None), 0, "");
    of(&redis("", true), memory(1500, None), MIB, "71:WATCH");
    of(&redis("", true), memory(1500, None), 4 * MIB, "71:WARN");
    of(&redis("", true), memory(100, None), 4 * MIB, "");
    of(&redis("", false), memory(1500, None), 4 * MIB, "");
}

/// A host of 4 GiB without swap, with a Redis that has 3 GiB, and a PM2 app with two workers.
fn host() -> Snapshot {
    let redis = Redis { maxmemory_known: true, save: Some(true), ..Redis::default() };
    let mut snapshot =
        read(0, vec![bound("redis_memory", 7, "process", 3 * GIB, 1)], Some(Facts::Redis(redis)));
    snapshot.limit.rows[0].limit = None;
    snapshot.limit.host = Host {
        overcommit_memory: Some(0),
        thp_enabled: "always".into(),
        memory_total_bytes: 4 * GIB,
        cpus: 1,
        ..Host::default()
    };
    snapshot.oom = oom::View { memory_available_bytes: GIB, ..oom::View::default() };
    let daemon = Process { pm2_daemon_home: Some("/h".into()), ..process(50, "PM2") };
    let worker = |pid| Process {
        parent_pid: 50,
        pm2: Some(Pm2 { app: "shop".into(), home: "/h".into(), ..Pm2::default() }),
        ..process(pid, "node")
    };
    snapshot.alloc.processes =
        [51, 52].map(|pid| ProcessMemory { pid, ..ProcessMemory::default() }).into();
    with(snapshot, [daemon, worker(51), worker(52)])
}

#[test]
fn hazards_are_what_is_set_wrong() {
    #[track_caller]
    fn check(kind: &'static Kind, change: impl Fn(&mut Snapshot), expect: &str) {
        let snapshots = (0..40).map(|_| {
            let mut snapshot = host();
            change(&mut snapshot);
            snapshot
        });
        let found = findings(kind, SECOND, snapshots);
        assert!(found.iter().all(|(.., finding)| finding.hazard));
        let told: Vec<_> =
            found.iter().map(|(_, what, finding)| format!("{what} {}", finding.subject)).collect();
        assert_eq!(told.join(", "), expect, "{}", kind.name);
    }
    fn redis(snapshot: &mut Snapshot) -> &mut Redis {
        match &mut snapshot.limit.runtimes[0].facts {
            Facts::Redis(redis) => redis,
            other => panic!("{other:?}"),
        }
    }
    let none = |_: &mut Snapshot| ();
    check(&hazard::REDIS_OVERCOMMIT, none, "WARN x 7");
    check(&hazard::REDIS_OVERCOMMIT, |s| s.oom.memory_available_bytes = 4 * GIB, "WATCH x 7");
    check(&hazard::REDIS_OVERCOMMIT, |s| s.limit.host.overcommit_memory = Some(1), "");
    check(&hazard::REDIS_OVERCOMMIT, |s| redis(s).save = Some(false), "");
    check(&hazard::REDIS_OVERCOMMIT, |s| redis(s).save = None, "");
    check(&hazard::REDIS_HUGE_PAGES, none, "WATCH x 7");
    check(&hazard::REDIS_HUGE_PAGES, |s| s.limit.host.thp_enabled = "madvise".into(), "");
    check(&hazard::REDIS_MAXMEMORY, none, "WARN x 7");
    check(&hazard::REDIS_MAXMEMORY, |s| s.limit.rows[0].used = GIB, "WATCH x 7");
    check(&hazard::REDIS_MAXMEMORY, |s| redis(s).maxmemory_bytes = Some(GIB), "");
    check(&hazard::REDIS_MAXMEMORY, |s| redis(s).maxmemory_known = false, "");
    check(&hazard::PM2_MEMORY, none, "WATCH PM2 app shop of /h");
    let limits = |bytes| {
        move |s: &mut Snapshot| {
            s.limit.rows.extend([51, 52].map(|pid| bound("pm2_memory", pid, "process", 1, bytes)));
        }
    };
    check(&hazard::PM2_MEMORY, limits(GIB), "");
    check(&hazard::PM2_MEMORY, limits(3 * GIB), "WATCH PM2 app shop of /h");
    check(&hazard::WORKERS, none, "WATCH PM2 app shop of /h");
    check(&hazard::WORKERS, |s| s.limit.host.cpus = 2, "");
    check(&hazard::WORKERS, |s| s.limit.host.cpus = 0, "");
    check(&hazard::NO_SWAP, none, "WATCH host");
    check(&hazard::NO_SWAP, |s| s.limit.host.swap_total_bytes = GIB, "");
    let heaps = |source: &'static str, count: u64| {
        move |s: &mut Snapshot| {
            let node = Node { heap_limit_bytes: 2 * GIB, heap_limit_source: source.into() };
            let runtime = Runtime { pid: 51, name: "node".into(), facts: Facts::Node(node) };
            s.limit.runtimes.extend((0..count).map(|_| runtime.clone()));
        }
    };
    check(&hazard::HEAP_LIMITS, heaps("command_line", 3), "WATCH host");
    check(&hazard::HEAP_LIMITS, heaps("command_line", 2), "");
    check(&hazard::HEAP_LIMITS, heaps("default", 3), "");
    let files = |used, limit, listens| {
        move |s: &mut Snapshot| {
            s.limit.rows.push(bound("files", 51, "process", used, limit));
            let listens = Some(listens);
            s.sched.threads.push(sched::Thread { pid: 51, tid: 51, listens, ..Default::default() });
        }
    };
    check(&hazard::FILES, files(400, 1024, true), "WATCH node 51");
    check(&hazard::FILES, files(400, 1024, false), "");
    check(&hazard::FILES, files(100, 1024, true), "");
    check(&hazard::FILES, files(400, 65_536, true), "");
    let container = |limits: &'static [(&'static str, Option<u64>)], bytes| {
        move |s: &mut Snapshot| {
            let owner = Process {
                container_id: "c0ffee".into(),
                cgroup: "/docker/c0ffee".into(),
                ..process(60, "app")
            };
            s.processes.insert(60, owner.into());
            let memory = ProcessMemory { pid: 60, anon_bytes: bytes, ..Default::default() };
            s.alloc.processes.push(memory);
            let row = |(path, limit_bytes): &(&str, Option<u64>)| oom::MemoryCgroup {
                path: (*path).to_owned(),
                limit_bytes: *limit_bytes,
                ..oom::MemoryCgroup::default()
            };
            s.oom.cgroups = limits.iter().map(row).collect();
        }
    };
    let own = &[("/docker/c0ffee", None), ("/other", Some(GIB))];
    check(&hazard::MEMORY_LIMIT, container(own, GIB), "WATCH container c0ffee");
    check(&hazard::MEMORY_LIMIT, container(own, GIB / 2), "");
    check(&hazard::MEMORY_LIMIT, container(&[("/docker/c0ffee", Some(GIB))], GIB), "");
    let above = &[("/docker/c0ffee", None), ("/docker", Some(2 * GIB))];
    check(&hazard::MEMORY_LIMIT, container(above, GIB), "");
    check(&hazard::MEMORY_LIMIT, container(&[("/other", None)], GIB), "");
    let rests = |peer: &'static str, seconds: u64, keepalive_s| {
        move |s: &mut Snapshot| {
            s.limit.host.tcp_keepalive_time_seconds = keepalive_s;
            s.tcp.connections.push(tcp::Connection {
                pid: 51,
                role: "client".into(),
                peer_address: peer.into(),
                activity: tcp::Activity::Idle,
                activity_ns: seconds * SECOND,
                ..tcp::Connection::default()
            });
        }
    };
    check(&hazard::KEEPALIVE, rests("52.1.2.3", 90, Some(7200)), "WATCH host");
    check(&hazard::KEEPALIVE, rests("2a05:d018::1", 90, Some(7200)), "WATCH host");
    check(&hazard::KEEPALIVE, rests("52.1.2.3", 90, Some(300)), "");
    check(&hazard::KEEPALIVE, rests("52.1.2.3", 90, None), "");
    check(&hazard::KEEPALIVE, rests("52.1.2.3", 10, Some(7200)), "");
    for private in ["10.0.0.5", "127.0.0.1", "::1", "fd00::5", "::ffff:10.0.0.5", "100.64.0.1", ""]
    {
        check(&hazard::KEEPALIVE, rests(private, 90, Some(7200)), "");
    }
    // An older recording knows nothing.
    for kind in [&hazard::PM2_MEMORY, &hazard::WORKERS, &hazard::NO_SWAP] {
        check(kind, |s| s.limit = limit::View::default(), "");
    }
}

proptest! {
    #[test]
    fn no_snapshot_is_too_strange(
        ticks in proptest::collection::vec((any::<[u64; 8]>(), any::<bool>()), 0..8)
    ) {
        let config = crate::config::Config::default_for_tests(&crate::config::all_settings());
        let kinds = crate::detect::ALL.iter().filter(|kind| kind.signal == "limit");
        for kind in kinds {
            let mut detector = (kind.detector)(&config);
            for (numbers, flag) in &ticks {
                let [read_unix_ns, used, limit, a, b, c, d, elapsed_ns] = *numbers;
                let jvm = Jvm {
                    full_collections: a, full_collection_ns: b, in_full_collection: *flag,
                    old_max_bytes: c, old_after_full_bytes: Some(d), metaspace_used_bytes: a,
                    metaspace_max_bytes: Some(b), class_space_used_bytes: c, class_space_max_bytes: d,
                    heap_max_bytes: a, ..Jvm::default()
                };
                let mut snapshot = host();
                snapshot.limit.read_unix_ns = read_unix_ns;
                let resources = ["files", "processes", "ports", "node_heap", "redis_memory", "pm2_memory"];
                snapshot.limit.rows.extend(resources.map(|resource| bound(resource, 7, "host", used, limit)));
                snapshot.limit.runtimes.push(Runtime { pid: 9, name: "java".into(), facts: Facts::Jvm(jvm) });
                let mut found = Vec::new();
                detector.look(&Seen { snapshot: &snapshot, now_ns: read_unix_ns, elapsed_ns }, &mut found);
                for judgement in found {
                    prop_assert!(judgement.evidence.iter().all(|e| e.value.is_finite()), "{judgement:?}");
                    prop_assert!(judgement.time_left_seconds.is_none_or(|left| left.is_finite() && left >= 0.0));
                }
            }
        }
    }
}
