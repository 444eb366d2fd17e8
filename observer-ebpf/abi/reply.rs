//! Ends of a database's replies, as they come by in packets: what they say of the session's transaction.
//!
//! PostgreSQL ends each reply with ReadyForQuery: `Z`, the length 5, and the state of the transaction (PostgreSQL
//! documentation, 55.7 Message Formats). So the last six bytes of the last segment tell it, and no reply needs to be followed
//! from its beginning. What is encrypted ends in other bytes: by chance in these once in 10^14 segments.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Connections whose last reply is kept: as many as a snapshot shows. The one that was quiet longest makes room, and its
/// transaction is unknown from then on.
pub const MAX_REPLIES: u32 = 4096;

/// [`Reply::status`]: the last bytes that came are no end of a reply, or none that can be read.
pub const UNKNOWN: u32 = 0;
/// [`Reply::status`]: not in a transaction.
pub const IDLE: u32 = b'I' as u32;
/// [`Reply::status`]: in a transaction.
pub const OPEN: u32 = b'T' as u32;
/// [`Reply::status`]: in a transaction that has failed, which waits for its ROLLBACK.
pub const FAILED: u32 = b'E' as u32;

/// Length of ReadyForQuery.
const READY_BYTES: u32 = 6;

const TCP: u32 = 6;
/// The SYN bit, at its place in the fourth word of a TCP header (RFC 9293, 3.1).
const SYN: u32 = 1 << 17;
const IPV4_BYTES: u32 = 20;
const IPV6_BYTES: u32 = 40;

/// The two ends of a connection; addresses are IPv6 or mapped into it (RFC 4291, 2.5.5.2).
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Ends {
    /// The database's address.
    pub server_address: [u8; 16],
    /// The client's address.
    pub client_address: [u8; 16],
    /// The database's port, host order.
    pub server_port: u16,
    /// The client's port, host order.
    pub client_port: u16,
    /// Reserved, zero.
    pub reserved: u32,
}

/// The last that is known of the replies on a connection.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Reply {
    /// When the first reply of the present transaction came by, jiffies; 0 if there is none.
    pub opened_jiffies: u64,
    /// Sequence number of the byte behind the last one that came by.
    pub next_sequence: u32,
    /// [`UNKNOWN`], [`IDLE`], [`OPEN`] or [`FAILED`].
    pub status: u32,
}

/// What one segment from a database tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Of which connection.
    pub ends: Ends,
    /// Sequence number of the byte behind it.
    pub next_sequence: u32,
    /// Whether a connection begins with it.
    pub is_first: bool,
    /// As [`Reply::status`].
    pub status: u32,
}

/// A packet from its IP header on.
pub trait Packet {
    /// What stands at an offset; `None` beyond the end.
    fn load<T: FromBytes + Copy>(&self, at: u32) -> Option<T>;
    /// Its length. An Ethernet frame's padding may be counted, too.
    fn bytes(&self) -> u32;
}

impl Reply {
    /// What is known after the first segment that came by.
    #[inline(always)]
    pub fn begin(segment: &Segment, now_jiffies: u64) -> Self {
        let mut reply = Self { next_sequence: segment.next_sequence, ..Self::default() };
        reply.set(segment.status, now_jiffies);
        reply
    }

    /// Takes a further segment. One that repeats what came by is passed over.
    #[inline(always)]
    pub fn follow(&mut self, segment: &Segment, now_jiffies: u64) {
        if segment.is_first {
            *self = Self::begin(segment, now_jiffies);
            return;
        }
        let ahead = segment.next_sequence.wrapping_sub(self.next_sequence).cast_signed();
        if ahead > 0 {
            self.next_sequence = segment.next_sequence;
            self.set(segment.status, now_jiffies);
        }
    }

    #[inline(always)]
    fn set(&mut self, status: u32, now_jiffies: u64) {
        self.status = status;
        match status {
            IDLE => self.opened_jiffies = 0,
            // In the midst of a reply, the transaction goes on as far as is known.
            OPEN | FAILED if self.opened_jiffies == 0 => self.opened_jiffies = now_jiffies,
            _ => {}
        }
    }
}

