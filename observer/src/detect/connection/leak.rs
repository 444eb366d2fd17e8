//! Connections that are opened and never used again.
//!
//! A pool opens a connection when none is free. One that is opened while others of the same process have been idle for long
//! was not needed: that tells a leak from a pool that grows with the load, however fast either is.

use std::{collections::BTreeMap, time::Duration};

use super::{SECOND, SOURCE, is_client, name, place, seconds};
use crate::{
    detect::{
        Judgement, Kind, Level, Seen, State, evidence,
        judgement::{Never, worst},
        key::key,
        party,
    },
    signal::{limit::Facts, tcp},
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
    detector: |_| Box::new(Never),
};

/// A connection is not needed if it has been idle for as long; pools use the idle one before they open another.
const UNNEEDED_NS: u64 = tcp::UNNEEDED_NS;
const WATCH: Gate = Gate { opened: 10, times: 5 };
const WARN: Gate = Gate { opened: 20, times: 10 };
/// Steps of a leak come at least as often; one connection more a day is not one.
const WINDOW_NS: u64 = 3600 * SECOND;
/// After this many times the mean pause without another one, it has ended: a cap.
const PAUSES: u64 = 5;
/// A shorter pause says nothing.
const LEAST_PAUSE_NS: u64 = 60 * SECOND;
/// Share of the server's limit that is as good as all.
const FULL: f64 = 0.9;

struct Gate {
    opened: u64,
    times: u64,
}

/// What is known of a pool.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool {
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

/// Connections of a process to a database.
pub(super) struct Counts<'a> {
    pub(super) pid: u32,
    name: &'a str,
    pub(super) address: &'a str,
    pub(super) port: u16,
    open: u64,
    unneeded: u64,
}

impl<'a> Counts<'a> {
    /// Of all its connections, also those that are not shown one by one.
    pub(super) fn of(row: &'a tcp::Endpoint) -> Self {
        Self {
            pid: row.pid,
            name: &row.name,
            address: &row.address,
            port: row.port,
            open: row.open,
            unneeded: row.unneeded,
        }
    }
}

/// What each pool has now, from all its connections.
pub(super) fn counts<'a>(seen: &Seen<'a>) -> BTreeMap<u64, Counts<'a>> {
    let mut all: BTreeMap<u64, Counts<'_>> = BTreeMap::new();
    // Idle for the whole time in which others were opened.
    let unneeded_ns = UNNEEDED_NS.max(seen.elapsed_ns);
    let rows = seen.snapshot.tcp.connections.iter();
    for row in rows.filter(|row| is_client(row) && row.pid != 0) {
        let new = || Counts {
            pid: row.pid,
            name: &row.name,
            address: name(row),
            port: row.peer_port,
            open: 0,
            unneeded: 0,
        };
        let id = key((row.pid, name(row), row.peer_port));
        let counts = all.entry(id).or_insert_with(new);
        counts.open += 1;
        counts.unneeded += u64::from(row.is_idle_for(unneeded_ns));
    }
    all
}

/// A pool that leaks.
pub(super) type Leaking<'a> = (Level, Pool, Counts<'a>);

/// Tells of those that leak.
pub(super) fn tell(leaking: Vec<Leaking<'_>>, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
    let leaking = worst(leaking, |(level, pool, _)| (*level, pool.leaked), found);
    let judged = leaking.into_iter();
    found.extend(judged.map(|(level, pool, counts)| judge(seen, &pool, &counts, level)));
}

impl Pool {
    /// Takes a look at it.
    pub(super) fn follow<'a>(&mut self, counts: Counts<'a>, now_ns: u64) -> Option<Leaking<'a>> {
        let level = self.step(&counts, now_ns)?;
        Some((level, self.clone(), counts))
    }

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
fn limit(seen: &Seen<'_>, of: &Counts<'_>) -> Option<(u64, u64)> {
    let tcp = &seen.snapshot.tcp;
    let to = |row: &&tcp::Connection| {
        is_client(row) && row.peer_port == of.port && name(row) == of.address
    };
    let own = |row: &tcp::Connection| row.peer_address == row.local_address;
    let here = of.address.starts_with("127.") || tcp.connections.iter().find(to).is_some_and(own);
    let runtimes = seen.snapshot.limit.runtimes.iter().filter(|_| here);
    let limit = runtimes.filter_map(|runtime| match &runtime.facts {
        Facts::Postgres(server) if server.port == of.port => server.max_connections,
        _ => None,
    });
    let limit = limit.min()?;
    let used = tcp
        .endpoints
        .iter()
        .filter(|row| row.port == of.port && (row.role == "server" || row.address == of.address));
    Some((used.map(|row| row.open).sum(), limit))
}

fn judge(seen: &Seen<'_>, pool: &Pool, of: &Counts<'_>, level: Level) -> Judgement {
    let owner = party::process(seen.snapshot, of.pid, of.name, 1.0);
    let endpoint = place(of.address, of.port);
    let rate = pool.rate(seen.now_ns);
    let limit = limit(seen, of);
    let nearly = limit.is_some_and(|(used, limit)| used as f64 >= limit as f64 * FULL);
    let time_left_seconds =
        limit.map(|(used, limit)| limit.saturating_sub(used) as f64 / rate.max(1e-6));
    let number = |name, value, unit| evidence(name, value, unit, SOURCE);
    Judgement {
        subject: format!("{} {} {endpoint}", of.name, of.pid),
        state: State::Firing(if nearly && level == Level::Warn { Level::Critical } else { level }),
        message: format!(
            "{} leaks connections to {endpoint}: {} are open, {} of them opened while others lay idle, {:.0} a minute",
            owner.title,
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
        kind: Some(&LEAK),
        ..Judgement::default()
    }
}
