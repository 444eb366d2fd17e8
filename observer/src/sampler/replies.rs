//! Replies of databases: where their ends are looked for, and what those of silent sessions said.

use std::collections::HashMap;

use observer_abi::{
    reply::{Ends, Reply},
    tcp::{CLIENT, SocketRow, state},
};

use super::Sampler;
use crate::{
    kernel::Kernel,
    signal::{Now, tcp::Watch},
};

/// Where nobody is a client any more is still looked at for so long: programs that come and go every minute do not have the
/// sockets opened each time, which makes the kernel wait for all its CPUs.
const KEPT_NS: u64 = 120_000_000_000;

/// Part of a second for which a session asks nothing before it is silent: those at work are not looked up at each tick.
const SILENT_PART: u64 = 4;

/// The last replies.
#[derive(Default)]
pub(super) struct Replies {
    /// One a row of sockets.
    pub(super) rows: Vec<Option<Reply>>,
    /// Where is looked at.
    watch: Watch,
    /// When all of it was last needed.
    needed_ktime_ns: u64,
    /// By socket, with the sequence number that its socket had then: it is asked for once a reply, not once a tick.
    known: HashMap<u64, (u32, Option<Reply>)>,
}

impl Sampler {
    /// Looks up the last reply of each client that is silent.
    pub(super) fn read_replies(&mut self) {
        let Self { kernel, replies, rows, hz, .. } = self;
        replies.rows.clear();
        if replies.watch.ports.is_empty() {
            return;
        }
        let before = std::mem::take(&mut replies.known);
        for row in &rows.sockets {
            let reply = replies.is_silent(row, *hz).then(|| {
                let known = before.get(&row.key).filter(|(at, _)| *at == row.received_sequence);
                known.map_or_else(|| look_up(kernel, row), |(_, reply)| *reply)
            });
            if let Some(reply) = reply {
                replies.known.insert(row.key, (row.received_sequence, reply));
            }
            replies.rows.push(reply.flatten());
        }
    }

    /// Looks where the connections of the last tick need it.
    pub(super) fn watch_replies(&mut self, now: Now) {
        let wanted = self.tcp.watch();
        let replies = &mut self.replies;
        if *wanted == replies.watch {
            replies.needed_ktime_ns = now.ktime_ns;
            return;
        }
        let mut next = wanted.clone();
        if !replies.watch.covers(wanted) {
            next.extend(&replies.watch);
        } else if now.since(replies.needed_ktime_ns) < KEPT_NS {
            return;
        }
        match self.kernel.watch_replies(&next.ports, &next.addresses) {
            Ok(()) => (replies.watch, replies.needed_ktime_ns) = (next, now.ktime_ns),
            // The next tick tries again.
            Err(error) => self.last.warn(now, &error),
        }
    }
}

impl Replies {
    /// A client that has had its answer for a while.
    fn is_silent(&self, row: &SocketRow, hz: u64) -> bool {
        let since = |jiffies: u32| (row.now_jiffies as u32).wrapping_sub(jiffies);
        row.owned.role == CLIENT
            && row.state == state::ESTABLISHED
            && self.watch.ports.contains(&row.socket.peer_port)
            && since(row.received_jiffies) <= since(row.sent_jiffies)
            && u64::from(since(row.received_jiffies)) * SILENT_PART >= hz
    }
}

fn look_up(kernel: &mut Kernel, row: &SocketRow) -> Option<Reply> {
    let socket = &row.socket;
    kernel.tables()?.reply(Ends {
        server_address: socket.peer_address,
        client_address: socket.local_address,
        server_port: socket.peer_port,
        client_port: socket.local_port,
        reserved: 0,
    })
}
