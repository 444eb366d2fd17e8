//! TCP lifetimes: the ledger's rows and the record of a closed connection.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{COMM_LEN, Header};

/// Connections in the ledger at once.
pub const MAX_CONNECTIONS: u32 = 16384;

/// Addresses that a DNS answer or the config named as a database's.
pub const MAX_PEERS: u32 = 1024;

/// Words of the port bitmap, 64 ports each.
pub const PORT_WORDS: u32 = 1024;

/// TCP states (include/net/tcp_states.h).
pub mod state {
    #![allow(missing_docs, reason = "the names are TCP's own, RFC 9293 section 3.3.2")]
    pub const ESTABLISHED: u32 = 1;
    pub const SYN_SENT: u32 = 2;
    pub const SYN_RECV: u32 = 3;
    pub const FIN_WAIT1: u32 = 4;
    pub const FIN_WAIT2: u32 = 5;
    pub const TIME_WAIT: u32 = 6;
    pub const CLOSE: u32 = 7;
    pub const CLOSE_WAIT: u32 = 8;
    pub const LAST_ACK: u32 = 9;
    pub const LISTEN: u32 = 10;
    pub const CLOSING: u32 = 11;
    pub const NEW_SYN_RECV: u32 = 12;
}

/// [`Owned::role`]: this host connected.
pub const CLIENT: u8 = 1;
/// [`Owned::role`]: this host accepted.
pub const SERVER: u8 = 2;

/// [`Owned::closer`]: nobody has closed.
pub const OPEN: u8 = 0;
/// [`Owned::closer`]: this side closed first.
pub const LOCAL: u8 = 1;
/// [`Owned::closer`]: the peer closed first.
pub const PEER: u8 = 2;
/// [`Owned::closer`]: this side closed because its owner was exiting.
pub const OWNER_EXIT: u8 = 3;
/// [`Owned::closer`]: it is gone, and nobody saw how: without the program that sees it, or where the kernel skipped it.
pub const UNSEEN: u8 = 4;

/// [`Owned::role`] of an entry whose connection has been told as ended.
pub const ENDED: u8 = 0;

/// A connection's entry in the ledger; the key is the address of its kernel socket.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Owned {
    /// connect(2), or the end of the handshake on the accepting side; CLOCK_MONOTONIC. For one whose begin was not seen,
    /// when it was first seen.
    pub birth_ktime_ns: u64,
    /// Handshake done; 0 if not yet.
    pub established_ktime_ns: u64,
    /// When the owner closed its side; 0 if it has not. CLOCK_MONOTONIC.
    pub closed_ktime_ns: u64,
    /// Peer's address as [`words`]: with both ports it tells whether a socket at this entry's key is still its own.
    pub peer_address: [u64; 2],
    /// Owner's process; 0 if not known yet.
    pub tgid: u32,
    /// Thread that connected.
    pub tid: u32,
    /// Owner's command name.
    pub comm: [u8; COMM_LEN],
    /// [`CLIENT`] or [`SERVER`]; [`ENDED`].
    pub role: u8,
    /// Who closed first.
    pub closer: u8,
    /// 1 if its begin was not seen; as a rule it is older than the agent.
    pub preexisting: u8,
    /// 1 once the handshake was done.
    pub was_established: u8,
    /// Local port; 0 if not known yet.
    pub local_port: u16,
    /// Peer's port.
    pub peer_port: u16,
}

impl Owned {
    /// Whether the socket that is now at this entry's key is still its own: the kernel uses the memory of sockets again,
    /// and may have skipped the program at the end of the one before. A port of zero is not known.
    #[inline(always)]
    pub fn is_of(&self, local_port: u16, peer_port: u16, peer_address: (u64, u64)) -> bool {
        let same_local = local_port == 0 || self.local_port == 0 || local_port == self.local_port;
        self.role != ENDED
            && self.peer_port == peer_port
            && same_local
            && (self.peer_address[0], self.peer_address[1]) == peer_address
    }

    /// Follows a change of state but for the end. What is entered follows from both states, as the kernel may have skipped
    /// the program at changes before this one. Whether the owner has closed, whose context it then is.
    #[inline(always)]
    pub fn follow(
        &mut self,
        old: u32,
        new: u32,
        ktime_ns: impl FnOnce() -> u64,
        owner_exits: impl FnOnce() -> bool,
    ) -> bool {
        self.leave(old);
        match new {
            state::ESTABLISHED => {
                self.established_ktime_ns = ktime_ns();
                self.was_established = 1;
            }
            // Both come from close(2), shutdown(2) or exit. Only who has read the peer's end goes from there to the second.
            state::FIN_WAIT1 | state::LAST_ACK => {
                self.closed_ktime_ns = ktime_ns();
                if self.closer == OPEN && new == state::LAST_ACK {
                    self.closer = PEER;
                } else if self.closer == OPEN {
                    self.closer = if owner_exits() { OWNER_EXIT } else { LOCAL };
                }
                return true;
            }
            state::CLOSE_WAIT if self.closer == OPEN => self.closer = PEER,
            _ => {}
        }
        false
    }

