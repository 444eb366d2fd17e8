//! Files, tasks, ports and tracked connections that run out: what needs one more then fails at once.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use super::duration;
use crate::{
    detect::{
        Detector, Judgement, Kind, Level, Party, Seen, State, evidence,
        judgement::worst,
        key::{ByKey, key},
        party,
        process::starters,
        trend::Trend,
    },
    identity::Process,
    signal::limit::Bound,
};

/// A bound comes near.
pub static KIND: Kind = Kind {
    name: "limit.near",
    signal: "limit",
    help: "files, tasks, ports or tracked connections run out",
    reason: "Behind the bound nothing works less well, it fails: no connection is accepted, no process starts. Most programs \
             use a small part of what they may, so four fifths are out of the ordinary, nine tenths are too few to sleep \
             on, and 97 % are a matter of moments. What fills fast is told from seven tenths on.",
    raise: Duration::ZERO,
    clear: Duration::from_secs(20),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Near::default()),
};

/// Bounds followed, those that are fullest.
const MAX_BOUNDS: usize = 1024;
/// Those that are less full than this are not followed.
const FOLLOWED: f64 = 0.3;
/// Over about a minute.
const CONSTANT: Duration = Duration::from_secs(20);
/// What is judged here; heaps have kinds of their own, because they may be full and well.
const RESOURCES: &[&str] = &["files", "host_files", "processes", "ports", "conntrack"];
/// Some are smaller than this by design, such as those of a sandbox.
const MIN_LIMIT: u64 = 16;
/// Share in use of each level.
const WATCH: f64 = 0.8;
const WARN: f64 = 0.9;
const CRITICAL: f64 = 0.97;
/// From here on what will be full within this many seconds is told sooner, if it has filled for a while.
const FILLS: f64 = 0.7;
const SOON_S: f64 = 300.0;
const NOW_S: f64 = 60.0;
const FILLED_FOR: Duration = Duration::from_secs(15);

#[derive(Default)]
struct Near {
    /// By what and whose, with the round in which each was last seen.
    trends: ByKey<u64, (Trend, u64)>,
    /// Bounds of this tick for whose trend there was no room.
    unfollowed: u64,
    round: u64,
}

/// A bound that is near.
struct Found<'a> {
    row: &'a Bound,
    limit: u64,
    share: f64,
    level: Level,
    rate: f64,
    left: Option<f64>,
}

fn subject(row: &Bound) -> String {
    match row.pid {
        0 => format!("{} {}", row.resource, row.scope),
        pid => format!("{} {} {pid}", row.resource, row.name),
    }
}

/// What it is called.
fn noun(row: &Bound) -> &str {
    match row.resource.as_str() {
        "files" => "open files",
        "host_files" => "open files of the host",
        "processes" => "tasks",
        "ports" => "local ports",
        "conntrack" => "tracked connections",
        other => other,
    }
}

impl Near {
    fn find<'a>(&mut self, row: &'a Bound, seen: &Seen<'_>) -> Option<Found<'a>> {
        let limit = row.limit.filter(|limit| *limit >= MIN_LIMIT)?;
        let share = row.share()?;
        if share < FOLLOWED {
            return None;
        }
        let id = match row.pid {
            0 => key((&row.resource, &row.scope)),
            pid => key((&row.resource, &row.name, pid)),
        };
        let is_followed = self.trends.len() < MAX_BOUNDS || self.trends.contains_key(&id);
        let trend = if is_followed {
            // Rows are of the last reading, which may be the same as at the tick before.
            let read_ns = seen.snapshot.limit.read_unix_ns;
            let (trend, round) = self.trends.entry(id).or_default();
            *round = self.round;
            trend.add(read_ns, row.used as f64, CONSTANT);
            *trend
        } else {
            self.unfollowed += 1;
            Trend::default()
        };
        let room = limit.saturating_sub(row.used) as f64;
        let left =
            trend.seconds_left(room).filter(|_| trend.observed() >= FILLED_FOR || trend.rises());
        let level = level(share, left, row.upper_estimate)?;
        Some(Found { row, limit, share, level, rate: trend.rate(), left })
    }
}

fn judge(found: &Found<'_>, seen: &Seen<'_>) -> Judgement {
    let Found { row, limit, share, level, rate, left } = found;
    let whose = match (row.pid, row.scope.as_str()) {
        (0, "host") => String::new(),
        (0, scope) => format!(" of {scope}"),
        (pid, _) => format!(" of {}", party::process(seen.snapshot, pid, &row.name, 1.0).title),
    };
    let fills = left.filter(|left| *left < 86_400.0).map_or_else(String::new, |left| {
        format!("; {rate:.1} more each second, the last in {}", duration(left))
    });
    Judgement {
        subject: subject(row),
        state: State::Firing(*level),
        evidence: vec![
            evidence("used", row.used as f64, "1", row.resource.clone()),
            evidence("limit", *limit as f64, "1", row.source.clone()),
            evidence("growth", *rate, "1/s", row.resource.clone()),
        ],
        time_left_seconds: *left,
        message: format!(
            "{} of {limit} {}{whose} are in use ({:.0} %){fills}",
            row.used,
            noun(row),
            share * 100.0
        ),
        advice: advice(row).to_owned(),
        culprit: culprit(row, seen),
        ..Judgement::default()
    }
}

