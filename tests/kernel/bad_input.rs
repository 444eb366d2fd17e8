//! Bad input and poor conditions: a clear message, a count where something is lost, never a panic.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, Output},
};

use observer::snapshot::Verdict;
use observer_tests::{
    agent::{self, Agent},
    needs,
    program::Program,
    redis::{self, Redis},
    seconds,
    source::Source,
    user_ids,
};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{MIB, load};

/// Text of both streams of a program that should have failed with one of `codes`, without panic.
#[track_caller]
fn failure(output: &Output, codes: &[i32]) -> String {
    let text =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    let text = text.join("\n");
    assert!(
        output.status.code().is_some_and(|code| codes.contains(&code)),
        "{}: {text}",
        output.status
    );
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[test]
fn an_endpoint_that_cannot_be_reached_stops_nothing() {
    let test = "bad_input::an_endpoint_that_cannot_be_reached_stops_nothing";
    let Some(_host) = needs::host(test, &[]) else { return };
    let endpoint = format!("http://127.0.0.1:{}", observer_tests::free_port());
    let agent = Agent::start(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
    ]);
    let exporter = agent.wait_snapshot("the exporter's trouble", seconds(10), |snapshot| {
        let exporters = snapshot.health.exporters.iter();
        exporters
            .filter(|exporter| exporter.name == "otlp")
            .find(|exporter| exporter.state != "open")
            .cloned()
    });
    assert!(!exporter.reason.is_empty(), "{exporter:?}");
    agent.stop();
}

#[test]
fn a_second_instance_says_that_one_runs() {
    let Some(_host) = needs::host("bad_input::a_second_instance_says_that_one_runs", &[]) else {
        return;
    };
    let agent = Agent::start(&[]);
    let text = failure(&agent::output(agent.state_dir(), &["run"]), &[1]);
    assert!(text.contains("already"), "{text}");
    assert!(text.contains(&agent.pid().to_string()), "names the pid of the other: {text}");
    agent.stop();
}

#[test]
fn without_privileges_check_and_run_say_why() {
    let test = "bad_input::without_privileges_check_and_run_say_why";
    let Some(_host) = needs::host(test, &[]) else { return };
    let state = TempDir::new().unwrap();
    let (user, group) = user_ids("nobody").unwrap();
    std::os::unix::fs::chown(state.path(), Some(user), Some(group)).unwrap();
    // A copy, because the directory of the build may be closed to others.
    let binary = state.path().join("observer");
    std::fs::copy(agent::binary(), &binary).unwrap();
    let failed = |args: &[&str], own_folder: bool, code: i32| {
        let mut command = Command::new(&binary);
        agent::prepare(&mut command, state.path());
        if !own_folder {
            command.env_remove("OBSERVER_STATE_DIR");
        }
        failure(&command.args(args).uid(user).gid(group).output().unwrap(), &[code])
    };
    let text = failed(&["check"], true, 2);
    assert!(text.contains("CAP_BPF"), "{text}");
    // With a folder of its own it runs: see proc.rs.
    let text = failed(&["run", "--for", "1s"], false, 1);
    assert!(text.contains("state_dir"), "{text}");
}

#[test]
fn without_tracefs_the_agent_runs() {
    let test = "bad_input::without_tracefs_the_agent_runs";
    let Some(_host) = needs::host(test, &["unshare"]) else { return };
    let state = TempDir::new().unwrap();
    let mut command = Command::new("unshare");
    // In a mount namespace of its own, where neither place of tracefs is mounted.
    let script = r#"umount /sys/kernel/debug/tracing /sys/kernel/debug /sys/kernel/tracing 2>/dev/null; exec "$0" check"#;
    command.args(["-m", "sh", "-c", script]).arg(agent::binary());
    agent::prepare(&mut command, state.path());
    let output = command.output().unwrap();
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}: {text:?}", output.status);
}

