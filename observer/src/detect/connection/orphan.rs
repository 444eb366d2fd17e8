//! Sessions and connections that outlive their owner.
//!
//! The kernel closes the sockets of a dead process. What stays is the server's side: PostgreSQL looks at the socket of a
//! session only when it has an answer, so a long statement of a dead worker goes on and counts against `max_connections`, while
//! the next worker opens new ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{MAX_VICTIMS, SECOND, SOURCE, count, is_client, is_cut};
use crate::{
    detect::{
        Detector, Judgement, Kind, Level, Party, Quality, Seen, State, evidence,
        key::{ByKey, Keys, key},
        party,
    },
    identity::Process,
    signal::tcp::Connection,
    snapshot::Snapshot,
};

/// Sessions of the dead.
pub static ORPHANS: Kind = Kind {
    name: "connection.orphans",
    signal: "tcp",
    help: "database sessions whose client is gone, and connections whose owner is",
    reason: "A session whose client has gone ends with its statement, mostly within seconds: told after 5 s at WATCH. Four \
             at once are a crashed pool whose statements go on, and the next crash adds as many: WARN.",
    raise: Duration::from_secs(5),
    clear: Duration::from_secs(5),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Orphans::default()),
};

const MANY: usize = 4;
/// A session of a client that has just connected or just gone is none yet.
const YOUNG_NS: u64 = 3 * SECOND;
/// Clients and sessions remembered.
const MAX_KNOWN: usize = 8192;
/// How long a client is remembered after it was last seen: longer than a statement of a dead one should last.
const REMEMBERED_NS: u64 = 600 * SECOND;

/// Who had a local address and port.
#[derive(Debug)]
struct Client {
    pid: u32,
    process: Option<Arc<Process>>,
    seen_ns: u64,
}

#[derive(Debug, Default)]
struct Orphans {
    clients: ByKey<u64, Client>,
}

impl Detector for Orphans {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        if !is_cut(&seen.snapshot.tcp) {
            found.extend(self.sessions(seen));
        }
        found.extend(inherited(seen));
    }
}

impl Orphans {
    /// Sessions of PostgreSQL servers on this host: their title names the client's address and port.
    fn sessions(&mut self, seen: &Seen<'_>) -> Option<Judgement> {
        let rows = &seen.snapshot.tcp.connections;
        let mut sessions = seen
            .snapshot
            .alloc
            .processes
            .iter()
            .filter(|row| row.name == "postgres")
            .filter_map(|row| seen.process(row.pid))
            .filter_map(|process| Some((process, client_of(&process.command_line)?)))
            .peekable();
        sessions.peek()?;
        for row in rows.iter().filter(|row| is_client(row) && is_here(row)) {
            let id = key((row.local_address.as_str(), row.local_port));
            let client = self.clients.entry(id).or_insert_with(|| Client {
                pid: row.pid,
                process: seen.snapshot.processes.get(&row.pid).cloned(),
                seen_ns: 0,
            });
            if client.pid != row.pid {
                client.process = seen.snapshot.processes.get(&row.pid).cloned();
                client.pid = row.pid;
            }
            client.seen_ns = seen.now_ns;
        }
        let mut orphans: Vec<(&Process, &Client)> = Vec::new();
        for (process, (address, port)) in sessions {
            let client = self.clients.get(&key((address, port)));
            // A session whose client was never seen is of another host, or of another network namespace.
            orphans.extend(
                client
                    .filter(|client| seen.now_ns.saturating_sub(client.seen_ns) >= YOUNG_NS)
                    .map(|client| (process, client)),
            );
        }
        let judgement = judge(&orphans);
        let now_ns = seen.now_ns;
        self.clients.retain(|_, client| now_ns.saturating_sub(client.seen_ns) < REMEMBERED_NS);
        if self.clients.len() > MAX_KNOWN {
            self.clients.retain(|_, client| client.seen_ns == now_ns);
        }
        judgement
    }
}

fn is_here(row: &Connection) -> bool {
    row.peer_address.starts_with("127.")
        || row.peer_address == "::1"
        || row.peer_address == row.local_address
}

/// `postgres: [cluster: ]user database 127.0.0.1(53412) SELECT`: the address and port.
fn client_of(title: &str) -> Option<(&str, u16)> {
    let title = title.strip_prefix("postgres: ")?;
    let word = title.split_whitespace().find(|word| word.ends_with(')') && word.contains('('))?;
    let (address, port) = word.strip_suffix(')')?.split_once('(')?;
    Some((address, port.parse().ok()?))
}

