//! Answers put together by hand.

use proptest::prelude::*;

use super::*;

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
/// The question's name is at the end of the header.
const ASKED: &[u8] = &[0xC0, 12];

fn wire(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut bytes: Vec<u8> = labels
        .flat_map(|label| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat())
        .collect();
    bytes.push(0);
    bytes
}

fn record(owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap();
    [owner, &kind.to_be_bytes(), &[0, 1], &ttl.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

fn packet(flags: u16, question: &str, records: &[Vec<u8>]) -> Vec<u8> {
    let count = u16::try_from(records.len()).unwrap();
    let header =
        [&[0x12, 0x34], &flags.to_be_bytes()[..], &[0, 1], &count.to_be_bytes(), &[0, 0, 0, 0]]
            .concat();
    [header, wire(question), vec![0, 1, 0, 1], records.concat()].concat()
}

#[track_caller]
fn check(packet: &[u8], expected: &[(&str, &str, u32, Option<&str>)]) {
    let found = parse_answer(packet);
    let found: Vec<_> = found
        .iter()
        .map(|a| (&*a.name, a.address.to_string(), a.ttl_seconds, a.database))
        .collect();
    let expected: Vec<_> = expected
        .iter()
        .map(|&(name, ip, ttl, database)| (name, ip.to_owned(), ttl, database))
        .collect();
    assert_eq!(found, expected);
}

const OK: u16 = 0x8180;

#[test]
fn addresses() {
    let v6 = "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets();
    let records = [
        record(ASKED, A, 60, &[192, 0, 2, 1]),
        record(&wire("Example.ORG"), AAAA, 61, &v6),
        record(ASKED, 16, 9, b"\x01x"),
    ];
    check(
        &packet(OK, "eXample.org", &records),
        &[("example.org", "192.0.2.1", 60, None), ("example.org", "2001:db8::1", 61, None)],
    );
}

#[test]
fn chains_of_aliases() {
    let rds = "shop.c9akciq32.eu-central-1.rds.amazonaws.com";
    let host = "ec2-192-0-2-7.eu-central-1.compute.amazonaws.com";
    let first = record(ASKED, CNAME, 300, &wire(rds));
    let second = record(&wire(rds), CNAME, 5, &wire(host));
    let address = record(&wire(host), A, 20, &[192, 0, 2, 7]);
    let stray = record(&wire("other.example.org"), A, 20, &[192, 0, 2, 9]);
    let expected = [("db.internal", "192.0.2.7", 5, Some("other_sql"))];
    check(
        &packet(
            OK,
            "db.internal",
            &[first.clone(), second.clone(), address.clone(), stray.clone()],
        ),
        &expected,
    );
    check(&packet(OK, "db.internal", &[stray, address, second, first]), &expected);
}

#[test]
fn loops_end() {
    let there = record(ASKED, CNAME, 300, &wire("b"));
    let back = record(&wire("b"), CNAME, 300, &wire("a"));
    let address = record(&wire("b"), A, 7, &[192, 0, 2, 7]);
    check(&packet(OK, "a", &[there, back, address]), &[("a", "192.0.2.7", 7, None)]);
    check(&packet(OK, "a", &[record(ASKED, CNAME, 1, ASKED)]), &[]);

    // Pointers: to themselves, to one another, forward, out of the packet.
    let question_at = u8::try_from(HEADER).unwrap();
    for pointer in [[0xC0, question_at], [0xC0, question_at + 2], [0xC0, 200], [0xFF, 0xFF]] {
        let mut looping = packet(OK, "", &[]);
        looping.truncate(HEADER);
        looping.extend(pointer);
        looping.extend([0xC0, question_at, 0, 1, 0, 1]);
        check(&looping, &[]);
    }
}

#[test]
fn what_is_no_answer() {
    let records = [record(ASKED, A, 60, &[192, 0, 2, 1])];
    for flags in [0x0100, 0x8183, 0x8182, 0xA000] {
        check(&packet(flags, "example.org", &records), &[]);
    }
    check(&[], &[]);
    check(&[0; 11], &[]);
    check(&packet(OK, "example.org", &[]), &[]);
    let mut no_question = packet(OK, "example.org", &records);
    no_question[5] = 0;
    check(&no_question, &[]);
}

#[test]
fn odd_records() {
    let one = [("example.org", "192.0.2.1", 60, None)];
    let good = record(ASKED, A, 60, &[192, 0, 2, 1]);
    check(&packet(OK, "example.org", &[record(ASKED, A, 1, &[1, 2, 3]), good.clone()]), &one);
    check(&packet(OK, "example.org", &[record(ASKED, AAAA, 1, &[1, 2, 3, 4]), good.clone()]), &one);
    check(
        &packet(OK, "example.org", &[record(ASKED, A, 0x8000_0001, &[192, 0, 2, 1])]),
        &[("example.org", "192.0.2.1", 0, None)],
    );
    let mut chaos = good.clone();
    chaos[5] = 3;
    check(&packet(OK, "example.org", &[chaos, good.clone()]), &one);
    // Cut: by the server (TC), by the capture.
    check(&packet(0x8380, "example.org", std::slice::from_ref(&good)), &one);
    let cut = packet(OK, "example.org", &[good.clone(), good]);
    check(&cut[..cut.len() - 1], &one);
}

#[test]
fn names_that_would_deceive() {
    let mut deceiving = packet(OK, "aXrdsXamazonawsXcom", &[record(ASKED, A, 60, &[192, 0, 2, 1])]);
    for byte in &mut deceiving {
        *byte = if *byte == b'X' { b'.' } else { *byte };
    }
    check(&deceiving, &[("a?rds?amazonaws?com", "192.0.2.1", 60, None)]);
    check(
        &packet(OK, "a\x1b[2J", &[record(ASKED, A, 60, &[192, 0, 2, 1])]),
        &[("a?[2j", "192.0.2.1", 60, None)],
    );
    let long = vec!["a".repeat(63); 5].join(".");
    check(&packet(OK, &long, &[record(ASKED, A, 60, &[192, 0, 2, 1])]), &[]);
}

#[test]
fn bounded() {
    let many = vec![record(ASKED, A, 60, &[192, 0, 2, 1]); MAX_RECORDS + 1];
    assert_eq!(parse_answer(&packet(OK, "example.org", &many)).len(), MAX_RECORDS);
}

proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), records in proptest::collection::vec(any::<u8>(), 0..120)) {
        parse_answer(&bytes);
        let header = [0, 0, 0x81, 0x80, 0, 1, 0, 9, 0, 0, 0, 0];
        parse_answer(&[&header[..], &bytes].concat());
        parse_answer(&[packet(OK, "a.b", &[]), records].concat().iter().enumerate().map(|(i, &b)| if i == 7 { 9 } else { b }).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_changed_does_not_panic(at in 0_usize..200, byte in any::<u8>()) {
        let alias = record(ASKED, CNAME, 300, &wire("x.rds.amazonaws.com"));
        let mut answer = packet(OK, "db.internal", &[alias, record(&[0xC0, 41], A, 7, &[192, 0, 2, 7])]);
        let at = at % answer.len();
        answer[at] = byte;
        prop_assert!(parse_answer(&answer).len() <= 1);
    }
}
