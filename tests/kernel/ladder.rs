//! The ladder of docs/kernels.md: where the kernel lacks something the agent does what the rung promises, and says what it
//! is blind to. Each condition is a real one: a hidden BTF file, a mount namespace, capabilities that were dropped.

use observer::{signal::oom::OomKill, snapshot::Verdict};
use observer_tests::{
    agent::Agent,
    cgroup::Cgroup,
    needs,
    otlp::{Telemetry, int_of, is_true, str_of},
    program::Program,
    redis::{self, Redis},
    seconds,
    source::Source,
    wire::Record,
};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{MIB, assert_close, load};

/// Hides the type information.
pub const NO_BTF: (&str, &str) = ("OBSERVER_BTF", "/nonexistent");

/// In a mount namespace of its own, with tracefs.
const WITH_TRACEFS: &[&str] = &[
    "unshare",
    "-m",
    "sh",
    "-c",
    r#"[ -d /sys/kernel/tracing/events ] || mount -t tracefs tracefs /sys/kernel/tracing; exec "$0" "$@""#,
];

/// Asserts verdicts of programs, and that each that is not whole says why and what to do.
#[track_caller]
pub fn check_verdicts(agent: &Agent, expected: &[(&str, Verdict, &str)]) {
    let programs = agent.snapshot().health.programs;
    for (name, verdict, reason) in expected {
        let row = programs.iter().find(|row| row.name == *name);
        let row = row.unwrap_or_else(|| panic!("no row of {name}: {programs:?}"));
        assert_eq!(row.verdict, *verdict, "{row:?}");
        assert!(row.reason.contains(reason), "{reason}: {row:?}");
        assert_eq!(row.reason.is_empty(), row.remedy.is_empty(), "{row:?}");
    }
}

#[test]
fn without_btf_connections_have_owner_length_and_end() {
    let test = "ladder::without_btf_connections_have_owner_length_and_end";
    let Some(_host) = needs::host(test, &["redis-server", "unshare"]) else { return };
    let redis = Redis::start();
    let port = redis.port.to_string();
    let agent = Agent::start_through(WITH_TRACEFS, &[NO_BTF, ("OBSERVER_TCP_PORTS", &port)]);
    check_verdicts(
        &agent,
        &[
            ("inet_sock_set_state", Verdict::Degraded, "no bytes"),
            ("process_fork", Verdict::Attached, ""),
            ("sched_switch", Verdict::Impossible, "no kernel type information in /nonexistent"),
        ],
    );
    let closed = redis::Client::connect(redis.port).unwrap().close();
    let mut held = load(&["hold", "redis", &port, "3"]);
    let _open: Vec<Record> = held.json_lines(0, 3, seconds(20));
    held.signal(Signal::KILL);
    held.wait(seconds(5)).expect("a killed process ends");

    agent.wait_telemetry("four spans", seconds(10), |telemetry| {
        (telemetry.spans_named("tcp connection").count() >= 4).then_some(())
    });
    agent.assert_no_loss();
    let telemetry = agent.stop();
    check_span(&telemetry, std::process::id(), "local_close", 1);
    check_span(&telemetry, held.pid(), "owner_exit", 3);
    let local_port = i64::from(closed.local_port);
    let mut spans = telemetry.spans_named("tcp connection");
    let span = spans.find(|span| int_of(&span.attrs, "network.local.port") == local_port);
    let length = span.expect("the span of this client's connection").duration_ns();
    let (shortest, longest) = closed.duration_ns();
    assert!((shortest..=longest).contains(&length), "{length} ns, the client says {closed:?}");
}

#[test]
fn without_btf_segments_and_the_end_of_a_connection_share_a_trace() {
    let test = "ladder::without_btf_segments_and_the_end_of_a_connection_share_a_trace";
    let Some(_host) = needs::host(test, &["redis-server", "unshare"]) else { return };
    let redis = Redis::start();
    let port = redis.port.to_string();
    let segments = [NO_BTF, ("OBSERVER_TCP_PORTS", &port), ("OBSERVER_TCP_SEGMENT", "1s")];
    let agent = Agent::start_through(WITH_TRACEFS, &segments);
    let client = redis::Client::connect(redis.port).unwrap();
    let local = i64::from(client.wire.local_port());
    // Those of a connection that is open, or of its end.
    let traces = |telemetry: &Telemetry, open: bool| -> Vec<String> {
        let spans = telemetry.spans_named("tcp connection");
        let ours = spans.filter(|span| int_of(&span.attrs, "network.local.port") == local);
        ours.filter(|span| is_true(&span.attrs, "observer.tcp.open") == open)
            .map(|span| span.trace_id.clone())
            .collect()
    };
    agent.wait_telemetry("two segments", seconds(10), |telemetry| {
        (traces(telemetry, true).len() >= 2).then_some(())
    });
    agent.wait_snapshot("a row of the watched server", seconds(15), |snapshot| {
        snapshot.sched.threads.iter().any(|thread| thread.tid == redis.pid()).then_some(())
    });
    client.close();
    let end = agent.wait_telemetry("the end", seconds(10), |telemetry| {
        traces(telemetry, false).into_iter().next()
    });
    let telemetry = agent.stop();
    assert_eq!(traces(&telemetry, false), [end.as_str()], "one end");
    assert!(traces(&telemetry, true).iter().all(|trace| *trace == end), "{telemetry:?}");
}

