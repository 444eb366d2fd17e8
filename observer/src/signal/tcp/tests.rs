//! Rows of the ledger and records in; connections, endpoints and spans out.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use observer_abi::{
    Counter, Kind,
    tcp::{
        CLIENT, Closed, HolderRow, LOCAL, Listening, NOT_READ, Owned, PEER, SERVER, Socket,
        SocketRow, UNSEEN, state,
    },
};
use proptest::prelude::*;
use zerocopy::{FromBytes as _, FromZeros as _};

use super::*;
use crate::{
    kernel::Counters,
    signal::{
        Output, Readings,
        testing::{
            Anyone, SECOND, WALL_AHEAD, at, check_numbers, check_view, comm, header, int, pid,
            quiet, text, value,
        },
    },
    telemetry::{Number, Value},
};

/// Names of addresses.
#[derive(Default)]
struct Named(HashMap<IpAddr, (&'static str, Option<&'static str>)>);

impl PeerNames for Named {
    fn name(&self, address: IpAddr) -> Option<(&str, Option<&'static str>)> {
        self.0.get(&address).copied()
    }
}

const REMOTE: [u8; 4] = [10, 0, 0, 9];
const HERE: [u8; 4] = [10, 0, 0, 1];

fn tcp() -> Tcp {
    let naming = Naming::new(&[], &[]).unwrap();
    Tcp::new(Limits { segment: Duration::from_secs(60), naming })
}

fn mapped(address: [u8; 4]) -> [u8; 16] {
    std::net::Ipv4Addr::from(address).to_ipv6_mapped().octets()
}

fn socket(peer: [u8; 4], peer_port: u16) -> Socket {
    Socket {
        local_address: mapped(HERE),
        peer_address: mapped(peer),
        local_port: 40_000,
        peer_port,
        ..Socket::default()
    }
}

/// An established connection that process 7 opened a second after the start of the clock.
fn row(key: u64, peer: [u8; 4], peer_port: u16) -> SocketRow {
    let mut row = SocketRow::new_zeroed();
    row.key = key;
    row.owned = Owned {
        birth_ktime_ns: SECOND,
        established_ktime_ns: SECOND,
        tgid: 7,
        tid: 7,
        comm: comm("node"),
        role: CLIENT,
        was_established: 1,
        ..Owned::default()
    };
    row.socket = socket(peer, peer_port);
    row.state = state::ESTABLISHED;
    row.now_jiffies = 100_000;
    row.acknowledged_jiffies = 100_000;
    row.window_bytes = 65_536;
    row.rto_jiffies = 50;
    row
}

/// The same, waiting for a reply since this many jiffies (of 4 ms).
fn waiting(key: u64, peer_port: u16, jiffies: u32) -> SocketRow {
    let mut row = row(key, REMOTE, peer_port);
    row.socket.sent_bytes = 100;
    row.sent_jiffies = 100_000 - jiffies;
    row
}

fn closed(row: &SocketRow, ktime_ns: u64, closer: u8) -> Closed {
    Closed {
        header: header(Kind::TcpClosed, row.owned.tgid, "node", ktime_ns),
        key: row.key,
        owned: Owned { closer, ..row.owned },
        socket: row.socket,
        old_state: state::CLOSE_WAIT,
        reserved: 0,
    }
}

fn tick(tcp: &mut Tcp, ktime_ns: u64, sockets: &[SocketRow], ends: bool) -> Output {
    let mut out = Output::default();
    let readings = Readings { sockets, ..quiet(at(ktime_ns)) };
    tcp.tick(&readings, &Named::default(), ends, &mut Anyone, &mut out);
    check_view(&tcp.view());
    out
}

#[test]
fn who_closes_first_keeps_the_port() {
    let mut tcp = tcp();
    for (key, closer) in [(1, LOCAL), (2, LOCAL), (3, PEER)] {
        let record = closed(&row(key, REMOTE, 6379), 2 * SECOND, closer);
        let out = &mut Output::default();
        tcp.closed(&record, at(2 * SECOND), &Named::default(), &mut Anyone, out);
    }
    tick(&mut tcp, 3 * SECOND, &[], false);
    let rows: Vec<_> =
        tcp.view().closing.into_iter().map(|row| (row.pid, row.port, row.count)).collect();
    assert_eq!(rows, [(7, 6379, 2)]);
}

