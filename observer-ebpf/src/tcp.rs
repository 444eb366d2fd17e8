//! TCP lifetimes.
//!
//! Hooks: tp_btf `inet_sock_set_state`; bpf iterator `tcp`, read once a second; bpf iterator `task_file`, read when a
//! connection has no owner yet.
//! Yields: LEDGER, an entry a connection to a watched port or peer, with its owner; a [`Closed`] record when one ends; a
//! [`Listening`] record when a process listens; a [`SocketRow`] an open connection and reading; a [`HolderRow`] a socket
//! file.
//! How: connect(2) runs in the owner's context, so the owner is bound at CLOSE -> SYN_SENT. An accepted connection is
//! made in softirq: its owner is whoever holds the socket's file at the next reading, or who closes it before that.
//! Misses: connections of other network namespaces than the agent's are seen when they open and close, not in between;
//! a connection that is inherited keeps its first owner.
//! Cost: 58 ns a change of state of a watched connection, where an empty program takes 28; none while data flows
//! (docs/measurements.md).

use aya_ebpf::{
    helpers::{bpf_jiffies64, bpf_skc_to_tcp_sock, bpf_sock_from_file},
    macros::{btf_tracepoint, map},
    maps::{Array, HashMap, PerCpuArray},
    programs::BtfTracePointContext,
};
use aya_log_ebpf::{debug, warn};
use observer_abi::{
    COMM_LEN, Counter, Kind,
    offsets::MISSING,
    tcp::{
        CLIENT, Closed, HolderRow, LOCAL, Listening, MAX_CONNECTIONS, MAX_PEERS, OPEN, OWNER_EXIT,
        Owned, PEER, PORT_WORDS, SERVER, Socket, SocketRow, state,
    },
};

use crate::{
    alloc::IterContext,
    emit::{count, emit},
    kernel::{Object, copy_comm, current, get, ktime_ns, load, offset},
};

#[map]
static LEDGER: HashMap<u64, Owned> = HashMap::with_max_entries(MAX_CONNECTIONS, 0);

/// Bit per watched port.
#[map]
static PORTS: Array<u64> = Array::with_max_entries(PORT_WORDS, 0);

/// Addresses known as databases, whatever the port.
#[map]
static PEERS: HashMap<[u8; 16], u32> = HashMap::with_max_entries(MAX_PEERS, 0);

/// Where a row is put together: the BPF stack is too small. Only the agent reads iterators, one at a time.
#[map]
static SOCKET_ROW: PerCpuArray<SocketRow> = PerCpuArray::with_max_entries(1, 0);

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;
/// PF_EXITING (include/linux/sched.h).
const EXITING: u32 = 4;
/// SOCK_DONE (include/net/sock.h, enum sock_flags): a FIN has been received and counted as a byte.
const SOCK_DONE: u64 = 1 << 1;

#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    let sock: Object = ctx.arg(0);
    let old = ctx.arg::<u32>(1);
    let new = ctx.arg::<u32>(2);
    if get!(sock, sock_protocol as u16) != IPPROTO_TCP {
        return 0;
    }
    match new {
        state::LISTEN => listening(sock),
        state::SYN_SENT => opened(sock, CLIENT),
        state::ESTABLISHED if old == state::SYN_RECV => opened(sock, SERVER),
        _ => changed(sock, old, new),
    }
    0
}

fn listening(sock: Object) {
    let task = current();
    emit(Kind::TcpListening, task, ktime_ns(), |record: &mut Listening| {
        record.port = u32::from(get!(sock, sock_num as u16));
        record.reserved = 0;
    });
}

#[inline(always)]
fn is_port(port: u16) -> bool {
    PORTS.get(u32::from(port >> 6)).is_some_and(|word| word >> (port & 63) & 1 != 0)
}

/// Whether a connection to its peer belongs in the ledger.
#[inline(always)]
fn is_client(sock: Object) -> bool {
    is_port(u16::from_be(get!(sock, sock_dport as u16)))
        || unsafe { PEERS.get(peer_address(sock)) }.is_some()
}

/// Whether a connection that came from its peer belongs in the ledger. If the peer is on this host, its end is in there.
#[inline(always)]
fn is_server(sock: Object) -> bool {
    is_port(get!(sock, sock_num as u16)) && !is_from_here(sock)
}

