//! TCP lifetimes.
//!
//! Hook: classic tracepoint `sock/inet_sock_set_state` (4.16).
//! Yields: what `ledger.rs` makes of changes of state.
//! Misses: bytes, retransmissions, round trip time and error of a connection; who owns an accepted one until it closes.

use aya_ebpf::{macros::tracepoint, programs::TracePointContext};
use observer_abi::tcp::{NOT_READ, Socket};

use crate::{
    alloc,
    fields::{self, number, place},
    ledger::{self, Connection, IPPROTO_TCP},
};

#[tracepoint]
fn inet_sock_set_state(ctx: TracePointContext) -> u32 {
    if number!(&ctx, protocol) == u64::from(IPPROTO_TCP) {
        let (old, new) = (number!(&ctx, old_state) as u32, number!(&ctx, new_state) as u32);
        ledger::state_changed(&Change(&ctx), old, new);
    }
    0
}

/// A socket as the record of the change tells of it.
struct Change<'a>(&'a TracePointContext);

impl Connection for Change<'_> {
    #[inline(always)]
    fn key(&self) -> u64 {
        number!(self.0, socket)
    }

    #[inline(always)]
    fn local_port(&self) -> u16 {
        number!(self.0, local_port) as u16
    }

    #[inline(always)]
    fn peer_port(&self) -> u16 {
        number!(self.0, peer_port) as u16
    }

    #[inline(always)]
    fn local_address(&self) -> [u8; 16] {
        let (low, high) = fields::words(self.0, place!(local_address));
        ledger::address(low, high)
    }

    #[inline(always)]
    fn peer_address(&self) -> [u8; 16] {
        let (low, high) = fields::words(self.0, place!(peer_address));
        ledger::address(low, high)
    }

    #[inline(always)]
    fn owner_exits(&self) -> bool {
        alloc::is_exiting()
    }

    #[inline(always)]
    fn read(&self, socket: &mut Socket) {
        socket.clear();
        socket.local_address = self.local_address();
        socket.peer_address = self.peer_address();
        socket.local_port = self.local_port();
        socket.peer_port = self.peer_port();
        socket.family = number!(self.0, family) as u16;
        socket.error = NOT_READ;
    }
}