#[test]
fn connections_are_counted_by_process_and_endpoint() {
    let mut tcp = tcp();
    let other = Owned { tgid: 8, comm: comm("worker"), ..row(0, REMOTE, 0).owned };
    let mut stuck = row(4, REMOTE, 5432);
    (stuck.packets_out, stuck.timeouts) = (1, 3);
    let rows = [
        row(1, REMOTE, 5432),
        waiting(2, 5432, 500),
        waiting(3, 5432, 250),
        stuck,
        row(5, REMOTE, 6379),
        SocketRow { owned: other, ..row(6, REMOTE, 5432) },
    ];
    tick(&mut tcp, 100 * SECOND, &rows, false);
    let view = tcp.view();
    let counts: Vec<_> = view
        .endpoints
        .iter()
        .map(|e| (e.pid, e.system.as_str(), e.port, e.open, e.waiting, e.idle, e.stuck))
        .collect();
    assert_eq!(
        counts,
        [
            (7, "postgresql", 5432, 4, 2, 1, 1),
            (7, "redis", 6379, 1, 0, 1, 0),
            (8, "postgresql", 5432, 1, 0, 1, 0)
        ]
    );
    assert_eq!((view.endpoints[0].longest_wait_ns, view.connection_count), (2 * SECOND, 6));
    let first: Vec<_> =
        view.connections.iter().take(3).map(|c| (c.activity, c.activity_ns)).collect();
    let waiting = Activity::Waiting;
    assert_eq!(first, [(Activity::HalfOpen, 0), (waiting, 2 * SECOND), (waiting, SECOND)]);

    let mut out = Output::default();
    tcp.points(5, &mut Anyone, &mut out);
    let points: Vec<_> = out
        .batch
        .points
        .iter()
        .filter(|p| p.metric.name == "db.client.connection.count" && pid(&p.subject) == 7)
        .map(|p| {
            let pool = text(&p.attrs, "db.client.connection.pool.name");
            (pool, text(&p.attrs, "db.client.connection.state"), p.number.clone())
        })
        .collect();
    let expect = [("10.0.0.9:5432", "idle", 1), ("10.0.0.9:5432", "used", 3)];
    assert_eq!(points[..2], expect.map(|(pool, state, count)| (pool, state, Number::Int(count))));
    assert!(out.batch.points.iter().all(|point| SIGNAL.metrics.contains(&point.metric)));
}

#[test]
fn an_open_connection_makes_segments_of_what_was_moved() {
    let mut tcp = tcp();
    let mut told = Vec::new();
    let mut moved = row(1, REMOTE, 5432);
    for second in 1..=150 {
        (moved.socket.sent_bytes, moved.socket.received_bytes) = (second * 10, second * 100);
        moved.socket.retransmits = second as u32;
        told.extend(tick(&mut tcp, second * SECOND, &[moved], second == 150).batch.spans);
    }
    let seconds = |unix_ns: u64| (unix_ns - WALL_AHEAD) / SECOND;
    let found: Vec<_> = told
        .iter()
        .map(|span| {
            let counts = ["sent_bytes", "received_bytes", "retransmits", "segment"]
                .map(|key| int(&span.attrs, ["observer.tcp", key].join(".").as_str()));
            (seconds(span.start_unix_ns), seconds(span.end_unix_ns), counts)
        })
        .collect();
    assert_eq!(
        found,
        [
            (1, 61, [610, 6100, 61, 0]),
            (61, 121, [600, 6000, 60, 1]),
            (121, 150, [290, 2900, 29, 2])
        ]
    );
    assert!(told.iter().all(|s| value(&s.attrs, "observer.tcp.open") == Some(&Value::Bool(true))));

    let mut out = Output::default();
    tcp.closed(
        &closed(&moved, 151 * SECOND, PEER),
        at(152 * SECOND),
        &Named::default(),
        &mut Anyone,
        &mut out,
    );
    let whole = &out.batch.spans[0];
    assert_eq!((seconds(whole.start_unix_ns), seconds(whole.end_unix_ns)), (1, 151));
    assert_eq!(int(&whole.attrs, "observer.tcp.sent_bytes"), 1500);
    assert_eq!(value(&whole.attrs, "observer.tcp.open"), None);
    let mut ids: Vec<u64> = told.iter().map(|span| span.context.span_id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 3);
    for span in &told {
        assert_eq!(span.context.trace_id, whole.context.trace_id);
        assert_eq!(span.parent_span_id, Some(whole.context.span_id));
    }
}