fn judge(orphans: &[(&Process, &Client)]) -> Option<Judgement> {
    let (first, _) = orphans.first()?;
    let many = orphans.len() >= MANY;
    let mut counts: BTreeMap<u32, f64> = BTreeMap::new();
    for (_, client) in orphans {
        *counts.entry(client.pid).or_default() += 1.0;
    }
    // The dead are in no table of the snapshot any more.
    let known =
        orphans.iter().filter_map(|(_, client)| Some((client.pid, client.process.clone()?)));
    let dead = Snapshot { processes: known.collect(), ..Snapshot::default() };
    let name = |pid: u32| dead.processes.get(&pid).map_or("", |process| process.name.as_str());
    let causes: Vec<_> = counts.iter().map(|(pid, count)| (*pid, name(*pid), *count)).collect();
    let culprit = party::culprit(&dead, &causes);
    let whose = culprit.as_ref().map_or("an unknown program", |party: &Party| party.title.as_str());
    let sessions = count(orphans.len(), "session");
    Some(Judgement {
        subject: "sessions".to_owned(),
        state: State::Firing(if many { Level::Warn } else { Level::Watch }),
        message: format!(
            "{sessions} of PostgreSQL go on for clients that are gone ({whose}, {}); each counts against max_connections \
             until its statement ends",
            count(counts.len(), "dead process").replace("processs", "processes")
        ),
        evidence: vec![
            evidence("orphaned_sessions", orphans.len() as f64, "{session}", "/proc/PID/cmdline")
                .with(Quality::Estimated),
            evidence("dead_clients", counts.len() as f64, "{process}", SOURCE),
        ],
        victims: vec![party::process(&Snapshot::default(), first.pid, &first.name, 1.0)],
        culprit,
        advice: "set client_connection_check_interval (PostgreSQL 14 and later) or statement_timeout, end the sessions with \
                 pg_terminate_backend, and see why their clients die"
            .to_owned(),
        ..Judgement::default()
    })
}

/// Connections that are open although the process that opened them is gone: another one has inherited them.
fn inherited(seen: &Seen<'_>) -> Option<Judgement> {
    let alloc = &seen.snapshot.alloc;
    if alloc.processes.is_empty() || alloc.process_count > alloc.processes.len() as u64 {
        return None;
    }
    let live: Keys<u32> = alloc.processes.iter().map(|row| row.pid).collect();
    let rows: Vec<&Connection> = seen
        .snapshot
        .tcp
        .connections
        .iter()
        .filter(|row| is_client(row) && row.state == "ESTABLISHED" && row.pid != 0)
        .filter(|row| row.age_ns >= YOUNG_NS && !live.contains(&row.pid))
        .collect();
    let first = rows.first()?;
    let owners: BTreeSet<u32> = rows.iter().map(|row| row.pid).collect();
    let named: Vec<String> =
        owners.iter().take(MAX_VICTIMS).map(|pid| format!("{} {pid}", first.name)).collect();
    Some(Judgement {
        subject: "inherited".to_owned(),
        state: State::Firing(Level::Watch),
        culprit: Some(party::process(seen.snapshot, first.pid, &first.name, 1.0)),
        message: format!(
            "{} of dead processes ({}) are still open: a child has inherited them, or their process cannot end",
            count(rows.len(), "connection"),
            named.join(", ")
        ),
        evidence: vec![evidence("connections", rows.len() as f64, "{connection}", SOURCE)],
        advice: "open sockets close-on-exec, or see what keeps the process from ending (state D)"
            .to_owned(),
        ..Judgement::default()
    })
}

#[cfg(test)]
mod unit {
    use super::client_of;

    #[test]
    fn the_title_of_a_session_names_its_client() {
        let check = |title, expect| assert_eq!(client_of(title), expect, "{title}");
        check("postgres: app shop 127.0.0.1(53412) SELECT", Some(("127.0.0.1", 53412)));
        check("postgres: main: app shop ::1(1) idle", Some(("::1", 1)));
        check("postgres: app shop [local] idle", None);
        check("postgres: checkpointer", None);
        check("/usr/lib/postgresql/15/bin/postgres -D /var", None);
        check("postgres: app shop 127.0.0.1(99999999) x", None);
        check("postgres: )( (", None);
    }
}
