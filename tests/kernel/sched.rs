//! Scheduler and event-loop stalls: every block of an event loop, with its length and its kind; who waits for a CPU.

use std::time::Duration;

use observer::{
    signal::sched::{EventLoop, Thread},
    snapshot::Snapshot,
};
use observer_tests::{
    agent::Agent,
    cgroup::Cgroup,
    needs,
    node::{Block, Blocker},
    otlp::{Span, Telemetry, int_of},
    program::Program,
    redis::{self, Redis},
    seconds, slack, unix_ns,
};

use crate::load;

/// On real hardware.
const TOLERANCE_MS: f64 = 5.0;

/// A block that Node measured, and how it was made.
type Made = (&'static str, Block);

#[test]
fn every_block_of_an_event_loop_is_found() {
    let blocks = [50, 100, 500, 1000, 2000, 5000].map(|ms| ("spin", ms));
    check_blocks("sched::every_block_of_an_event_loop_is_found", &blocks);
}

#[test]
fn a_block_on_a_lock_is_found() {
    check_blocks("sched::a_block_on_a_lock_is_found", &[("wait", 50), ("wait", 500)]);
}

/// Node waits for the child in a second event loop on the same thread: the thread is in epoll, but not in its own.
#[test]
fn a_block_on_a_child_process_is_found() {
    check_blocks("sched::a_block_on_a_child_process_is_found", &[("exec", 300), ("exec", 1000)]);
}

fn check_blocks(test: &str, blocks: &[(&'static str, u64)]) {
    let Some(_host) = needs::host(test, &["node"]) else { return };
    let blocker = Blocker::start();
    // What Node loads from disk for the first block of a kind would be a stall too, and a true one; what it compiles for
    // it, on other threads, would count as CPU time of the block.
    for (how, _) in blocks {
        blocker.block(how, 200);
    }
    let agent = Agent::start(&[]);
    let pid = blocker.node.program.pid();
    wait_loop(&agent, &blocker, |_| true);
    // Where Node is slow, its first turns are stalls as well, and none of ours.
    let from_unix_ns = unix_ns();
    let made: Vec<Made> = blocks.iter().map(|(how, ms)| (*how, blocker.block(how, *ms))).collect();

    // A loop that then stays idle cannot be told from one that polls; the agent gives it some time.
    agent.wait_telemetry("a span for each block", seconds(25), |telemetry| {
        (stalls(telemetry, pid, from_unix_ns).len() >= made.len()).then_some(())
    });
    let telemetry = agent.stop();
    let spans = stalls(&telemetry, pid, from_unix_ns);
    assert_eq!(spans.len(), made.len(), "one stall a block: {spans:#?}");
    let wrong: Vec<String> =
        made.iter().zip(&spans).filter_map(|(made, span)| difference(made, span)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Stalls of a process that ended after this time and are long enough to be one of the blocks, in the order of time.
fn stalls(telemetry: &Telemetry, pid: u32, from_unix_ns: u64) -> Vec<&Span> {
    let ours = |span: &&Span| int_of(&span.attrs, "process.pid") == i64::from(pid);
    let long = |span: &&Span| span.duration_ns() >= 48_000_000 && span.end_unix_ns > from_unix_ns;
    let mut spans: Vec<_> =
        telemetry.spans_named("event_loop.stall").filter(ours).filter(long).collect();
    spans.sort_by_key(|span| span.start_unix_ns);
    spans
}

/// What is wrong with the span of a block: its length, its CPU time (against the process's own), or its split.
fn difference((how, block): &Made, span: &Span) -> Option<String> {
    let part = |name: &str| int_of(&span.attrs, &format!("observer.stall.{name}_ns")) as f64 / 1e6;
    let tolerance_ms = TOLERANCE_MS * f64::from(slack());
    let (on_cpu, waiting, blocked) = (part("on_cpu"), part("waiting"), part("blocked"));
    let length = span.duration_ns() as f64 / 1e6;
    let near =
        |value: f64, expected: f64| (value - expected).abs() <= tolerance_ms + expected * 0.02;
    let fits = (length - block.wall_ms).abs() <= tolerance_ms
        && near(on_cpu + waiting + blocked, length)
        && match *how {
            "spin" => near(on_cpu, block.cpu_ms) && blocked <= tolerance_ms + length * 0.02,
            _ => blocked >= length * 0.8,
        };
    (!fits).then(|| {
        format!(
            "{how} {block:?}: {length} ms = on CPU {on_cpu} + waiting {waiting} + blocked {blocked}"
        )
    })
}

#[test]
fn a_gap_is_seen_while_it_is_open() {
    let Some(_host) = needs::host("sched::a_gap_is_seen_while_it_is_open", &["node"]) else {
        return;
    };
    let blocker = Blocker::start();
    let agent = Agent::start(&[]);
    let pid = blocker.node.program.pid();
    wait_loop(&agent, &blocker, |row| row.open_ns == 0);
    let block = blocker.block_in_background("spin", 3000 * u64::from(slack()));
    let open = agent.wait_snapshot("the open gap", seconds(5), |snapshot| {
        event_loop(snapshot, pid).filter(|row| row.open_ns >= 1_000_000_000)
    });
    assert!(!block.is_finished(), "seen only after its end");
    let parts = open.open_on_cpu_ns + open.open_waiting_ns + open.open_blocked_ns;
    assert!(open.open_ns.abs_diff(parts) < 50_000_000, "the parts make the whole: {open:?}");
    assert!(open.open_on_cpu_ns > open.open_blocked_ns, "it spins: {open:?}");
    block.join().unwrap();
    wait_loop(&agent, &blocker, |row| row.open_ns == 0 && row.max_ns >= 2_995_000_000);
    agent.stop();
}

/// Waits for the loop of Node to be known and to fit. A loop is known by its turns, so it is given some.
#[track_caller]
fn wait_loop(agent: &Agent, blocker: &Blocker, fits: impl Fn(&EventLoop) -> bool) -> EventLoop {
    agent.wait_snapshot("the event loop", seconds(20), |snapshot| {
        blocker.block("spin", 0);
        event_loop(snapshot, blocker.node.program.pid()).filter(&fits)
    })
}

fn event_loop(snapshot: &Snapshot, pid: u32) -> Option<EventLoop> {
    let threads = snapshot.sched.threads.iter().filter(|thread| thread.pid == pid);
    threads.filter_map(|thread| thread.event_loop.clone()).max_by_key(|row| row.turns)
}

/// Seen as one long turn by the scheduler; the probe on epoll, wherever this kernel has it, tells that it is none.
#[test]
fn a_loop_that_polls_without_sleep_has_no_stall() {
    let test = "sched::a_loop_that_polls_without_sleep_has_no_stall";
    let Some(_host) = needs::host(test, &["node"]) else { return };
    let (poller, blocker) = (Blocker::start(), Blocker::start());
    let agent = Agent::start(&[]);
    for node in [&poller, &blocker] {
        wait_loop(&agent, node, |_| true);
    }
    let from_unix_ns = unix_ns();
    poller.block("poll", 4000 * u64::from(slack()));
    blocker.block("spin", 500);
    // What the agent is not sure of it tells at its end.
    let telemetry = agent.stop();
    let count = |node: &Blocker| stalls(&telemetry, node.node.program.pid(), from_unix_ns).len();
    assert_eq!((count(&poller), count(&blocker)), (0, 1));
}

#[test]
fn an_idle_event_loop_has_no_stalls() {
    let Some(_host) = needs::host("sched::an_idle_event_loop_has_no_stalls", &["redis-server"])
    else {
        return;
    };
    let redis = Redis::start();
    let agent = Agent::watching(&[redis.port]);
    // Redis turns ten times a second; each turn and each of our pings is a chance for a false gap.
    let mut client = redis::Client::connect(redis.port).unwrap();
    let seen = agent.wait_snapshot("50 turns of Redis", seconds(30), |snapshot| {
        client.command(&["PING"]).unwrap();
        event_loop(snapshot, redis.pid()).filter(|row| row.turns >= 50)
    });
    assert_eq!(seen.gaps, 0, "{seen:?}");
    assert_eq!(stalls(&agent.stop(), redis.pid(), 0).len(), 0);
}

#[test]
fn the_victim_of_a_cpu_hog_shows_run_delay() {
    check_victim("sched::the_victim_of_a_cpu_hog_shows_run_delay", "0");
}

/// So little weight that it does not get the CPU for seconds: its delay must show before it ends.
#[test]
fn a_starved_thread_shows_run_delay() {
    check_victim("sched::a_starved_thread_shows_run_delay", "19");
}

fn check_victim(test: &str, nice: &str) {
    let Some(_host) = needs::host(test, &[]) else { return };
    let hog = load(&["hog", "0", "-20"]);
    let victim = load(&["hog", "0", nice]);
    for load in [&hog, &victim] {
        load.wait_line(seconds(5), |line| (line == "spinning").then_some(()));
    }
    let agent = Agent::start(&[]);
    let hungry = |snapshot: &Snapshot| {
        let (slow, fast) = (thread(snapshot, &victim)?, thread(snapshot, &hog)?);
        let told = slow.run_delay_ratio > 0.8 && slow.run_delay_ns > fast.run_delay_ns;
        (told && fast.run_delay_ratio < 0.2 && fast.on_cpu_ratio > 0.8).then_some(())
    };
    agent.wait_snapshot("run delay of the victim and none of the hog", seconds(10), hungry);
    // As long as a thread starves, some kernels let nobody end who had a program on a function (docs/kernels.md).
    drop(hog);
    drop(victim);
    agent.stop();
}

fn thread(snapshot: &Snapshot, program: &Program) -> Option<Thread> {
    snapshot.sched.threads.iter().find(|thread| thread.tid == program.pid()).cloned()
}

#[test]
fn a_cpu_quota_shows_throttling() {
    let test = "sched::a_cpu_quota_shows_throttling";
    let Some(_host) = needs::host(test, &[]) else { return };
    let Some(group) = Cgroup::with_cpu_quota("quota", 20) else {
        return needs::skip(test, "no cpu controller");
    };
    let mut command = group.command(env!("CARGO_BIN_EXE_load"));
    let throttled = Program::start(command.args(["hog", "0", "0"]));
    throttled.wait_line(seconds(5), |line| (line == "spinning").then_some(()));
    let agent = Agent::start(&[]);
    let row = agent.wait_snapshot("the throttled group", seconds(10), |snapshot| {
        let mut rows = snapshot.sched.throttled.iter();
        rows.find(|row| row.path == group.path && row.throttled_ratio > 0.0).cloned()
    });
    assert!(
        row.throttled_periods > 0 && Duration::from_nanos(row.throttled_ns) > Duration::ZERO,
        "{row:?}"
    );
    agent.stop();
}