    /// What the state before a change says.
    #[inline(always)]
    pub fn leave(&mut self, old: u32) {
        if old != state::SYN_SENT && old != state::SYN_RECV {
            self.was_established = 1;
        }
        if self.closer == OPEN {
            self.closer = match old {
                state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSING => LOCAL,
                state::CLOSE_WAIT | state::LAST_ACK => PEER,
                _ => OPEN,
            };
        }
    }
}

/// An address as two words: comparing bytes would call memcmp.
#[inline(always)]
pub fn words(address: &[u8; 16]) -> (u64, u64) {
    let mut low = [0; 8];
    let mut high = [0; 8];
    low.copy_from_slice(&address[..8]);
    high.copy_from_slice(&address[8..]);
    (u64::from_ne_bytes(low), u64::from_ne_bytes(high))
}

/// [`Socket::error`] where only addresses and ports were read: neither error nor counters are known.
pub const NOT_READ: u16 = u16::MAX;

/// Addresses and counters of a socket, as read at one instant. IPv4 addresses are mapped into IPv6 (RFC 4291, 2.5.5.2).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Socket {
    /// Local address.
    pub local_address: [u8; 16],
    /// Peer address.
    pub peer_address: [u8; 16],
    /// Local port.
    pub local_port: u16,
    /// Peer port.
    pub peer_port: u16,
    /// AF_INET (2) or AF_INET6 (10).
    pub family: u16,
    /// Pending error (errno), 0 if none, or [`NOT_READ`].
    pub error: u16,
    /// Payload bytes sent, without retransmissions.
    pub sent_bytes: u64,
    /// Payload bytes received.
    pub received_bytes: u64,
    /// Segments retransmitted.
    pub retransmits: u32,
    /// Smoothed round trip time, microseconds.
    pub srtt_us: u32,
}

impl Socket {
    /// Zeroes what is read from the TCP socket.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.local_port = 0;
        self.error = 0;
        self.sent_bytes = 0;
        self.received_bytes = 0;
        self.retransmits = 0;
        self.srtt_us = 0;
    }
}

/// A connection has ended. The header names its owner; its time is the end.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Closed {
    /// Owner.
    pub header: Header,
    /// Kernel socket, as in the ledger.
    pub key: u64,
    /// Ledger entry.
    pub owned: Owned,
    /// Last reading.
    pub socket: Socket,
    /// State before the end.
    pub old_state: u32,
    /// Reserved, zero.
    pub reserved: u32,
}

/// A process listens on a port.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Listening {
    /// Who.
    pub header: Header,
    /// Port.
    pub port: u32,
    /// Reserved, zero.
    pub reserved: u32,
}

/// One open connection, a row of the TCP iterator. `*_jiffies` are the low 32 bits of the kernel's clock of HZ.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketRow {
    /// Kernel socket, as in the ledger.
    pub key: u64,
    /// Ledger entry.
    pub owned: Owned,
    /// Addresses and counters.
    pub socket: Socket,
    /// Clock at the reading.
    pub now_jiffies: u64,
    /// TCP state.
    pub state: u32,
    /// Last data sent.
    pub sent_jiffies: u32,
    /// Last data received.
    pub received_jiffies: u32,
    /// Last acknowledgement received.
    pub acknowledged_jiffies: u32,
    /// When a segment, data or bare acknowledgement, was last sent; the kernel's TCP clock.
    pub sent_us: u64,
    /// When the newest acknowledged data segment was sent; the same clock.
    pub acknowledged_sent_us: u64,
    /// Bytes sent and not acknowledged.
    pub unacknowledged_bytes: u32,
    /// Bytes written and not sent.
    pub unsent_bytes: u32,
    /// Bytes received and not read by the process.
    pub unread_bytes: u32,
    /// Segments in flight.
    pub packets_out: u32,
    /// Peer's window in bytes.
    pub window_bytes: u32,
    /// Retransmission time-out, jiffies.
    pub rto_jiffies: u32,
    /// Retransmissions of the oldest segment without an answer.
    pub timeouts: u16,
    /// Zero-window probes without an answer.
    pub probes: u16,
    /// Sequence number of the next byte to be received; 0 where only /proc was read.
    pub received_sequence: u32,
}

