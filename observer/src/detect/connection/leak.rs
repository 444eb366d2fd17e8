//! Connections that are opened and never used again.
//!
//! A pool opens a connection when none is free. One that is opened while others of the same process have been idle for long
//! was not needed: that tells a leak from a pool that grows with the load, however fast either is.

use std::{collections::BTreeMap, time::Duration};

use super::{SECOND, SOURCE, is_client, key, label, seconds};
use crate::{
    detect::{Detector, Judgement, Kind, Level, Seen, State, evidence, party},
    signal::{
        limit::Facts,
        tcp::{Activity, Connection},
    },
};

/// Connections leak.
pub static LEAK: Kind = Kind {
    name: "connection.leak",
    signal: "tcp",
    help: "a process opens connection after connection although it has idle ones",
    reason: "Counted is each connection that is opened while at least as many others of the process have been idle for 10 s, \
             as long as the number never falls by more than a tenth. Pools that are filled at once, grow with the load or \
             have grown to their cap do none of it. 10 at five times: WATCH; 20 at ten times within an hour: WARN; CRITICAL \
             when nine tenths of the server's limit are reached, where that is known. A pool for each of some tenants looks \
             the same while they arrive.",
    raise: Duration::ZERO,
    clear: Duration::from_secs(60),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Leak::default()),
};

/// A connection is not needed if it has been idle for as long; pools use the idle one before they open another.
const UNNEEDED_NS: u64 = 10 * SECOND;
const WATCH: Gate = Gate { opened: 10, times: 5 };
const WARN: Gate = Gate { opened: 20, times: 10 };
/// Steps of a leak come at least as often; one connection more a day is not one.
const WINDOW_NS: u64 = 3600 * SECOND;
/// After this many times the mean pause without another one, it has ended: a cap.
const PAUSES: u64 = 5;
/// A shorter pause says nothing.
const LEAST_PAUSE_NS: u64 = 60 * SECOND;
/// Pools followed.
const MAX_POOLS: usize = 4096;
/// Share of the server's limit that is as good as all.
const FULL: f64 = 0.9;

struct Gate {
    opened: u64,
    times: u64,
}

#[derive(Debug, Default)]
struct Pool {
    open: u64,
    unneeded: u64,
    /// The most that were open.
    peak: u64,
    /// Opened although others were idle, and at how many looks.
    leaked: u64,
    times: u64,
    since_ns: u64,
    last_ns: u64,
    seen_ns: u64,
}

#[derive(Debug, Default)]
struct Leak {
    pools: BTreeMap<u64, Pool>,
}

#[derive(Default)]
struct Counts<'a> {
    open: u64,
    unneeded: u64,
    row: Option<&'a Connection>,
}

impl Detector for Leak {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let rows = &seen.snapshot.tcp.connections;
        if seen.snapshot.tcp.connection_count > rows.len() as u64 {
            // The table is full, and the idle ones are what falls off.
            self.pools.clear();
            return;
        }
        // Idle for the whole time in which others were opened.
        let unneeded_ns = UNNEEDED_NS.max(seen.elapsed_ns);
        let mut counts: BTreeMap<u64, Counts<'_>> = BTreeMap::new();
        let client = |row: &&Connection| is_client(row) && row.pid != 0;
        for row in rows.iter().filter(client) {
            let name = if row.peer_name.is_empty() { &row.peer_address } else { &row.peer_name };
            let counts = counts.entry(key((row.pid, name, row.peer_port))).or_default();
            counts.open += 1;
            let unneeded = row.activity == Activity::Idle && row.activity_ns >= unneeded_ns;
            counts.unneeded += u64::from(unneeded);
            counts.row = Some(row);
        }
        for (id, counts) in counts {
            if self.pools.len() >= MAX_POOLS && !self.pools.contains_key(&id) {
                continue;
            }
            let pool = self.pools.entry(id).or_default();
            let level = pool.step(&counts, seen.now_ns);
            if let (Some(level), Some(row)) = (level, counts.row) {
                found.push(judge(seen, pool, row, level));
            }
        }
        self.pools.retain(|_, pool| pool.seen_ns == seen.now_ns);
    }
}

