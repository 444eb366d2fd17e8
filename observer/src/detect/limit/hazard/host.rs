//! What the host lacks: swap, files, limits of memory, keepalives in time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use super::{MAX_NAMED, memory_total, pm2, redis::redises, size};
use crate::{
    detect::{
        Group, Judgement, Level, Seen, State, evidence,
        party::{self, Cause},
    },
    signal::{
        limit::Facts,
        tcp::{Activity, Connection},
    },
};

/// Share of RAM from which on a group without a limit is told.
const LARGE: f64 = 0.25;
/// AWS's NAT gateways and network load balancers forget what rests for so long; Azure's after 240 s, Google's after 600 s.
const NAT_IDLE_S: u64 = 350;
/// A connection rests, and is not between two requests.
const RESTS_NS: u64 = 60_000_000_000;

pub(super) fn files(seen: &Seen<'_>, found: &mut Vec<Judgement>) {
    let listens = |pid: u32| {
        seen.snapshot
            .sched
            .threads
            .iter()
            .any(|thread| thread.pid == pid && thread.listens == Some(true))
    };
    let rows = seen.snapshot.limit.rows.iter().filter(|row| {
        let few = row.resource == "files" && row.limit.is_some_and(|limit| limit <= 1024);
        few && row.share().is_some_and(|share| share >= 0.25) && listens(row.pid)
    });
    for row in rows {
        let own = party::process(seen.snapshot, row.pid, &row.name, 1.0);
        found.push(Judgement {
            subject: format!("{} {}", row.name, row.pid),
            state: State::Firing(Level::Watch),
            evidence: vec![evidence("open_files", row.used as f64, "1", "files")],
            message: format!(
                "{} may open {} files, and has {}: each client costs one",
                own.title,
                row.limit.unwrap_or(0),
                row.used
            ),
            advice: "raise LimitNOFILE= of its unit, or ulimit -n where it is started".to_owned(),
            culprit: Some(own),
            ..Judgement::default()
        });
    }
}

pub(super) fn no_swap(seen: &Seen<'_>, found: &mut Vec<Judgement>) {
    let host = &seen.snapshot.limit.host;
    if host.memory_total_bytes == 0 || host.swap_total_bytes > 0 {
        return;
    }
    let redis = redises(seen)
        .filter(|(_, redis, _)| redis.maxmemory_known && redis.maxmemory_bytes.is_none())
        .map(|(runtime, ..)| format!("{} {}", runtime.name, runtime.pid));
    let limited = |pid: u32| {
        let rows = &seen.snapshot.limit.rows;
        rows.iter().any(|row| row.pid == pid && row.resource == "pm2_memory" && row.limit.is_some())
    };
    let apps = pm2::apps(seen)
        .into_iter()
        .filter(|(_, pids)| !pids.iter().any(|pid| limited(*pid)))
        .map(|((_, app), _)| format!("PM2 app {app}"));
    let unlimited: Vec<_> = redis.chain(apps).take(MAX_NAMED).collect();
    if unlimited.is_empty() {
        return;
    }
    found.push(Judgement {
        subject: "host".to_owned(),
        state: State::Firing(Level::Watch),
        evidence: vec![evidence("swap_total", 0.0, "By", "/proc/meminfo")],
        message: format!(
            "the host has no swap, and {} may take all memory: it would stand still without a kill",
            unlimited.join(", ")
        ),
        advice: "give them limits (maxmemory, max_memory_restart, MemoryMax=), or the host some swap or zram".to_owned(),
        ..Judgement::default()
    });
}

/// Memory limits of control groups by path; `None` for one that has none.
fn memory_limits<'a>(seen: &'a Seen<'_>) -> HashMap<&'a str, Option<u64>> {
    seen.snapshot.oom.cgroups.iter().map(|row| (row.path.as_str(), row.limit_bytes)).collect()
}

/// Whether neither a control group nor one above it has a limit; `None` if none of them is known.
fn is_unlimited(path: &str, limits: &HashMap<&str, Option<u64>>) -> Option<bool> {
    let own = Some(path.trim_end_matches('/'));
    let above = std::iter::successors(own, |path| Some(&path[..path.rfind('/')?]));
    let mut known = above.filter_map(|path| limits.get(if path.is_empty() { "/" } else { path }));
    known.next().map(|first| first.is_none() && known.all(Option::is_none))
}