#[test]
fn a_socket_that_is_used_again_begins_anew() {
    let mut tcp = tcp();
    let mut first = row(1, REMOTE, 5432);
    first.socket.sent_bytes = 1_000_000;
    tick(&mut tcp, 61 * SECOND, &[first], false);
    // The record of its end was lost; the kernel gave the same socket to a later connection.
    let mut second = row(1, REMOTE, 6379);
    second.owned.birth_ktime_ns = 62 * SECOND;
    second.socket.sent_bytes = 1_000_050;
    assert!(tick(&mut tcp, 63 * SECOND, &[second], false).batch.spans.is_empty());
    let span = tick(&mut tcp, 64 * SECOND, &[second], true).batch.spans.remove(0);
    assert_eq!(int(&span.attrs, "observer.tcp.segment"), 0);
    assert_eq!(int(&span.attrs, "observer.tcp.sent_bytes"), 1_000_050);
    assert_eq!(span.start_unix_ns, 62 * SECOND + WALL_AHEAD);
}

#[test]
fn of_a_local_pair_only_the_client_is_told() {
    #[track_caller]
    fn check(role: u8, peer: [u8; 4], shown: bool) {
        let mut tcp = tcp();
        let mut row = row(1, peer, 5432);
        row.owned.role = role;
        let out = tick(&mut tcp, 2 * SECOND, &[row], true);
        let mut ends = Output::default();
        let record = closed(&row, 3 * SECOND, LOCAL);
        tcp.closed(&record, at(3 * SECOND), &Named::default(), &mut Anyone, &mut ends);
        let counts = [tcp.view().connections.len(), out.batch.spans.len(), ends.batch.spans.len()];
        assert_eq!(counts, [usize::from(shown); 3], "{role} {peer:?}");
    }
    for here in [[127, 0, 0, 1], HERE] {
        check(SERVER, here, false);
        check(CLIENT, here, true);
    }
    check(SERVER, REMOTE, true);
    check(CLIENT, REMOTE, true);
}

#[test]
fn a_served_connection_is_listed_under_the_local_end() {
    let mut tcp = tcp();
    let mut row = row(1, REMOTE, 50_000);
    (row.owned.role, row.socket.local_port) = (SERVER, 5432);
    tick(&mut tcp, 2 * SECOND, &[row], false);
    let view = tcp.view();
    assert_eq!((view.endpoints[0].address.as_str(), view.endpoints[0].port), ("10.0.0.1", 5432));
    assert_eq!((&*view.connections[0].role, view.connections[0].peer_port), ("server", 50_000));
    assert_eq!(view.endpoints[0].system, "postgresql");
}

#[test]
fn a_connection_older_than_the_agent_says_so() {
    for (preexisting, expect) in [(1, Some(&Value::Bool(true))), (0, None)] {
        let mut tcp = tcp();
        let mut row = row(1, REMOTE, 5432);
        row.owned.preexisting = preexisting;
        let out = tick(&mut tcp, 2 * SECOND, &[row], true);
        assert_eq!(value(&out.batch.spans[0].attrs, "observer.tcp.preexisting"), expect);
        assert_eq!(tcp.view().connections[0].preexisting, preexisting == 1);
    }
}