#[inline(always)]
fn is_from_here(sock: Object) -> bool {
    const LOOPBACK_NET: u8 = 127;
    let peer = peer_address(sock);
    let local = address(sock, offset!(sock_rcv_saddr), offset!(sock_v6_rcv_saddr));
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

#[inline(always)]
fn opened(sock: Object, role: u8) {
    let wanted = if role == CLIENT { is_client(sock) } else { is_server(sock) };
    if !wanted {
        return;
    }
    let now = ktime_ns();
    let mut owned = Owned { birth_ktime_ns: now, role, ..Owned::default() };
    if role == CLIENT {
        let task = current();
        owned.tgid = get!(task, task_tgid as u32);
        owned.tid = get!(task, task_pid as u32);
        copy_comm(task, &mut owned.comm);
    } else {
        owned.established_ktime_ns = now;
        owned.was_established = 1;
    }
    count(Counter::TcpOpened, 1);
    if LEDGER.insert(sock as u64, owned, 0).is_err() {
        count(Counter::LedgerFull, 1);
        warn!((), "the ledger is full: a connection of {} is not followed", owned.tgid);
    } else {
        debug!((), "connection of {} enters the ledger", owned.tgid);
    }
}

#[inline(always)]
fn changed(sock: Object, old: u32, new: u32) {
    let key = sock as u64;
    let Some(entry) = LEDGER.get_ptr_mut(key) else { return };
    // The socket is locked by the caller: no other CPU changes its state now.
    let owned = unsafe { &mut *entry };
    match new {
        state::ESTABLISHED => {
            owned.established_ktime_ns = ktime_ns();
            owned.was_established = 1;
        }
        // Both come from close(2), shutdown(2) or exit, so this is the owner's context.
        state::FIN_WAIT1 | state::LAST_ACK => {
            let task = current();
            owned.closed_ktime_ns = ktime_ns();
            if owned.closer == OPEN {
                let exiting = get!(task, task_flags as u32) & EXITING != 0;
                owned.closer = if exiting { OWNER_EXIT } else { LOCAL };
            }
            if owned.tgid == 0 {
                owned.tgid = get!(task, task_tgid as u32);
                owned.tid = get!(task, task_pid as u32);
                copy_comm(task, &mut owned.comm);
            }
        }
        state::CLOSE_WAIT if owned.closer == OPEN => owned.closer = PEER,
        state::CLOSE => closed(sock, key, owned, old),
        _ => {}
    }
}

#[inline(always)]
fn closed(sock: Object, key: u64, owned: &Owned, old_state: u32) {
    emit(Kind::TcpClosed, current(), ktime_ns(), |record: &mut Closed| {
        record.header.tgid = owned.tgid;
        record.header.tid = owned.tid;
        record.header.comm = owned.comm;
        record.key = key;
        record.owned = *owned;
        record.old_state = old_state;
        record.reserved = 0;
        read_socket(sock, &mut record.socket);
    });
    count(Counter::TcpClosed, 1);
    // Only fails if it is gone already.
    let _ = LEDGER.remove(key);
}

/// Peer address, IPv4 mapped into IPv6.
#[inline(always)]
fn peer_address(sock: Object) -> [u8; 16] {
    address(sock, offset!(sock_daddr), offset!(sock_v6_daddr))
}

#[inline(always)]
fn address(sock: Object, v4: u64, v6: u64) -> [u8; 16] {
    let (low, high): (u64, u64) = if get!(sock, sock_family as u16) == AF_INET6 && v6 != MISSING {
        (load(sock, v6), load(sock, v6 + 8))
    } else {
        (0, 0xffff_0000 | u64::from(load::<u32>(sock, v4)) << 32)
    };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&low.to_ne_bytes());
    bytes[8..].copy_from_slice(&high.to_ne_bytes());
    bytes
}

