//! TCP lifetimes.
//!
//! Hooks: tp_btf `inet_sock_set_state` and `tcp_destroy_sock`; bpf iterator `tcp`, read once a second; bpf iterator `task_file`, read when a
//! connection has no owner yet.
//! Yields: what `ledger.rs` makes of changes of state; a [`SocketRow`] an open connection and reading; a [`HolderRow`] a
//! socket file.
//! Misses: connections of other network namespaces than the agent's are seen when they open and close, not in between;
//! a connection that is inherited keeps its first owner.
//! Cost: 58 ns a change of state of a watched connection, where an empty program takes 28; none while data flows
//! (docs/measurements.md).

use aya_ebpf::{
    helpers::{bpf_jiffies64, bpf_skc_to_tcp_sock},
    macros::{btf_tracepoint, map},
    maps::PerCpuArray,
    programs::BtfTracePointContext,
};
use observer_abi::{
    COMM_LEN,
    offsets::MISSING,
    tcp::{CLIENT, HolderRow, SERVER, Socket, SocketRow, state},
};

use crate::{
    alloc::IterContext,
    kernel::{Object, copy_comm, current, get, load, offset, read, socket},
    ledger::{self, AF_INET, AF_INET6, Connection, IPPROTO_TCP, LEDGER, adopt},
};

/// Where a row is put together: the BPF stack is too small. Only the agent reads iterators, one at a time.
#[map]
static SOCKET_ROW: PerCpuArray<SocketRow> = PerCpuArray::with_max_entries(1, 0);

/// PF_EXITING (include/linux/sched.h).
const EXITING: u32 = 4;
/// SOCK_DONE (include/net/sock.h, enum sock_flags): a FIN has been received and counted as a byte.
const SOCK_DONE: u64 = 1 << 1;

#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    let sock: Object = ctx.arg(0);
    if get!(sock, sock_protocol as u16) == IPPROTO_TCP {
        ledger::state_changed(&Sock(sock), ctx.arg(1), ctx.arg(2));
    }
    0
}

#[btf_tracepoint(function = "tcp_destroy_sock")]
fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    ledger::destroyed(&Sock(ctx.arg(0)));
    0
}

/// A socket by its own structure.
struct Sock(Object);

impl Connection for Sock {
    #[inline(always)]
    fn key(&self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    fn local_port(&self) -> u16 {
        get!(self.0, sock_num as u16)
    }

    #[inline(always)]
    fn peer_port(&self) -> u16 {
        u16::from_be(get!(self.0, sock_dport as u16))
    }

    #[inline(always)]
    fn local_address(&self) -> [u8; 16] {
        address(self.0, offset!(sock_rcv_saddr), offset!(sock_v6_rcv_saddr))
    }

    #[inline(always)]
    fn peer_address(&self) -> [u8; 16] {
        address(self.0, offset!(sock_daddr), offset!(sock_v6_daddr))
    }

    #[inline(always)]
    fn owner_exits(&self) -> bool {
        read!(current(), task_flags as u32) & EXITING != 0
    }

    #[inline(always)]
    fn read(&self, socket: &mut Socket) {
        read_socket(self.0, socket);
    }
}

#[inline(always)]
fn address(sock: Object, v4: u64, v6: u64) -> [u8; 16] {
    let (low, high): (u64, u64) = if get!(sock, sock_family as u16) == AF_INET6 && v6 != MISSING {
        (load(sock, v6), load(sock, v6 + 8))
    } else {
        (0, 0xffff_0000 | u64::from(load::<u32>(sock, v4)) << 32)
    };
    ledger::address(low, high)
}

/// Reads what the end of a connection needs.
#[inline(always)]
fn read_socket(sock: Object, socket: &mut Socket) {
    let connection = Sock(sock);
    socket.local_address = connection.local_address();
    socket.peer_address = connection.peer_address();
    socket.peer_port = connection.peer_port();
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
    let connection = Sock(sock);
    let owned = match ledger::find(&connection, key) {
        Some(owned) => {
            if owned.local_port == 0 {
                owned.local_port = connection.local_port();
            }
            *owned
        }
        None if ledger::is_client(&connection) => adopt(&connection, key, state, CLIENT),
        None if ledger::is_server(&connection) => adopt(&connection, key, state, SERVER),
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
    row.received_sequence = received;
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
    let socket = socket(file);
    if socket.is_null() {
        return 0;
    }
    let sock = read!(socket, socket_sk as Object);
    let family = read!(sock, sock_family as u16);
    if (family != AF_INET && family != AF_INET6) || read!(sock, sock_protocol as u16) != IPPROTO_TCP
    {
        return 0;
    }
    let key = sock as u64;
    let state = u32::from(read!(sock, sock_state as u8));
    let leader = get!(task, task_group_leader as Object);
    if state != state::LISTEN {
        let Some(entry) = LEDGER.get_ptr_mut(key) else { return 0 };
        // Only these fields, and only once: the state hook may write the others on another CPU. An entry that is stale (its
        // end was skipped, and so was the begin of this connection) would get this owner; to compare the ports of each
        // would cost ten instructions a file.
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
        local_port: read!(sock, sock_num as u16),
        peer_port: u16::from_be(read!(sock, sock_dport as u16)),
        reserved: 0,
    };
    copy_comm(leader, &mut row.comm);
    ctx.head.write(&row);
    0
}
