//! Connections to databases and caches: who does not answer, who waits for whom, and whose pools are too many.
//!
//! `habits` learns how long answers take, `crowd` tells a frozen server from a lock, `blocker` says who began it, `pools` walks
//! the pools; the other files are the kinds.

mod blocker;
pub mod budget;
mod crowd;
pub mod dead;
pub mod duplicate;
mod habits;
pub mod leak;
mod left;
pub mod orphan;
mod pools;
pub mod saturation;
mod servers;
mod session;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod transaction;
pub mod unread;
pub mod waiting;

use std::collections::BTreeMap;

use super::{Party, Seen, party};
use crate::signal::tcp::{Activity, Connection, View};

/// Parties named as victims.
const MAX_VICTIMS: usize = 8;

/// Where the numbers come from.
const SOURCE: &str = "iter/tcp";

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// What databases and caches of this host call themselves, by `db.system.name`.
const SERVERS: &[(&str, &[&str])] = &[
    ("postgresql", &["postgres", "pgbouncer"]),
    ("redis", &["redis-server", "valkey-server"]),
    ("mysql", &["mysqld", "mariadbd"]),
    ("mariadb", &["mariadbd"]),
    ("mongodb", &["mongod"]),
    ("memcached", &["memcached"]),
];

/// Systems whose clients wait for events (BLPOP, awaitable cursors): there a long wait is often healthy. Elsewhere each
/// question has an answer of its own.
const WITH_EVENTS: &[&str] = &["redis", "mongodb"];

fn is_client(row: &Connection) -> bool {
    row.role != "server"
}

/// The database's address and port, as a client has them.
fn endpoint(row: &Connection) -> (&str, u16) {
    (&row.peer_address, row.peer_port)
}

/// The database's name, or its address where none is known.
fn name(row: &Connection) -> &str {
    if row.peer_name.is_empty() { &row.peer_address } else { &row.peer_name }
}

/// Whether there are more connections than rows. Then rows say who waits, and `endpoints` how many there are.
fn is_cut(tcp: &View) -> bool {
    tcp.connection_count > tcp.connections.len() as u64
}

/// `db.example.com:5432`, or the address where no name is known.
fn label(row: &Connection) -> String {
    place(name(row), row.peer_port)
}

fn place(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// The process behind an endpoint, if it runs here and only one can be it: its pid and name.
fn local_server<'a>(seen: &Seen<'a>, row: &Connection) -> Option<(u32, &'a str)> {
    let address = &row.peer_address;
    if !(address.starts_with("127.") || address == "::1" || *address == row.local_address) {
        return None;
    }
    let (_, names) = SERVERS.iter().find(|(system, _)| *system == row.system)?;
    let is_server = |pid: &u32| {
        seen.process(*pid).is_some_and(|process| names.contains(&process.name.as_str()))
    };
    // The first of its tree: PostgreSQL's sessions are children of the one that listens.
    let mut first = seen
        .snapshot
        .processes
        .iter()
        .filter(|(pid, process)| is_server(pid) && !is_server(&process.parent_pid));
    match (first.next(), first.next()) {
        (Some((pid, process)), None) => Some((*pid, process.name.as_str())),
        _ => None,
    }
}

/// The database behind an endpoint: its process if it runs here, else the peer.
fn server(seen: &Seen<'_>, row: &Connection) -> Party {
    if let Some((pid, name)) = local_server(seen, row) {
        return party::process(seen.snapshot, pid, name, 1.0);
    }
    let mut peer = party::peer(&format!("{}:{}", row.peer_address, row.peer_port));
    if !row.peer_name.is_empty() {
        peer.title = format!("{} ({})", label(row), row.peer_address);
    }
    peer
}

/// The processes that own connections, those with the most first.
fn owners(seen: &Seen<'_>, rows: &[&Connection]) -> Vec<Party> {
    let mut counts: BTreeMap<u32, (&str, usize)> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.pid != 0) {
        counts.entry(row.pid).or_insert((&row.name, 0)).1 += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(pid, (_, count))| (std::cmp::Reverse(*count), *pid));
    let whole = rows.len().max(1) as f64;
    let named = counts.into_iter().take(MAX_VICTIMS);
    named
        .map(|(pid, (name, count))| party::process(seen.snapshot, pid, name, count as f64 / whole))
        .collect()
}

/// Who suffers, in a sentence: `node 4711 (PM2 app shop, worker 1) and 2 more`.
fn list(parties: &[Party]) -> String {
    match parties {
        [] => "an unknown process".to_owned(),
        [one] => one.title.clone(),
        [first, rest @ ..] => format!("{} and {} more", first.title, rest.len()),
    }
}

/// `1 connection`, `2 connections`.
fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Nanoseconds as seconds.
fn seconds(ns: u64) -> f64 {
    ns as f64 / SECOND as f64
}

fn is_stuck(row: &Connection) -> bool {
    row.activity == Activity::HalfOpen
        || row.activity == Activity::Connecting && row.activity_ns >= SECOND
}
