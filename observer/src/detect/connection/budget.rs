//! What a server takes against what this host has open there, and what its pools may still open.

use std::{collections::BTreeMap, time::Duration};

use super::{
    SECOND, SOURCE,
    orphan::Orphans,
    servers::{Server, Servers},
};
use crate::{
    config::{self, Config, Setting},
    detect::{
        Detector, Evidence, Group, Judgement, Kind, Level, Quality, Seen, State, evidence,
        judgement::{Never, worst},
        key::{ByKey, key},
        party,
        trend::Trend,
    },
    signal::tcp::Endpoint,
    snapshot::Snapshot,
};

/// The server's connections run out.
pub static BUDGET: Kind = Kind {
    name: "connection.budget",
    signal: "tcp",
    help: "this host's connections to a server come near to what the server takes",
    reason: "Behind the limit a server refuses everybody, operators included. Shares and rates are those of `limit.near`; a \
             rate counts when the number has risen for 15 s, because pools are filled at once. Known without a setting are \
             max_connections of a PostgreSQL on this host, less the three that it keeps for superusers, and maxclients of a \
             Redis. Sessions that dead clients left there count as well, as the server counts them; those at servers elsewhere \
             are an estimate, and alone no more than WARN.",
    raise: Duration::from_secs(2),
    clear: Duration::from_secs(20),
    hazard: false,
    settings: &[LIMITS],
    detector: |config| Box::new(Budgets::new(config)),
};

/// Pools that together are larger than the server.
pub static REACH: Kind = Kind {
    name: "hazard.connection_budget",
    signal: "tcp",
    help: "the pools of an application's workers are together larger than what the server takes",
    reason: "Each worker has a pool of its own, so what one of them was seen to open, all may open at once; that happens when \
             the database is slow, and then it refuses, too.",
    raise: Duration::from_secs(30),
    clear: Duration::from_secs(30),
    hazard: true,
    settings: &[],
    detector: |_| Box::new(Never),
};

/// What servers elsewhere take.
pub const LIMITS: Setting = Setting {
    key: "detect.connection_budget",
    kind: config::Kind::Counts,
    default: "",
    otel: &[],
    help: "connections that this host may have to a server, as HOST:PORT=NUMBER with the name or address that observer shows, \
           such as db.example:5432=87; of a server on this host the smaller of it and of its own counts",
};

/// Groups of workers whose largest pool is remembered.
const MAX_GROUPS: usize = 1024;
/// Over about a minute, as other bounds.
const CONSTANT: Duration = Duration::from_secs(20);
/// A rate counts when the number has risen for so long, without a pause of the second: pools are filled at once.
const FILLED_NS: u64 = 15 * SECOND;
const PAUSE_NS: u64 = 30 * SECOND;

/// Judges for both kinds, and for [`super::orphan::ORPHANS`], whose sessions count here.
struct Budgets {
    servers: Servers,
    orphans: Orphans,
    /// By server; there are as many as are set, and servers of this host.
    fills: BTreeMap<String, Fill>,
    /// The largest pool of one worker of a group, and when it was last seen.
    pools: ByKey<u64, (u64, u64)>,
}

/// How the number of connections to a server rises.
#[derive(Default)]
struct Fill {
    trend: Trend,
    used: Option<u64>,
    /// When it began to rise, and when it last did.
    rises: Option<(u64, u64)>,
}

impl Fill {
    fn add(&mut self, now_ns: u64, used: u64) {
        self.trend.add(now_ns, used as f64, CONSTANT);
        if self.used.is_some_and(|before| used > before) {
            let on = self.rises.filter(|(_, last_ns)| now_ns.saturating_sub(*last_ns) < PAUSE_NS);
            self.rises = Some((on.map_or(now_ns, |(since_ns, _)| since_ns), now_ns));
        }
        self.used = Some(used);
    }

    fn seconds_left(&self, room: u64) -> Option<f64> {
        let (since_ns, last_ns) = self.rises?;
        let lasts = last_ns.saturating_sub(since_ns) >= FILLED_NS;
        self.trend.seconds_left(room as f64).filter(|_| lasts)
    }
}