/// Reads what the end of a connection needs.
#[inline(always)]
fn read_socket(sock: Object, socket: &mut Socket) {
    socket.local_address = address(sock, offset!(sock_rcv_saddr), offset!(sock_v6_rcv_saddr));
    socket.peer_address = peer_address(sock);
    socket.peer_port = u16::from_be(get!(sock, sock_dport as u16));
    socket.family = if get!(sock, sock_family as u16) == AF_INET6 { AF_INET6 } else { AF_INET };
    let tcp = unsafe { bpf_skc_to_tcp_sock(sock.cast_mut().cast()) }.cast::<u8>().cast_const();
    if tcp.is_null() {
        // Not a full TCP socket: cannot be, but the verifier wants to know; the record's memory must be set.
        socket.clear();
        return;
    }
    socket.local_port = u16::from_be(get!(tcp, inet_sport as u16));
    socket.error = get!(tcp, sock_err as u32) as u16;
    let fin = u64::from(get!(tcp, sock_flags as u64) & SOCK_DONE != 0);
    socket.received_bytes = get!(tcp, tcp_bytes_received as u64).saturating_sub(fin);
    socket.sent_bytes =
        get!(tcp, tcp_bytes_sent as u64).saturating_sub(get!(tcp, tcp_bytes_retrans as u64));
    socket.retransmits = get!(tcp, tcp_total_retrans as u32);
    socket.srtt_us = get!(tcp, tcp_srtt_us as u32) >> 3;
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter")]
extern "C" fn tcp_rows(ctx: &IterContext) -> i32 {
    let sock = ctx.object;
    if sock.is_null() {
        return 0;
    }
    let state = u32::from(get!(sock, sock_state as u8));
    if matches!(state, state::LISTEN | state::TIME_WAIT | state::NEW_SYN_RECV | state::CLOSE) {
        return 0;
    }
    let tcp = unsafe { bpf_skc_to_tcp_sock(sock.cast_mut().cast()) }.cast::<u8>().cast_const();
    if tcp.is_null() {
        return 0;
    }
    let key = tcp as u64;
    let owned = match unsafe { LEDGER.get(key) } {
        Some(owned) => *owned,
        None if is_client(sock) => adopt(key, state, CLIENT),
        None if is_server(sock) => adopt(key, state, SERVER),
        None => return 0,
    };
    let Some(row) = SOCKET_ROW.get_ptr_mut(0) else { return 0 };
    let row = unsafe { &mut *row };
    row.key = key;
    row.owned = owned;
    row.state = state;
    fill(row, tcp);
    read_socket(sock, &mut row.socket);
    ctx.write(row);
    0
}

/// Enters a connection that is older than the agent.
#[inline(always)]
fn adopt(key: u64, state: u32, role: u8) -> Owned {
    let was_established = u8::from(state != state::SYN_SENT && state != state::SYN_RECV);
    let owned = Owned {
        birth_ktime_ns: ktime_ns(),
        role,
        preexisting: 1,
        was_established,
        ..Owned::default()
    };
    if LEDGER.insert(key, owned, 0).is_err() {
        count(Counter::LedgerFull, 1);
    }
    owned
}

#[inline(always)]
fn fill(row: &mut SocketRow, tcp: Object) {
    let fin = u32::from(get!(tcp, sock_flags as u64) & SOCK_DONE != 0);
    let next = get!(tcp, tcp_snd_nxt as u32);
    row.now_jiffies = unsafe { bpf_jiffies64() };
    row.sent_jiffies = get!(tcp, tcp_lsndtime as u32);
    row.received_jiffies = get!(tcp, icsk_lrcvtime as u32);
    row.acknowledged_jiffies = get!(tcp, tcp_rcv_tstamp as u32);
    row.unacknowledged_bytes = next.wrapping_sub(get!(tcp, tcp_snd_una as u32));
    row.unsent_bytes = get!(tcp, tcp_write_seq as u32).wrapping_sub(next);
    let received = get!(tcp, tcp_rcv_nxt as u32);
    row.unread_bytes = received.wrapping_sub(get!(tcp, tcp_copied_seq as u32)).saturating_sub(fin);
    row.sent_us = get!(tcp, tcp_wstamp_ns as u64) / 1000;
    row.acknowledged_sent_us = get!(tcp, tcp_rack_mstamp as u64);
    row.packets_out = get!(tcp, tcp_packets_out as u32);
    row.window_bytes = get!(tcp, tcp_snd_wnd as u32);
    row.rto_jiffies = get!(tcp, icsk_rto as u32);
    row.timeouts = u16::from(get!(tcp, icsk_retransmits as u8));
    row.probes = u16::from(get!(tcp, icsk_probes_out as u8));
    row.reserved = 0;
}

/// Context of the task-file iterator (kernel/bpf/task_iter.c).
#[repr(C)]
struct TaskFileContext {
    head: IterContext,
    fd: u32,
    file: Object,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter")]
extern "C" fn socket_holders(ctx: &TaskFileContext) -> i32 {
    let task = ctx.head.object;
    let file = ctx.file;
    if task.is_null() || file.is_null() {
        return 0;
    }
    let socket = unsafe { bpf_sock_from_file(file.cast_mut().cast()) }.cast::<u8>().cast_const();
    if socket.is_null() {
        return 0;
    }
    let sock = get!(socket, socket_sk as Object);
    let family = get!(sock, sock_family as u16);
    if (family != AF_INET && family != AF_INET6) || get!(sock, sock_protocol as u16) != IPPROTO_TCP
    {
        return 0;
    }
    let key = sock as u64;
    let state = u32::from(get!(sock, sock_state as u8));
    let leader = get!(task, task_group_leader as Object);
    if state != state::LISTEN {
        let Some(entry) = LEDGER.get_ptr_mut(key) else { return 0 };
        // Only these fields, and only once: the state hook may write the others on another CPU.
        let owned = unsafe { &mut *entry };
        if owned.tgid != 0 {
            return 0;
        }
        copy_comm(leader, &mut owned.comm);
        owned.tid = get!(leader, task_pid as u32);
        owned.tgid = get!(task, task_tgid as u32);
    }
    let mut row = HolderRow {
        key,
        tgid: get!(task, task_tgid as u32),
        state,
        comm: [0; COMM_LEN],
        local_port: get!(sock, sock_num as u16),
        peer_port: u16::from_be(get!(sock, sock_dport as u16)),
        reserved: 0,
    };
    copy_comm(leader, &mut row.comm);
    ctx.head.write(&row);
    0
}
