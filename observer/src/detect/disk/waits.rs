//! Which services wait in the kernel. Nobody says for which disk, so it counts only beside a disk that is slow.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    detect::{Seen, mean::Mean},
    identity::Process,
};

/// Services followed.
const MAX_SERVICES: usize = 256;
/// Tasks are looked at once a second, and of ten services that wait a third of their time, one is met seven times in ten
/// looks by chance.
const NOW: Duration = Duration::from_secs(8);
/// What is usual of it.
const USUAL: Duration = Duration::from_secs(600);
/// It waits more than usual if it does so many times as much.
const MORE: f64 = 2.0;
/// Who is younger reads its own files.
const YOUNG_NS: u64 = 30_000_000_000;
/// Below this it is forgotten.
const FORGOTTEN: f64 = 0.01;

/// Tasks of a service that wait, at a time.
#[derive(Debug, Clone, Default)]
struct Tasks {
    now: Mean,
    usual: Mean,
}

/// What is followed.
#[derive(Debug, Default)]
pub(super) struct Waits {
    services: BTreeMap<u32, Tasks>,
    /// How much of [`USUAL`] is known.
    known: Mean,
}

impl Waits {
    /// Takes a look; learns from it unless a disk is `suspect`.
    pub fn take(&mut self, seen: &Seen<'_>, suspect: bool) {
        let watched: BTreeSet<u32> =
            seen.snapshot.sched.threads.iter().map(|thread| thread.pid).collect();
        let mut waiting: BTreeMap<u32, f64> = BTreeMap::new();
        for row in &seen.snapshot.sched.uninterruptible {
            if let Some(service) = service(row.pid, &watched, seen) {
                *waiting.entry(service).or_default() += row.tasks as f64;
            }
        }
        for pid in waiting.keys() {
            if self.services.len() < MAX_SERVICES {
                self.services.entry(*pid).or_default();
            }
        }
        if !suspect {
            self.known.add(1.0, seen.elapsed_ns, USUAL);
        }
        self.services.retain(|pid, tasks| {
            let now = waiting.get(pid).copied().unwrap_or(0.0);
            tasks.now.add(now, seen.elapsed_ns, NOW);
            if !suspect {
                tasks.usual.add(now, seen.elapsed_ns, USUAL);
            }
            let value = tasks.now.value().max(tasks.usual.value());
            now > 0.0 || value >= FORGOTTEN
        });
    }

    /// Services that wait more than they are used to, with the tasks of each that wait, those with most first.
    pub fn victims(&self, seen: &Seen<'_>) -> Vec<(u32, f64)> {
        let more = |tasks: &Tasks| {
            // Means begin at zero.
            let usual = tasks.usual.value() / self.known.value().max(1e-3);
            tasks.now.value() >= usual * MORE
        };
        let mut victims: Vec<(u32, f64)> = self
            .services
            .iter()
            .filter(|(pid, tasks)| more(tasks) && !is_young(**pid, seen))
            .map(|(pid, tasks)| (*pid, tasks.now.value()))
            .collect();
        victims.sort_by(|a, b| b.1.total_cmp(&a.1));
        victims
    }
}

fn is_young(pid: u32, seen: &Seen<'_>) -> bool {
    let now_ns = seen.snapshot.time_unix_ns;
    seen.process(pid).is_some_and(|process| {
        process.start_unix_ns > 0 && now_ns.saturating_sub(process.start_unix_ns) < YOUNG_NS
    })
}

/// The service that a process is: one that listens or owns connections to databases, or PM2's. A session of PostgreSQL is
/// its server; what else the server does (checkpoints, vacuum) is nobody's request.
pub(super) fn service(pid: u32, watched: &BTreeSet<u32>, seen: &Seen<'_>) -> Option<u32> {
    let process = seen.process(pid);
    let is_pm2 = process.is_some_and(|process| process.pm2.is_some());
    if watched.contains(&pid) || is_pm2 {
        return Some(pid);
    }
    let process = process.filter(|process| is_session(process))?;
    watched.contains(&process.parent_pid).then_some(process.parent_pid)
}

/// The title of a session names its client, in brackets.
fn is_session(process: &Process) -> bool {
    let title = &process.command_line;
    let client = |word: &str| word == "[local]" || word.contains('(') && word.ends_with(')');
    process.name == "postgres"
        && title.starts_with("postgres: ")
        && title.split_whitespace().any(client)
}