/// How bad it is that this share is in use, and full in so many seconds.
pub(in crate::detect) fn level(
    share: f64,
    left: Option<f64>,
    upper_estimate: bool,
) -> Option<Level> {
    let within = |seconds: f64| share >= FILLS && left.is_some_and(|left| left < seconds);
    Some(match share {
        // The true number may be far lower.
        _ if upper_estimate => (share >= WARN).then_some(Level::Watch)?,
        _ if share >= CRITICAL || share >= WATCH && within(NOW_S) => Level::Critical,
        _ if share >= WARN || within(SOON_S) => Level::Warn,
        _ if share >= WATCH => Level::Watch,
        _ => return None,
    })
}

fn advice(row: &Bound) -> &'static str {
    match row.resource.as_str() {
        "files" => {
            "see what it holds (ls -l /proc/PID/fd); raise LimitNOFILE= only if it needs them"
        }
        "host_files" => "see who holds them; raise fs.file-max only if they are needed",
        "processes" => {
            "stop what starts them; raise TasksMax= or kernel.pid_max only if they are needed"
        }
        "ports" => "reuse connections (keep-alive, a pool); widen net.ipv4.ip_local_port_range",
        _ => "find who opens so many connections; raise net.netfilter.nf_conntrack_max",
    }
}

/// Whose doing it is: the process itself, or who started most of a group, or who has most connections.
fn culprit(row: &Bound, seen: &Seen<'_>) -> Option<Party> {
    let snapshot = seen.snapshot;
    if row.pid != 0 {
        return Some(party::process(snapshot, row.pid, &row.name, 1.0));
    }
    match row.resource.as_str() {
        "processes" => {
            let inside = |process: &&Process| row.scope == "host" || is_in(process, &row.scope);
            let rows = snapshot.alloc.processes.iter();
            starters(seen, rows.filter_map(|row| seen.process(row.pid)).filter(inside))
        }
        "host_files" => {
            let holders = snapshot.limit.rows.iter().filter(|row| row.resource == "files");
            let causes: Vec<_> =
                holders.map(|row| (row.pid, row.name.as_str(), row.used as f64)).collect();
            party::culprit(snapshot, &causes)
        }
        "ports" => {
            let takers = takers(row, seen);
            let most: f64 = takers.iter().map(|(.., ports)| ports).sum();
            let known = Some(takers).filter(|_| most * 2.0 >= row.used as f64);
            known.and_then(|takers| party::culprit(snapshot, &takers)).or_else(|| holder(row, seen))
        }
        _ => None,
    }
}

/// Who took the ports to a destination: with connections that are open, and those that it has closed of late.
fn takers<'a>(row: &Bound, seen: &Seen<'a>) -> Vec<party::Cause<'a>> {
    let to: Option<SocketAddr> = row.scope.parse().ok();
    let is_there = |address: &str, port: u16| {
        to.is_some_and(|to| to.port() == port && address.parse() == Ok(to.ip()))
    };
    let tcp = &seen.snapshot.tcp;
    let open = tcp.connections.iter().filter(|open| open.role == "client" && open.pid != 0);
    let open = open.filter(|open| is_there(&open.peer_address, open.peer_port));
    let closed = tcp.closing.iter().filter(|closed| is_there(&closed.address, closed.port));
    let mut takers: BTreeMap<u32, (&str, f64)> = BTreeMap::new();
    let counts = open.map(|open| (open.pid, open.name.as_str(), 1.0));
    for (pid, name, count) in
        counts.chain(closed.map(|closed| (closed.pid, closed.name.as_str(), closed.count as f64)))
    {
        takers.entry(pid).or_insert((name, 0.0)).1 += count;
    }
    takers.into_iter().map(|(pid, (name, count))| (pid, name, count)).collect()
}

/// Who holds the sockets of a bound that no followed connection explains: each is an open file. A server has as many, if it
/// is on this host; it did not choose the ports.
fn holder(row: &Bound, seen: &Seen<'_>) -> Option<Party> {
    let listens = |pid: u32| {
        let mut threads = seen.snapshot.sched.threads.iter();
        threads.any(|thread| thread.pid == pid && thread.listens == Some(true))
    };
    let files = seen.snapshot.limit.rows.iter().filter(|files| files.resource == "files");
    let enough = files.filter(|files| files.used >= row.used / 2);
    let most = enough.max_by_key(|files| (!listens(files.pid), files.used))?;
    Some(party::process(seen.snapshot, most.pid, &most.name, 1.0))
}

fn is_in(process: &Process, path: &str) -> bool {
    let rest = process.cgroup.strip_prefix(path.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Detector for Near {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        self.round += 1;
        self.unfollowed = 0;
        let rows = seen.snapshot.limit.rows.iter();
        let judged = rows.filter(|row| RESOURCES.contains(&row.resource.as_str()));
        let near = judged.filter_map(|row| self.find(row, seen)).collect();
        let rank = |one: &Found<'_>| (one.level, (one.share * 1000.0) as u64);
        let near = worst(near, rank, found);
        found.extend(near.iter().map(|one| judge(one, seen)));
        if self.unfollowed > 0 {
            found.push(Judgement {
                subject: format!("rates of {} bounds", self.unfollowed),
                state: State::Undecided(
                    format!(
                        "{MAX_BOUNDS} are followed at once; these are judged by how full they are"
                    )
                    .into(),
                ),
                ..Judgement::default()
            });
        }
        let round = self.round;
        // What is emptier for a moment keeps its trend while there is room.
        if self.trends.len() > MAX_BOUNDS / 2 {
            self.trends.retain(|_, (_, seen)| *seen == round);
        }
    }
}
