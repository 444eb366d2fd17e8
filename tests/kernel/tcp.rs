//! TCP lifetimes: every connection once, with its owner, its length and its bytes, and what it waits for.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use observer::{
    signal::tcp::{Activity, Connection},
    snapshot::Snapshot,
};
use observer_tests::{
    agent::Agent,
    dns, monotonic_ns, needs,
    netns::Namespace,
    otlp::{Span, Telemetry, int_of, is_true, str_of},
    postgres::{self, Postgres},
    program::Program,
    redis::{self, Redis},
    seconds, slack,
    wire::Record,
};
use rustix::process::Signal;

use crate::load;

/// On real hardware.
const TOLERANCE_NS: u64 = 5_000_000;

#[test]
fn postgres_connections_give_one_span_each() {
    let test = "tcp::postgres_connections_give_one_span_each";
    let Some(_host) = needs::host(test, &["postgres"]) else { return };
    let server = Postgres::start();
    check_spans("postgres", server.port);
}

/// Network interrupts come within connect(2) and close(2) of others, where newer kernels skip our programs, and count it.
#[test]
fn ends_are_right_where_interrupts_meet() {
    const PORT: u16 = 5432;
    let test = "tcp::ends_are_right_where_interrupts_meet";
    let Some(_host) = needs::host(test, &["unshare", "ip"]) else { return };
    let agent = Agent::start(&[]);
    let count = Namespace::with_interrupts().enter(|| churn(PORT, seconds(3)));
    // Skips are read each ten seconds.
    agent.wait_snapshot("each connection with its end, or a skip", seconds(30), |snapshot| {
        let (opened, closed) = (snapshot.tcp.opened, snapshot.tcp.closed);
        let (missed, unseen) = (lost(snapshot, "missed."), lost(snapshot, "ledger.unseen"));
        let open = opened.checked_sub(closed)?;
        (opened <= count && opened + missed >= count && open + unseen <= missed).then_some(())
    });
    let telemetry = agent.stop();
    let spans: Vec<_> = client_spans(&telemetry, PORT).collect();
    assert!(!spans.is_empty());
    for span in spans {
        // What is made of changes that are missed; a reset would be the kernel's own word.
        let reason = str_of(&span.attrs, "observer.tcp.close_reason");
        assert!(!["aborted", "connect_failed", "reset_by_local"].contains(&reason), "{span:?}");
    }
}

/// Sum of the losses whose stage starts so.
fn lost(snapshot: &Snapshot, stage: &str) -> u64 {
    let losses = snapshot.health.losses.iter();
    losses.filter(|loss| loss.stage.starts_with(stage)).map(|loss| loss.count).sum()
}

/// Connects and closes on loopback for so long, half of the times the server first, and says how often.
fn churn(port: u16, length: Duration) -> u64 {
    let deadline = Instant::now() + length;
    let pairs = [1, 2, 3, 4, 5, 6, 7, 8].map(|host| {
        let address = (Ipv4Addr::new(127, 0, 0, host), port);
        let listener = TcpListener::bind(address).expect("a namespace has all ports");
        (
            std::thread::spawn(move || serve(&listener)),
            std::thread::spawn(move || connect(address, deadline)),
        )
    });
    pairs
        .map(|(server, client)| {
            server.join().expect("the server has not panicked");
            client.join().expect("the client has not panicked")
        })
        .into_iter()
        .sum()
}

/// What the server of [`churn`] is to do.
const CLIENT_FIRST: u8 = 0;
const SERVER_FIRST: u8 = 1;
const LAST: u8 = 2;

fn serve(listener: &TcpListener) {
    let mut order = [CLIENT_FIRST];
    while order[0] != LAST {
        let (mut stream, _) = listener.accept().expect("a client comes");
        stream.read_exact(&mut order).expect("the client writes");
        if order[0] != SERVER_FIRST {
            assert_eq!(stream.read(&mut [0]).expect("the client closes"), 0);
        }
    }
}

fn connect(address: (Ipv4Addr, u16), deadline: Instant) -> u64 {
    let order = |order| {
        let mut stream = TcpStream::connect(address).expect("somebody listens");
        stream.write_all(&[order]).expect("somebody reads");
        if order == SERVER_FIRST {
            assert_eq!(stream.read(&mut [0]).expect("the server closes"), 0);
        }
    };
    let mut count = 1;
    while Instant::now() < deadline {
        order([CLIENT_FIRST, SERVER_FIRST][count as usize & 1]);
        count += 1;
    }
    order(LAST);
    count
}