/// Reads a packet; `None` if it is no TCP segment with data, or a SYN, from a port that `is_server` knows. Passes over
/// fragments, and over IP headers with options.
#[inline(always)]
pub fn segment(
    packet: &impl Packet,
    is_ipv4: bool,
    is_server: impl Fn(u16) -> bool,
) -> Option<Segment> {
    let (ends, tcp_at, stated) = if is_ipv4 { ipv4(packet)? } else { ipv6(packet)? };
    if !is_server(ends.server_port) {
        return None;
    }
    // Sequence number, acknowledged number, header length with flags.
    let [sequence, _, flags]: [u32; 3] = packet.load(tcp_at + 4)?;
    let (sequence, flags) = (u32::from_be(sequence), u32::from_be(flags));
    let is_first = flags & SYN != 0;
    // Segments that were put together may be longer than a header can state, which is then 0.
    let end = if stated == 0 { packet.bytes() } else { stated };
    let payload = end.checked_sub(tcp_at + (flags >> 28) * 4)?;
    if payload == 0 && !is_first {
        return None;
    }
    let status = if payload < READY_BYTES {
        UNKNOWN
    } else {
        packet.load(end - READY_BYTES).map_or(UNKNOWN, status)
    };
    let next_sequence = sequence.wrapping_add(payload).wrapping_add(u32::from(is_first));
    Some(Segment { ends, next_sequence, is_first, status })
}

/// The last bytes of a segment as [`Reply::status`].
#[inline(always)]
fn status([kind, a, b, c, length, status]: [u8; READY_BYTES as usize]) -> u32 {
    let status = u32::from(status);
    match (kind, a | b | c, length, status) {
        (b'Z', 0, 5, IDLE | OPEN | FAILED) => status,
        _ => UNKNOWN,
    }
}

/// Ends, offset of the TCP header, and length as the header states it.
#[inline(always)]
fn ipv4(packet: &impl Packet) -> Option<(Ends, u32, u32)> {
    /// Version 4, a header of five words.
    const PLAIN: u32 = 0x45;
    /// More fragments, or an offset.
    const FRAGMENT: u32 = 0x3fff;
    let [first, fragment, protocol, source, destination, ports]: [u32; 6] = packet.load(0)?;
    let first = u32::from_be(first);
    let is_tcp = u32::from_be(protocol) >> 16 & 0xff == TCP;
    if first >> 24 != PLAIN || !is_tcp || u32::from_be(fragment) & FRAGMENT != 0 {
        return None;
    }
    let mapped = |address| address_of([0, 0, 0xffff_u32.to_be(), address]);
    Some((ends(mapped(source), mapped(destination), ports), IPV4_BYTES, first & 0xffff))
}

/// Likewise.
#[inline(always)]
fn ipv6(packet: &impl Packet) -> Option<(Ends, u32, u32)> {
    let words: [u32; 11] = packet.load(0)?;
    let second = u32::from_be(words[1]);
    if u32::from_be(words[0]) >> 28 != 6 || second >> 8 & 0xff != TCP {
        return None;
    }
    let source = address_of([words[2], words[3], words[4], words[5]]);
    let destination = address_of([words[6], words[7], words[8], words[9]]);
    let stated = match second >> 16 {
        0 => 0,
        payload => IPV6_BYTES + payload,
    };
    Some((ends(source, destination, words[10]), IPV6_BYTES, stated))
}

#[inline(always)]
fn ends(server_address: [u8; 16], client_address: [u8; 16], ports: u32) -> Ends {
    let ports = u32::from_be(ports);
    let (server_port, client_port) = ((ports >> 16) as u16, ports as u16);
    Ends { server_address, client_address, server_port, client_port, reserved: 0 }
}