/// Containers and services that nothing keeps from taking all memory, the largest first. What has a limit of its own, as a
/// JVM, or is set by its share of RAM, as PostgreSQL, does not count.
pub(super) fn memory_limit(seen: &Seen<'_>, found: &mut Vec<Judgement>) {
    let limits = memory_limits(seen);
    let total = memory_total(seen);
    if limits.is_empty() || total <= 0.0 {
        return;
    }
    let runtimes = &seen.snapshot.limit.runtimes;
    let bounded: BTreeSet<u32> = runtimes
        .iter()
        .filter(|runtime| match &runtime.facts {
            Facts::Redis(redis) => redis.maxmemory_bytes.is_some(),
            Facts::Jvm(_) | Facts::Postgres(_) => true,
            _ => false,
        })
        .map(|runtime| runtime.pid)
        .collect();
    let mut groups: BTreeMap<(Group, String), Vec<Cause<'_>>> = BTreeMap::new();
    for row in seen.snapshot.alloc.processes.iter().filter(|row| !bounded.contains(&row.pid)) {
        let Some(process) = seen.process(row.pid) else { continue };
        let key = party::group_of(process);
        if matches!(key.0, Group::Container | Group::Unit)
            && is_unlimited(&process.cgroup, &limits) == Some(true)
        {
            let bytes = row.anon_bytes.saturating_add(row.shmem_bytes) as f64;
            groups.entry(key).or_default().push((row.pid, &row.name, bytes));
        }
    }
    let sum = |members: &[Cause<'_>]| members.iter().map(|(.., bytes)| bytes).sum::<f64>();
    let mut large: Vec<_> = groups
        .into_iter()
        .map(|(key, members)| (sum(&members), key, members))
        .filter(|(bytes, ..)| *bytes >= LARGE * total)
        .collect();
    large.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.extend(large.into_iter().take(MAX_NAMED).map(|(bytes, (group, name), members)| {
        let what = if group == Group::Container { "container" } else { "service" };
        let name: String = name.chars().take(if group == Group::Container { 12 } else { 64 }).collect();
        Judgement {
            subject: format!("{what} {name}"),
            state: State::Firing(Level::Watch),
            culprit: party::culprit(seen.snapshot, &members),
            evidence: vec![
                evidence("memory", bytes, "By", "iter/task"),
                evidence("memory_total", total, "By", "/proc/meminfo"),
            ],
            message: format!(
                "{what} {name} has {} of memory and no limit: if it leaks, the host goes with it",
                size(bytes)
            ),
            advice: "set MemoryMax= (docker: --memory) above what it needs; then the kernel ends it alone".to_owned(),
            ..Judgement::default()
        }
    }));
}

/// Connections across the internet that rest for longer than what lies between forgets them.
pub(super) fn keepalive(seen: &Seen<'_>, found: &mut Vec<Judgement>) {
    let keepalive_s = seen.snapshot.limit.host.tcp_keepalive_time_seconds;
    let Some(keepalive_s) = keepalive_s.filter(|seconds| *seconds > NAT_IDLE_S) else { return };
    let rests = |connection: &&Connection| {
        connection.role == "client"
            && connection.activity == Activity::Idle
            && connection.activity_ns >= RESTS_NS
            && connection.peer_address.parse().is_ok_and(is_public)
    };
    let mut resting: BTreeMap<(u32, &str), u64> = BTreeMap::new();
    for connection in seen.snapshot.tcp.connections.iter().filter(rests) {
        let peer = [&connection.peer_name, &connection.peer_address];
        let peer = peer.into_iter().find(|peer| !peer.is_empty()).map_or("", String::as_str);
        *resting.entry((connection.pid, peer)).or_default() += 1;
    }
    let Some(((pid, _), _)) = resting.iter().max_by_key(|(_, count)| **count) else { return };
    let named: Vec<_> = resting
        .iter()
        .take(MAX_NAMED)
        .map(|((pid, peer), count)| {
            let own = party::process(seen.snapshot, *pid, "process", 1.0).title;
            format!("{own} has {count} to {peer}")
        })
        .collect();
    found.push(Judgement {
        subject: "host".to_owned(),
        state: State::Firing(Level::Watch),
        culprit: Some(party::process(seen.snapshot, *pid, "process", 1.0)),
        evidence: vec![
            evidence("tcp_keepalive_time", keepalive_s as f64, "s", "/proc/sys"),
            evidence("resting", resting.values().sum::<u64>() as f64, "1", "iter/tcp"),
        ],
        message: format!(
            "connections rest, and the first keepalive is sent after {keepalive_s} s: a NAT or load balancer on the way may \
             have forgotten them by then ({NAT_IDLE_S} s), and the next request waits for minutes: {}",
            named.join(", ")
        ),
        advice: "let the pool close idle connections sooner or send keepalives of its own (keepAlive, keepalives_idle), or \
                 sysctl net.ipv4.tcp_keepalive_time=120 for programs that ask for keepalives"
            .to_owned(),
        ..Judgement::default()
    });
}

/// Whether an address is beyond this network: no part of it is set aside for private use (RFC 1918, 4193, 6598).
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let is_shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || is_shared)
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_unique_local()
                || v6.is_unicast_link_local())
        }
    }
}
