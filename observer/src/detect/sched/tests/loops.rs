//! Loops that do not turn.

use super::*;
use crate::detect::sched::event_loop::KIND;

fn turning(turns: u64, open_ns: u64) -> EventLoop {
    EventLoop { turns, open_ns, open_on_cpu_ns: open_ns, ..EventLoop::default() }
}

fn node(turning: EventLoop) -> Snapshot {
    let mut node = thread(7, "node");
    node.event_loop = Some(turning);
    host(View { threads: vec![node], ..View::default() })
}

#[test]
fn an_open_turn_is_told_at_the_next_tick() {
    #[track_caller]
    fn check(open_ms: &[u64], change: fn(&mut Thread), expect: &str) {
        let snapshots = open_ms.iter().map(|ms| {
            let mut snapshot = node(turning(1000, ms * MS));
            snapshot.sched.threads.iter_mut().for_each(change);
            snapshot
        });
        assert_eq!(told(&KIND, SECOND, snapshots), expect, "{open_ms:?}");
    }
    let growing: Vec<u64> = (0..12).map(|second| second * 1000).collect();
    check(&growing, |_| (), "2:WARN 11:CRITICAL");
    check(&[0, 990, 0, 990, 0], |_| (), "");
    check(&[0, 1010, 0, 0, 0, 0, 0, 0, 0], |_| (), "2:WARN 8:clear");
    // Nobody waits for a worker's turn; the first process reads its configuration.
    check(&growing, |thread| thread.listens = Some(false), "2:WATCH 11:WARN");
    check(&growing, |thread| (thread.pid, thread.tid) = (1, 1), "2:WATCH 11:WARN");
    // One of a runtime's many threads, of which nothing is known yet.
    check(&growing, |thread| thread.tid = 9, "2:WATCH");
    // It computes at its start.
    check(&growing, |thread| thread.event_loop.as_mut().expect("a loop").turns = 3, "");
}

#[test]
fn a_worker_under_pm2_serves_though_it_does_not_listen() {
    let pm2 = Pm2 { app: "shop".into(), instance: Some(0), ..Pm2::default() };
    let worker = Process { pm2: Some(pm2), ..process(7, "node") };
    let snapshots = [0, 1000].map(|ms| {
        let mut snapshot = with(node(turning(1000, ms * MS)), [worker.clone()]);
        snapshot.sched.threads[0].listens = Some(false);
        snapshot
    });
    assert_eq!(told(&KIND, SECOND, snapshots), "2:WARN");
}

#[test]
fn a_turn_that_ended_between_two_ticks_is_told() {
    let ended = |max_ms, second: u64| {
        let max_ns = if second >= 5 { max_ms * MS } else { 0 };
        node(EventLoop { max_ns, ..turning(1000, 0) })
    };
    let run = |max_ms| told(&KIND, SECOND, (0..20).map(|second| ended(max_ms, second)));
    assert_eq!(run(1500), "6:WARN 12:WATCH");
    assert_eq!(run(250), "6:WATCH");
    assert_eq!(run(150), "");
}

#[test]
fn what_a_turn_waits_for_a_cpu_is_not_its_fault() {
    #[track_caller]
    fn check(turn_ms: u64, waits_ms: u64, expect_open: &str, expect_over: &str) {
        let open = |second: u64| {
            let (open_ns, open_waiting_ns) = (turn_ms * MS, waits_ms * MS);
            let open_on_cpu_ns = open_ns - open_waiting_ns;
            let open = EventLoop { open_on_cpu_ns, open_waiting_ns, ..turning(1000, open_ns) };
            node(if second == 3 { open } else { turning(1000, 0) })
        };
        let over = |second: u64| {
            let over = second >= 3;
            let ns = |ms: u64| if over { ms * MS } else { 0 };
            node(EventLoop {
                max_ns: ns(turn_ms),
                gap_ns: ns(turn_ms),
                gap_waiting_ns: ns(waits_ms),
                ..turning(1000, 0)
            })
        };
        let told = [told(&KIND, SECOND, (0..5).map(open)), told(&KIND, SECOND, (0..5).map(over))];
        assert_eq!(told, [expect_open, expect_over], "{waits_ms} of {turn_ms} ms");
    }
    check(1050, 0, "4:WARN", "4:WARN");
    check(1050, 200, "4:WATCH", "4:WATCH");
    check(2500, 1400, "4:WARN", "4:WARN");
    // So long a wait is worth a word even if nobody can be named for it.
    check(9_500, 9_400, "4:WATCH", "4:WATCH");
    check(10_500, 10_400, "4:WARN", "4:WARN");
}

