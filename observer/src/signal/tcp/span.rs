//! Spans of connections: one for the whole life when it ends, and segments of it while it lasts.

use std::net::IpAddr;

use observer_abi::tcp::{
    CLIENT, Closed, LOCAL, NOT_READ, OPEN, OWNER_EXIT, Owned, PEER, Socket, UNSEEN,
};

use super::endpoint::address;
use crate::{
    signal::span_context,
    telemetry::{Attr, Span, SpanContext, Subject, attr},
};

/// Both ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// This side.
    pub local: (IpAddr, u16),
    /// The other side.
    pub peer: (IpAddr, u16),
}

impl Ends {
    /// Of a socket.
    pub fn of(socket: &Socket) -> Self {
        Self {
            local: (address(socket.local_address), socket.local_port),
            peer: (address(socket.peer_address), socket.peer_port),
        }
    }

    /// Whether both ends are on this host, so that the connection is seen twice.
    pub fn are_here(&self) -> bool {
        self.peer.0.is_loopback() || self.peer.0 == self.local.0
    }
}

/// Ids of the span of a connection's whole life.
pub fn root(key: u64, birth_ktime_ns: u64) -> SpanContext {
    span_context([key, birth_ktime_ns], 0)
}

/// Why and with which error a connection ended.
pub fn close_reason(record: &Closed) -> (&'static str, Option<&'static str>) {
    const UNKNOWN: i32 = NOT_READ as i32;
    let error = i32::from(record.socket.error);
    if record.owned.closer == UNSEEN {
        return ("unseen", None);
    }
    if record.owned.was_established == 0 {
        return match error {
            libc::ECONNREFUSED => ("refused", Some("ECONNREFUSED")),
            libc::ETIMEDOUT => ("timeout", Some("ETIMEDOUT")),
            libc::EHOSTUNREACH | libc::ENETUNREACH => ("unreachable", Some("EHOSTUNREACH")),
            0 => ("aborted", Some("ECONNABORTED")),
            _ => ("connect_failed", Some("_OTHER")),
        };
    }
    match (record.owned.closer, error) {
        (_, libc::ETIMEDOUT) => ("timeout", Some("ETIMEDOUT")),
        (LOCAL, _) => ("local_close", None),
        (OWNER_EXIT, _) => ("owner_exit", None),
        (OPEN, 0) => ("reset_by_local", Some("ECONNABORTED")),
        (PEER, 0 | UNKNOWN) => ("peer_close", None),
        (_, libc::ECONNRESET | libc::EPIPE) => ("reset_by_peer", Some("ECONNRESET")),
        _ => ("error", Some("_OTHER")),
    }
}

/// Attributes that every span of a connection carries.
pub fn attrs(owned: &Owned, ends: &Ends, system: &str, peer_name: &str) -> Vec<Attr> {
    let network = if ends.peer.0.is_ipv4() { "ipv4" } else { "ipv6" };
    let role = if owned.role == CLIENT { "client" } else { "server" };
    let mut attrs = vec![
        attr("network.peer.address", ends.peer.0.to_string()),
        attr("network.peer.port", ends.peer.1),
        attr("network.local.port", ends.local.1),
        attr("network.transport", "tcp"),
        attr("network.type", network),
        attr("observer.tcp.role", role),
    ];
    // Of one that was found to be gone, the program has only what tells it from others.
    if !ends.local.0.is_unspecified() {
        attrs.push(attr("network.local.address", ends.local.0.to_string()));
    }
    if owned.tgid != 0 {
        attrs.push(attr("process.pid", owned.tgid));
    }
    if !system.is_empty() {
        attrs.push(attr("db.system.name", system.to_owned()));
    }
    if !peer_name.is_empty() {
        attrs.push(attr("server.address", peer_name.to_owned()));
    }
    if owned.preexisting != 0 {
        attrs.push(attr("observer.tcp.preexisting", true));
    }
    attrs
}

/// A socket whose counters tell what has been since an earlier reading.
pub fn since(socket: &Socket, before: &Socket) -> Socket {
    Socket {
        sent_bytes: socket.sent_bytes.saturating_sub(before.sent_bytes),
        received_bytes: socket.received_bytes.saturating_sub(before.received_bytes),
        retransmits: socket.retransmits.saturating_sub(before.retransmits),
        ..*socket
    }
}

/// Attributes that count what went over a connection.
pub fn counts(socket: &Socket) -> Vec<Attr> {
    if socket.error == NOT_READ {
        return Vec::new();
    }
    vec![
        attr("observer.tcp.sent_bytes", socket.sent_bytes),
        attr("observer.tcp.received_bytes", socket.received_bytes),
        attr("observer.tcp.retransmits", socket.retransmits),
        attr("observer.tcp.srtt_ns", u64::from(socket.srtt_us) * 1000),
    ]
}

/// A span of a connection.
pub fn span(context: SpanContext, times: (u64, u64), attrs: Vec<Attr>, subject: Subject) -> Span {
    Span {
        name: "tcp connection",
        context,
        parent_span_id: None,
        links: Vec::new(),
        start_unix_ns: times.0,
        end_unix_ns: times.1.max(times.0),
        error: None,
        attrs,
        subject,
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    fn check(was_established: u8, closer: u8, error: i32, expect: (&str, Option<&str>)) {
        let mut record = Closed::new_zeroed();
        record.owned.was_established = was_established;
        record.owned.closer = closer;
        record.socket.error = error as u16;
        assert_eq!(close_reason(&record), expect, "{was_established} {closer} {error}");
    }

    #[test]
    fn the_reason_says_who_ended_it_and_how() {
        check(0, OPEN, libc::ECONNREFUSED, ("refused", Some("ECONNREFUSED")));
        check(0, OPEN, libc::ETIMEDOUT, ("timeout", Some("ETIMEDOUT")));
        check(0, OPEN, 0, ("aborted", Some("ECONNABORTED")));
        check(1, LOCAL, 0, ("local_close", None));
        check(1, LOCAL, libc::ECONNRESET, ("local_close", None));
        check(1, OWNER_EXIT, 0, ("owner_exit", None));
        check(1, PEER, 0, ("peer_close", None));
        check(1, PEER, libc::EPIPE, ("reset_by_peer", Some("ECONNRESET")));
        check(1, OPEN, libc::ECONNRESET, ("reset_by_peer", Some("ECONNRESET")));
        check(1, OPEN, 0, ("reset_by_local", Some("ECONNABORTED")));
        check(0, UNSEEN, 0, ("unseen", None));
        check(1, UNSEEN, 0, ("unseen", None));
        check(1, OPEN, libc::ETIMEDOUT, ("timeout", Some("ETIMEDOUT")));
    }
}