#[test]
fn redis_connections_give_one_span_each() {
    let test = "tcp::redis_connections_give_one_span_each";
    let Some(_host) = needs::host(test, &["redis-server"]) else { return };
    let server = Redis::start();
    check_spans("redis", server.port);
}

/// 950 connections that are closed, 50 whose client is killed.
fn check_spans(system: &str, port: u16) {
    let agent = Agent::watching(&[port]);
    let port_text = port.to_string();
    let mut closing = load(&["conns", system, &port_text, "950"]);
    let mut killed = load(&["hold", system, &port_text, "50"]);
    let mut held: Vec<Record> = killed.json_lines(0, 50, seconds(60));
    let before = monotonic_ns();
    killed.signal(Signal::KILL);
    killed.wait(seconds(5)).expect("a killed process ends");
    held.iter_mut().for_each(|record| record.closed_ns = (before, monotonic_ns()));
    let closed: Vec<Record> = closing.json_lines(0, 950, seconds(90));
    closing.wait(seconds(5)).expect("the load ends by itself");

    agent.wait_telemetry("1000 client spans", seconds(20), |telemetry| {
        (client_spans(telemetry, port).count() >= 1000).then_some(())
    });
    agent.assert_no_loss();
    let telemetry = agent.stop();
    let spans: Vec<&Span> = client_spans(&telemetry, port).collect();
    assert_eq!(spans.len(), 1000, "one span a connection");
    let records = closed.iter().map(|record| (closing.pid(), record));
    let records = records.chain(held.iter().map(|record| (killed.pid(), record)));
    check_records(&spans, records);
}

/// Pairs the spans with the client's records by local port and order, and compares each pair. Reports all that differ.
fn check_records<'a>(spans: &[&Span], records: impl Iterator<Item = (u32, &'a Record)>) {
    let mut by_port: BTreeMap<i64, Vec<&Span>> = BTreeMap::new();
    for span in spans {
        by_port.entry(int_of(&span.attrs, "network.local.port")).or_default().push(span);
    }
    by_port.values_mut().for_each(|spans| spans.sort_by_key(|span| span.start_unix_ns));
    let mut records: Vec<_> = records.collect();
    records.sort_by_key(|(_, record)| record.opened_ns);
    let mut wrong = Vec::new();
    for (pid, record) in &records {
        let of_port = by_port.entry(record.local_port.into()).or_default();
        match of_port.is_empty() {
            true => wrong.push(format!("no span for {record:?}")),
            false => wrong.extend(difference(of_port.remove(0), *pid, record)),
        }
    }
    let first: Vec<_> = wrong.iter().take(10).collect();
    assert!(wrong.is_empty(), "{} of {} differ: {first:#?}", wrong.len(), records.len());
}

fn difference(span: &Span, pid: u32, record: &Record) -> Option<String> {
    let (shortest, longest) = record.duration_ns();
    let tolerance_ns = TOLERANCE_NS * u64::from(slack());
    let range = shortest.saturating_sub(tolerance_ns)..=longest + tolerance_ns;
    let fits = int_of(&span.attrs, "process.pid") == i64::from(pid)
        && range.contains(&span.duration_ns())
        && same_bytes(span, record);
    (!fits).then(|| format!("pid {pid} {shortest}..{longest} ns {record:?} but {span:?}"))
}

fn same_bytes(span: &Span, record: &Record) -> bool {
    let bytes = |key| int_of(&span.attrs, key).unsigned_abs();
    bytes("observer.tcp.sent_bytes") == record.sent
        && bytes("observer.tcp.received_bytes") == record.received
}

fn client_spans(telemetry: &Telemetry, port: u16) -> impl Iterator<Item = &Span> {
    telemetry.spans_named("tcp connection").filter(move |span| {
        str_of(&span.attrs, "observer.tcp.role") == "client"
            && int_of(&span.attrs, "network.peer.port") == i64::from(port)
            && !is_true(&span.attrs, "observer.tcp.open")
    })
}