impl Pool {
    fn step(&mut self, counts: &Counts<'_>, now_ns: u64) -> Option<Level> {
        let more = counts.open.saturating_sub(self.open);
        let fell = counts.open.saturating_mul(10) < self.peak.saturating_mul(9);
        let pause_ns = now_ns.saturating_sub(self.last_ns);
        if fell || self.times > 0 && pause_ns > self.patience_ns() {
            (self.leaked, self.times, self.peak) = (0, 0, counts.open);
        }
        // At the first look nobody knows when they were opened.
        if more > 0 && self.seen_ns != 0 && counts.unneeded >= more {
            if self.times == 0 {
                self.since_ns = now_ns;
            }
            self.leaked += more;
            self.times += 1;
            self.last_ns = now_ns;
        }
        (self.open, self.unneeded, self.seen_ns) = (counts.open, counts.unneeded, now_ns);
        self.peak = self.peak.max(counts.open);
        let reaches = |gate: &Gate| self.leaked >= gate.opened && self.times >= gate.times;
        match (reaches(&WARN), reaches(&WATCH)) {
            // What was opened is still not needed.
            (true, _) if self.unneeded * 2 >= self.leaked => Some(Level::Warn),
            (_, true) => Some(Level::Watch),
            _ => None,
        }
    }

    /// How long no further connection may be opened before the leak is over.
    fn patience_ns(&self) -> u64 {
        let lasted_ns = self.last_ns.saturating_sub(self.since_ns);
        let pause_ns = lasted_ns / self.times.saturating_sub(1).max(1);
        match self.times {
            ..=1 => WINDOW_NS / 2,
            _ => pause_ns.saturating_mul(PAUSES).clamp(LEAST_PAUSE_NS, WINDOW_NS / 2),
        }
    }

    /// Connections a second.
    fn rate(&self, now_ns: u64) -> f64 {
        self.leaked as f64 / seconds(now_ns.saturating_sub(self.since_ns)).max(1.0)
    }
}

/// `max_connections` of the PostgreSQL server behind an endpoint, if it runs here and tells, and how many it has.
fn limit(seen: &Seen<'_>, row: &Connection) -> Option<(u64, u64)> {
    let here = row.peer_address.starts_with("127.") || row.peer_address == row.local_address;
    let runtimes = seen.snapshot.limit.runtimes.iter().filter(|_| here);
    let limit = runtimes.filter_map(|runtime| match &runtime.facts {
        Facts::Postgres(server) if server.port == row.peer_port => server.max_connections,
        _ => None,
    });
    let rows = &seen.snapshot.tcp.connections;
    let used = rows.iter().filter(|other| match is_client(other) {
        true => other.peer_port == row.peer_port && other.peer_address == row.peer_address,
        false => other.local_port == row.peer_port,
    });
    Some((used.count() as u64, limit.min()?))
}

fn judge(seen: &Seen<'_>, pool: &Pool, row: &Connection, level: Level) -> Judgement {
    let owner = party::process(seen.snapshot, row.pid, &row.name, 1.0);
    let rate = pool.rate(seen.now_ns);
    let limit = limit(seen, row);
    let nearly = limit.is_some_and(|(used, limit)| used as f64 >= limit as f64 * FULL);
    let time_left_seconds =
        limit.map(|(used, limit)| limit.saturating_sub(used) as f64 / rate.max(1e-6));
    let number = |name, value, unit| evidence(name, value, unit, SOURCE);
    Judgement {
        subject: format!("{} {} {}", row.name, row.pid, label(row)),
        state: State::Firing(if nearly && level == Level::Warn { Level::Critical } else { level }),
        message: format!(
            "{} leaks connections to {}: {} are open, {} of them opened while others lay idle, {:.0} a minute",
            owner.title,
            label(row),
            pool.open,
            pool.leaked,
            rate * 60.0
        ),
        culprit: Some(owner),
        evidence: vec![
            number("connections_open", pool.open as f64, "{connection}"),
            number("connections_leaked", pool.leaked as f64, "{connection}"),
            number("connections_idle", pool.unneeded as f64, "{connection}"),
            number("growth", rate, "{connection}/s"),
        ],
        time_left_seconds,
        advice: "find the code that makes a client (or a pool) for each request and does not end it; make one pool for the \
                 process and give each client back"
            .to_owned(),
        ..Judgement::default()
    }
}
