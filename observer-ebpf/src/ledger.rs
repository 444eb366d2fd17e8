//! The ledger: connections to watched ports and peers, from connect or accept to their end, with their owner. Shared by
//! both objects, which bring the hook and what it tells of a connection.
//!
//! Yields: LEDGER; a [`Closed`] record when a connection ends; a [`Listening`] record when a process listens.
//! How: connect(2) runs in the owner's context, so the owner is bound at CLOSE -> SYN_SENT. An accepted connection is
//! made in softirq: its owner is whoever holds the socket's file at the next reading, or who closes it before that.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::map,
    maps::{Array, HashMap},
};
use observer_abi::{
    Counter, Header, Kind,
    tcp::{
        CLIENT, Closed, LOCAL, Listening, MAX_CONNECTIONS, MAX_PEERS, OPEN, OWNER_EXIT, Owned,
        PEER, PORT_WORDS, SERVER, Socket, state,
    },
};

use crate::{
    counters::count,
    emit::emit,
    subject::{Current, Subject},
};

#[map]
pub static LEDGER: HashMap<u64, Owned> = HashMap::with_max_entries(MAX_CONNECTIONS, 0);

/// Bit per watched port.
#[map]
static PORTS: Array<u64> = Array::with_max_entries(PORT_WORDS, 0);

/// Addresses known as databases, whatever the port.
#[map]
static PEERS: HashMap<[u8; 16], u32> = HashMap::with_max_entries(MAX_PEERS, 0);

pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
pub const IPPROTO_TCP: u16 = 6;

/// What a hook tells of a TCP socket. Addresses are IPv6 or mapped into it.
pub trait Connection {
    /// Kernel socket.
    fn key(&self) -> u64;
    /// Local port, host order.
    fn local_port(&self) -> u16;
    /// Peer port, host order.
    fn peer_port(&self) -> u16;
    /// Local address.
    fn local_address(&self) -> [u8; 16];
    /// Peer address.
    fn peer_address(&self) -> [u8; 16];
    /// Whether the running task is exiting.
    fn owner_exits(&self) -> bool;
    /// Fills in everything.
    fn read(&self, socket: &mut Socket);
}

/// Follows a change of state.
#[inline(always)]
pub fn state_changed(connection: &impl Connection, old: u32, new: u32) {
    match new {
        state::LISTEN => listening(connection),
        state::SYN_SENT => opened(connection, CLIENT),
        state::ESTABLISHED if old == state::SYN_RECV => opened(connection, SERVER),
        _ => changed(connection, old, new),
    }
}

#[inline(always)]
fn now() -> u64 {
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn listening(connection: &impl Connection) {
    emit(Kind::TcpListening, Current::get(), now(), |record: &mut Listening| {
        record.port = u32::from(connection.local_port());
        record.reserved = 0;
    });
}

#[inline(always)]
fn is_port(port: u16) -> bool {
    PORTS.get(u32::from(port >> 6)).is_some_and(|word| word >> (port & 63) & 1 != 0)
}

/// Whether a connection to its peer belongs in the ledger.
#[inline(always)]
pub fn is_client(connection: &impl Connection) -> bool {
    is_port(connection.peer_port()) || unsafe { PEERS.get(connection.peer_address()) }.is_some()
}

/// Whether a connection that came from its peer belongs in the ledger. If the peer is on this host, its end is in there.
#[inline(always)]
pub fn is_server(connection: &impl Connection) -> bool {
    is_port(connection.local_port()) && !is_from_here(connection)
}

#[inline(always)]
fn is_from_here(connection: &impl Connection) -> bool {
    const LOOPBACK_NET: u8 = 127;
    let (peer, local) = (connection.peer_address(), connection.local_address());
    let mapped_loopback = peer[10] == 0xff && peer[11] == 0xff && peer[12] == LOOPBACK_NET;
    mapped_loopback || words(&peer) == words(&local)
}

/// An address as two words: comparing arrays would call memcmp.
#[inline(always)]
fn words(address: &[u8; 16]) -> (u64, u64) {
    let mut low = [0; 8];
    let mut high = [0; 8];
    low.copy_from_slice(&address[..8]);
    high.copy_from_slice(&address[8..]);
    (u64::from_ne_bytes(low), u64::from_ne_bytes(high))
}

/// An address from two words.
#[inline(always)]
pub fn address(low: u64, high: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&low.to_ne_bytes());
    bytes[8..].copy_from_slice(&high.to_ne_bytes());
    bytes
}

#[inline(always)]
fn opened(connection: &impl Connection, role: u8) {
    let wanted = if role == CLIENT { is_client(connection) } else { is_server(connection) };
    if !wanted {
        return;
    }
    let now = now();
    let mut owned = Owned { birth_ktime_ns: now, role, ..Owned::default() };
    if role == CLIENT {
        own(&mut owned);
    } else {
        owned.established_ktime_ns = now;
        owned.was_established = 1;
    }
    count(Counter::TcpOpened, 1);
    enter(connection.key(), owned);
}

/// Enters a connection that is older than the agent.
#[inline(always)]
pub fn adopt(key: u64, state: u32, role: u8) -> Owned {
    let was_established = u8::from(state != state::SYN_SENT && state != state::SYN_RECV);
    let owned =
        Owned { birth_ktime_ns: now(), role, preexisting: 1, was_established, ..Owned::default() };
    enter(key, owned);
    owned
}

#[inline(always)]
fn enter(key: u64, owned: Owned) {
    if LEDGER.insert(key, owned, 0).is_err() {
        count(Counter::LedgerFull, 1);
    }
}

/// Gives it to the running task.
#[inline(always)]
fn own(owned: &mut Owned) {
    let current = Current::get();
    owned.tgid = current.tgid;
    owned.tid = current.tid;
    current.copy_comm(&mut owned.comm);
}

#[inline(always)]
fn changed(connection: &impl Connection, old: u32, new: u32) {
    let key = connection.key();
    let Some(entry) = LEDGER.get_ptr_mut(key) else { return };
    // The socket is locked by the caller: no other CPU changes its state now.
    let owned = unsafe { &mut *entry };
    match new {
        state::ESTABLISHED => {
            owned.established_ktime_ns = now();
            owned.was_established = 1;
        }
        // Both come from close(2), shutdown(2) or exit, so this is the owner's context.
        state::FIN_WAIT1 | state::LAST_ACK => {
            owned.closed_ktime_ns = now();
            if owned.closer == OPEN {
                owned.closer = if connection.owner_exits() { OWNER_EXIT } else { LOCAL };
            }
            if owned.tgid == 0 {
                own(owned);
            }
        }
        state::CLOSE_WAIT if owned.closer == OPEN => owned.closer = PEER,
        state::CLOSE => closed(connection, owned, old),
        _ => {}
    }
}

impl Subject for &Owned {
    #[inline(always)]
    fn describe(self, header: &mut Header) {
        header.tgid = self.tgid;
        header.tid = self.tid;
        header.comm = self.comm;
    }
}

#[inline(always)]
fn closed(connection: &impl Connection, owned: &Owned, old_state: u32) {
    let key = connection.key();
    emit(Kind::TcpClosed, owned, now(), |record: &mut Closed| {
        record.key = key;
        record.owned = *owned;
        record.old_state = old_state;
        record.reserved = 0;
        connection.read(&mut record.socket);
    });
    count(Counter::TcpClosed, 1);
    // Only fails if it is gone already.
    let _ = LEDGER.remove(key);
}
