//! What a server takes against what this host has open there, and what its pools may still open.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{SECOND, SOURCE, is_client, name, place};
use crate::{
    config::{self, Config, Count, Setting},
    detect::{
        Detector, Group, Judgement, Kind, Level, Seen, State, evidence,
        judgement::{Never, worst},
        key::{ByKey, key},
        limit::near,
        party,
        trend::Trend,
    },
    signal::{
        limit::Facts,
        tcp::{Connection, Endpoint},
    },
};

/// The server's connections run out.
pub static BUDGET: Kind = Kind {
    name: "connection.budget",
    signal: "tcp",
    help: "this host's connections to a server come near to what the server takes",
    reason: "Behind the limit a server refuses everybody, operators included. Shares and rates are those of `limit.near`; a \
             rate counts when the number has risen for 15 s, because pools are filled at once. Known without a setting are \
             max_connections of a PostgreSQL on this host, less the three that it keeps for superusers, and maxclients of a \
             Redis.",
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

/// superuser_reserved_connections of a PostgreSQL that is told none.
const RESERVED: u64 = 3;
/// Some servers are smaller than this by design.
const LEAST: u64 = 3;
/// Groups of workers whose largest pool is remembered.
const MAX_GROUPS: usize = 1024;
/// Over about a minute, as other bounds.
const CONSTANT: Duration = Duration::from_secs(20);
/// A rate counts when the number has risen for so long, without a pause of the second: pools are filled at once.
const FILLED_NS: u64 = 15 * SECOND;
const PAUSE_NS: u64 = 30 * SECOND;

/// Judges for both kinds.
struct Budgets {
    set: Vec<Count>,
    /// By server; there are as many as are set, and servers of this host.
    fills: BTreeMap<String, Fill>,
    /// The largest pool of one worker of a group, and when it was last seen.
    pools: ByKey<u64, (u64, u64)>,
}

/// A server whose limit is known.
struct Server<'a> {
    place: String,
    limit: u64,
    source: &'static str,
    /// Who has connections there, and sessions of those elsewhere if it runs here.
    rows: Vec<&'a Endpoint>,
}

/// How the number of connections to a server rises.
#[derive(Default)]
struct Fill {
    trend: Trend,
    used: u64,
    /// When it began to rise, and when it last did.
    rises: Option<(u64, u64)>,
}

impl Fill {
    fn add(&mut self, now_ns: u64, used: u64) {
        self.trend.add(now_ns, used as f64, CONSTANT);
        if used > self.used {
            let on = self.rises.filter(|(_, last_ns)| now_ns.saturating_sub(*last_ns) < PAUSE_NS);
            self.rises = Some((on.map_or(now_ns, |(since_ns, _)| since_ns), now_ns));
        }
        self.used = used;
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
        let set = config.counts(&LIMITS).to_vec();
        Self { set, fills: BTreeMap::new(), pools: ByKey::default() }
    }

    fn servers<'a>(&self, seen: &Seen<'a>) -> Vec<Server<'a>> {
        let tcp = &seen.snapshot.tcp;
        let told = local_limits(seen);
        if self.set.is_empty() && told.is_empty() {
            return Vec::new();
        }
        let addresses = Addresses::of(&tcp.connections, &self.set);
        let mut servers: BTreeMap<(bool, u16, &str), Server<'a>> = BTreeMap::new();
        for row in &tcp.endpoints {
            let is_here = row.role == "server" || addresses.is_here(row);
            let set = self.set.iter().rev().find(|set| addresses.is_at(row, &set.host, set.port));
            let set = set.map(|set| (set.number, "configuration"));
            let told = || told.get(&row.port).copied().filter(|_| is_here);
            let Some((limit, source)) = set.or_else(told) else { continue };
            // A server of this host is one, by whichever address it is reached.
            let key = (is_here, row.port, if is_here { "" } else { row.address.as_str() });
            let address = if is_here { "localhost" } else { row.address.as_str() };
            let new =
                || Server { place: place(address, row.port), limit, source, rows: Vec::new() };
            let server = servers.entry(key).or_insert_with(new);
            if limit < server.limit {
                (server.limit, server.source) = (limit, source);
            }
            server.rows.push(row);
        }
        servers.into_values().filter(|server| server.limit >= LEAST).collect()
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

/// What servers of this host are told, the least for each port, and where.
fn local_limits(seen: &Seen<'_>) -> BTreeMap<u16, (u64, &'static str)> {
    let mut limits: BTreeMap<u16, (u64, &'static str)> = BTreeMap::new();
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
        let least = limits.entry(port).or_insert((limit, source));
        least.0 = least.0.min(limit);
    }
    limits
}

fn is_loopback(address: &str) -> bool {
    address.starts_with("127.") || address == "::1"
}

/// What connections say of the addresses behind names.
struct Addresses<'a> {
    /// Names or addresses of this host, as pools have them.
    here: BTreeSet<(&'a str, u16)>,
    /// Names with an address that they stand for.
    named: BTreeSet<(&'a str, &'a str)>,
}