/// An address from words as they stand in a packet.
#[inline(always)]
fn address_of(words: [u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&words[0].to_ne_bytes());
    bytes[4..8].copy_from_slice(&words[1].to_ne_bytes());
    bytes[8..12].copy_from_slice(&words[2].to_ne_bytes());
    bytes[12..].copy_from_slice(&words[3].to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    const PORT: u16 = 5432;
    const CLIENT: u16 = 40_000;

    struct Bytes(Vec<u8>);

    impl Packet for Bytes {
        fn load<T: FromBytes + Copy>(&self, at: u32) -> Option<T> {
            let rest = self.0.get(usize::try_from(at).ok()?..)?;
            T::read_from_prefix(rest).ok().map(|(value, _)| value)
        }

        fn bytes(&self) -> u32 {
            u32::try_from(self.0.len()).unwrap()
        }
    }

    fn tcp(flags: u8, sequence: u32, options: usize, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(PORT.to_be_bytes());
        bytes.extend(CLIENT.to_be_bytes());
        bytes.extend(sequence.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([u8::try_from((5 + options) << 4).unwrap(), flags]);
        bytes.extend(vec![0; 6 + options * 4]);
        bytes.extend(payload);
        bytes
    }

    fn v4(segment: &[u8]) -> Bytes {
        let mut bytes = vec![0x45, 0];
        bytes.extend(u16::try_from(20 + segment.len()).unwrap().to_be_bytes());
        // Do not fragment; TCP.
        bytes.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
        bytes.extend([10, 0, 0, 9, 10, 0, 0, 1]);
        bytes.extend(segment);
        Bytes(bytes)
    }

    fn v6(segment: &[u8]) -> Bytes {
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend(u16::try_from(segment.len()).unwrap().to_be_bytes());
        bytes.extend([6, 64]);
        bytes.extend([[0xfd; 16], [0xfe; 16]].concat());
        bytes.extend(segment);
        Bytes(bytes)
    }

    fn read(packet: &Bytes) -> Option<Segment> {
        segment(packet, packet.0[0] >> 4 == 4, |port| port == PORT)
    }

    fn ready(status: u8) -> [u8; 6] {
        [b'Z', 0, 0, 0, 5, status]
    }

    #[track_caller]
    fn check(payload: &[u8], expect: u32) {
        for packet in [v4(&tcp(0x18, 7, 3, payload)), v6(&tcp(0x18, 7, 0, payload))] {
            let seen = read(&packet).expect("a segment");
            assert_eq!((seen.status, seen.is_first), (expect, false), "{payload:?}");
            assert_eq!(seen.next_sequence, 7 + u32::try_from(payload.len()).unwrap());
            assert_eq!((seen.ends.server_port, seen.ends.client_port), (PORT, CLIENT));
        }
    }

    #[test]
    fn the_end_of_a_reply_tells_the_transaction() {
        check(&ready(b'I'), IDLE);
        check(&[b"C\0\0\0\x0bSELECT\0".as_slice(), &ready(b'T')].concat(), OPEN);
        check(&ready(b'E'), FAILED);
        check(&ready(b'X'), UNKNOWN);
        check(&ready(b'T')[1..], UNKNOWN);
        check(&[&ready(b'T')[..], b"A"].concat(), UNKNOWN);
        // The end of a TLS record (RFC 8446, 5.2) of the same length.
        check(&[0x17, 3, 3, 0, 5, 0x9c, 1, 2, 3, 4], UNKNOWN);
        // A row that ends in these bytes, with a length that is not theirs.
        check(&[b'Z', 0, 0, 1, 5, b'T'], UNKNOWN);
    }

    #[test]
    fn addresses_are_read_as_the_agent_has_them() {
        let ends = read(&v4(&tcp(0x18, 0, 0, b"x"))).unwrap().ends;
        assert_eq!(ends.server_address[10..], [0xff, 0xff, 10, 0, 0, 9]);
        assert_eq!(ends.client_address[10..], [0xff, 0xff, 10, 0, 0, 1]);
        assert_eq!(ends.server_address[..10], [0; 10]);
        let ends = read(&v6(&tcp(0x18, 0, 0, b"x"))).unwrap().ends;
        assert_eq!((ends.server_address, ends.client_address), ([0xfd; 16], [0xfe; 16]));
    }

    #[test]
    fn what_says_nothing_of_a_reply_is_passed_over() {
        let reply = tcp(0x18, 0, 0, &ready(b'T'));
        let changed = |at: usize, byte: u8| {
            let mut packet = v4(&reply);
            packet.0[at] = byte;
            read(&packet)
        };
        assert!(changed(0, 0x45).is_some());
        assert_eq!(changed(0, 0x46), None, "an IP header with options");
        assert_eq!(changed(6, 0x20), None, "the first of several fragments");
        assert_eq!(changed(7, 1), None, "a later fragment");
        assert_eq!(changed(9, 17), None, "UDP");
        assert_eq!(changed(20, 9), None, "another port");
        assert_eq!(changed(32, 0xf0), None, "a header longer than the packet");
        assert_eq!(read(&v4(&tcp(0x10, 0, 0, b""))), None, "a bare acknowledgement");
        assert_eq!(read(&Bytes(vec![0x45; 10])), None);
    }

    #[test]
    fn padding_of_short_frames_is_no_payload() {
        let mut packet = v4(&tcp(0x18, 0, 0, b"x"));
        packet.0.extend(ready(b'T'));
        assert_eq!(read(&packet).unwrap().status, UNKNOWN);
        // More than a header can state.
        packet.0[2..4].fill(0);
        assert_eq!(read(&packet).unwrap().status, OPEN);
    }

    #[test]
    fn a_transaction_is_open_from_its_first_reply_to_the_end() {
        let at = |next_sequence, status| Segment {
            ends: Ends::default(),
            next_sequence,
            is_first: false,
            status,
        };
        let mut reply = Reply::begin(&at(u32::MAX - 5, IDLE), 10);
        let mut check = |segment: Segment, jiffies, expect: (u32, u64)| {
            reply.follow(&segment, jiffies);
            assert_eq!((reply.status, reply.opened_jiffies), expect, "{segment:?}");
        };
        check(at(3, OPEN), 20, (OPEN, 20));
        check(at(9, UNKNOWN), 30, (UNKNOWN, 20));
        check(at(20, FAILED), 40, (FAILED, 20));
        // Repeated.
        check(at(3, OPEN), 50, (FAILED, 20));
        check(at(20, UNKNOWN), 50, (FAILED, 20));
        check(at(30, IDLE), 60, (IDLE, 0));
        // The same ends again, another connection.
        check(Segment { is_first: true, ..at(5, UNKNOWN) }, 70, (UNKNOWN, 0));
        check(at(6, OPEN), 80, (OPEN, 80));
    }

    proptest! {
        #[test]
        fn no_packet_stops_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..128), at in any::<[prop::sample::Index; 2]>()) {
            let mut packet = Bytes(bytes);
            for is_ipv4 in [true, false] {
                segment(&packet, is_ipv4, |_| true);
            }
            // One that gets further.
            if packet.0.len() >= 60 {
                let whole = packet.0.len();
                (packet.0[0], packet.0[6], packet.0[7], packet.0[9]) = (0x45, 0, 0, 6);
                (packet.0[2], packet.0[3]) = (at[0].index(2) as u8, at[1].index(256) as u8);
                if let Some(seen) = segment(&packet, true, |_| true) {
                    prop_assert!([UNKNOWN, IDLE, OPEN, FAILED].contains(&seen.status));
                    prop_assert!(whole >= 32);
                }
            }
        }

        #[test]
        fn the_last_whole_reply_counts(
            statuses in prop::collection::vec(prop::sample::select(vec![b'I', b'T', b'E']), 1..5),
            before in prop::collection::vec(any::<u8>(), 0..40),
            sequence in any::<u32>(),
        ) {
            let payload: Vec<u8> = statuses.iter().fold(before, |mut all, status| {
                all.extend(ready(*status));
                all
            });
            let seen = read(&v4(&tcp(0x18, sequence, 2, &payload))).unwrap();
            prop_assert_eq!(seen.status, u32::from(*statuses.last().unwrap()));
            prop_assert_eq!(seen.next_sequence, sequence.wrapping_add(u32::try_from(payload.len()).unwrap()));
        }
    }
}
