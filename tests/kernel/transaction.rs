//! Transactions of PostgreSQL's sessions, as its replies tell them.

use std::{os::unix::fs::chown, path::Path, process::Command, time::Duration};

use observer::{
    signal::tcp::{Activity, Connection, Transaction},
    snapshot::Snapshot,
};
use observer_tests::{
    agent::Agent,
    monotonic_ns, needs,
    postgres::{self, Client, Postgres, Settings},
    program::Program,
    seconds, user_ids,
};

/// Longer than the shortest silence that a reply is looked up after, and a tick.
const PATIENCE: Duration = Duration::from_secs(15);

/// The kernel side's clock here: a tick of HZ, 10 ms at most.
const TICK_NS: u64 = 10_000_000;

/// Waits until the connection that `ours` picks has had its answer, and is in this state.
#[track_caller]
fn wait(agent: &Agent, transaction: Transaction, ours: impl Fn(&Connection) -> bool) -> Connection {
    wait_any(agent, &[transaction], ours)
}

/// Likewise; in one of these states.
#[track_caller]
fn wait_any(
    agent: &Agent,
    states: &[Transaction],
    ours: impl Fn(&Connection) -> bool,
) -> Connection {
    let found = |snapshot: &Snapshot| {
        let mut rows = snapshot.tcp.connections.iter().filter(|row| row.role == "client");
        let row = rows.find(|row| ours(row)).cloned();
        row.filter(|row| states.contains(&row.transaction) && row.activity == Activity::Idle)
    };
    agent.wait_snapshot(&format!("{states:?}"), PATIENCE, found)
}

/// Waits until the connection from this local port is in the agent's rows: from then on packets are looked at. Those of its
/// login came by before or after that.
#[track_caller]
fn wait_looked_at(agent: &Agent, port: u16) -> Connection {
    wait_any(agent, &[Transaction::Unknown, Transaction::No], |row| row.local_port == port)
}

#[test]
fn each_state_of_a_transaction_is_seen() {
    let test = "transaction::each_state_of_a_transaction_is_seen";
    let Some(_host) = needs::host(test, &["postgres"]) else { return };
    let postgres = Postgres::start();
    let agent = Agent::watching(&[postgres.port]);
    let mut client = Client::connect(postgres.port).unwrap();
    let port = client.wire.local_port();
    let wait_for = |transaction, received_bytes| {
        let ours = |row: &Connection| row.local_port == port && row.received_bytes > received_bytes;
        wait(&agent, transaction, ours)
    };
    let wait = |transaction| wait_for(transaction, 0);
    let row = wait_looked_at(&agent, port);
    assert_eq!((row.transaction_ns, row.system.as_str()), (None, "postgresql"), "{row:?}");
    client.query("SELECT 1").unwrap();
    wait(Transaction::No);

    let begun_ns = monotonic_ns();
    client.query("BEGIN").unwrap();
    let row = wait(Transaction::Open);
    assert_eq!(row.pid, std::process::id());
    let first_ns = row.transaction_ns.unwrap();
    // An answer of many packets.
    client.query("SELECT repeat('x', 300000)").unwrap();
    let row = wait_for(Transaction::Open, 300_000);
    let open_ns = row.transaction_ns.unwrap();
    let elapsed_ns = monotonic_ns() - begun_ns + TICK_NS;
    assert!(first_ns < open_ns && open_ns <= elapsed_ns, "{first_ns} {row:?}");
    client.query("COMMIT").unwrap();
    assert_eq!(wait(Transaction::No).transaction_ns, None);

    client.query("BEGIN").unwrap();
    client.query("SELECT 1 / 0").expect_err("a division by zero");
    // What follows the error.
    client.receive().unwrap();
    wait(Transaction::Failed);
    client.query("ROLLBACK").unwrap();
    wait(Transaction::No);
    agent.assert_no_loss();
    agent.stop();
}

#[test]
fn a_session_that_leaves_its_transaction_open_is_told() {
    let test = "transaction::a_session_that_leaves_its_transaction_open_is_told";
    let Some(_host) = needs::host(test, &["postgres"]) else { return };
    let postgres = Postgres::start();
    let agent = Agent::start(&[
        ("OBSERVER_TCP_PORTS", &postgres.port.to_string()),
        ("OBSERVER_DETECT_IDLE_IN_TRANSACTION", "3s"),
    ]);
    let mut client = Client::connect(postgres.port).unwrap();
    let port = client.wire.local_port();
    wait_looked_at(&agent, port);
    client.query("BEGIN").unwrap();
    let told = |snapshot: &Snapshot| {
        let mut findings = snapshot.detect.findings.iter();
        findings.find(|finding| finding.kind == "connection.idle_in_transaction").cloned()
    };
    let finding = agent.wait_snapshot("a finding", seconds(20), told);
    let culprit = finding.culprit.as_ref().expect("somebody is named");
    assert_eq!(culprit.pid, Some(std::process::id()));
    assert!(finding.message.contains(&format!("from its port {port}")), "{}", finding.message);
    client.query("COMMIT").unwrap();
    agent.wait_snapshot("the end of it", seconds(20), |snapshot| {
        told(snapshot).is_none().then_some(())
    });
    agent.stop();
}

/// Starts a session that has begun a transaction and does nothing else. `how` is a connection string of libpq.
fn begin(postgres: &Postgres, how: &str) -> Program {
    let mut psql = Command::new(postgres::find_binary("psql").expect("it comes with the server"));
    psql.args(["-X", "-q", "-d", &format!("{how} port={} user=postgres", postgres.port)]);
    let mut session = Program::start(&mut psql);
    session.send("BEGIN;");
    session.send("SELECT 'begun';");
    session.wait_line(seconds(10), |line| line.contains("begun").then_some(()));
    session
}

#[test]
fn what_is_encrypted_is_unknown_and_what_is_not_is_seen_over_ipv6_too() {
    let test = "transaction::what_is_encrypted_is_unknown_and_what_is_not_is_seen_over_ipv6_too";
    let Some(_host) = needs::host(test, &["postgres", "openssl"]) else { return };
    let postgres = Postgres::with(Settings { address: "::1", ..Settings::default() });
    let mut client = Client::connect(postgres.port).unwrap();
    let folder = client.value("SHOW data_directory").unwrap();
    let (certificate, key) = (format!("{folder}/server.crt"), format!("{folder}/server.key"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", "/CN=localhost", "-out", &certificate, "-keyout", &key])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (user, group) = user_ids("postgres").unwrap();
    for path in [&certificate, &key] {
        chown(Path::new(path), Some(user), Some(group)).unwrap();
    }
    client.query("ALTER SYSTEM SET ssl = on").unwrap();
    client.query("SELECT pg_reload_conf()").unwrap();

    let agent = Agent::watching(&[postgres.port]);
    wait_looked_at(&agent, client.wire.local_port());
    let encrypted = begin(&postgres, "host=127.0.0.1 sslmode=require");
    let plain = begin(&postgres, "host=127.0.0.1 sslmode=disable");
    let plain_v6 = begin(&postgres, "host=::1 sslmode=disable");
    for session in [&plain, &plain_v6] {
        wait(&agent, Transaction::Open, |row| row.pid == session.pid());
    }
    // It began before them.
    wait(&agent, Transaction::Unknown, |row| row.pid == encrypted.pid());
    agent.stop();
}
