//! The same application, run twice by mistake: two PM2 daemons, two sets of pools (the incidents of 2022).

use std::{collections::BTreeMap, time::Duration};

use super::SOURCE;
use crate::{
    detect::{
        Detector, Group, Judgement, Kind, Level, MAX_PIDS, Party, Seen, State, evidence, key::ByKey,
    },
    identity::{Pm2, Process},
};

/// One application has pools under two daemons.
pub static DUPLICATE_POOLS: Kind = Kind {
    name: "connection.duplicate_pools",
    signal: "tcp",
    help: "the PM2 daemons of several homes run the same application, each with its own pools to the same database",
    reason: "No deployment does it on purpose: the name of the app and the endpoint are the same, the daemons' homes are \
             not. 10 s, so that moving an application from one daemon to another is not told. Workers of one daemon are \
             meant to be many and do not count.",
    raise: Duration::from_secs(10),
    clear: Duration::from_secs(30),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Pools),
};

/// Connections of an app's workers below one home.
#[derive(Default)]
struct Owner<'a> {
    workers: Vec<&'a Process>,
    open: u64,
    /// The largest pool of one worker.
    cap: u64,
}

type Apps<'a> = BTreeMap<&'a str, BTreeMap<&'a str, Owner<'a>>>;

struct Pools;

/// Workers of the apps that run in several homes, by pid: on most hosts none, and nothing more is to do.
fn in_several_homes<'a>(seen: &Seen<'a>) -> ByKey<u32, (&'a Pm2, &'a Process)> {
    let workers = || {
        let all = seen.snapshot.processes.values();
        all.filter_map(|process| Some((process.pm2.as_ref()?, &**process)))
    };
    let first = workers().next().map(|(pm2, _)| &pm2.home);
    if workers().all(|(pm2, _)| Some(&pm2.home) == first) {
        return ByKey::default();
    }
    let mut homes: ByKey<&str, (&str, bool)> = ByKey::default();
    for (pm2, _) in workers() {
        let (home, several) = homes.entry(&pm2.app).or_insert((&pm2.home, false));
        *several |= *home != pm2.home;
    }
    let several = |pm2: &Pm2| homes.get(pm2.app.as_str()).is_some_and(|(_, several)| *several);
    workers()
        .filter(|(pm2, _)| several(pm2))
        .map(|(pm2, process)| (process.pid, (pm2, process)))
        .collect()
}

impl Detector for Pools {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let workers = in_several_homes(seen);
        if workers.is_empty() {
            return;
        }
        let mut endpoints: BTreeMap<(&str, u16), Apps<'_>> = BTreeMap::new();
        for row in seen.snapshot.tcp.endpoints.iter().filter(|row| row.role != "server") {
            let Some((pm2, process)) = workers.get(&row.pid) else { continue };
            let apps = endpoints.entry((&row.address, row.port)).or_default();
            let owner = apps.entry(&pm2.app).or_default().entry(&pm2.home).or_default();
            owner.workers.push(process);
            owner.open += row.open;
            owner.cap = owner.cap.max(row.open);
        }
        for ((address, port), apps) in endpoints {
            for (app, homes) in apps.into_iter().filter(|(_, homes)| homes.len() >= 2) {
                found.extend(pools(&format!("{address}:{port}"), app, &homes));
            }
        }
    }
}

fn pools(endpoint: &str, app: &str, homes: &BTreeMap<&str, Owner<'_>>) -> Option<Judgement> {
    let newest = newest(homes)?;
    let sum: u64 = homes.values().map(|owner| owner.open).sum();
    let cap = homes.values().map(|owner| owner.cap).max()?;
    let owners: Vec<String> = homes
        .iter()
        .map(|(home, owner)| {
            let user = owner.workers.first().map_or("", |worker| worker.user_name.as_str());
            format!("{} in {} of {user} ({home})", owner.open, count_pools(owner.workers.len()))
        })
        .collect();
    let multiple = match (cap >= 2 && sum.is_multiple_of(cap), sum / cap.max(1)) {
        (true, times) => format!("{sum} connections, {times} times the {cap} of one pool"),
        (false, _) => format!("{sum} connections"),
    };
    Some(Judgement {
        subject: format!("{app} {endpoint}"),
        state: State::Firing(Level::Warn),
        message: format!(
            "PM2 app {app} runs under {} daemons and has {multiple} to {endpoint}: {}",
            homes.len(),
            owners.join(", ")
        ),
        evidence: homes
            .iter()
            .map(|(home, owner)| {
                evidence((*home).to_owned(), owner.open as f64, "{connection}", SOURCE)
            })
            .collect(),
        advice: advice(&newest),
        culprit: Some(newest),
        ..Judgement::default()
    })
}

fn count_pools(workers: usize) -> String {
    super::count(workers, "pool")
}

/// The one that came last is the one too many.
fn newest(homes: &BTreeMap<&str, Owner<'_>>) -> Option<Party> {
    let started =
        |owner: &&Owner<'_>| owner.workers.iter().map(|worker| worker.start_unix_ns).min();
    let owner = homes.values().max_by_key(started)?;
    let first = owner.workers.first()?;
    let pm2 = first.pm2.as_ref()?;
    let all: usize = homes.values().map(|owner| owner.workers.len()).sum();
    Some(Party {
        group: Group::Pm2App,
        name: pm2.app.clone(),
        pid: Some(first.pid),
        pids: owner.workers.iter().take(MAX_PIDS).map(|worker| worker.pid).collect(),
        share_ratio: owner.workers.len() as f64 / all.max(1) as f64,
        title: format!("PM2 app {} of {} ({})", pm2.app, first.user_name, pm2.home),
    })
}

fn advice(newest: &Party) -> String {
    format!(
        "find out which daemon is meant, and end the other (`pm2 kill` as its user, and `pm2 unstartup`); the newer is {}",
        newest.title
    )
}