/// Workers of one application.
struct Workers<'a> {
    group: Group,
    first: &'a Endpoint,
    count: u64,
    open: u64,
    largest: u64,
}

impl Workers<'_> {
    /// Several of one application, not only of one program.
    fn is_alike(&self) -> bool {
        self.count > 1 && self.group != Group::Program
    }
}

impl Budgets {
    fn new(config: &Config) -> Self {
        Self {
            servers: Servers::new(config.counts(&LIMITS)),
            orphans: Orphans::default(),
            fills: BTreeMap::new(),
            pools: ByKey::default(),
        }
    }

    /// How many connections the server's clients can have when each worker has as many as the largest of its kind had.
    fn reach<'a>(&mut self, seen: &Seen<'_>, server: &Server<'a>) -> (u64, Vec<Workers<'a>>) {
        let mut all: BTreeMap<(Group, String, &str), Workers<'a>> = BTreeMap::new();
        let mut reach: u64 = 0;
        for row in &server.rows {
            let known = seen.process(row.pid).filter(|_| row.role != "server" && row.pid != 0);
            let Some(process) = known else {
                reach = reach.saturating_add(row.open);
                continue;
            };
            let (group, whose) = party::group_of(process);
            let new = || Workers { group, first: row, count: 0, open: 0, largest: 0 };
            let workers = all.entry((group, whose, row.name.as_str())).or_insert_with(new);
            workers.count += 1;
            workers.open += row.open;
            workers.largest = workers.largest.max(row.open);
        }
        for ((_, whose, name), workers) in &mut all {
            let id = key((whose.as_str(), *name, server.place.as_str()));
            if self.pools.len() < MAX_GROUPS || self.pools.contains_key(&id) {
                let (largest, seen_ns) = self.pools.entry(id).or_default();
                (*largest, *seen_ns) = ((*largest).max(workers.largest), seen.now_ns);
                workers.largest = *largest;
            }
            let most = workers.largest.saturating_mul(workers.count);
            reach = reach.saturating_add(if workers.is_alike() { most } else { workers.open });
        }
        (reach, all.into_values().filter(Workers::is_alike).collect())
    }
}

impl Detector for Budgets {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let left = self.orphans.look(seen, found);
        let servers = self.servers.look(seen, left);
        self.fills.retain(|place, _| servers.iter().any(|server| server.place == *place));
        let (mut near, mut beyond) = (Vec::new(), Vec::new());
        for server in &servers {
            let used = server.used();
            let (reach, workers) = self.reach(seen, server);
            let fill = self.fills.entry(server.place.clone()).or_default();
            fill.add(seen.now_ns, used);
            let left = fill.seconds_left(server.limit.saturating_sub(used));
            if let Some(level) = server.level(left) {
                near.push((level, used, fill.trend.rate(), left, server));
            }
            let workers = workers.into_iter();
            let most = workers.max_by_key(|one| one.largest.saturating_mul(one.count));
            beyond.extend(most.filter(|_| reach > server.limit).map(|most| (reach, most, server)));
        }
        self.pools.retain(|_, (_, seen_ns)| *seen_ns == seen.now_ns);
        for (level, used, rate, left, server) in worst(near, |one| (one.0, one.1), found) {
            found.push(full(seen, server, level, used, (rate, left)));
        }
        for (reach, most, server) in worst(beyond, |one| one.0, found) {
            found.push(too_large(seen, server, reach, &most));
        }
    }
}

/// Who has connections there, with how many, those that are gone last; and what is known of all of them.
fn holders<'a>(seen: &Seen<'_>, server: &'a Server<'_>) -> (Vec<party::Cause<'a>>, Snapshot) {
    let clients = server.rows.iter().filter(|row| row.role != "server" && row.pid != 0);
    let mut all: BTreeMap<u32, (&str, f64)> = BTreeMap::new();
    let mut known = Snapshot::default();
    for row in clients {
        all.entry(row.pid).or_insert((&row.name, 0.0)).1 += row.open as f64;
        known
            .processes
            .extend(seen.snapshot.processes.get(&row.pid).map(|one| (row.pid, one.clone())));
    }
    for left in &server.left {
        all.entry(left.pid).or_insert((&left.name, 0.0)).1 += 1.0;
        known.processes.extend(left.process.iter().map(|one| (left.pid, one.clone())));
    }
    (all.into_iter().map(|(pid, (name, open))| (pid, name, open)).collect(), known)
}

