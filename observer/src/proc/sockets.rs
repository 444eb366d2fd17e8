//! Rows of connections: what the programs keep in a map of the kernel is kept here, and brought up to date from
//! sock_diag(7).

use std::{
    collections::{BTreeSet, HashMap},
    net::{Ipv4Addr, Ipv6Addr},
};

use anyhow::Result;
use observer_abi::{
    Header, Kind,
    tcp::{
        CLIENT, Closed, HolderRow, LOCAL, MAX_CONNECTIONS, MAX_PEERS, Owned, PEER, SERVER, Socket,
        SocketRow, UNSEEN, state,
    },
};
use zerocopy::FromZeros as _;

use super::{
    diag::{self, Diag, Info, Message, WINDOW_AT},
    holders::Wanted,
};
use crate::signal::Now;

const AF_INET: u16 = 2;
/// The bare acknowledgement of a question comes at most this long after it: TCP_DELACK_MAX, and a round trip.
const ACKNOWLEDGED_WITHIN_MS: u32 = 300;
/// A kernel before 5.4 does not tell the window, so it is never known to be zero.
const WINDOW_UNKNOWN: u32 = u32::MAX;
/// Where the clock of a row stands. It has no meaning but to tell how long ago something was.
const NOW_JIFFIES: u32 = u32::MAX;

/// The connections that are followed.
#[derive(Debug)]
pub(super) struct Sockets {
    diag: Diag,
    ports: BTreeSet<u16>,
    peers: BTreeSet<[u8; 16]>,
    ledger: Ledger,
}

#[derive(Debug, Default)]
struct Ledger {
    /// By cookie, which the kernel gives to one socket only.
    entries: HashMap<u64, Entry>,
    /// Cookies by the ends of their connections.
    cookies: HashMap<Ends, u64>,
    round: u64,
    hz: u64,
    opened: u64,
    closed: u64,
    refused: u64,
}

#[derive(Debug)]
struct Entry {
    row: SocketRow,
    inode: u32,
    round: u64,
}

impl Sockets {
    /// Opens the way to the kernel.
    ///
    /// # Errors
    /// If it does not answer there.
    pub(super) fn open(ports: &[u16], hz: u64) -> Result<Self> {
        Ok(Self {
            diag: Diag::open()?,
            ports: ports.iter().copied().collect(),
            peers: BTreeSet::new(),
            ledger: Ledger { hz, ..Ledger::default() },
        })
    }

    /// Reads every connection; those that are gone are added to `closed`.
    pub(super) fn read(
        &mut self,
        now: Now,
        rows: &mut Vec<SocketRow>,
        closed: &mut Vec<Closed>,
    ) -> Result<()> {
        let Self { diag, ports, peers, ledger } = self;
        ledger.round += 1;
        diag.each(diag::OPEN, |message, info| {
            let Some((info, length)) = info else { return };
            let socket = socket(message, info);
            if let Some(role) = role(&socket, ports, peers) {
                ledger.see(message, info, length, socket, role, now);
            }
        })?;
        ledger.take_closed(now, closed);
        rows.clear();
        rows.extend(ledger.entries.values().map(|entry| entry.row));
        Ok(())
    }

    /// Sockets whose holders are wanted, by inode: connections without an owner, and those that listen.
    pub(super) fn wanted(&mut self) -> Result<Wanted> {
        let mut wanted = Wanted::new();
        self.diag.each(diag::LISTENING, |message, _| {
            wanted.insert(message.inode, holder(message));
        })?;
        for (key, entry) in &self.ledger.entries {
            if entry.row.owned.tgid == 0 && entry.inode != 0 && wanted.len() < MAX_WANTED {
                let row = &entry.row;
                let mut holder = HolderRow::new_zeroed();
                (holder.key, holder.state) = (*key, row.state);
                (holder.local_port, holder.peer_port) =
                    (row.socket.local_port, row.socket.peer_port);
                wanted.insert(entry.inode, holder);
            }
        }
        Ok(wanted)
    }

    /// Processes that own connections: the next one is likely to be theirs.
    pub(super) fn owners(&self) -> BTreeSet<u32> {
        let owners = self.ledger.entries.values().map(|entry| entry.row.owned.tgid);
        owners.filter(|pid| *pid != 0).collect()
    }

    /// Gives connections their owners.
    pub(super) fn own(&mut self, found: &[HolderRow]) {
        for row in found {
            if let Some(entry) = self.ledger.entries.get_mut(&row.key) {
                let owned = &mut entry.row.owned;
                (owned.tgid, owned.tid, owned.comm) = (row.tgid, row.tgid, row.comm);
            }
        }
    }

