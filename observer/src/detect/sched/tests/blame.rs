//! Who is to blame for what is waited for a CPU.

use super::*;
use crate::{
    config::{Config, all_settings},
    detect::{Detector, Judgement, Kind, State, judgement::Blamed, party},
    signal::oom::MemoryCgroup,
};

/// What a kind says at last of a host that is so for some seconds, while a finding of memory names `told`.
fn last(kind: &Kind, told: Option<(&str, &str)>, host: impl Fn(u64) -> Snapshot) -> Judgement {
    let mut detector: Box<dyn Detector> =
        (kind.detector)(&Config::default_for_tests(&all_settings()));
    let memory = told.map(|(subject, name)| Blamed {
        subject: subject.to_owned(),
        culprit: party::process(&Snapshot::default(), 9, name, 1.0),
    });
    let memory: Vec<_> = memory.into_iter().collect();
    let mut found = Vec::new();
    for second in 1..=20 {
        found.clear();
        let snapshot = host(second);
        detector.hear(&memory);
        let seen = Seen { snapshot: &snapshot, now_ns: second * SECOND, elapsed_ns: SECOND };
        detector.look(&seen, &mut found);
    }
    found.pop().unwrap_or_default()
}

/// A shop whose turn is open and waits for a CPU four fifths of the time.
fn late(mut snapshot: Snapshot) -> Snapshot {
    for thread in &mut snapshot.sched.threads {
        thread.event_loop = Some(EventLoop {
            turns: 1000,
            open_ns: 10 * SECOND,
            open_on_cpu_ns: 2 * SECOND,
            open_waiting_ns: 8 * SECOND,
            ..EventLoop::default()
        });
    }
    snapshot
}

fn named(judgement: &Judgement) -> &str {
    judgement.culprit.as_ref().map_or("", |party| party.title.as_str())
}

#[test]
fn who_frees_memory_is_no_taker() {
    // CPUs that the reader uses, the part of that in reclaim, memory left, stalled (full), pages read again.
    #[track_caller]
    fn check(state: [f64; 5], told: Option<(&str, &str)>, expect: &str, why: &str) {
        let [used, reclaiming, available, full, refaults] = state;
        let host = |second: u64| {
            let consumers = [(7, "node", 0.2, "other"), (30, "reader", used, "other")];
            let mut snapshot = short(0.8, 0.2, &consumers);
            snapshot.oom = pressed(second, available, full, full, refaults).oom;
            snapshot.oom.culprit_pid = None;
            snapshot.oom.direct_reclaims = second;
            snapshot.oom.reclaimers = vec![Reclaimer {
                pid: 30,
                total_ns: (second as f64 * reclaiming * SECOND as f64) as u64,
                ..Reclaimer::default()
            }];
            late(snapshot)
        };
        for kind in [&event_loop::KIND, &starvation::KIND] {
            let judgement = last(kind, told, host);
            assert_eq!(named(&judgement), expect, "{} {state:?}", kind.name);
            let numbers: Vec<_> = judgement.evidence.iter().map(|e| e.name.as_ref()).collect();
            let pages = why == "memory is short";
            assert_eq!(numbers.contains(&"memory_full"), pages, "{} {state:?}", kind.name);
            assert!(judgement.message.contains(why), "{}", judgement.message);
        }
    }
    let redis = Some(("host", "redis"));
    // Pages are read in circles: whoever runs does that.
    check([0.4, 0.3, 0.02, 0.4, 5.0], redis, "redis 9", "memory is short");
    check([0.7, 0.1, 0.02, 0.4, 5.0], redis, "redis 9", "memory is short");
    check([0.4, 0.3, 0.02, 0.4, 5.0], None, "memory", "memory is short");
    // A group at its own limit is not the host.
    check([0.7, 0.0, 0.6, 0.4, 0.0], redis, "reader 30", "CPU");
    // Little is left, but it computes: nobody stalls, or not for a quarter of what is waited.
    check([0.7, 0.0, 0.02, 0.0, 0.0], redis, "reader 30", "CPU");
    check([0.7, 0.0, 0.02, 0.15, 5.0], redis, "reader 30", "CPU");
    check([0.7, 0.1, 0.02, 0.15, 5.0], redis, "reader 30", "CPU");
}

#[test]
fn who_takes_little_of_what_is_waited_for_is_not_named() {
    #[track_caller]
    fn check(waits: f64, consumers: &[(u32, &str, f64, &str)], expect: &str) {
        let judgement = last(&event_loop::KIND, None, |_| late(short(waits, 0.1, consumers)));
        assert_eq!(named(&judgement), expect, "{consumers:?}");
    }
    check(0.8, &[(30, "tar", 0.25, "other")], "");
    check(0.8, &[(30, "tar", 0.3, "other")], "tar 30");
    // One of many.
    let names = ["a", "b", "c", "d"];
    let rows = (30..40).zip(names.into_iter().cycle());
    let many: Vec<_> = rows.map(|(pid, name)| (pid, name, 0.1, "other")).collect();
    check(0.8, &many, "");
    // Not its own work before, nor what nobody else wants.
    check(0.8, &[(7, "node", 0.9, "other"), (30, "tar", 0.3, "other")], "tar 30");
    check(0.8, &[(30, "tar", 9.0, "idle")], "");
    check(0.8, &[(30, "poller", 0.3, "fifo"), (31, "tar", 0.6, "other")], "poller 30");
    // Nor a thread of the kernel that frees memory.
    let kswapd = |parent_pid| {
        let host = short(0.8, 0.1, &[(30, "kswapd0", 0.9, "other")]);
        let host = late(with(host, [Process { parent_pid, ..process(30, "kswapd0") }]));
        named(&last(&event_loop::KIND, None, |_| host.clone())).to_owned()
    };
    assert_eq!([kswapd(2), kswapd(1)], ["", "kswapd0 30"]);
}

