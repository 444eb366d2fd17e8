//! Servers whose limit is known, of this host and elsewhere: who has connections there, and what they have of them.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    is_client,
    left::{Abandoned, Left},
    name, place,
    session::sessions,
};
use crate::{
    config::Count,
    detect::{Level, Seen, limit::near},
    signal::{
        limit::Facts,
        tcp::{Connection, Endpoint},
    },
};

/// superuser_reserved_connections of a PostgreSQL that is told none.
const RESERVED: u64 = 3;
/// Some servers are smaller than this by design; whoever sets it means it.
const LEAST: u64 = 3;
/// Where a limit comes from that is set.
const SET: &str = "configuration";

/// A server whose limit is known.
pub(super) struct Server<'a> {
    /// As `db.example:5432`.
    pub place: String,
    /// What it takes.
    pub limit: u64,
    /// Where that is from.
    pub source: &'static str,
    /// Who has connections there, and sessions of those elsewhere if it runs here.
    pub rows: Vec<&'a Endpoint>,
    /// Sessions that it has itself, if each is a process of this host.
    pub sessions: Option<u64>,
    /// Who has gone and left a session there: some of `sessions`, or else a guess.
    pub left: Vec<Left>,
}

impl Server<'_> {
    /// Connections that are seen for certain.
    fn known(&self) -> u64 {
        let open = self.rows.iter().map(|row| row.open).sum();
        self.sessions.map_or(open, |sessions| sessions.max(open))
    }

    /// What counts against the limit.
    pub fn used(&self) -> u64 {
        let known = self.known();
        match self.sessions {
            Some(_) => known,
            None => (known + self.left.len() as u64).min(known.max(self.limit)),
        }
    }

    /// How bad it is, if it is full in so many seconds.
    pub fn level(&self, seconds_left: Option<f64>) -> Option<Level> {
        let (known, used) = (self.known(), self.used());
        let share = |count: u64| count as f64 / self.limit as f64;
        if known == used {
            return near::level(share(used), seconds_left, false);
        }
        let guess = near::level(share(used), seconds_left, false);
        near::level(share(known), None, false).max(guess.map(|level| level.min(Level::Warn)))
    }
}

/// Finds them.
pub(super) struct Servers {
    set: Limits,
    abandoned: Abandoned,
}

impl Servers {
    /// With these limits of servers elsewhere.
    pub fn new(set: &[Count]) -> Self {
        Self { set: Limits::new(set), abandoned: Abandoned::default() }
    }

    /// All whose limit is known; `left` says who left sessions at which PostgreSQL of this host.
    pub fn look<'a>(
        &mut self,
        seen: &Seen<'a>,
        mut left: BTreeMap<u32, Vec<Left>>,
    ) -> Vec<Server<'a>> {
        let tcp = &seen.snapshot.tcp;
        let told = local_limits(seen);
        if self.set.0.is_empty() && told.is_empty() {
            return Vec::new();
        }
        let counts = session_counts(seen);
        let local = told.into_iter().map(|(port, told)| {
            let sessions = told.pid.map(|pid| counts.get(&pid).copied().unwrap_or(0));
            let left = told.pid.and_then(|pid| left.remove(&pid)).unwrap_or_default();
            let Told { limit, source, .. } = told;
            let place = place("localhost", port);
            ((true, port, ""), Server { place, limit, source, rows: Vec::new(), sessions, left })
        });
        // A server of this host is one, by whichever address it is reached.
        let mut servers: BTreeMap<(bool, u16, &str), Server<'a>> = local.collect();
        let addresses = Addresses::of(&tcp.connections, &self.set);
        let set = &self.set;
        self.abandoned.look(seen, |row| set.is_meant(row) && !addresses.is_own(row));
        for row in &tcp.endpoints {
            let Some(limit) = addresses.limit(row, &self.set) else { continue };
            let server = servers.entry(addresses.key(row)).or_insert_with(|| {
                let here = addresses.is_here(row);
                let address = if here { "localhost" } else { &row.address };
                let left = self.abandoned.at(seen, &row.address, row.port);
                let left = if here { Vec::new() } else { left };
                let place = place(address, row.port);
                Server { place, limit, source: SET, rows: Vec::new(), sessions: None, left }
            });
            if limit < server.limit {
                (server.limit, server.source) = (limit, SET);
            }
        }
        for row in &tcp.endpoints {
            if let Some(server) = servers.get_mut(&addresses.key(row)) {
                server.rows.push(row);
            }
        }
        let is_meant = |server: &Server<'_>| server.limit >= LEAST || server.source == SET;
        servers.into_values().filter(is_meant).collect()
    }
}