#[test]
fn connections_older_than_the_agent_are_in_the_ledger() {
    let test = "tcp::connections_older_than_the_agent_are_in_the_ledger";
    let Some(_host) = needs::host(test, &["postgres", "redis-server"]) else { return };
    let (postgres, redis) = (Postgres::start(), Redis::start());
    let mut holders = [
        load(&["hold", "postgres", &postgres.port.to_string(), "100"]),
        load(&["hold", "redis", &redis.port.to_string(), "100"]),
    ];
    let held =
        holders.each_ref().map(|holder| -> Vec<Record> { holder.json_lines(0, 100, seconds(60)) });

    let agent = Agent::watching(&[postgres.port, redis.port]);
    let complete = |snapshot: &Snapshot| {
        holders
            .iter()
            .all(|holder| owned(snapshot, holder).count() == 100)
            .then(|| snapshot.clone())
    };
    let snapshot = agent.wait_snapshot("200 owned connections", seconds(10), complete);
    for (holder, records) in holders.iter().zip(&held) {
        check_rows(&snapshot, holder, records);
    }

    for (holder, port) in holders.iter_mut().zip([postgres.port, redis.port]) {
        holder.send("close");
        let closed: Vec<Record> = holder.json_lines(100, 100, seconds(20));
        let spans: Vec<Span> = agent.wait_telemetry("100 spans", seconds(10), |telemetry| {
            let spans: Vec<Span> = client_spans(telemetry, port).cloned().collect();
            (spans.len() >= 100).then_some(spans)
        });
        assert_eq!(spans.len(), 100);
        for span in &spans {
            assert!(is_true(&span.attrs, "observer.tcp.preexisting"), "{span:?}");
            assert_eq!(int_of(&span.attrs, "process.pid"), i64::from(holder.pid()));
            let local = int_of(&span.attrs, "network.local.port");
            let record = closed.iter().find(|record| i64::from(record.local_port) == local);
            assert!(same_bytes(span, record.expect("a port of the holder")), "{span:?} {record:?}");
        }
    }
    agent.assert_no_loss();
    agent.stop();
}

fn owned<'a>(snapshot: &'a Snapshot, holder: &Program) -> impl Iterator<Item = &'a Connection> {
    let pid = holder.pid();
    snapshot.tcp.connections.iter().filter(move |row| row.pid == pid && row.role == "client")
}

fn check_rows(snapshot: &Snapshot, holder: &Program, records: &[Record]) {
    for record in records {
        let row = owned(snapshot, holder).find(|row| row.local_port == record.local_port);
        let row = row.unwrap_or_else(|| panic!("no row for {record:?}"));
        assert!(row.preexisting, "{row:?}");
        assert_eq!((row.sent_bytes, row.received_bytes), (record.sent, record.received), "{row:?}");
    }
}

#[test]
fn activity_tells_waiting_unread_and_idle() {
    let test = "tcp::activity_tells_waiting_unread_and_idle";
    let Some(_host) = needs::host(test, &["postgres"]) else { return };
    let postgres = Postgres::start();
    let agent = Agent::watching(&[postgres.port]);
    let mut client = postgres::Client::connect(postgres.port).unwrap();
    let port = client.wire.local_port();
    wait_activity(&agent, port, Activity::Idle, seconds(1));
    let asked_ns = monotonic_ns();
    client.send("SELECT pg_sleep(4)").unwrap();
    let row = wait_activity(&agent, port, Activity::Waiting, seconds(2));
    let waited_ns = monotonic_ns() - asked_ns;
    assert!(row.activity_ns <= waited_ns, "{row:?} after {waited_ns} ns");
    let of_us = |snapshot: &Snapshot| {
        let mut endpoints = snapshot.tcp.endpoints.iter();
        endpoints
            .find(|endpoint| endpoint.pid == std::process::id() && endpoint.port == postgres.port)
            .cloned()
    };
    let endpoint = of_us(&agent.snapshot()).expect("an endpoint of this process");
    assert!(endpoint.waiting == 1 && endpoint.longest_wait_ns > 0, "{endpoint:?}");

    // The answer comes and nobody reads it.
    wait_activity(&agent, port, Activity::Unread, seconds(1));
    client.receive().unwrap();
    wait_activity(&agent, port, Activity::Idle, seconds(2));

    agent.stop();
}

