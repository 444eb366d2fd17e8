//! The binary without privileges: command line, configuration, messages.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::process::{Output, Stdio};

use observer_tests::agent;
use tempfile::TempDir;

/// Runs the binary with a configuration file and environment.
fn run(args: &[&str], toml: &str, env: &[(&str, &str)]) -> Output {
    let state = TempDir::new().unwrap();
    let file = state.path().join("observer.toml");
    std::fs::write(&file, toml).unwrap();
    let mut command = agent::command(state.path(), args);
    command.arg("--config").arg(&file).envs(env.iter().copied()).output().unwrap()
}

/// Asserts that bad input is refused with a message that contains each of `texts`.
#[track_caller]
fn refused(output: &Output, texts: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(2),
        "{message}{}",
        String::from_utf8_lossy(&output.stdout)
    );
    for text in texts {
        assert!(message.contains(text), "no {text:?} in: {message}");
    }
}

#[test]
fn config_prints_values_and_where_they_come_from() {
    let output = run(&["config"], "", &[("OBSERVER_TCP_PORTS", "6400,7000")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    for part in ["6400", "7000", "OBSERVER_TCP_PORTS", "[tcp]"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
fn secrets_are_not_printed() {
    let secret = ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2");
    let output = run(&["config"], "", &[secret]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !text.contains("hunter2"), "{text}");
    assert!(text.contains("***") && text.contains("OTEL_EXPORTER_OTLP_HEADERS"), "{text}");
}

#[test]
fn bad_configuration_is_refused_with_what_where_and_how() {
    for (toml, texts) in [
        ("[tcp\nports = [1]", ["observer.toml", "1"].as_slice()),
        ("[tcp]\nprots = [6400]", &["observer.toml", "prots", "ports"]),
        ("[tpc]\nports = [6400]", &["observer.toml", "tpc", "tcp"]),
        ("[tcp]\nports = [70000]", &["tcp.ports", "70000"]),
        ("[tcp]\nports = \"many\"", &["tcp.ports", "list of ports"]),
    ] {
        for command in ["config", "run"] {
            refused(&run(&[command], toml, &[]), texts);
        }
    }
}

#[test]
fn bad_environment_is_refused_with_its_name() {
    for (name, value) in [
        ("OBSERVER_TCP_PORTS", "6400,x"),
        ("OBSERVER_TCP_PORTS", "0"),
        ("OBSERVER_TCP_SYSTEMS", "postgresql"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "nonsense"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://127.0.0.1"),
    ] {
        refused(&run(&["config"], "", &[(name, value)]), &[name]);
    }
}

#[test]
fn bad_flags_are_refused_with_usage() {
    let state = TempDir::new().unwrap();
    for (args, text) in [
        (["run", "--fro", "1s"].as_slice(), "--fro"),
        (&["run", "--for", "soon"], "soon"),
        (&["run", "--config", "/nonexistent.toml"], "/nonexistent.toml"),
        (&["tpo"], "tpo"),
    ] {
        refused(&agent::output(state.path(), args), &[text]);
    }
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let state = TempDir::new().unwrap();
    let mut command = agent::command(state.path(), &["config"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{}", output.status);
}

#[test]
fn help_and_version_are_there() {
    let state = TempDir::new().unwrap();
    for (args, text) in [(["--help"], "check"), (["--version"], env!("CARGO_PKG_VERSION"))] {
        let output = agent::output(state.path(), &args);
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains(text), "{args:?}");
    }
}