/// Limits that are set: by port, then by name or address in small letters. Of a place that is there twice the last counts.
struct Limits(BTreeMap<u16, BTreeMap<String, u64>>);

impl Limits {
    fn new(set: &[Count]) -> Self {
        let mut limits: BTreeMap<u16, BTreeMap<String, u64>> = BTreeMap::new();
        for Count { host, port, number } in set {
            limits.entry(*port).or_default().insert(host.to_ascii_lowercase(), *number);
        }
        Self(limits)
    }

    fn at(&self, host: &str, port: u16) -> Option<u64> {
        self.0.get(&port)?.get(&host.to_ascii_lowercase()).copied()
    }

    fn is_meant(&self, row: &Connection) -> bool {
        let at = |host| self.at(host, row.peer_port).is_some();
        at(&row.peer_address) || !row.peer_name.is_empty() && at(&row.peer_name)
    }
}

/// What a server of this host takes.
struct Told {
    limit: u64,
    source: &'static str,
    /// The server; none if several have the same port, each in a network of its own.
    pid: Option<u32>,
}

/// What servers of this host are told, the least for each port.
fn local_limits(seen: &Seen<'_>) -> BTreeMap<u16, Told> {
    let mut limits: BTreeMap<u16, Told> = BTreeMap::new();
    for runtime in &seen.snapshot.limit.runtimes {
        let (port, limit, source) = match &runtime.facts {
            Facts::Postgres(server) => {
                let limit = server.max_connections.map(|most| most.saturating_sub(RESERVED));
                (server.port, limit, "max_connections")
            }
            Facts::Redis(server) => (server.port, server.max_clients, "maxclients"),
            _ => continue,
        };
        let Some(limit) = limit.filter(|_| port != 0) else { continue };
        let several = limits.contains_key(&port);
        let pid = matches!(runtime.facts, Facts::Postgres(_)).then_some(runtime.pid);
        let least = limits.entry(port).or_insert(Told { limit, source, pid });
        least.limit = least.limit.min(limit);
        least.pid = least.pid.filter(|_| !several);
    }
    limits
}

/// How many sessions each PostgreSQL of this host has, by the pid of its first process.
fn session_counts(seen: &Seen<'_>) -> BTreeMap<u32, u64> {
    let mut counts = BTreeMap::new();
    for session in sessions(seen) {
        *counts.entry(session.server_pid()).or_default() += 1;
    }
    counts
}

fn is_loopback(address: &str) -> bool {
    address.starts_with("127.") || address == "::1"
}

/// What connections say of the addresses behind names.
struct Addresses<'a> {
    /// Names or addresses of this host, as pools have them.
    here: BTreeSet<(&'a str, u16)>,
    /// Names with an address that they stand for, and that a limit is set for.
    named: BTreeSet<(&'a str, &'a str)>,
}

impl<'a> Addresses<'a> {
    /// Only what cannot be told from the pool alone: there are thousands of connections.
    fn of(rows: &'a [Connection], set: &Limits) -> Self {
        let clients = || rows.iter().filter(|row| is_client(row));
        let own =
            |row: &&Connection| row.peer_address == row.local_address && !is_loopback(name(row));
        let meant = |row: &&Connection| set.at(&row.peer_address, row.peer_port).is_some();
        let named = clients().filter(meant).map(|row| (name(row), row.peer_address.as_str()));
        Self {
            here: clients().filter(own).map(|row| (name(row), row.peer_port)).collect(),
            named: named.collect(),
        }
    }

    /// Whether it leads to a server of this host.
    fn is_own(&self, row: &Connection) -> bool {
        is_loopback(name(row)) || self.here.contains(&(name(row), row.peer_port))
    }

    fn is_here(&self, row: &Endpoint) -> bool {
        row.role == "server"
            || is_loopback(&row.address)
            || self.here.contains(&(row.address.as_str(), row.port))
    }

    /// The server that a pool belongs to.
    fn key<'r>(&self, row: &'r Endpoint) -> (bool, u16, &'r str) {
        let is_here = self.is_here(row);
        (is_here, row.port, if is_here { "" } else { &row.address })
    }

    /// What is set for a pool's server, by its name or by an address that the name stands for.
    fn limit(&self, row: &Endpoint, set: &Limits) -> Option<u64> {
        let Endpoint { address, port, .. } = row;
        let stands_for = self.named.range((address.as_str(), "")..);
        let stands_for = stands_for.take_while(|(name, _)| name == address);
        let is_client = row.role != "server";
        let found = set.at(address, *port);
        let found = found.or_else(|| stands_for.filter_map(|(_, one)| set.at(one, *port)).min());
        found.filter(|_| is_client)
    }
}