#[test]
fn a_turn_that_starves_is_told_soon_if_somebody_is_to_blame() {
    #[track_caller]
    fn check(open_ms: u64, waits_ms: u64, consumer: (u32, &str, f64, &str), expect: &str) {
        let mut snapshot = short(0.0, 0.0, &[consumer]);
        snapshot.sched.threads[0].event_loop = Some(EventLoop {
            turns: 1000,
            open_ns: open_ms * MS,
            open_on_cpu_ns: (open_ms - waits_ms).min(990) * MS,
            open_waiting_ns: waits_ms * MS,
            ..EventLoop::default()
        });
        let told = told(&event_loop::KIND, SECOND, [snapshot]);
        assert_eq!(told, expect, "{waits_ms} of {open_ms} ms, {consumer:?}");
    }
    let tar = (30, "tar", 0.9, "other");
    check(2500, 2400, tar, "1:WARN");
    check(2490, 2400, tar, "1:WATCH");
    check(9000, 8900, tar, "1:WARN");
    check(2500, 2400, (30, "tar", 0.2, "other"), "1:WATCH");
    check(2500, 2400, (30, "tar", 9.0, "idle"), "1:WATCH");
    check(2490, 1491, tar, "1:WATCH");
    // It has computed for too long itself.
    check(2600, 1500, tar, "1:WARN");
}

#[test]
fn a_quota_that_is_used_up_is_its_groups_own_doing() {
    #[track_caller]
    fn check(throttled: f64, cgroup: &str, expect: &str) {
        let host = |_| {
            let mut snapshot = late(short(0.8, 0.1, &[(30, "tar", 0.6, "other")]));
            let group = CpuCgroup {
                path: "/shop".into(),
                throttled_ratio: throttled,
                ..CpuCgroup::default()
            };
            snapshot.sched.throttled.push(group);
            with(snapshot, [Process { cgroup: cgroup.into(), ..process(7, "node") }])
        };
        let judgement = last(&event_loop::KIND, None, host);
        assert_eq!(named(&judgement), expect, "{throttled} {cgroup}");
        assert_eq!(judgement.message.contains("quota"), expect == "node 7");
    }
    check(0.9, "/shop", "node 7");
    check(0.4, "/shop/worker", "node 7");
    check(0.3, "/shop", "tar 30");
    check(0.9, "/shop-of-others", "tar 30");
}

#[test]
fn a_group_at_its_memory_limit_suffers_from_itself() {
    let host = |hits: u64| {
        move |second: u64| {
            let mut snapshot = late(short(0.8, 0.1, &[(30, "tar", 0.6, "other")]));
            snapshot.oom = pressed(second, 0.6, 0.5, 0.5, 0.0).oom;
            let limit_hits = 5 + hits * second;
            let group = MemoryCgroup { path: "/shop".into(), limit_hits, ..Default::default() };
            snapshot.oom.cgroups.push(group);
            with(snapshot, [Process { cgroup: "/shop/a".into(), ..process(7, "node") }])
        }
    };
    let told = Some(("/shop", "importer"));
    assert_eq!(named(&last(&event_loop::KIND, told, host(3))), "importer 9");
    assert_eq!(named(&last(&event_loop::KIND, None, host(3))), "memory limit of shop");
    assert_eq!(named(&last(&event_loop::KIND, told, host(0))), "tar 30");
}

#[test]
fn what_a_loop_computes_may_be_memory_that_it_frees() {
    #[track_caller]
    fn check(full: f64, expect: &str) {
        let host = |second: u64| {
            let mut snapshot = late(short(0.1, 0.8, &[]));
            snapshot.oom = pressed(second, 0.02, full, full, 5.0).oom;
            let turn = snapshot.sched.threads[0].event_loop.as_mut().expect("a loop");
            (turn.open_on_cpu_ns, turn.open_waiting_ns) = (8 * SECOND, 2 * SECOND);
            snapshot
        };
        let judgement = last(&event_loop::KIND, Some(("host", "redis")), host);
        assert_eq!(named(&judgement), expect, "{full}");
    }
    check(0.5, "redis 9");
    check(0.2, "node 7");
}

#[test]
fn the_name_stays_when_the_turn_is_over() {
    // A turn that waited ends in the fifth second; what uses the CPU later is not to blame for it.
    let host = |second: u64| {
        let over = second >= 5;
        let tar = if second < 6 { (30, "tar", 0.9, "other") } else { (31, "cron", 0.9, "other") };
        let mut snapshot = short(0.0, 0.0, &[tar]);
        let ns = |ms: u64| if over { ms * MS } else { 0 };
        snapshot.sched.threads[0].event_loop = Some(EventLoop {
            turns: 1000,
            max_ns: ns(2500),
            gap_ns: ns(2500),
            gap_waiting_ns: ns(1400),
            ..EventLoop::default()
        });
        snapshot
    };
    let told = findings(&event_loop::KIND, SECOND, (0..30).map(host));
    let told: Vec<_> = told
        .iter()
        .map(|(second, what, finding)| {
            let named = finding.culprit.as_ref().map_or("", |party| party.title.as_str());
            format!("{second}:{what} {named}")
        })
        .collect();
    assert_eq!(told, ["6:WARN tar 30", "12:WATCH tar 30"]);
    let judgement = last(&event_loop::KIND, None, host);
    assert_eq!(
        (judgement.state, judgement.culprit),
        (State::Firing(crate::detect::Level::Watch), None)
    );
}