fn full(
    seen: &Seen<'_>,
    server: &Server<'_>,
    level: Level,
    used: u64,
    (rate, seconds_left): (f64, Option<f64>),
) -> Judgement {
    let Server { place, limit, left, .. } = server;
    let (holders, known) = holders(seen, server);
    let ours: f64 = holders.iter().map(|(.., open)| open).sum();
    // Of those who connect from elsewhere, the processes are not seen.
    let culprit = Some(&holders).filter(|_| ours * 2.0 >= used as f64);
    let culprit = culprit.and_then(|holders| party::culprit(&known, holders));
    let most = culprit.as_ref().map_or_else(String::new, |most| {
        format!(
            ", {:.0} % of them by {}",
            most.share_ratio * ours / used.max(1) as f64 * 100.0,
            most.title
        )
    });
    let gone = match (left.len(), server.sessions) {
        (0, _) => String::new(),
        (gone, Some(_)) => format!(", {gone} for clients that are gone"),
        (gone, None) => format!(", some {gone} for clients that are gone"),
    };
    let fills = seconds_left.filter(|left| *left < 86_400.0).map_or_else(String::new, |left| {
        format!("; {:.0} more a minute, the last in {left:.0} s", rate * 60.0)
    });
    Judgement {
        subject: place.clone(),
        state: State::Firing(level),
        message: format!(
            "{used} of the {limit} connections that {place} takes are open{most}{gone}{fills}"
        ),
        culprit,
        evidence: numbers(server, used, rate),
        time_left_seconds: seconds_left,
        advice: if left.is_empty() { SMALLER.to_owned() } else { format!("{LEFT}; {SMALLER}") },
        ..Judgement::default()
    }
}

const SMALLER: &str = "make the pools smaller, or put a pooler (PgBouncer) before the server; raise its limit only if it has the \
                       memory for more sessions";
const LEFT: &str = "see why clients die, and have the server end their statements (client_connection_check_interval or \
                    statement_timeout of PostgreSQL)";

fn numbers(server: &Server<'_>, used: u64, rate: f64) -> Vec<Evidence> {
    let from = if server.sessions == Some(used) { "/proc/PID/cmdline" } else { SOURCE };
    let number = |name, count: u64, from| evidence(name, count as f64, "{connection}", from);
    let mut all = vec![number("connections_open", used, from)];
    if !server.left.is_empty() {
        all.push(number("connections_left", server.left.len() as u64, from));
        all = all.into_iter().map(|one| one.with(Quality::Estimated)).collect();
    }
    all.push(number("limit", server.limit, server.source));
    all.push(evidence("growth", rate, "{connection}/s", from));
    all
}

fn too_large(seen: &Seen<'_>, server: &Server<'_>, reach: u64, most: &Workers<'_>) -> Judgement {
    let Server { place, limit, source, .. } = server;
    let (causes, known) = holders(seen, server);
    let whose = party::group_title(seen.snapshot, most.first.pid, most.group);
    Judgement {
        subject: place.clone(),
        state: State::Firing(Level::Watch),
        message: format!(
            "{} workers of {whose} hold up to {} connections each to {place}: with all others {reach} of its {limit}",
            most.count, most.largest
        ),
        culprit: party::culprit(&known, &causes),
        evidence: vec![
            evidence("connections_possible", reach as f64, "{connection}", SOURCE),
            evidence("largest_pool", most.largest as f64, "{connection}", SOURCE),
            evidence("workers", most.count as f64, "{process}", SOURCE),
            evidence("limit", *limit as f64, "{connection}", *source),
        ],
        advice: "divide what the server takes by the number of workers, those of a deploy's overlap included, and set the \
                 pools' maximum to it"
            .to_owned(),
        kind: Some(&REACH),
        ..Judgement::default()
    }
}
