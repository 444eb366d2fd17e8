//! The ledger: connections to watched ports and peers, from connect or accept to their end, with their owner. Shared by
//! both objects, which bring the hook and what it tells of a connection.
//!
//! Yields: LEDGER; a [`Closed`] record when a connection ends; a [`Listening`] record when a process listens.
//! How: connect(2) runs in the owner's context, so the owner is bound at CLOSE -> SYN_SENT. An accepted connection is
//! made in softirq: its owner is whoever holds the socket's file at the next reading, or who closes it before that.
//! The kernel skips a program that has interrupted itself: a network interrupt that comes within its run for a task is
//! handled without it. Changes that come from the network are thus missed now and then (`recursion_misses` of the program;
//! on 6.18 some are not in there). So what is entered follows from both states of a change, an entry is only used for the
//! socket that it was made for, and it ends when that socket is destroyed, used again, or found to be gone.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::map,
    maps::{Array, HashMap},
};
use observer_abi::{
    Counter, Header, Kind,
    tcp::{
        CLIENT, Closed, ENDED, Listening, MAX_CONNECTIONS, MAX_PEERS, NOT_READ, OPEN, Owned,
        PORT_WORDS, SERVER, Socket, UNSEEN, state, words,
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
    /// Local port, host order; 0 before it is bound and after it is let go.
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
    let key = connection.key();
    if let Some(stale) = LEDGER.get_ptr_mut(key) {
        forget(key, unsafe { &mut *stale });
    }
    let now = now();
    let mut owned = entry(connection, now, role);
    if role == CLIENT {
        // What a classic tracepoint tells is left from the socket's connection before.
        owned.local_port = 0;
        own(&mut owned);
    } else {
        owned.established_ktime_ns = now;
        owned.was_established = 1;
    }
    count(Counter::TcpOpened, 1);
    enter(key, owned);
}

#[inline(always)]
fn entry(connection: &impl Connection, birth_ktime_ns: u64, role: u8) -> Owned {
    Owned {
        birth_ktime_ns,
        peer_address: words(&connection.peer_address()).into(),
        role,
        local_port: connection.local_port(),
        peer_port: connection.peer_port(),
        ..Owned::default()
    }
}

/// Enters a connection whose begin was not seen, as a rule because it is older than the agent.
#[inline(always)]
pub fn adopt(connection: &impl Connection, key: u64, state: u32, role: u8) -> Owned {
    let was_established = u8::from(state != state::SYN_SENT && state != state::SYN_RECV);
    let owned = Owned { preexisting: 1, was_established, ..entry(connection, now(), role) };
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

/// The entry of a connection. One that an earlier socket has left there is told as ended, and is none.
#[inline(always)]
pub fn find<'a>(connection: &impl Connection, key: u64) -> Option<&'a mut Owned> {
    // The socket is locked by the caller: no other CPU changes its state now.
    let owned = unsafe { &mut *LEDGER.get_ptr_mut(key)? };
    let (local_port, peer_port) = (connection.local_port(), connection.peer_port());
    if owned.is_of(local_port, peer_port, words(&connection.peer_address())) {
        return Some(owned);
    }
    forget(key, owned);
    None
}

#[inline(always)]
fn changed(connection: &impl Connection, old: u32, new: u32) {
    let key = connection.key();
    let Some(owned) = find(connection, key) else { return };
    if new == state::CLOSE {
        owned.leave(old);
        closed(connection, key, owned, old);
        return;
    }
    if owned.local_port == 0 {
        owned.local_port = connection.local_port();
    }
    if owned.follow(old, new, now, || connection.owner_exits()) && owned.tgid == 0 {
        own(owned);
    }
}

/// A socket goes. If the end of its connection was seen, it has no entry any more.
#[inline(always)]
pub fn destroyed(connection: &impl Connection) {
    let key = connection.key();
    let Some(owned) = find(connection, key) else { return };
    end_late(owned);
    closed(connection, key, owned, state::CLOSE);
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
fn closed(connection: &impl Connection, key: u64, owned: &mut Owned, old_state: u32) {
    emit(
        Kind::TcpClosed,
        &*owned,
        now(),
        #[inline(always)]
        |record: &mut Closed| {
            record.key = key;
            record.owned = *owned;
            record.old_state = old_state;
            record.reserved = 0;
            connection.read(&mut record.socket);
        },
    );
    remove(key, owned);
}

/// The end was not seen when it came. Who closed is known if it was the owner, whose close runs in its own context.
#[inline(always)]
fn end_late(owned: &mut Owned) {
    if owned.closer == OPEN {
        owned.closer = UNSEEN;
        count(Counter::TcpUnseen, 1);
    }
}

/// Tells that the connection of an entry has ended, when its socket is another's by now: only what the entry has.
#[inline(always)]
fn forget(key: u64, owned: &mut Owned) {
    if owned.role == ENDED {
        let _ = LEDGER.remove(key);
        return;
    }
    end_late(owned);
    emit(
        Kind::TcpClosed,
        &*owned,
        now(),
        #[inline(always)]
        |record: &mut Closed| {
            record.key = key;
            record.owned = *owned;
            record.old_state = state::CLOSE;
            record.reserved = 0;
            let socket = &mut record.socket;
            socket.clear();
            socket.local_address = [0; 16];
            socket.peer_address = address(owned.peer_address[0], owned.peer_address[1]);
            socket.local_port = owned.local_port;
            socket.peer_port = owned.peer_port;
            socket.family = 0;
            socket.error = NOT_READ;
        },
    );
    remove(key, owned);
}

#[inline(always)]
fn remove(key: u64, owned: &mut Owned) {
    count(Counter::TcpClosed, 1);
    // The kernel may refuse to remove it while something else of this CPU is in the table. It is then nobody's, and goes
    // with the next socket at this address.
    owned.role = ENDED;
    let _ = LEDGER.remove(key);
}