impl<'a> Addresses<'a> {
    /// Only what cannot be told from the pool alone: there are thousands of connections.
    fn of(rows: &'a [Connection], set: &[Count]) -> Self {
        let clients = || rows.iter().filter(|row| is_client(row));
        let own =
            |row: &&Connection| row.peer_address == row.local_address && !is_loopback(name(row));
        let meant = |row: &&Connection| set.iter().any(|set| set.host == row.peer_address);
        let named = clients().filter(meant).map(|row| (name(row), row.peer_address.as_str()));
        Self {
            here: clients().filter(own).map(|row| (name(row), row.peer_port)).collect(),
            named: named.collect(),
        }
    }

    fn is_here(&self, row: &Endpoint) -> bool {
        is_loopback(&row.address) || self.here.contains(&(row.address.as_str(), row.port))
    }

    fn is_at(&self, row: &Endpoint, host: &str, port: u16) -> bool {
        row.role != "server"
            && row.port == port
            && (row.address.eq_ignore_ascii_case(host)
                || self.named.contains(&(row.address.as_str(), host)))
    }
}

impl Detector for Budgets {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let servers = self.servers(seen);
        self.fills.retain(|place, _| servers.iter().any(|server| server.place == *place));
        let (mut near, mut beyond) = (Vec::new(), Vec::new());
        for server in &servers {
            let used: u64 = server.rows.iter().map(|row| row.open).sum();
            let (reach, workers) = self.reach(seen, server);
            let fill = self.fills.entry(server.place.clone()).or_default();
            fill.add(seen.now_ns, used);
            let left = fill.seconds_left(server.limit.saturating_sub(used));
            let share = used as f64 / server.limit as f64;
            if let Some(level) = near::level(share, left, false) {
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

/// Who has connections there, with how many.
fn holders<'a>(server: &Server<'a>) -> Vec<party::Cause<'a>> {
    let clients = server.rows.iter().filter(|row| row.role != "server" && row.pid != 0);
    let mut all: BTreeMap<u32, (&str, f64)> = BTreeMap::new();
    for row in clients {
        all.entry(row.pid).or_insert((&row.name, 0.0)).1 += row.open as f64;
    }
    all.into_iter().map(|(pid, (name, open))| (pid, name, open)).collect()
}

fn full(
    seen: &Seen<'_>,
    server: &Server<'_>,
    level: Level,
    used: u64,
    (rate, left): (f64, Option<f64>),
) -> Judgement {
    let Server { place, limit, source, .. } = server;
    let holders = holders(server);
    let ours: f64 = holders.iter().map(|(.., open)| open).sum();
    // Of those who connect from elsewhere, the processes are not seen.
    let culprit = Some(&holders).filter(|_| ours * 2.0 >= used as f64);
    let culprit = culprit.and_then(|holders| party::culprit(seen.snapshot, holders));
    let most = culprit.as_ref().map_or_else(String::new, |most| {
        format!(", {:.0} % of them by {}", most.share_ratio * 100.0, most.title)
    });
    let fills = left.filter(|left| *left < 86_400.0).map_or_else(String::new, |left| {
        format!("; {:.0} more a minute, the last in {left:.0} s", rate * 60.0)
    });
    Judgement {
        subject: place.clone(),
        state: State::Firing(level),
        message: format!("{used} of the {limit} connections that {place} takes are open{most}{fills}"),
        culprit,
        evidence: vec![
            evidence("connections_open", used as f64, "{connection}", SOURCE),
            evidence("limit", *limit as f64, "{connection}", *source),
            evidence("growth", rate, "{connection}/s", SOURCE),
        ],
        time_left_seconds: left,
        advice: "make the pools smaller, or put a pooler (PgBouncer) before the server; raise its limit only if it has the \
                 memory for more sessions"
            .to_owned(),
        ..Judgement::default()
    }
}

fn too_large(seen: &Seen<'_>, server: &Server<'_>, reach: u64, most: &Workers<'_>) -> Judgement {
    let Server { place, limit, source, .. } = server;
    let causes: Vec<_> = holders(server);
    let whose = party::group_title(seen.snapshot, most.first.pid, most.group);
    Judgement {
        subject: place.clone(),
        state: State::Firing(Level::Watch),
        message: format!(
            "{} workers of {whose} hold up to {} connections each to {place}: with all others {reach} of its {limit}",
            most.count, most.largest
        ),
        culprit: party::culprit(seen.snapshot, &causes),
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{
        super::testing::{host, idle},
        *,
    };
    use crate::{
        config::{Sources, all_settings},
        detect::Detect,
        identity::{Pm2, Process},
        signal::{
            Output,
            limit::{Postgres, Redis, Runtime},
        },
        snapshot::Snapshot,
    };

    /// Workers of a PM2 app with so many connections each, to a server of this host.
    fn workers(second: u64, pools: &[u64]) -> Snapshot {
        let mut rows = Vec::new();
        for (open, pid) in pools.iter().zip(1_u32..) {
            rows.extend((0..*open).map(|number| Connection {
                peer_address: "127.0.0.1".into(),
                local_address: "127.0.0.1".into(),
                ..idle(pid, (u64::from(pid) * 1000 + number) as u16, 5.0)
            }));
        }
        let mut snapshot = host(second, rows);
        for process in snapshot.processes.values_mut() {
            let pm2 = Some(Pm2 { app: "api".into(), home: "/h".into(), ..Pm2::default() });
            *process = Arc::new(Process { pm2, ..Process::clone(process) });
        }
        snapshot
    }

    fn with(mut snapshot: Snapshot, facts: Facts) -> Snapshot {
        snapshot.limit.runtimes.push(Runtime { pid: 99, facts, ..Runtime::default() });
        snapshot
    }

    fn postgres(max_connections: u64) -> Facts {
        let max_connections = Some(max_connections);
        Facts::Postgres(Postgres { port: 5432, max_connections, ..Postgres::default() })
    }

    /// What is told of both kinds within some seconds: `second LEVEL culprit`, and the last sentence.
    fn told(set: &str, seconds: u64, at: impl Fn(u64) -> Snapshot) -> (Vec<String>, String) {
        let flags = vec![format!("detect.connection_budget={set}")];
        let config = Config::load(&all_settings(), &Sources { flags, ..Sources::default() });
        let mut detect = Detect::new(&config.unwrap());
        let (mut told, mut says) = (Vec::<String>::new(), String::new());
        for second in 0..seconds {
            detect.tick(&at(second), false, &mut Output::default());
            let kinds = [BUDGET.name, REACH.name];
            let findings = detect.view().findings.iter();
            for finding in findings.filter(|finding| kinds.contains(&finding.kind.as_str())) {
                let culprit = finding.culprit.as_ref().map_or("nobody", |party| &party.title);
                let line = format!("{} {culprit}", finding.level.text());
                if !told.last().is_some_and(|last| last.ends_with(&line)) {
                    told.push(format!("{second} {line}"));
                }
                says.clone_from(&finding.message);
            }
        }
        (told, says)
    }

    #[test]
    fn a_server_is_told_before_it_is_full() {
        #[track_caller]
        fn check(facts: &Facts, open: impl Fn(u64) -> u64, expect: &[&str]) {
            let (told, says) =
                told("", 150, |second| with(workers(second, &[open(second)]), facts.clone()));
            assert_eq!(told, expect, "{says}");
        }
        let api = "node 1 (PM2 app api, worker 0)";
        let at = |second, level| format!("{second} {level} {api}");
        // Three of them are for superusers.
        let server = &postgres(103);
        check(server, |_| 79, &[]);
        check(server, |_| 80, &[&at(2, "WATCH")]);
        check(server, |_| 90, &[&at(2, "WARN")]);
        check(server, |_| 97, &[&at(2, "CRITICAL")]);
        let redis = Redis { port: 5432, max_clients: Some(90), ..Redis::default() };
        check(&Facts::Redis(redis), |_| 80, &[&at(2, "WATCH")]);
        // It fills by one in two seconds.
        let fills = |second: u64| 40 + second.min(110) / 2;
        check(server, fills, &[&at(62, "WARN"), &at(82, "CRITICAL")]);
        // A pool that is filled at its start, and rests.
        check(server, |second| (second * 15).min(75), &[]);
    }

    #[test]
    fn a_server_elsewhere_has_a_limit_of_its_own() {
        let at = |second| host(second, (0..99).map(|port| idle(7, port, 5.0)).collect());
        assert_eq!(told("", 60, |second| with(at(second), postgres(103))).0, [""; 0]);
    }

    #[test]
    fn pools_that_may_outgrow_the_server_are_a_hazard() {
        #[track_caller]
        fn check(pools: &[u64], expect: &str) {
            // Each was needed to its full size once.
            let open = |second, most: &u64| if second < 5 { *most } else { 2 };
            let at = |second| {
                let now: Vec<_> = pools.iter().map(|most| open(second, most)).collect();
                with(workers(second, &now), postgres(33))
            };
            assert_eq!(told("", 60, at).1, expect, "{pools:?}");
        }
        check(
            &[10, 4, 4, 4],
            "4 workers of PM2 app api hold up to 10 connections each to localhost:5432: with all others 40 of its 30",
        );
        check(&[7, 7, 7, 2], "");
        check(&[23], "");
    }

    #[test]
    fn limits_of_servers_elsewhere_are_set() {
        #[track_caller]
        fn check(set: &str, expect: &[&str]) {
            let row = |port| Connection { peer_name: "db.example".into(), ..idle(7, port, 5.0) };
            let at = |second| host(second, (0..9).map(row).collect());
            assert_eq!(told(set, 9, at).0, expect, "{set}");
        }
        check("db.example:5432=10", &["2 WARN node 7"]);
        check("DB.example:5432=10", &["2 WARN node 7"]);
        check("10.0.0.9:5432=10", &["2 WARN node 7"]);
        check("db.example:5432=10,db.example:5432=20", &[]);
        check("db.example:5433=10,other.example:5432=10", &[]);
        check("", &[]);
    }
}