/// So many connections of a process ended like this; what was not read is not told.
#[track_caller]
fn check_span(telemetry: &Telemetry, pid: u32, reason: &str, count: usize) {
    let spans: Vec<_> = telemetry
        .spans_named("tcp connection")
        .filter(|span| int_of(&span.attrs, "process.pid") == i64::from(pid))
        .collect();
    assert_eq!(spans.len(), count, "connections of {pid}: {spans:?}");
    for span in spans {
        assert_eq!(str_of(&span.attrs, "observer.tcp.close_reason"), reason, "{span:?}");
        assert!(!span.attrs.contains_key("observer.tcp.sent_bytes"), "{span:?}");
    }
}

#[test]
fn without_btf_an_oom_kill_names_victim_sizes_and_trigger() {
    let test = "ladder::without_btf_an_oom_kill_names_victim_sizes_and_trigger";
    let Some(_host) = needs::host(test, &["cc", "unshare"]) else { return };
    const LIMIT: u64 = 64 * MIB;
    let Some(group) = Cgroup::with_memory_limit("ladder", LIMIT) else {
        return needs::skip(test, "no memory controller");
    };
    let source = Source::new("squeeze.c", include_str!("../load/squeeze.c"));
    let binary = source.compile_c("squeeze");
    // On the disk of the build: pages of a tmpfs could not be reclaimed.
    let disk = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let agent = Agent::start_through(WITH_TRACEFS, &[NO_BTF]);
    let before = agent.snapshot().alloc;
    let mut program =
        Program::start(group.command(binary).arg(disk.path().join("pages")).arg("256"));
    let pid = program.pid();
    program.wait_line(seconds(30), |line| (line == "reclaimed").then_some(()));
    agent.wait_snapshot("reclaim", seconds(10), |snapshot| {
        let reclaimer = snapshot.oom.reclaimers.iter().find(|row| row.pid == pid)?;
        (reclaimer.count > 0 && reclaimer.total_ns > 0 && reclaimer.pages > 0).then_some(())
    });
    program.send("grow");
    assert!(program.wait(seconds(30)).is_some(), "the kernel kills it");
    let kill: OomKill = agent.wait_snapshot("the kill", seconds(5), |snapshot| {
        snapshot.oom.kills.iter().find(|kill| kill.victim_pid == pid).cloned()
    });
    assert_eq!((kill.trigger_pid, kill.victim_name.as_str()), (pid, "squeeze"), "{kill:?}");
    assert!(kill.in_cgroup, "{kill:?}");
    assert_close("anon", kill.anon_bytes, LIMIT, 0.15);
    let after = agent.wait_snapshot("the exit", seconds(5), |snapshot| {
        (snapshot.alloc.exits > before.exits).then(|| snapshot.alloc.clone())
    });
    assert!(after.forks > before.forks && after.execs > before.execs, "{after:?}");
    agent.stop();
}

#[test]
fn without_btf_what_finds_the_queue_full_is_counted() {
    let test = "ladder::without_btf_what_finds_the_queue_full_is_counted";
    let Some(_host) = needs::host(test, &["redis-server", "unshare"]) else { return };
    let redis = Redis::start();
    let port = redis.port.to_string();
    let agent = Agent::start_through(WITH_TRACEFS, &[NO_BTF, ("OBSERVER_TCP_PORTS", &port)]);
    let queued = u64::from(observer_abi::classic::MAX_QUEUED);
    agent.program().signal(Signal::STOP);
    let mut conns = load(&["conns", "redis", &port, &(queued + 500).to_string()]);
    conns.wait(seconds(120)).expect("the load ends by itself");
    agent.program().signal(Signal::CONT);
    let lost = agent.wait_snapshot("a loss in the queue", seconds(10), |snapshot| {
        let loss = snapshot.health.losses.iter().find(|loss| loss.stage == "ring.tcp_closed")?;
        Some(loss.count).filter(|count| *count > 0)
    });
    assert!((400..=500).contains(&lost), "500 beyond what the queue holds: {lost}");
    agent.stop();
}

#[test]
fn two_capabilities_are_enough_for_every_program() {
    let test = "ladder::two_capabilities_are_enough_for_every_program";
    let Some(_host) = needs::host(test, &["setpriv", "redis-server"]) else { return };
    let redis = Redis::start();
    let port = redis.port.to_string();
    // CAP_PERFMON and CAP_BPF, by number for a setpriv that does not know their names.
    let agent = Agent::start_as_nobody("-all,+cap_38,+cap_39", &[("OBSERVER_TCP_PORTS", &port)]);
    for row in agent.snapshot().health.programs.iter().take_while(|row| row.name != "dns_answers") {
        let runs = matches!(row.verdict, Verdict::Attached | Verdict::Standby);
        // Before 6.9 the kernel itself names a victim by its pid only. A distribution may close perf events.
        let excused = match row.name.as_str() {
            "mark_victim" => row.verdict == Verdict::Degraded,
            "page_fault" => row.reason.contains("perf_event_paranoid"),
            "reclaim_throttled" => row.reason.contains("has no"),
            // Packet sockets are of another capability.
            "reply_ends" => row.remedy.contains("CAP_NET_RAW"),
            _ => false,
        };
        assert!(runs || excused, "{row:?}");
    }
    check_verdicts(&agent, &[("dns_answers", Verdict::Impossible, "peers have no names")]);
    redis::Client::connect(redis.port).unwrap().close();
    agent.wait_telemetry("the connection", seconds(10), |telemetry| {
        let pid = i64::from(std::process::id());
        let mut spans = telemetry.spans_named("tcp connection");
        spans.find(|span| int_of(&span.attrs, "process.pid") == pid).map(drop)
    });
    agent.stop();
}