/// One socket file of a process that listens, or that a connection of the ledger got its owner from; a row of the task-file iterator: which process holds which TCP socket.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HolderRow {
    /// Kernel socket, as in the ledger.
    pub key: u64,
    /// Process id.
    pub tgid: u32,
    /// TCP state.
    pub state: u32,
    /// Command name.
    pub comm: [u8; COMM_LEN],
    /// Local port.
    pub local_port: u16,
    /// Peer port.
    pub peer_port: u16,
    /// Reserved, zero.
    pub reserved: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is known at the end, after these changes. The last of them is the end.
    #[track_caller]
    fn check(changes: &[(u32, u32)], exits: bool, closer: u8, was_established: u8) {
        let mut owned = Owned { role: CLIENT, ..Owned::default() };
        for (old, new) in changes {
            match *new {
                state::CLOSE => owned.leave(*old),
                _ => _ = owned.follow(*old, *new, || 1, || exits),
            }
        }
        assert_eq!((owned.closer, owned.was_established), (closer, was_established), "{changes:?}");
    }

    #[test]
    fn changes_that_were_missed_follow_from_those_that_were_seen() {
        use state::{
            CLOSE, CLOSE_WAIT, CLOSING, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LAST_ACK, SYN_RECV,
            SYN_SENT,
        };
        let (begin, active) = ((SYN_SENT, ESTABLISHED), (ESTABLISHED, FIN_WAIT1));
        // This side closes first.
        check(&[begin, active, (FIN_WAIT1, FIN_WAIT2), (FIN_WAIT2, CLOSE)], false, LOCAL, 1);
        check(&[active, (FIN_WAIT2, CLOSE)], false, LOCAL, 1);
        check(&[active], true, OWNER_EXIT, 1);
        // The peer does.
        let (told, passive) = ((ESTABLISHED, CLOSE_WAIT), (CLOSE_WAIT, LAST_ACK));
        check(&[begin, told, passive, (LAST_ACK, CLOSE)], false, PEER, 1);
        check(&[begin, passive, (LAST_ACK, CLOSE)], false, PEER, 1);
        check(&[passive, (LAST_ACK, CLOSE)], true, PEER, 1);
        check(&[told, (CLOSE_WAIT, CLOSE)], false, PEER, 1);
        check(&[(CLOSE_WAIT, CLOSE)], false, PEER, 1);
        // Only the end was seen.
        check(&[(LAST_ACK, CLOSE)], false, PEER, 1);
        check(&[(FIN_WAIT1, CLOSE)], false, LOCAL, 1);
        check(&[(FIN_WAIT2, CLOSE)], false, LOCAL, 1);
        check(&[(CLOSING, CLOSE)], false, LOCAL, 1);
        // A reset, and a connection that never was.
        check(&[begin, (ESTABLISHED, CLOSE)], false, OPEN, 1);
        check(&[(ESTABLISHED, CLOSE)], false, OPEN, 1);
        check(&[(SYN_SENT, CLOSE)], false, OPEN, 0);
        check(&[(SYN_RECV, CLOSE)], false, OPEN, 0);
    }

    #[test]
    fn an_entry_is_of_one_connection() {
        const PEER_ADDRESS: (u64, u64) = (1, 1);
        #[track_caller]
        fn check(
            entered: (u8, u16, u16),
            local_port: u16,
            peer_port: u16,
            last: u64,
            expect: bool,
        ) {
            let (role, own_port, own_peer_port) = entered;
            let owned = Owned {
                role,
                local_port: own_port,
                peer_port: own_peer_port,
                peer_address: PEER_ADDRESS.into(),
                ..Owned::default()
            };
            let address = (PEER_ADDRESS.0, last);
            assert_eq!(owned.is_of(local_port, peer_port, address), expect, "{owned:?}");
        }
        let client = (CLIENT, 40_000, 5432);
        check(client, 40_000, 5432, 1, true);
        check(client, 40_001, 5432, 1, false);
        check(client, 40_000, 5433, 1, false);
        check(client, 40_000, 5432, 2, false);
        // The other end of a connection of this host.
        check(client, 5432, 40_000, 1, false);
        // Not bound yet, and no more.
        check((CLIENT, 0, 5432), 40_000, 5432, 1, true);
        check(client, 0, 5432, 1, true);
        check(client, 0, 40_000, 1, false);
        check((ENDED, 40_000, 5432), 40_000, 5432, 1, false);
    }
}
