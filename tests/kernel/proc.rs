//! The last rung of docs/kernels.md: no program of ours runs, and `/proc` and the kernel's socket diagnosis tell the rest.

use observer::snapshot::Verdict;
use observer_tests::{
    agent::Agent,
    needs, procfs,
    program::Program,
    redis::{self, Redis},
    seconds,
    source::Source,
    wire::Record,
};
use rustix::process::Signal;

use crate::{
    assert_close,
    ladder::{NO_BTF, check_verdicts},
    load,
};

/// In a mount namespace of its own, without.
const WITHOUT_TRACEFS: &[&str] = &[
    "unshare",
    "-m",
    "sh",
    "-c",
    r#"umount /sys/kernel/debug/tracing /sys/kernel/debug /sys/kernel/tracing 2>/dev/null
    [ ! -d /sys/kernel/tracing/events ] && exec "$0" "$@""#,
];

#[test]
fn without_btf_and_tracefs_memory_and_connections_have_their_process() {
    let test = "proc::without_btf_and_tracefs_memory_and_connections_have_their_process";
    let Some(_host) = needs::host(test, &["unshare", "redis-server", "cc"]) else { return };
    let redis = Redis::start();
    let port = redis.port.to_string();
    let agent = Agent::start_through(WITHOUT_TRACEFS, &[NO_BTF, ("OBSERVER_TCP_PORTS", &port)]);
    check_verdicts(
        &agent,
        &[
            ("mark_victim", Verdict::Impossible, "no tracefs"),
            ("sched_switch", Verdict::Impossible, "no kernel type information"),
            ("task_rows", Verdict::Degraded, "without its stack"),
            ("tcp_rows", Verdict::Degraded, "not seen"),
            ("meminfo", Verdict::Attached, ""),
        ],
    );
    agent.wait_snapshot("the host", seconds(5), |snapshot| {
        (snapshot.oom.memory_total_bytes > 0 && !snapshot.oom.pressure.is_empty()).then_some(())
    });
    let mut held = load(&["hold", "redis", &port, "3"]);
    let _open: Vec<Record> = held.json_lines(0, 3, seconds(20));
    agent.wait_snapshot("three connections with their owner", seconds(15), |snapshot| {
        let rows = snapshot.tcp.connections.iter();
        (rows.filter(|row| row.pid == held.pid()).count() == 3).then_some(())
    });
    check_growth(&agent);
    held.signal(Signal::KILL);
    held.wait(seconds(5)).expect("a killed process ends");
    agent.wait_telemetry("three ends", seconds(10), |telemetry| {
        (telemetry.spans_named("tcp connection").count() == 3).then_some(())
    });
    agent.stop();
}

#[test]
fn an_ordinary_user_sees_memory_and_connections_without_owners() {
    let test = "proc::an_ordinary_user_sees_memory_and_connections_without_owners";
    let Some(_host) = needs::host(test, &["setpriv", "redis-server", "cc"]) else { return };
    let redis = Redis::start();
    let port = redis.port.to_string();
    let agent = Agent::start_as_nobody("-all", &[("OBSERVER_TCP_PORTS", &port)]);
    check_verdicts(
        &agent,
        &[
            ("mark_victim", Verdict::Impossible, "not permitted"),
            ("task_rows", Verdict::Degraded, "no BPF"),
            ("tcp_rows", Verdict::Degraded, "no BPF"),
        ],
    );
    let _client = redis::Client::connect(redis.port).unwrap();
    agent.wait_snapshot("the connection of another user", seconds(15), |snapshot| {
        let mut rows = snapshot.tcp.connections.iter();
        rows.find(|row| row.peer_port == redis.port && row.pid == 0).map(drop)
    });
    check_growth(&agent);
    let blind = agent.wait_snapshot("what cannot be read", seconds(15), |snapshot| {
        let row = snapshot.health.programs.iter().find(|row| row.name == "socket_holders")?;
        row.reason.contains("cannot be read").then(|| row.clone())
    });
    assert!(blind.remedy.contains("CAP_SYS_PTRACE"), "{blind:?}");
    agent.stop();
}

/// A process that has grown is seen by name, as /proc says.
fn check_growth(agent: &Agent) {
    let source = Source::new("grow.c", include_str!("../load/grow.c"));
    let binary = source.compile_c("grow");
    let mut program = Program::start(std::process::Command::new(binary).args(["50", "100"]));
    program.wait_line(seconds(20), |line| (line == "full").then_some(()));
    let expected = procfs::memory(program.pid()).expect("it lives").anon;
    agent.wait_snapshot("its size", seconds(15), |snapshot| {
        let row = snapshot.alloc.processes.iter().find(|row| row.pid == program.pid())?;
        (row.name == "grow" && row.anon_bytes * 10 > expected * 9).then(|| {
            assert_close("anon", row.anon_bytes, expected, 0.1);
        })
    });
    program.signal(Signal::KILL);
    program.wait(seconds(5)).expect("a killed process ends");
}
