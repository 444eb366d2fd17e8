//! A real connection through its life, and the rules that only a made answer shows.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream},
};

use super::*;

const HZ: u64 = 250;

fn at(seconds: u64) -> Now {
    Now { ktime_ns: seconds * 1_000_000_000, unix_ns: seconds * 1_000_000_000 }
}

fn read(sockets: &mut Sockets, seconds: u64) -> (Vec<SocketRow>, Vec<Closed>) {
    let (mut rows, mut closed) = (Vec::new(), Vec::new());
    sockets.read(at(seconds), &mut rows, &mut closed).unwrap();
    (rows, closed)
}

#[test]
fn a_connection_is_followed_from_its_first_reading_to_its_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut old = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let mut sockets = Sockets::open(&[port], HZ).unwrap();
    let (rows, _) = read(&mut sockets, 1);
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((row.owned.preexisting, row.owned.role, row.owned.tgid), (1, CLIENT, 0));
    assert_eq!(
        Ipv6Addr::from(row.socket.peer_address).to_canonical(),
        IpAddr::from([127, 0, 0, 1])
    );
    old.write_all(b"question").unwrap();
    server.read_exact(&mut [0; 8]).unwrap();
    server.write_all(b"answer!").unwrap();
    let new = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (rows, closed) = read(&mut sockets, 2);
    assert!(rows.len() == 2 && closed.is_empty(), "{rows:?}");
    let row = rows.iter().find(|row| row.owned.preexisting == 1).unwrap();
    assert_eq!((row.socket.sent_bytes, row.socket.received_bytes, row.unread_bytes), (8, 7, 7));
    assert_eq!((sockets.counts(), row.state), ((1, 0, 0), state::ESTABLISHED));

    let wanted = sockets.wanted().unwrap();
    let look = super::super::holders::look(wanted, &BTreeSet::new()).unwrap();
    sockets.own(&look.found);
    let listens = |row: &&HolderRow| row.state == state::LISTEN && row.local_port == port;
    assert_eq!(look.found.iter().find(listens).unwrap().tgid, std::process::id());
    let mut rows = Vec::new();
    sockets.rows(&mut rows);
    assert!(rows.iter().all(|row| row.owned.tgid == std::process::id()), "{rows:?}");

    let row = rows.iter().find(|row| row.owned.preexisting == 0).unwrap();
    let told = Some((row.key, row.owned.birth_ktime_ns));
    let between = Socket { sent_bytes: 0, ..row.socket };
    assert_eq!(
        (sockets.told_as(&between), sockets.told_as(&between)),
        (told, None),
        "it ends once"
    );

    drop(server);
    old.read_exact(&mut [0; 7]).unwrap();
    assert_eq!(old.read(&mut [0]).unwrap(), 0, "the peer's FIN is here");
    let (rows, _) = read(&mut sockets, 3);
    let row = rows.iter().find(|row| row.owned.preexisting == 1).unwrap();
    assert_eq!((row.state, row.socket.received_bytes, row.unread_bytes), (state::CLOSE_WAIT, 7, 0));
    drop((old, new, listener));
    let (rows, closed) = read(&mut sockets, 4);
    assert!(rows.iter().all(|row| row.state != state::ESTABLISHED), "{rows:?}");
    let end = closed.iter().find(|end| end.owned.preexisting == 1).unwrap();
    assert_eq!((end.owned.closer, end.header.tgid), (PEER, std::process::id()));
    assert_eq!((end.socket.sent_bytes, end.header.ktime_ns), (8, 4_000_000_000));
}

#[test]
fn other_connections_are_left_alone() {
    let check = |local: (&str, u16), peer: (&str, u16), expect: Option<u8>| {
        let bytes = |address: &str| match address.parse().unwrap() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let socket = Socket {
            local_address: bytes(local.0),
            peer_address: bytes(peer.0),
            local_port: local.1,
            peer_port: peer.1,
            ..Socket::default()
        };
        let peers = BTreeSet::from([bytes("10.0.0.7")]);
        assert_eq!(role(&socket, &BTreeSet::from([5432]), &peers), expect, "{local:?} {peer:?}");
    };
    check(("10.0.0.1", 40000), ("10.0.0.2", 5432), Some(CLIENT));
    check(("10.0.0.1", 40000), ("10.0.0.7", 9), Some(CLIENT));
    check(("10.0.0.1", 5432), ("10.0.0.2", 40000), Some(SERVER));
    check(("127.0.0.1", 5432), ("127.0.0.1", 40000), None);
    check(("10.0.0.1", 5432), ("10.0.0.1", 40000), None);
    check(("::1", 5432), ("::1", 40000), None);
    check(("10.0.0.1", 40000), ("10.0.0.2", 443), None);
}

#[test]
fn a_question_right_after_an_answer_is_told_by_its_late_acknowledgement() {
    let check = |sent, acknowledged, expect| {
        let info =
            Info { since_sent_ms: sent, since_acknowledged_ms: acknowledged, ..Info::new_zeroed() };
        assert_eq!(asked_last(&info), expect, "{sent} {acknowledged}");
    };
    check(2000, 1960, true);
    check(2000, 2000, false);
    check(2000, 2100, false);
    check(2000, 100, false);
}

#[test]
fn how_the_end_is_known() {
    let check = |state, expect| {
        let row = SocketRow { state, ..SocketRow::new_zeroed() };
        assert_eq!(end(&row, at(1)).owned.closer, expect, "{state}");
    };
    check(state::ESTABLISHED, UNSEEN);
    check(state::SYN_SENT, UNSEEN);
    check(state::FIN_WAIT2, LOCAL);
    check(state::LAST_ACK, PEER);
}
