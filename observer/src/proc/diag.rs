//! TCP sockets of this network namespace, as sock_diag(7) tells them over netlink. Needs no privilege.
//!
//! Written here and not taken from a crate: it is one request and one kind of answer of a stable form
//! (include/uapi/linux/inet_diag.h, tcp.h), and a row goes straight from the buffer into ours.

use std::{io, time::Duration};

use anyhow::{Context as _, Result};
use observer_abi::tcp::state;
use rustix::{
    fd::OwnedFd,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
        socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout};

/// The kernel answers at once; should it not, the sampler does not wait for it.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of one answer; the kernel fills up to 32 KiB when it is offered that much.
const BUFFER_BYTES: usize = 32 * 1024;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const INET_DIAG_INFO: u16 = 2;
const IPPROTO_TCP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TIME_WAIT: u32 = 6;

/// Sockets of connections: all states but the last ones of the kernel's own (TIME_WAIT, SYN_RECV) and listening.
pub(super) const OPEN: u32 = 1 << state::ESTABLISHED
    | 1 << state::SYN_SENT
    | 1 << state::FIN_WAIT1
    | 1 << state::FIN_WAIT2
    | 1 << state::CLOSE_WAIT
    | 1 << state::LAST_ACK
    | 1 << state::CLOSING;
/// Sockets that listen.
pub(super) const LISTENING: u32 = 1 << state::LISTEN;

/// `struct nlmsghdr`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// `struct inet_diag_req_v2` behind its header.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Request {
    header: Header,
    family: u8,
    protocol: u8,
    extensions: u8,
    reserved: u8,
    states: u32,
    id: [u32; 12],
}

/// `struct inet_diag_msg`. Ports and addresses are in network order.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Message {
    pub(super) family: u8,
    pub(super) state: u8,
    pub(super) timer: u8,
    pub(super) retransmits: u8,
    pub(super) local_port: [u8; 2],
    pub(super) peer_port: [u8; 2],
    pub(super) local_address: [u8; 16],
    pub(super) peer_address: [u8; 16],
    pub(super) interface: u32,
    /// Id of the socket, never used again.
    pub(super) cookie: [u32; 2],
    pub(super) expires: u32,
    pub(super) unread_bytes: u32,
    pub(super) unacknowledged_bytes: u32,
    pub(super) user: u32,
    pub(super) inode: u32,
}

/// `struct tcp_info`, as far as it is read. Kernels tell more of it from version to version; what one does not tell is zero.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Info {
    pub(super) state: u8,
    pub(super) ca_state: u8,
    pub(super) retransmits: u8,
    pub(super) probes: u8,
    pub(super) backoff: u8,
    pub(super) unused: [u8; 3],
    pub(super) rto_us: u32,
    pub(super) unused_rates: [u32; 3],
    pub(super) packets_out: u32,
    pub(super) unused_counts: [u32; 4],
    pub(super) since_sent_ms: u32,
    pub(super) since_ack_sent_ms: u32,
    pub(super) since_received_ms: u32,
    pub(super) since_acknowledged_ms: u32,
    pub(super) unused_path: [u32; 2],
    pub(super) rtt_us: u32,
    pub(super) unused_window: [u32; 7],
    pub(super) total_retransmits: u32,
    pub(super) unused_pacing: [u64; 2],
    pub(super) bytes_acknowledged: u64,
    pub(super) bytes_received: u64,
    pub(super) segments: [u32; 2],
    pub(super) unsent_bytes: u32,
    pub(super) unused_more: [u32; 3],
    pub(super) unused_limits: [u64; 4],
    pub(super) unused_delivered: [u32; 2],
    pub(super) bytes_sent: u64,
    pub(super) bytes_retransmitted: u64,
    pub(super) unused_order: [u32; 3],
    /// Peer's window; from 5.4 on.
    pub(super) window_bytes: u32,
}

/// Offset of [`Info::window_bytes`]: an answer that is no longer does not tell it.
pub(super) const WINDOW_AT: usize = std::mem::offset_of!(Info, window_bytes);

/// The socket over which the kernel is asked.
#[derive(Debug)]
pub(crate) struct Diag {
    socket: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Diag {
    /// Opens it, and asks once: a kernel may lack the module that answers.
    pub(crate) fn open() -> Result<Self> {
        let kind = SocketType::DGRAM;
        let protocol = Some(netlink::SOCK_DIAG);
        let socket = socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, protocol)
            .context("cannot open a socket to ask for sockets")?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        let mut diag = Self { socket, buffer: vec![0; BUFFER_BYTES], sequence: 0 };
        diag.each(LISTENING, |_, _| {})?;
        Ok(diag)
    }

    /// Hands every TCP socket in these states to `take`, with what `tcp_info` tells and how many bytes it has.
    pub(super) fn each(
        &mut self,
        states: u32,
        mut take: impl FnMut(&Message, Option<(&Info, usize)>),
    ) -> Result<()> {
        for family in [AF_INET, AF_INET6] {
            self.ask(family, states, 1 << (INET_DIAG_INFO - 1))?;
            self.answers(&mut take)?;
        }
        Ok(())
    }

    /// Hands every TCP socket that takes a local port to connect from to `take`: local port, IPv6 address (or mapped) and
    /// port of the peer. TIME_WAIT is among them.
    pub(crate) fn each_bound(&mut self, mut take: impl FnMut(u16, [u8; 16], u16)) -> Result<()> {
        for family in [AF_INET, AF_INET6] {
            self.ask(family, OPEN | 1 << TIME_WAIT, 0)?;
            self.answers(&mut |message, _| {
                let port = u16::from_be_bytes(message.peer_port);
                take(u16::from_be_bytes(message.local_port), mapped(message), port);
            })?;
        }
        Ok(())
    }

