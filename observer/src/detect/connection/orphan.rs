//! Sessions and connections that outlive their owner.
//!
//! The kernel closes the sockets of a dead process. What stays is the server's side: PostgreSQL looks at the socket of a
//! session only when it has an answer, so a long statement of a dead worker goes on and counts against `max_connections`, while
//! the next worker opens new ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    MAX_VICTIMS, SECOND, SOURCE, count, is_client, is_cut,
    left::Left,
    session::{Session, sessions},
};
use crate::{
    detect::{
        Judgement, Kind, Level, Party, Quality, Seen, State, evidence,
        judgement::Never,
        key::{ByKey, Keys, key},
        party,
    },
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
    detector: |_| Box::new(Never),
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
    who: Left,
    seen_ns: u64,
}

/// Finds them for [`super::budget`] too, which counts them.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    clients: ByKey<u64, Client>,
}

impl Orphans {
    /// Tells of them; gives those who left sessions behind, by the pid of the server.
    pub fn look(
        &mut self,
        seen: &Seen<'_>,
        found: &mut Vec<Judgement>,
    ) -> BTreeMap<u32, Vec<Left>> {
        let mut left: BTreeMap<u32, Vec<Left>> = BTreeMap::new();
        if !is_cut(&seen.snapshot.tcp) {
            let orphans = self.sessions(seen);
            found.extend(judge(&orphans));
            for (session, client) in &orphans {
                left.entry(session.server_pid()).or_default().push(client.who.clone());
            }
            self.forget(seen.now_ns);
        }
        found.extend(inherited(seen));
        left
    }

    /// Sessions of PostgreSQL servers on this host whose client was seen, and is not any more.
    fn sessions<'a>(&mut self, seen: &Seen<'a>) -> Vec<(Session<'a>, &Client)> {
        let mut sessions = sessions(seen).peekable();
        if sessions.peek().is_none() {
            return Vec::new();
        }
        let rows = &seen.snapshot.tcp.connections;
        for row in rows.iter().filter(|row| is_client(row) && is_here(row)) {
            let id = key((row.local_address.as_str(), row.local_port));
            let new = || Client { who: Left::of(seen, row), seen_ns: 0 };
            let client = self.clients.entry(id).or_insert_with(new);
            if client.who.pid != row.pid {
                client.who = Left::of(seen, row);
            }
            client.seen_ns = seen.now_ns;
        }
        // A session whose client was never seen is of another host, or of another network namespace.
        let orphan = |session: Session<'a>| {
            let client = self.clients.get(&key(session.client?))?;
            let is_gone = seen.now_ns.saturating_sub(client.seen_ns) >= YOUNG_NS;
            is_gone.then_some((session, client))
        };
        sessions.filter_map(orphan).collect()
    }

    fn forget(&mut self, now_ns: u64) {
        self.clients.retain(|_, client| now_ns.saturating_sub(client.seen_ns) < REMEMBERED_NS);
        if self.clients.len() > MAX_KNOWN {
            self.clients.retain(|_, client| client.seen_ns == now_ns);
        }
    }
}

fn is_here(row: &Connection) -> bool {
    row.peer_address.starts_with("127.")
        || row.peer_address == "::1"
        || row.peer_address == row.local_address
}

fn judge(orphans: &[(Session<'_>, &Client)]) -> Option<Judgement> {
    let (first, _) = orphans.first()?;
    let many = orphans.len() >= MANY;
    let mut counts: BTreeMap<u32, (&str, f64)> = BTreeMap::new();
    for (_, client) in orphans {
        counts.entry(client.who.pid).or_insert((&client.who.name, 0.0)).1 += 1.0;
    }
    // The dead are in no table of the snapshot any more.
    let known = orphans
        .iter()
        .filter_map(|(_, client)| Some((client.who.pid, client.who.process.clone()?)));
    let dead = Snapshot { processes: known.collect(), ..Snapshot::default() };
    let causes: Vec<_> = counts.iter().map(|(pid, (name, count))| (*pid, *name, *count)).collect();
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
        victims: vec![party::process(
            &Snapshot::default(),
            first.process.pid,
            &first.process.name,
            1.0,
        )],
        culprit,
        advice: "set client_connection_check_interval (PostgreSQL 14 and later) or statement_timeout, end the sessions with \
                 pg_terminate_backend, and see why their clients die"
            .to_owned(),
        kind: Some(&ORPHANS),
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
        kind: Some(&ORPHANS),
        ..Judgement::default()
    })
}