#[test]
fn the_end_of_a_connection_carries_its_attributes() {
    let mut tcp = tcp();
    let mut names = Named::default();
    names.0.insert(IpAddr::from(REMOTE), ("db.internal", Some("postgresql")));
    let mut row = row(1, REMOTE, 7777);
    (row.socket.srtt_us, row.socket.retransmits) = (1500, 2);
    let (mut out, record) = (Output::default(), closed(&row, 9 * SECOND, PEER));
    tcp.closed(&record, at(10 * SECOND), &names, &mut Anyone, &mut out);
    let span = &out.batch.spans[0];
    for (key, expect) in [
        ("network.peer.address", "10.0.0.9"),
        ("network.local.address", "10.0.0.1"),
        ("network.transport", "tcp"),
        ("network.type", "ipv4"),
        ("db.system.name", "postgresql"),
        ("server.address", "db.internal"),
        ("observer.tcp.role", "client"),
        ("observer.tcp.close_reason", "peer_close"),
    ] {
        assert_eq!(text(&span.attrs, key), expect, "{key}");
    }
    for (key, expect) in [
        ("network.peer.port", 7777),
        ("network.local.port", 40_000),
        ("process.pid", 7),
        ("observer.tcp.srtt_ns", 1_500_000),
        ("observer.tcp.retransmits", 2),
    ] {
        assert_eq!(int(&span.attrs, key), expect, "{key}");
    }
    assert_eq!((span.name, span.error, pid(&span.subject)), ("tcp connection", None, 7));

    let refused = Closed {
        owned: Owned { was_established: 0, tgid: 0, ..record.owned },
        socket: Socket { error: libc::ECONNREFUSED as u16, ..record.socket },
        ..record
    };
    tcp.closed(&refused, at(10 * SECOND), &Named::default(), &mut Anyone, &mut out);
    let span = &out.batch.spans[1];
    assert_eq!((span.error, pid(&span.subject)), (Some("ECONNREFUSED"), 0));
    assert_eq!(value(&span.attrs, "process.pid"), None);
}

#[test]
fn an_end_that_nobody_saw_is_told_and_not_joined_with_the_next_connection_at_its_address() {
    let mut tcp = tcp();
    let stale = row(1, REMOTE, 5432);
    let mut out = tick(&mut tcp, 2 * SECOND, &[stale], false);
    let mut unseen = closed(&stale, 5 * SECOND, UNSEEN);
    // As the program tells it, which has no socket to read from.
    unseen.socket.local_address = [0; 16];
    unseen.socket.error = NOT_READ;
    tcp.closed(&unseen, at(5 * SECOND), &Named::default(), &mut Anyone, &mut out);
    let owned = Owned { birth_ktime_ns: 5 * SECOND, tgid: 9, tid: 9, ..stale.owned };
    let mut young = SocketRow { owned, ..stale };
    young.socket.sent_bytes = 10;
    out.batch.spans.extend(tick(&mut tcp, 6 * SECOND, &[young], false).batch.spans);
    let record = closed(&young, 8 * SECOND, LOCAL);
    tcp.closed(&record, at(8 * SECOND), &Named::default(), &mut Anyone, &mut out);

    let [first, second] = &out.batch.spans[..] else { panic!("{:?}", out.batch.spans) };
    assert_ne!(first.context, second.context);
    assert_eq!((pid(&first.subject), pid(&second.subject)), (7, 9));
    assert_eq!(text(&first.attrs, "observer.tcp.close_reason"), "unseen");
    assert_eq!((first.error, int(&first.attrs, "network.local.port")), (None, 40_000));
    for key in ["network.local.address", "observer.tcp.sent_bytes", "observer.tcp.lingered_ns"] {
        assert_eq!(value(&first.attrs, key), None, "{key} was not seen");
    }
    assert_eq!(text(&second.attrs, "observer.tcp.close_reason"), "local_close");
    assert_eq!(int(&second.attrs, "observer.tcp.sent_bytes"), 10);
    assert_eq!(second.start_unix_ns, 5 * SECOND + WALL_AHEAD);
}