/// A client that asks again at once does so within the kernel's clock tick of the last answer.
#[test]
fn a_question_right_after_an_answer_is_waited_for() {
    let test = "tcp::a_question_right_after_an_answer_is_waited_for";
    let Some(_host) = needs::host(test, &["redis-server"]) else { return };
    let redis = Redis::start();
    let agent = Agent::watching(&[redis.port]);
    let mut popper = redis::Client::connect(redis.port).unwrap();
    popper.send(&["BLPOP", "nothing", "5"]).unwrap();
    wait_activity(&agent, popper.wire.local_port(), Activity::Waiting, seconds(1));
    agent.stop();
}

/// Waits until the connection from this local port does `activity` for at least `age`.
#[track_caller]
fn wait_activity(agent: &Agent, port: u16, activity: Activity, age: Duration) -> Connection {
    let found = |snapshot: &Snapshot| {
        let mut rows = snapshot.tcp.connections.iter();
        let row = rows.find(|row| row.local_port == port && row.role == "client").cloned();
        row.filter(|row| row.activity == activity && Duration::from_nanos(row.activity_ns) >= age)
    };
    agent.wait_snapshot(&format!("{activity:?} for {age:?}"), seconds(15), found)
}

#[test]
fn an_endpoint_is_recognised_by_its_name_in_dns() {
    let test = "tcp::an_endpoint_is_recognised_by_its_name_in_dns";
    let Some(_host) = needs::host(test, &["redis-server"]) else { return };
    let redis = Redis::start();
    let agent = Agent::start(&[("OBSERVER_DNS", "all")]);
    let name = "cart.ab1cde.0001.euw1.cache.amazonaws.com";
    dns::resolve(name, Ipv4Addr::LOCALHOST);
    // Names are learned a moment after the answer, so a connection may come too early: each look follows a new one.
    let mut clients = Vec::new();
    let row = agent.wait_snapshot("a connection with a name", seconds(10), |snapshot| {
        clients.push(redis::Client::connect(redis.port).unwrap());
        let mut rows = snapshot.tcp.connections.iter();
        rows.find(|row| row.peer_port == redis.port && row.role == "client").cloned()
    });
    assert_eq!((row.peer_name.as_str(), row.system.as_str()), (name, "redis"), "{row:?}");
    agent.stop();
}

#[test]
fn a_long_connection_gives_segments_while_it_is_open() {
    let test = "tcp::a_long_connection_gives_segments_while_it_is_open";
    let Some(_host) = needs::host(test, &["redis-server"]) else { return };
    let redis = Redis::start();
    let agent = Agent::start(&[
        ("OBSERVER_TCP_PORTS", &redis.port.to_string()),
        ("OBSERVER_TCP_SEGMENT", "1s"),
    ]);
    let mut client = redis::Client::connect(redis.port).unwrap();
    let open = |telemetry: &Telemetry| -> Vec<Span> {
        let spans = telemetry.spans_named("tcp connection");
        let local = i64::from(client.wire.local_port());
        let ours = spans.filter(|span| int_of(&span.attrs, "network.local.port") == local);
        ours.filter(|span| str_of(&span.attrs, "observer.tcp.role") == "client").cloned().collect()
    };
    let segments = agent.wait_telemetry("three segments", seconds(10), |telemetry| {
        Some(open(telemetry)).filter(|spans| spans.len() >= 3)
    });
    for (index, pair) in segments.windows(2).enumerate() {
        assert!(pair.iter().all(|span| is_true(&span.attrs, "observer.tcp.open")), "{pair:?}");
        let (end, next) = (pair[0].end_unix_ns, pair[1].start_unix_ns);
        assert!(
            end.abs_diff(next) < 1_000_000,
            "segment {index} ends where the next begins: {end} {next}"
        );
    }
    client.command(&["PING"]).unwrap();
    let port = client.wire.local_port();
    let record = client.close();
    let whole = agent.wait_telemetry("the span of the whole", seconds(5), |telemetry| {
        let mut spans = client_spans(telemetry, redis.port);
        spans.find(|span| int_of(&span.attrs, "network.local.port") == i64::from(port)).cloned()
    });
    assert_eq!(difference(&whole, std::process::id(), &record), None);
    agent.stop();
}