    /// Gives the rows of another source the owners that are known here.
    pub(super) fn name_owners(&self, rows: &mut [SocketRow]) {
        let nameless = rows.iter_mut().filter(|row| row.owned.tgid == 0);
        let mut nameless: HashMap<_, _> = nameless.map(|row| (ends(&row.socket), row)).collect();
        if nameless.is_empty() {
            return;
        }
        for entry in self.ledger.entries.values() {
            if let Some(row) = nameless.get_mut(&ends(&entry.row.socket)) {
                let known = &entry.row.owned;
                let owned = &mut row.owned;
                (owned.tgid, owned.tid, owned.comm) = (known.tgid, known.tid, known.comm);
            }
        }
    }

    /// The rows as they are known now.
    pub(super) fn rows(&self, rows: &mut Vec<SocketRow>) {
        rows.clear();
        rows.extend(self.ledger.entries.values().map(|entry| entry.row));
    }

    /// Key and birth of the rows of a connection that has ended. Its ends may be another's from now on.
    pub(super) fn told_as(&mut self, socket: &Socket) -> Option<(u64, u64)> {
        let key = self.ledger.cookies.remove(&ends(socket))?;
        let entry = self.ledger.entries.get(&key)?;
        Some((key, entry.row.owned.birth_ktime_ns))
    }

    pub(super) fn add_peer(&mut self, address: [u8; 16]) -> bool {
        if self.peers.len() < MAX_PEERS as usize {
            self.peers.insert(address);
        }
        self.peers.contains(&address)
    }

    /// Connections opened and closed since the start, and those that there was no room for.
    pub(super) fn counts(&self) -> (u64, u64, u64) {
        (self.ledger.opened, self.ledger.closed, self.ledger.refused)
    }
}

/// Sockets looked for at once; the rest waits for the next look.
const MAX_WANTED: usize = 4096;

impl Ledger {
    /// Brings a connection's entry up to date, or makes one.
    fn see(
        &mut self,
        message: &Message,
        info: &Info,
        length: usize,
        socket: Socket,
        role: u8,
        now: Now,
    ) {
        let key = cookie(message);
        if !self.entries.contains_key(&key) {
            if self.entries.len() >= MAX_CONNECTIONS as usize {
                self.refused += 1;
                return;
            }
            let preexisting = self.round == 1;
            self.opened += u64::from(!preexisting);
            let mut row = SocketRow::new_zeroed();
            row.key = key;
            row.owned = Owned {
                birth_ktime_ns: now.ktime_ns,
                role,
                preexisting: u8::from(preexisting),
                ..Owned::default()
            };
            self.entries.insert(key, Entry { row, inode: message.inode, round: 0 });
            self.cookies.insert(ends(&socket), key);
        }
        let (round, hz) = (self.round, self.hz);
        let Some(entry) = self.entries.get_mut(&key) else { return };
        (entry.inode, entry.round) = (message.inode, round);
        fill(&mut entry.row, message, info, length, hz);
        entry.row.socket = socket;
        let connected = entry.row.state != state::SYN_SENT;
        let owned = &mut entry.row.owned;
        if connected && owned.was_established == 0 {
            owned.was_established = 1;
            owned.established_ktime_ns = now.ktime_ns;
        }
    }

    /// Removes what was not seen at the last reading.
    fn take_closed(&mut self, now: Now, closed: &mut Vec<Closed>) {
        let round = self.round;
        let before = closed.len();
        self.entries.retain(|key, entry| {
            if entry.round != round {
                closed.push(end(&entry.row, now));
                let between = ends(&entry.row.socket);
                // A younger connection may have the same ends.
                if self.cookies.get(&between) == Some(key) {
                    self.cookies.remove(&between);
                }
            }
            entry.round == round
        });
        self.closed += (closed.len() - before) as u64;
    }
}

/// The record of a connection that is gone. What its last state does not tell of the end was not seen.
fn end(row: &SocketRow, now: Now) -> Closed {
    let closer = match row.state {
        state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSING => LOCAL,
        state::CLOSE_WAIT | state::LAST_ACK => PEER,
        _ => UNSEEN,
    };
    let header = Header {
        kind: Kind::TcpClosed as u32,
        tgid: row.owned.tgid,
        tid: row.owned.tid,
        reserved: 0,
        ktime_ns: now.ktime_ns,
        comm: row.owned.comm,
    };
    Closed {
        header,
        key: row.key,
        owned: Owned { closer, ..row.owned },
        socket: row.socket,
        old_state: row.state,
        reserved: 0,
    }
}

