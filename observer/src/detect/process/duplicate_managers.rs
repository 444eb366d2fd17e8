//! Several PM2 daemons that run the same application (incidents I1, I2): somebody started it as another user, and nobody
//! knows. Nothing fails yet, and memory, CPU and connections are used twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    detect::{
        Detector, Group, Judgement, Kind, Level, MAX_PIDS, Party, Seen, State, evidence, party,
    },
    identity::Process,
};

/// One application, several managers.
pub static KIND: Kind = Kind {
    name: "process.duplicate_managers",
    signal: "alloc",
    help: "several PM2 daemons run on this host, perhaps the same application",
    reason: "One daemon is enough, so several are WATCH. The same application under two of them doubles its memory and its \
             connections, and which of them answers is chance: WARN.",
    raise: Duration::from_secs(10),
    clear: Duration::from_secs(30),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(DuplicateManagers),
};

/// Applications named in a message.
const MAX_NAMED: usize = 4;

struct DuplicateManagers;

/// What a daemon runs.
struct Daemon<'a> {
    process: &'a Process,
    /// Its workers by application.
    apps: BTreeMap<&'a str, Vec<u32>>,
}

/// Daemons, the oldest first.
fn daemons<'a>(seen: &'a Seen<'_>) -> Vec<Daemon<'a>> {
    let processes = || seen.snapshot.processes.values().map(|process| &**process);
    if processes().filter(|process| process.pm2_daemon_home.is_some()).count() < 2 {
        return Vec::new();
    }
    // Who has just died is still known; with more processes than rows, small ones have none.
    let is_live: BTreeSet<u32> =
        if seen.snapshot.alloc.process_count as usize > seen.snapshot.alloc.processes.len() {
            processes().map(|process| process.pid).collect()
        } else {
            seen.snapshot.alloc.processes.iter().map(|row| row.pid).collect()
        };
    let mut daemons: Vec<Daemon<'_>> = processes()
        .filter(|process| process.pm2_daemon_home.is_some() && is_live.contains(&process.pid))
        .map(|process| Daemon { process, apps: BTreeMap::new() })
        .collect();
    if daemons.len() < 2 {
        return Vec::new();
    }
    daemons.sort_by_key(|daemon| (daemon.process.start_unix_ns, daemon.process.pid));
    for process in processes().filter(|process| process.pm2_daemon_home.is_none()) {
        let Some(pm2) = process.pm2.as_ref().filter(|_| is_live.contains(&process.pid)) else {
            continue;
        };
        // Two daemons of one home share it; their workers are told by their parent.
        let home = |daemon: &Daemon<'_>| daemon.process.pm2_daemon_home.as_ref() == Some(&pm2.home);
        let owner = daemons
            .iter()
            .position(|daemon| daemon.process.pid == process.parent_pid)
            .or_else(|| daemons.iter().position(home));
        if let Some(daemon) = owner.and_then(|index| daemons.get_mut(index)) {
            daemon.apps.entry(&pm2.app).or_default().push(process.pid);
        }
    }
    daemons
}

/// A daemon for a person.
fn named(daemon: &Daemon<'_>) -> String {
    let process = daemon.process;
    let user = if process.user_name.is_empty() {
        format!("user {}", process.user_id)
    } else {
        process.user_name.clone()
    };
    format!("{} of {user}", process.pid)
}

impl Detector for DuplicateManagers {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let daemons = daemons(seen);
        if daemons.len() < 2 {
            return;
        }
        let mut owners: BTreeMap<&str, Vec<&Daemon<'_>>> = BTreeMap::new();
        for daemon in &daemons {
            daemon.apps.keys().for_each(|app| owners.entry(app).or_default().push(daemon));
        }
        owners.retain(|_, owners| owners.len() > 1);
        let who: Vec<_> = daemons.iter().map(named).collect();
        let apps: Vec<_> = owners.keys().take(MAX_NAMED).copied().collect();
        let (level, message) = if apps.is_empty() {
            (
                Level::Watch,
                format!("{} PM2 daemons run on this host: {}", daemons.len(), who.join(", ")),
            )
        } else {
            let message = format!(
                "{} PM2 daemons run the same application {}: {}; its memory and its connections are there {} times",
                daemons.len(),
                apps.join(", "),
                who.join(", "),
                owners.values().map(Vec::len).max().unwrap_or(2)
            );
            (Level::Warn, message)
        };
        let workers = owners
            .values()
            .flatten()
            .map(|daemon| daemon.apps.values().map(Vec::len).sum::<usize>());
        found.push(Judgement {
            subject: "host".to_owned(),
            state: State::Firing(level),
            culprit: culprit(&daemons, &owners, seen),
            evidence: vec![
                evidence("pm2_daemons", daemons.len() as f64, "1", "/proc/PID/environ"),
                evidence("doubled_applications", owners.len() as f64, "1", "/proc/PID/environ"),
                evidence("their_workers", workers.sum::<usize>() as f64, "1", "/proc/PID/environ"),
            ],
            message,
            advice: "keep one: `pm2 kill` as the other user, and take its start-up service away (`pm2 unstartup`)".to_owned(),
            ..Judgement::default()
        });
    }
}

/// The youngest daemon that has an application that another one has, with its workers.
fn culprit(
    daemons: &[Daemon<'_>],
    owners: &BTreeMap<&str, Vec<&Daemon<'_>>>,
    seen: &Seen<'_>,
) -> Option<Party> {
    let Some((app, double)) = owners.iter().next() else {
        let daemon = daemons.last()?;
        return Some(party::process(seen.snapshot, daemon.process.pid, &daemon.process.name, 1.0));
    };
    let daemon = double.last()?;
    let workers = daemon.apps.get(app)?;
    let pids: Vec<u32> =
        workers.iter().copied().chain([daemon.process.pid]).take(MAX_PIDS).collect();
    let all: usize = double.iter().filter_map(|daemon| daemon.apps.get(app)).map(Vec::len).sum();
    Some(Party {
        group: Group::Pm2App,
        name: (*app).to_owned(),
        pid: workers.first().copied(),
        pids,
        share_ratio: workers.len() as f64 / all.max(1) as f64,
        title: format!("PM2 app {app} of daemon {}", named(daemon)),
    })
}
