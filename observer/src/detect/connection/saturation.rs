//! A pool of which no connection is free: whoever needs one now waits inside the process.

use std::time::Duration;

use super::{SECOND, SOURCE, WITH_EVENTS, pools::Pools, seconds};
use crate::{
    detect::{Judgement, Kind, Level, Seen, State, evidence, judgement::worst, party},
    signal::tcp::Endpoint,
};

/// A pool has no free connection.
pub static SATURATION: Kind = Kind {
    name: "connection.saturation",
    signal: "tcp",
    help: "all connections of a pool wait for the database, and it opens no more: requests queue in the process",
    reason: "At least three connections, all of which wait at each look for 5 s while the pool does not grow: WATCH; after \
             10 s WARN, but only for a pool that was seen for a minute with a free connection in eight of ten looks: batch \
             jobs keep all of theirs busy by habit. Redis and MongoDB, where waiting is rest, are left at WATCH.",
    raise: Duration::ZERO,
    clear: Duration::from_secs(5),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Pools::default()),
};

const LEAST_POOL: u64 = 3;
const WATCH_NS: u64 = 5 * SECOND;
const WARN_NS: u64 = 10 * SECOND;
const CRITICAL_NS: u64 = 60 * SECOND;
/// A pool is known after this time.
const KNOWN_NS: u64 = 60 * SECOND;
/// It has a free connection by habit if it had one in this share of the looks, by time.
const FREE_SHARE: f64 = 0.8;
/// Weight of the past in that share.
const MEMORY_NS: f64 = 600e9;

/// What is known of a pool.
#[derive(Debug, Default)]
pub(super) struct Pool {
    first_ns: u64,
    /// Share of the time with a free connection.
    free_ratio: f64,
    /// Since when none is free, and how many there were then.
    full: Option<(u64, u64)>,
}

/// A pool without a free connection: since when, and how bad that is.
pub(super) type Full<'a> = (&'a Endpoint, u64, Level);

/// Tells of those that are full.
pub(super) fn tell(full: Vec<Full<'_>>, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
    let full = worst(full, |(row, full_ns, level)| (*level, *full_ns, row.open), found);
    found.extend(full.into_iter().map(|(row, full_ns, level)| judge(seen, row, full_ns, level)));
}

impl Pool {
    /// Takes a look at it.
    pub(super) fn follow<'a>(&mut self, row: &'a Endpoint, seen: &Seen<'_>) -> Option<Full<'a>> {
        if row.open < LEAST_POOL {
            *self = Self::default();
            return None;
        }
        if self.first_ns == 0 {
            *self = Self { first_ns: seen.now_ns, free_ratio: 1.0, full: None };
        }
        let (full_ns, level) = self.step(row, seen)?;
        Some((row, full_ns, level))
    }

    fn step(&mut self, row: &Endpoint, seen: &Seen<'_>) -> Option<(u64, Level)> {
        let is_full = row.waiting >= row.open;
        match self.full {
            _ if !is_full => self.full = None,
            Some((_, open)) if row.open <= open => {}
            _ => self.full = Some((seen.now_ns, row.open)),
        }
        let full_ns = self.full.map_or(0, |(since_ns, _)| seen.now_ns.saturating_sub(since_ns));
        // What this incident does is no habit, for as long as it may last before somebody looks.
        if full_ns < WARN_NS {
            // The mean of all that was seen, and later of the last minutes.
            let known_ns = seen.now_ns.saturating_sub(self.first_ns) as f64;
            let weight = seen.elapsed_ns as f64 / known_ns.clamp(1.0, MEMORY_NS);
            let weight = weight.min(1.0);
            self.free_ratio += (f64::from(u8::from(!is_full)) - self.free_ratio) * weight;
        }
        let known = seen.now_ns.saturating_sub(self.first_ns) >= KNOWN_NS;
        let habit = !known || self.free_ratio < FREE_SHARE;
        let events = WITH_EVENTS.contains(&row.system.as_str());
        let level = match full_ns {
            ..WATCH_NS => return None,
            CRITICAL_NS.. if !habit && !events => Level::Critical,
            WARN_NS.. if !habit && !events => Level::Warn,
            _ => Level::Watch,
        };
        Some((full_ns, level))
    }
}

fn judge(seen: &Seen<'_>, row: &Endpoint, full_ns: u64, level: Level) -> Judgement {
    let owner = party::process(seen.snapshot, row.pid, &row.name, 1.0);
    let number = |name, value, unit| evidence(name, value, unit, SOURCE);
    Judgement {
        subject: format!("{} {} {}:{}", row.name, row.pid, row.address, row.port),
        state: State::Firing(level),
        message: format!(
            "all {} connections of {} to {}:{} have been waiting for {:.0} s, the longest for {:.1} s: whoever needs one \
             now queues in the process",
            row.open,
            owner.title,
            row.address,
            row.port,
            seconds(full_ns),
            seconds(row.longest_wait_ns)
        ),
        culprit: Some(party::peer(&format!("{}:{}", row.address, row.port))),
        victims: vec![owner],
        evidence: vec![
            number("connections_open", row.open as f64, "{connection}"),
            number("none_free", seconds(full_ns), "s"),
            number("longest_wait", seconds(row.longest_wait_ns), "s"),
        ],
        advice: "find what the connections wait for before the pool is made larger: a larger one asks even more of the \
                 database"
            .to_owned(),
        ..Judgement::default()
    }
}