/// Whose side of a followed connection a socket is, as the programs decide it (observer-ebpf/src/tcp.rs); `None` if it is
/// not followed.
fn role(socket: &Socket, ports: &BTreeSet<u16>, peers: &BTreeSet<[u8; 16]>) -> Option<u8> {
    if ports.contains(&socket.peer_port) || peers.contains(&socket.peer_address) {
        return Some(CLIENT);
    }
    let peer = Ipv6Addr::from(socket.peer_address).to_canonical();
    let is_from_here = peer.is_loopback() || socket.peer_address == socket.local_address;
    (ports.contains(&socket.local_port) && !is_from_here).then_some(SERVER)
}

fn socket(message: &Message, info: &Info) -> Socket {
    let fin = u64::from(has_fin(u32::from(message.state)));
    Socket {
        local_address: address(message, message.local_address),
        peer_address: address(message, message.peer_address),
        local_port: u16::from_be_bytes(message.local_port),
        peer_port: u16::from_be_bytes(message.peer_port),
        family: u16::from(message.family),
        error: 0,
        sent_bytes: info.bytes_sent.saturating_sub(info.bytes_retransmitted),
        received_bytes: info.bytes_received.saturating_sub(fin),
        retransmits: info.total_retransmits,
        srtt_us: info.rtt_us,
    }
}

/// Whether the peer's FIN has come, which the kernel counts as a byte.
fn has_fin(state: u32) -> bool {
    matches!(state, state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING)
}

/// IPv4 mapped into IPv6.
fn address(message: &Message, bytes: [u8; 16]) -> [u8; 16] {
    if u16::from(message.family) != AF_INET {
        return bytes;
    }
    let [a, b, c, d, ..] = bytes;
    Ipv4Addr::new(a, b, c, d).to_ipv6_mapped().octets()
}

/// Local address and port, the peer's address and port.
type Ends = ([u8; 16], u16, [u8; 16], u16);

/// What tells a connection of a host from all others at one time.
fn ends(socket: &Socket) -> Ends {
    (socket.local_address, socket.local_port, socket.peer_address, socket.peer_port)
}

fn cookie(message: &Message) -> u64 {
    u64::from(message.cookie[0]) | u64::from(message.cookie[1]) << 32
}

fn holder(message: &Message) -> HolderRow {
    let mut row = HolderRow::new_zeroed();
    row.key = cookie(message);
    row.state = u32::from(message.state);
    row.local_port = u16::from_be_bytes(message.local_port);
    row.peer_port = u16::from_be_bytes(message.peer_port);
    row
}

fn fill(row: &mut SocketRow, message: &Message, info: &Info, length: usize, hz: u64) {
    let jiffies = |ms: u32| u32::try_from(u64::from(ms) * hz / 1000).unwrap_or(u32::MAX);
    let ago = |ms: u32| NOW_JIFFIES.wrapping_sub(jiffies(ms));
    row.now_jiffies = u64::from(NOW_JIFFIES);
    row.state = u32::from(message.state);
    row.sent_jiffies = ago(info.since_sent_ms);
    row.received_jiffies = ago(info.since_received_ms);
    row.acknowledged_jiffies = ago(info.since_acknowledged_ms);
    row.unsent_bytes = info.unsent_bytes;
    row.unacknowledged_bytes = message.unacknowledged_bytes.saturating_sub(info.unsent_bytes);
    let fin = u32::from(has_fin(row.state));
    row.unread_bytes = message.unread_bytes.saturating_sub(fin);
    row.packets_out = info.packets_out;
    row.window_bytes = if length > WINDOW_AT { info.window_bytes } else { WINDOW_UNKNOWN };
    row.rto_jiffies = jiffies(info.rto_us / 1000);
    (row.timeouts, row.probes) = (u16::from(info.retransmits), u16::from(info.probes));
    // Any number that is the same twice says that the last segment sent was a question; see `asked_last`.
    let asked = u64::from(asked_last(info));
    (row.sent_us, row.acknowledged_sent_us) = (asked, asked);
}

/// Whether data went out after data had come in the same jiffy. A question that follows the last answer at once is
/// acknowledged later than that, by a delayed acknowledgement; a question that was answered is acknowledged by its answer.
fn asked_last(info: &Info) -> bool {
    let acknowledged_after = info.since_sent_ms.saturating_sub(info.since_acknowledged_ms);
    (1..=ACKNOWLEDGED_WITHIN_MS).contains(&acknowledged_after)
}

#[cfg(test)]
mod tests;