    fn ask(&mut self, family: u8, states: u32, extensions: u8) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let header = Header {
            length: size_of::<Request>() as u32,
            kind: SOCK_DIAG_BY_FAMILY,
            flags: NLM_F_REQUEST | NLM_F_DUMP,
            sequence: self.sequence,
            port: 0,
        };
        let (protocol, reserved, id) = (IPPROTO_TCP, 0, [0; 12]);
        let request = Request { header, family, protocol, extensions, reserved, states, id };
        send(&self.socket, request.as_bytes(), SendFlags::empty())
            .context("cannot ask for sockets")?;
        Ok(())
    }

    fn answers(&mut self, take: &mut impl FnMut(&Message, Option<(&Info, usize)>)) -> Result<()> {
        loop {
            let (length, _) = recv(&self.socket, &mut self.buffer[..], RecvFlags::empty())
                .context("cannot read the answer about sockets")?;
            let mut rest = &self.buffer[..length.min(BUFFER_BYTES)];
            while let Some((header, body, behind)) = split(rest) {
                rest = behind;
                match header.kind {
                    // An answer to a question that was given up.
                    _ if header.sequence != self.sequence => {}
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return Err(refusal(body).into()),
                    SOCK_DIAG_BY_FAMILY => {
                        message(body, take);
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Peer of a socket; IPv4 mapped into IPv6.
fn mapped(message: &Message) -> [u8; 16] {
    if message.family != AF_INET {
        return message.peer_address;
    }
    let [a, b, c, d, ..] = message.peer_address;
    std::net::Ipv4Addr::new(a, b, c, d).to_ipv6_mapped().octets()
}

/// First message of a buffer, and what is behind it.
fn split(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let (header, _) = Header::read_from_prefix(bytes).ok()?;
    let length = usize::try_from(header.length).ok()?;
    let body = bytes.get(size_of::<Header>()..length)?;
    Some((header, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The error that the kernel answers with: its number, negated.
fn refusal(body: &[u8]) -> io::Error {
    let code = i32::read_from_prefix(body).map_or(0, |(code, _)| code);
    io::Error::from_raw_os_error(code.saturating_neg())
}

fn message(body: &[u8], take: &mut impl FnMut(&Message, Option<(&Info, usize)>)) -> Option<()> {
    let (message, mut attributes) = Message::read_from_prefix(body).ok()?;
    let mut info = None;
    while let Some((kind, value, behind)) = attribute(attributes) {
        attributes = behind;
        if kind == INET_DIAG_INFO {
            let mut told = Info::new_zeroed();
            let length = value.len().min(size_of::<Info>());
            told.as_mut_bytes()[..length].copy_from_slice(&value[..length]);
            info = Some((told, value.len()));
        }
    }
    take(&message, info.as_ref().map(|(info, length)| (info, *length)));
    Some(())
}

/// First `struct rtattr` of a buffer, and what is behind it.
fn attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let ([length, kind], _) = <[u16; 2]>::read_from_prefix(bytes).ok()?;
    let value = bytes.get(4..usize::from(length))?;
    let behind = bytes.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
    Some((kind, value, behind))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        net::{TcpListener, TcpStream},
        os::fd::AsRawFd as _,
    };

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_form_is_the_kernels() {
        assert_eq!(size_of::<Request>(), 72);
        assert_eq!(size_of::<Message>(), 72);
        assert_eq!(WINDOW_AT, 228);
        assert_eq!(std::mem::offset_of!(Info, bytes_sent), 200);
        assert_eq!(std::mem::offset_of!(Info, total_retransmits), 100);
        assert_eq!(std::mem::offset_of!(Info, unsent_bytes), 144);
    }

    #[test]
    fn a_connection_of_ours_is_told_with_its_bytes() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                assert!(address.contains("::1"), "loopback has an address");
                continue;
            };
            let port = listener.local_addr().unwrap().port().to_be_bytes();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(b"12345").unwrap();
            let (_server, _) = listener.accept().unwrap();
            let link = std::fs::read_link(format!("/proc/self/fd/{}", client.as_raw_fd())).unwrap();
            let mut diag = Diag::open().unwrap();
            let (mut clients, mut servers, mut listening) = (Vec::new(), Vec::new(), 0);
            diag.each(OPEN, |message, info| {
                let (info, length) = info.unwrap();
                assert!(length > WINDOW_AT);
                match port {
                    port if port == message.peer_port => clients.push((*message, *info)),
                    port if port == message.local_port => servers.push((*message, *info)),
                    _ => {}
                }
            })
            .unwrap();
            diag.each(LISTENING, |message, _| listening += u32::from(message.local_port == port))
                .unwrap();
            let [(message, info)] = clients.as_slice() else { panic!("{clients:?}") };
            assert_eq!(link.to_str().unwrap(), format!("socket:[{}]", message.inode));
            assert_eq!(
                (info.bytes_sent, info.bytes_received, u32::from(message.state)),
                (5, 0, state::ESTABLISHED)
            );
            assert!(
                info.window_bytes > 0 && info.rto_us > 0 && info.since_sent_ms < 60_000,
                "{info:?}"
            );
            let [(message, info)] = servers.as_slice() else { panic!("{servers:?}") };
            assert_eq!((info.bytes_received, message.unread_bytes, listening), (5, 5, 1));
        }
    }

    #[test]
    fn a_refusal_is_an_error() {
        assert_eq!(refusal(&(-2_i32).to_ne_bytes()).raw_os_error(), Some(2));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut rest = &bytes[..];
            while let Some((_, body, behind)) = split(rest) {
                prop_assert!(behind.len() < rest.len());
                rest = behind;
                message(body, &mut |_, _| {});
            }
            message(&bytes, &mut |_, _| {});
        }
    }
}
