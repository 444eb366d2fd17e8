//! A finding on its way to people: snapshot, screen, systemd, kernel's log, recording; and the same again from the recording.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::{fs::OpenOptionsExt as _, net::UnixDatagram},
    path::Path,
};

use observer::{
    detect::{CLEARED, FINDING, Level},
    record::{self, Line},
    snapshot::Verdict,
};
use observer_tests::{
    agent::{self, Agent},
    collector::Collector,
    free_port, needs, seconds, wait_until,
};
use rustix::fs::OFlags;
use serde_json::Value;
use tempfile::TempDir;

const KIND: &str = "agent.uplink";

#[test]
fn a_finding_is_told_and_found_again_in_the_recording() {
    let test = "findings::a_finding_is_told_and_found_again_in_the_recording";
    let Some(_host) = needs::host(test, &[]) else { return };
    let folder = TempDir::new().unwrap();
    let [recording, socket] =
        ["observer.rec", "notify"].map(|name| folder.path().join(name).display().to_string());
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(seconds(10))).unwrap();
    let agent = refused(&[("OBSERVER_RECORD_FILE", &recording), ("NOTIFY_SOCKET", &socket)]);
    assert_eq!(heard(&systemd), "READY=1\nSTATUS=nothing found\n");
    wait_until("the finding in the status", seconds(5), || {
        heard(&systemd).starts_with("STATUS=WARN agent.uplink: ").then_some(())
    });
    let line = |line: &str| line.contains(" WARN agent.uplink: ").then_some(());
    agent.program().wait_line(seconds(5), line);
    agent.stop();
    wait_until("the end", seconds(5), || (heard(&systemd) == "STOPPING=1\n").then_some(()));

    let recorded = recorded(Path::new(&recording));
    assert!(recorded.iter().any(|event| event["attrs"]["observer.finding.kind"] == KIND));
    assert_eq!(replayed(folder.path(), &recording), recorded);
}

#[test]
fn a_finding_is_in_the_kernels_log() {
    let test = "findings::a_finding_is_in_the_kernels_log";
    let Some(_host) = needs::host(test, &[]) else { return };
    let mut log = match kernel_log() {
        Ok(log) => log,
        Err(error) => return needs::skip(test, &format!("/dev/kmsg: {error}")),
    };
    let agent = refused(&[("OBSERVER_ALERT_KMSG", "true")]);
    wait_until("the finding in the kernel's log", seconds(5), || {
        // Facility `user`, level `warning`.
        let ours = |record: &String| {
            record.starts_with("12,") && record.contains(";observer: WARN agent.uplink: ")
        };
        records(&mut log).into_iter().find(ours)
    });
    let programs = agent.snapshot().health.programs;
    let row = programs.iter().find(|row| row.name == "kmsg").expect("it has a row");
    assert_eq!(row.verdict, Verdict::Attached, "{row:?}");
    agent.assert_no_loss();
    agent.stop();
}

/// An agent whose collector refuses, which it has found.
fn refused(env: &[(&str, &str)]) -> Agent {
    let port = free_port();
    Collector::start(port).answer(401);
    let endpoint = format!("http://127.0.0.1:{port}");
    let own = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1000"),
    ];
    let agent = Agent::start(&[&own, env].concat());
    agent.wait_snapshot("a refusing collector", seconds(15), |snapshot| {
        let found = snapshot.detect.findings.iter().find(|finding| finding.kind == KIND)?;
        (found.level >= Level::Warn).then_some(())
    });
    agent
}

/// One word of the agent to systemd.
fn heard(systemd: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = systemd.recv(&mut buffer).expect("the agent says something");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// The kernel's log from now on.
fn kernel_log() -> std::io::Result<File> {
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let mut log = OpenOptions::new().read(true).custom_flags(nonblocking).open("/dev/kmsg")?;
    log.seek(SeekFrom::End(0))?;
    Ok(log)
}

/// What came since the last look. Each read gives one record, or fails where there is none.
fn records(log: &mut File) -> Vec<String> {
    let mut buffer = vec![0; 8192];
    std::iter::from_fn(|| log.read(&mut buffer).ok().map(|length| buffer[..length].to_vec()))
        .map(|record| String::from_utf8_lossy(&record).into_owned())
        .collect()
}

/// The findings that the agent recorded of itself.
fn recorded(path: &Path) -> Vec<Value> {
    let lines = record::read(path).unwrap().map(Result::unwrap);
    let events = lines.filter_map(|line| match line {
        Line::Event(event) if [FINDING, CLEARED].contains(&event.name.as_str()) => Some(event),
        _ => None,
    });
    events.map(|event| serde_json::to_value(event).unwrap()).collect()
}

/// The findings of `observer replay`.
fn replayed(state: &Path, recording: &str) -> Vec<Value> {
    let output = agent::output(state, &["replay", recording, "--findings", "--json"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
