//! Small hand-made hosts for the tests: connections as functions of time, and what is told of them.

use std::sync::Arc;

use super::SECOND;
use crate::{
    config::{Config, all_settings},
    detect::Detect,
    identity::Process,
    signal::{
        Output,
        tcp::{Activity, Connection, endpoints},
    },
    snapshot::Snapshot,
};

/// The database of most tests.
pub(super) const DB: &str = "10.0.0.9";

/// A connection of `node` with this pid from a local port to the database.
pub(super) fn idle(pid: u32, port: u16, for_s: f64) -> Connection {
    let idle_ns = (for_s * SECOND as f64) as u64;
    Connection {
        pid,
        name: if pid < 100 { "node" } else { "psql" }.to_owned(),
        role: "client".into(),
        system: "postgresql".to_owned(),
        peer_address: DB.to_owned(),
        peer_port: 5432,
        local_address: "10.0.0.1".to_owned(),
        local_port: port,
        state: "ESTABLISHED".into(),
        activity: if for_s < 1.0 { Activity::Active } else { Activity::Idle },
        activity_ns: idle_ns,
        age_ns: 3600 * SECOND,
        sent_bytes: 1000,
        received_bytes: 1000,
        last_send_ns: Some(idle_ns + 5_000_000),
        last_receive_ns: Some(idle_ns),
        ..Connection::default()
    }
}

/// It has asked and waits.
pub(super) fn waiting(pid: u32, port: u16, for_s: f64) -> Connection {
    let asked_ns = (for_s * SECOND as f64) as u64;
    Connection {
        activity: Activity::Waiting,
        activity_ns: asked_ns,
        last_send_ns: Some(asked_ns),
        last_receive_ns: Some(asked_ns + SECOND / 2),
        ..idle(pid, port, for_s)
    }
}

/// A busy pool: answers came a moment ago.
pub(super) fn busy(pid: u32, ports: std::ops::Range<u16>) -> Vec<Connection> {
    ports.map(|port| idle(pid, port, 0.1)).collect()
}

/// A host with these connections; pids below 100 are `node`, others `psql`.
pub(super) fn host(second: u64, connections: Vec<Connection>) -> Snapshot {
    let mut snapshot = Snapshot {
        time_unix_ns: 1_000_000 * SECOND + second * SECOND,
        uptime_ns: 1000 * SECOND + second * SECOND,
        ..Snapshot::default()
    };
    for row in &connections {
        let known = Process { pid: row.pid, name: row.name.clone(), ..Process::default() };
        snapshot.processes.insert(row.pid, Arc::new(known));
    }
    snapshot.tcp.endpoints = endpoints(&connections);
    snapshot.tcp.connection_count = connections.len() as u64;
    snapshot.tcp.connections = connections;
    snapshot
}

/// What is told of WARN and worse while time passes: `second kind LEVEL culprit`, and `second kind clear`.
pub(super) fn told(
    seconds: impl IntoIterator<Item = u64>,
    at: impl Fn(u64) -> Snapshot,
) -> Vec<String> {
    let mut detect = Detect::new(&Config::default_for_tests(&all_settings()));
    let mut raised: Vec<(String, String, String)> = Vec::new();
    let mut told = Vec::new();
    for second in seconds {
        detect.tick(&at(second), false, &mut Output::default());
        let found: Vec<(String, String, String)> = detect
            .view()
            .findings
            .iter()
            .filter(|finding| finding.level >= crate::detect::Level::Warn)
            .map(|finding| {
                let culprit = finding.culprit.as_ref().map(|party| party.title.clone());
                (finding.kind.clone(), finding.level.text().to_owned(), culprit.unwrap_or_default())
            })
            .collect();
        for (kind, level, culprit) in found.iter().filter(|now| !raised.contains(now)) {
            told.push(format!("{second} {kind} {level} {culprit}"));
        }
        let gone = |(kind, ..): &&(String, String, String)| !found.iter().any(|now| now.0 == *kind);
        told.extend(raised.iter().filter(gone).map(|(kind, ..)| format!("{second} {kind} clear")));
        raised = found;
    }
    told
}

/// As [`told`], once a second.
#[track_caller]
pub(super) fn check(seconds: u64, at: impl Fn(u64) -> Snapshot, expect: &[&str]) {
    assert_eq!(told(0..seconds, at), expect);
}