#[test]
fn without_btf_the_agent_degrades_and_says_so() {
    let test = "bad_input::without_btf_the_agent_degrades_and_says_so";
    let Some(_host) = needs::host(test, &[]) else { return };
    let state = TempDir::new().unwrap();
    let output = agent::command(state.path(), &["check"])
        .env("OBSERVER_BTF", "/nonexistent")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(matches!(output.status.code(), Some(1 | 2)), "{}: {text}", output.status);
    assert!(text.contains("BTF"), "{text}");
}

#[test]
fn check_gives_a_verdict_for_every_program() {
    let Some(_host) = needs::host("bad_input::check_gives_a_verdict_for_every_program", &[]) else {
        return;
    };
    let agent = Agent::start(&[]);
    let programs = agent.snapshot().health.programs;
    assert!(!programs.is_empty());
    for program in &programs {
        let explained = !program.reason.is_empty() && !program.remedy.is_empty();
        let runs = matches!(program.verdict, Verdict::Attached | Verdict::Standby);
        assert!(runs || explained, "a reason and a remedy: {program:?}");
    }
    for signal in ["alloc", "oom", "tcp", "sched"] {
        assert!(programs.iter().any(|program| program.signal == signal), "{signal} has a program");
    }
    agent.stop();
}

#[test]
fn ring_overflow_is_counted() {
    let Some(_host) = needs::host("bad_input::ring_overflow_is_counted", &["redis-server"]) else {
        return;
    };
    let redis = Redis::start();
    let agent = Agent::start(&[
        ("OBSERVER_TCP_PORTS", &redis.port.to_string()),
        ("OBSERVER_RING_SIZE", "4KiB"),
    ]);
    let mut conns = load(&["conns", "redis", &redis.port.to_string(), "2000"]);
    conns.wait(seconds(60)).expect("the load ends by itself");
    let lost = agent.wait_snapshot("a loss in the ring", seconds(5), |snapshot| {
        let losses = snapshot.health.losses.iter().filter(|loss| loss.stage.starts_with("ring"));
        Some(losses.map(|loss| loss.count).sum::<u64>()).filter(|count| *count > 0)
    });
    assert!(lost <= 20_000, "counted once each: {lost}");
    agent.stop();
}

#[test]
fn ten_thousand_processes_do_not_stop_the_tick() {
    let test = "bad_input::ten_thousand_processes_do_not_stop_the_tick";
    let Some(_host) = needs::host(test, &["cc"]) else { return };
    let source = Source::new("crowd.c", include_str!("../load/crowd.c"));
    let binary = source.compile_c("crowd");
    let agent = Agent::start(&[]);
    let crowd = Program::start(Command::new(binary).arg("10000"));
    crowd.wait_line(seconds(60), |line| (line == "crowded").then_some(()));
    let first = agent.wait_snapshot("10,000 processes", seconds(15), |snapshot| {
        (snapshot.alloc.process_count >= 10_000).then(|| snapshot.clone())
    });
    assert!(first.alloc.processes.len() <= observer::snapshot::MAX_ROWS);
    // The tick goes on: a later snapshot is at most a few seconds younger.
    let second = agent.wait_snapshot("the next tick", seconds(5), |snapshot| {
        (snapshot.time_unix_ns > first.time_unix_ns).then(|| snapshot.clone())
    });
    assert!(second.health.rss_bytes < 64 * MIB, "{} bytes resident", second.health.rss_bytes);
    drop(crowd);
    agent.stop();
}

#[test]
fn sigint_ends_the_agent_too() {
    let Some(_host) = needs::host("bad_input::sigint_ends_the_agent_too", &["redis-server"]) else {
        return;
    };
    let redis = Redis::start();
    let agent = Agent::watching(&[redis.port]);
    redis::Client::connect(redis.port).unwrap().close();
    agent.program().signal(Signal::INT);
    // Everything that ended before is flushed: the span is there without another tick.
    let telemetry = agent.stop();
    assert!(telemetry.spans_named("tcp connection").next().is_some());
}