#[test]
fn who_listens_names_the_system_of_a_port_of_this_host() {
    let mut tcp = tcp();
    let mut row = row(1, [127, 0, 0, 1], 7000);
    tick(&mut tcp, 2 * SECOND, &[row], false);
    assert_eq!(tcp.view().connections[0].system, "");
    let mut holder = HolderRow::new_zeroed();
    (holder.comm, holder.local_port, holder.state) = (comm("redis-server"), 7000, state::LISTEN);
    tcp.listener(&holder);
    tick(&mut tcp, 3 * SECOND, &[row], false);
    assert_eq!(tcp.view().connections[0].system, "redis");
    let header = header(Kind::TcpListening, 9, "postgres", SECOND);
    tcp.listening(&Listening { header, port: 7001, reserved: 0 });
    row.socket.peer_port = 7001;
    tick(&mut tcp, 4 * SECOND, &[row], false);
    assert_eq!(tcp.view().connections[0].system, "postgresql");
}

#[test]
fn the_view_is_bounded_and_counts_what_it_does_not_show() {
    let mut tcp = tcp();
    let rows: Vec<_> = (0..5000).map(|key| row(key, REMOTE, 5432)).collect();
    let counters = Counters::from([(Counter::TcpOpened, 5001), (Counter::TcpClosed, 1)]);
    let readings = Readings { sockets: &rows, counters, ..quiet(at(2 * SECOND)) };
    tcp.tick(&readings, &Named::default(), false, &mut Anyone, &mut Output::default());
    let view = tcp.view();
    assert_eq!((view.connections.len(), view.connection_count), (crate::snapshot::MAX_ROWS, 5000));
    assert_eq!((view.endpoints[0].open, view.opened, view.closed), (5000, 5001, 1));
}

#[test]
fn of_many_connections_those_that_wait_and_those_used_last_are_shown() {
    let idle = |number: u64| Connection {
        activity: Activity::Idle,
        activity_ns: number,
        last_receive_ns: Some(number),
        ..Connection::default()
    };
    let mut rows: Vec<_> = (0..6000).map(idle).collect();
    rows[17].activity = Activity::Waiting;
    let view = View::of(rows);
    let shown: Vec<u64> = view.connections.iter().map(|row| row.activity_ns).collect();
    let expect: Vec<u64> = [17]
        .into_iter()
        .chain((2929..6000).rev())
        .chain((0..1025).rev().filter(|n| *n != 17))
        .collect();
    assert_eq!((shown.len(), view.connection_count), (crate::snapshot::MAX_ROWS, 6000));
    assert_eq!(shown, expect);
    assert_eq!((view.endpoints[0].open, view.endpoints[0].last_receive_ns), (6000, Some(0)));
}

proptest! {
    #[test]
    fn no_row_panics_or_makes_a_number_that_is_none(
        bytes in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(2), Just(255), any::<u8>()], size_of::<SocketRow>()),
        state in 0_u32..15,
        hz in prop_oneof![Just(0_u64), Just(1), Just(100), Just(1000)],
        clock: u64,
    ) {
        let mut tcp = tcp();
        let mut row = SocketRow::read_from_bytes(&bytes).unwrap();
        row.state = state;
        for elapsed in 0..3 {
            let mut out = Output::default();
            let now = at((clock >> 2) + elapsed * 61 * SECOND);
            // Whatever it was, it began before it was read.
            row.owned.birth_ktime_ns = row.owned.birth_ktime_ns.min(now.ktime_ns);
            let readings = Readings { sockets: &[row], hz, ..quiet(now) };
            tcp.tick(&readings, &Named::default(), elapsed == 2, &mut Anyone, &mut out);
            tcp.points(0, &mut Anyone, &mut out);
            tcp.closed(&closed(&row, row.now_jiffies, bytes[0]), now, &Named::default(), &mut Anyone, &mut out);
            check_numbers(&out);
            check_view(&tcp.view());
        }
    }
}
