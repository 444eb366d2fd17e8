//! Applications of PM2.

use std::collections::BTreeMap;

use super::{memory_total, size};
use crate::{
    detect::{Group, Judgement, Level, MAX_PIDS, Party, Seen, State},
    signal::limit::Bound,
};

/// Workers of PM2 applications, by (home, app): processes that a daemon has started itself.
pub(super) fn apps<'a>(seen: &'a Seen<'_>) -> BTreeMap<(&'a str, &'a str), Vec<u32>> {
    let mut apps: BTreeMap<(&str, &str), Vec<u32>> = BTreeMap::new();
    let rows = seen.snapshot.alloc.processes.iter();
    for process in rows.filter_map(|row| seen.process(row.pid)) {
        let is_daemon =
            |pid: u32| seen.process(pid).is_some_and(|parent| parent.pm2_daemon_home.is_some());
        if let Some(pm2) = process.pm2.as_ref().filter(|_| is_daemon(process.parent_pid)) {
            apps.entry((&pm2.home, &pm2.app)).or_default().push(process.pid);
        }
    }
    apps
}

/// A finding about a PM2 application.
fn of_app((home, app): (&str, &str), pids: &[u32], message: String, advice: &str) -> Judgement {
    Judgement {
        subject: format!("PM2 app {app} of {home}"),
        state: State::Firing(Level::Watch),
        culprit: Some(Party {
            group: Group::Pm2App,
            name: app.to_owned(),
            pid: pids.first().copied(),
            pids: pids.iter().copied().take(MAX_PIDS).collect(),
            share_ratio: 1.0,
            title: format!("PM2 app {app}"),
        }),
        message,
        advice: advice.to_owned(),
        ..Judgement::default()
    }
}

pub(super) fn memory(seen: &Seen<'_>, found: &mut Vec<Judgement>) {
    let rows = &seen.snapshot.limit.rows;
    let limits: BTreeMap<u32, &Bound> =
        rows.iter().filter(|row| row.resource == "pm2_memory").map(|row| (row.pid, row)).collect();
    for (key, pids) in apps(seen) {
        let set: f64 =
            pids.iter().filter_map(|pid| limits.get(pid)?.limit).map(|limit| limit as f64).sum();
        let advice = "set max_memory_restart so that all workers together leave room for the rest of the host";
        if set > memory_total(seen) {
            let text = format!(
                "PM2 app {} is restarted when its workers have {}, and the host has {}",
                key.1,
                size(set),
                size(memory_total(seen))
            );
            found.push(of_app(key, &pids, text, advice));
        } else if set == 0.0 {
            let text = format!(
                "PM2 app {} has no max_memory_restart: nothing stops it if it leaks",
                key.1
            );
            found.push(of_app(key, &pids, text, advice));
        }
    }
}

pub(super) fn workers(seen: &Seen<'_>, found: &mut Vec<Judgement>) {
    let cpus = seen.snapshot.limit.host.cpus;
    let too_many = apps(seen).into_iter().filter(|(_, pids)| cpus > 0 && pids.len() as u64 > cpus);
    found.extend(too_many.map(|(key, pids)| {
        let text =
            format!("PM2 app {} has {} workers, and the host has {cpus} CPUs", key.1, pids.len());
        of_app(key, &pids, text, "start as many workers as there are CPUs (pm2 scale)")
    }));
}
