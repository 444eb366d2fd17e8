//! Sessions that clients of this host have left behind at servers elsewhere, as far as that can be told from this side.
//!
//! A server that runs each session in a process or thread of its own looks at the socket only when it has an answer. A
//! connection that closes while its question is unanswered leaves a session that goes on. For how long, nobody here can know;
//! what a statement has taken so far is the usual guess for what it will take yet.

use std::sync::Arc;

use super::{SECOND, is_client, is_cut, name};
use crate::{
    detect::{
        Seen,
        key::{ByKey, key},
    },
    identity::Process,
    signal::tcp::{Activity, Connection},
};

/// Database systems whose sessions do not see that their client is gone.
const GO_ON: &[&str] = &["postgresql", "mysql", "mariadb"];
/// A question that is younger when its client goes is answered before it counts.
const LONG_NS: u64 = SECOND;
/// No session counts for longer: by then somebody has looked, or the guess is worth nothing.
const LONGEST_NS: u64 = 600 * SECOND;
/// Questions remembered; of what is beyond, nothing is told.
const MAX_ASKED: usize = 1024;

/// Who has left a session behind.
#[derive(Debug, Clone)]
pub(super) struct Left {
    /// Its pid.
    pub pid: u32,
    /// Its command name.
    pub name: String,
    /// What else was known of it: the dead are in no table of the snapshot any more.
    pub process: Option<Arc<Process>>,
}

impl Left {
    /// The owner of this connection.
    pub fn of(seen: &Seen<'_>, row: &Connection) -> Self {
        let process = seen.snapshot.processes.get(&row.pid).cloned();
        Self { pid: row.pid, name: row.name.clone(), process }
    }
}

/// A question without an answer.
#[derive(Debug)]
struct Asked {
    /// The server, as pools have it.
    address: String,
    port: u16,
    by: Left,
    for_ns: u64,
    seen_ns: u64,
}

/// Questions to servers elsewhere, and what became of them.
#[derive(Debug, Default)]
pub(super) struct Abandoned {
    asked: ByKey<u64, Asked>,
}

impl Abandoned {
    /// Looks at the connections to servers that are `meant`. Where not all are shown, one that is missing may live.
    pub fn look(&mut self, seen: &Seen<'_>, meant: impl Fn(&Connection) -> bool) {
        let tcp = &seen.snapshot.tcp;
        if is_cut(tcp) {
            return self.asked.clear();
        }
        for row in tcp.connections.iter().filter(|row| is_client(row) && meant(row)) {
            let id = key((&row.local_address, row.local_port, &row.peer_address, row.peer_port));
            let waits = row.activity == Activity::Waiting && row.activity_ns >= LONG_NS;
            if !waits || !GO_ON.contains(&row.system.as_str()) {
                self.asked.remove(&id);
                continue;
            }
            if self.asked.len() >= MAX_ASKED && !self.asked.contains_key(&id) {
                continue;
            }
            let asked = self.asked.entry(id).or_insert_with(|| Asked {
                address: name(row).to_owned(),
                port: row.peer_port,
                by: Left::of(seen, row),
                for_ns: 0,
                seen_ns: 0,
            });
            if asked.by.pid != row.pid {
                asked.by = Left::of(seen, row);
            }
            (asked.for_ns, asked.seen_ns) = (row.activity_ns, seen.now_ns);
        }
        let gone_ns = |asked: &Asked| seen.now_ns.saturating_sub(asked.seen_ns);
        self.asked.retain(|_, asked| gone_ns(asked) < asked.for_ns.min(LONGEST_NS));
    }

    /// Who has left sessions at this server.
    pub fn at(&self, seen: &Seen<'_>, address: &str, port: u16) -> Vec<Left> {
        let gone = self.asked.values().filter(|asked| asked.seen_ns != seen.now_ns);
        let there = gone.filter(|asked| asked.port == port && asked.address == address);
        there.map(|asked| asked.by.clone()).collect()
    }
}