#[test]
fn a_loop_that_lags_is_watched() {
    let lags = |recent_turns, p99_ms| {
        let turning = EventLoop { recent_turns, p99_ns: p99_ms * MS, ..turning(1000, 0) };
        told(&KIND, SECOND, [node(turning)])
    };
    assert_eq!([lags(500, 134), lags(500, 33), lags(10, 134)], ["1:WATCH", "", ""]);
}

#[test]
fn a_loop_that_hardly_turns_is_told() {
    // Turns of so many ms, each of which ends between two ticks, one in each of so many of ten seconds; nothing before.
    #[track_caller]
    fn check(healthy_s: u64, (turn_ms, waits_ms, of_ten): (u64, u64, u64), expect: &str) {
        let mut gaps = 0;
        let snapshots = (0..healthy_s + 60).map(|second| {
            gaps += u64::from(second >= healthy_s && second % 10 < of_ten);
            let (gap_ns, gap_waiting_ns) = (gaps * turn_ms * MS, gaps * waits_ms * MS);
            node(EventLoop { gaps, gap_ns, gap_waiting_ns, ..turning(1000 + second, 0) })
        });
        let told = told(&KIND, SECOND, snapshots);
        assert_eq!(told, expect, "{turn_ms} ms, {of_ten} of ten after {healthy_s} s");
    }
    check(0, (600, 0, 10), "28:WARN");
    check(600, (600, 0, 10), "609:WARN");
    check(600, (300, 0, 10), "627:WARN");
    check(600, (900, 0, 4), "613:WARN");
    // It was always so; these are too few, too short, or not its own.
    check(0, (400, 0, 10), "");
    check(600, (600, 0, 3), "");
    check(600, (190, 0, 10), "");
    check(600, (900, 700, 10), "");
    // A turn that a tick sees half of counts once.
    let halves = |second: u64| {
        let (gaps, open) = (second / 2, second % 2 * 300 * MS);
        node(EventLoop { gaps, gap_ns: gaps * 400 * MS, ..turning(1000 + second, open) })
    };
    assert_eq!(told(&KIND, SECOND, (0..600).map(halves)), "");
}

#[test]
fn threads_that_are_often_long_in_a_turn_are_no_loops_that_serve() {
    // Go's runtime: several threads poll, and each of them does something else for a while.
    let go = |second: u64| {
        let threads = (7..10).map(|tid| {
            let busy = (second + u64::from(tid) * 7) % 30;
            let event_loop = Some(EventLoop {
                open_blocked_ns: busy * SECOND,
                open_on_cpu_ns: 0,
                ..turning(1000 + second, busy * SECOND)
            });
            Thread { tid, event_loop, ..thread(7, "dockerd") }
        });
        host(View { threads: threads.collect(), ..View::default() })
    };
    assert_eq!(told(&KIND, SECOND, (0..600).map(go)), "1:WATCH");
    // Netty: several loops, of which one hangs.
    let netty = |second: u64| {
        let threads = (7..10).map(|tid| {
            let open_ns = if tid == 9 { second.saturating_sub(100) * SECOND } else { 0 };
            let event_loop = Some(turning(10_000 + second, open_ns));
            Thread { tid, event_loop, ..thread(7, "java") }
        });
        host(View { threads: threads.collect(), ..View::default() })
    };
    assert_eq!(told(&KIND, SECOND, (0..112).map(netty)), "102:WARN 111:CRITICAL");
}

#[test]
fn the_split_says_why() {
    #[track_caller]
    fn check(split_s: [u64; 3], stack: &str, expect: &str, culprit: Option<&str>) {
        let [computes, waits, blocked] = split_s.map(|seconds| seconds * SECOND);
        let open = EventLoop {
            open_on_cpu_ns: computes,
            open_waiting_ns: waits,
            open_blocked_ns: blocked,
            ..turning(1000, computes + waits + blocked)
        };
        let mut snapshot = node(open);
        if !stack.is_empty() {
            let stack = stack.split(' ').map(str::to_owned).collect();
            let task =
                BlockedTask { pid: 7, tid: 7, blocked_ns: blocked, stack, ..Default::default() };
            snapshot.sched.blocked.push(task);
        }
        let found = findings(&KIND, SECOND, [snapshot]);
        let finding = &found.first().expect("something is told").2;
        assert!(finding.message.contains(expect), "{}", finding.message);
        let named = finding.culprit.as_ref().map(|party| party.title.as_str());
        assert_eq!(named, culprit, "{split_s:?}");
    }
    check([3, 1, 1], "", "it computes", Some("node 7"));
    check([0, 4, 1], "", "it waits for a CPU", None);
    check([0, 0, 5], "io_schedule ext4_file_write", "it waits for a disk", Some("disk"));
    check([0, 0, 5], "io_schedule filemap_fault", "it waits for a disk", Some("disk"));
    check([0, 0, 5], "", "a child process, another thread or a lock", Some("node 7"));
}
