//! Settings under which a small fault becomes a dead host: each was part of an incident. None of them is an event; what is
//! told is what to change, once.

use std::{collections::BTreeMap, time::Duration};

use super::size;
use crate::{
    detect::{Detector, Group, Judgement, Kind, Level, Party, Seen, State, evidence, party},
    signal::limit::{Bound, Facts, Redis, Runtime},
};

/// A hazard is looked for by a function of the snapshot alone.
type Find = fn(&Seen<'_>, &mut Vec<Judgement>);

/// What was found at the last reading of limits, which is every few seconds; nothing is known before the first.
struct Look {
    find: Find,
    read_unix_ns: u64,
    found: Vec<Judgement>,
}

impl Detector for Look {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        if self.read_unix_ns != seen.snapshot.limit.read_unix_ns {
            self.read_unix_ns = seen.snapshot.limit.read_unix_ns;
            self.found.clear();
            if self.read_unix_ns != 0 {
                (self.find)(seen, &mut self.found);
            }
        }
        found.extend_from_slice(&self.found);
    }
}

fn look(find: Find) -> Box<dyn Detector> {
    Box::new(Look { find, read_unix_ns: 0, found: Vec::new() })
}

/// Makes the kind of a hazard.
const fn hazard(
    name: &'static str,
    help: &'static str,
    reason: &'static str,
    detector: fn(&crate::config::Config) -> Box<dyn Detector>,
) -> Kind {
    Kind {
        name,
        signal: "limit",
        help,
        reason,
        raise: Duration::from_secs(30),
        clear: Duration::from_secs(30),
        hazard: true,
        settings: &[],
        detector,
    }
}

/// A Redis that saves on a host that may refuse it to fork.
pub static REDIS_OVERCOMMIT: Kind = hazard(
    "hazard.redis_overcommit",
    "vm.overcommit_memory is 0 and a Redis saves by fork",
    "The fork counts as a second Redis; beyond what is free it fails, or its copies take the host's last memory. WARN once \
     Redis has more than is available.",
    |_| look(redis_overcommit),
);

/// A Redis that saves with huge pages.
pub static REDIS_HUGE_PAGES: Kind = hazard(
    "hazard.redis_huge_pages",
    "transparent huge pages are always on and a Redis saves by fork",
    "Each write during a save then copies 2 MiB in place of 4 KiB.",
    |_| look(redis_huge_pages),
);

/// A Redis without a limit.
pub static REDIS_MAXMEMORY: Kind = hazard(
    "hazard.redis_maxmemory",
    "a Redis has no maxmemory",
    "The host's memory is its limit then, and all others' too. WARN once it has half of it.",
    |_| look(redis_maxmemory),
);

/// Heaps that may be larger together than RAM.
pub static HEAP_LIMITS: Kind = hazard(
    "hazard.heap_limits",
    "heaps may grow beyond the memory of the host, alone or together",
    "Each collector waits for its own limit before it works hard; if the host's comes first, it hangs. Limits that nobody \
     set count only alone.",
    |_| look(heap_limits),
);

/// PM2 applications that may take everything.
pub static PM2_MEMORY: Kind = hazard(
    "hazard.pm2_memory",
    "PM2 applications have no max_memory_restart, or one that RAM has no room for",
    "PM2 restarts what leaks only if it is told when; in the incident of 2022 it was not.",
    |_| look(pm2_memory),
);

/// More workers than CPUs.
pub static WORKERS: Kind = hazard(
    "hazard.workers",
    "a PM2 application has more workers than the host has CPUs",
    "Event loops then wait for each other, and each keeps memory and connections of its own.",
    |_| look(workers),
);

/// A server with few files.
pub static FILES: Kind = hazard(
    "hazard.files",
    "a server may open 1,024 files at most, and uses a quarter of them",
    "That is the default for shells; each client costs one, and without another nobody is accepted.",
    |_| look(files),
);

/// No swap beside programs without limits.
pub static NO_SWAP: Kind = hazard(
    "hazard.no_swap",
    "the host has no swap, and programs on it have no limit of memory",
    "Such a host does not run slowly before it hangs: with the last file pages gone it stands still, and nothing is killed.",
    |_| look(no_swap),
);

/// Names in a message.
const MAX_NAMED: usize = 4;
/// What a Redis must have to matter, as a share of RAM.
const MATTERS: f64 = 0.02;

fn redises<'a>(seen: &'a Seen<'_>) -> impl Iterator<Item = (&'a Runtime, &'a Redis, u64)> {
    let limit = &seen.snapshot.limit;
    limit.runtimes.iter().filter_map(move |runtime| {
        let Facts::Redis(redis) = &runtime.facts else { return None };
        let row =
            limit.rows.iter().find(|row| row.pid == runtime.pid && row.resource == "redis_memory");
        Some((runtime, redis, row.map_or(0, |row| row.used)))
    })
}

fn forks(redis: &Redis) -> bool {
    redis.save == Some(true) || redis.append_only == Some(true)
}

fn memory_total(seen: &Seen<'_>) -> f64 {
    let total =
        seen.snapshot.limit.host.memory_total_bytes.max(seen.snapshot.oom.memory_total_bytes);
    total as f64
}

/// A finding about one process.
fn of_process(
    runtime: &Runtime,
    level: Level,
    message: String,
    advice: &str,
    seen: &Seen<'_>,
) -> Judgement {
    Judgement {
        subject: format!("{} {}", runtime.name, runtime.pid),
        state: State::Firing(level),
        culprit: Some(party::process(seen.snapshot, runtime.pid, &runtime.name, 1.0)),
        message,
        advice: advice.to_owned(),
        ..Judgement::default()
    }
}

fn redis_overcommit(seen: &Seen<'_>, found: &mut Vec<Judgement>) {
    if seen.snapshot.limit.host.overcommit_memory != Some(0) {
        return;
    }
    for (runtime, redis, used) in redises(seen).filter(|(_, redis, _)| forks(redis)) {
        let available = seen.snapshot.oom.memory_available_bytes;
        let refused =
            used as f64 > MATTERS * memory_total(seen) && available > 0 && used > available;
        found.push(Judgement {
            evidence: vec![
                evidence("resident", used as f64, "By", "iter/task"),
                evidence("memory_available", available as f64, "By", "/proc/meminfo"),
                evidence("save", f64::from(u8::from(redis.save == Some(true))), "1", redis.config_file.clone()),
            ],
            ..of_process(
                runtime,
                if refused { Level::Warn } else { Level::Watch },
                format!(
                    "Redis {} saves by fork, and vm.overcommit_memory is 0: with {} in use and {} available the fork may be \
                     refused, or take the last memory",
                    runtime.pid,
                    size(used as f64),
                    size(available as f64)
                ),
                "sysctl vm.overcommit_memory=1, and maxmemory below half of RAM; or save \"\" if nothing needs it",
                seen,
            )
        });
    }
}

fn redis_huge_pages(seen: &Seen<'_>, found: &mut Vec<Judgement>) {
    if seen.snapshot.limit.host.thp_enabled != "always" {
        return;
    }
    for (runtime, ..) in redises(seen).filter(|(_, redis, _)| forks(redis)) {
        found.push(of_process(
            runtime,
            Level::Watch,
            format!(
                "Redis {} saves by fork while transparent huge pages are always on: each write then copies 2 MiB",
                runtime.pid
            ),
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
            seen,
        ));
    }
}

fn redis_maxmemory(seen: &Seen<'_>, found: &mut Vec<Judgement>) {
    let unlimited = |redis: &Redis| redis.maxmemory_known && redis.maxmemory_bytes.is_none();
    for (runtime, _, used) in redises(seen).filter(|(_, redis, _)| unlimited(redis)) {
        let share = used as f64 / memory_total(seen).max(1.0);
        found.push(Judgement {
            evidence: vec![evidence("share_of_memory", share, "1", "iter/task")],
            ..of_process(
                runtime,
                if share >= 0.5 { Level::Warn } else { Level::Watch },
                format!(
                    "Redis {} has no maxmemory and uses {} ({:.0} % of RAM)",
                    runtime.pid,
                    size(used as f64),
                    share * 100.0
                ),
                "set maxmemory, and a maxmemory-policy that evicts if it is a cache",
                seen,
            )
        });
    }
}

/// Heaps with their limits: process, name, bytes, and whether somebody set it.
fn heaps<'a>(seen: &'a Seen<'_>) -> impl Iterator<Item = (&'a Runtime, u64, bool)> {
    seen.snapshot.limit.runtimes.iter().filter_map(|runtime| match &runtime.facts {
        Facts::Node(node) => {
            Some((runtime, node.heap_limit_bytes, node.heap_limit_source != "default"))
        }
        Facts::Jvm(jvm) => {
            let command = seen.process(runtime.pid).map_or("", |process| &process.command_line);
            Some((
                runtime,
                jvm.heap_max_bytes,
                command.contains("-Xmx") || command.contains("MaxHeapSize"),
            ))
        }
        _ => None,
    })
}

fn heap_limits(seen: &Seen<'_>, found: &mut Vec<Judgement>) {
    let total = memory_total(seen);
    if total <= 0.0 {
        return;
    }
    let mut heaps: Vec<_> = heaps(seen).filter(|(_, bytes, _)| *bytes > 0).collect();
    heaps.sort_by_key(|(_, bytes, _)| std::cmp::Reverse(*bytes));
    let set: f64 = heaps.iter().filter(|(.., set)| *set).map(|(_, bytes, _)| *bytes as f64).sum();
    let largest = heaps.first().map_or(0.0, |(_, bytes, _)| *bytes as f64);
    if set <= total && largest <= total {
        return;
    }
    let named =
        heaps.iter().filter(|(_, bytes, set)| *set || *bytes as f64 > total).take(MAX_NAMED);
    let named: Vec<_> = named
        .map(|(runtime, bytes, _)| {
            format!("{} {} {}", runtime.name, runtime.pid, size(*bytes as f64))
        })
        .collect();
    found.push(Judgement {
        subject: "host".to_owned(),
        state: State::Firing(Level::Watch),
        evidence: vec![
            evidence("sum_of_heap_limits", set.max(largest), "By", "command line"),
            evidence("memory_total", total, "By", "/proc/meminfo"),
        ],
        message: format!(
            "heaps may grow to {}, and the host has {}: {}",
            size(set.max(largest)),
            size(total),
            named.join(", ")
        ),
        advice:
            "lower -Xmx and --max-old-space-size, so that all of them and what else runs have room"
                .to_owned(),
        ..Judgement::default()
    });
}

/// Workers of PM2 applications, by (home, app): processes that a daemon has started itself.
fn pm2_apps<'a>(seen: &'a Seen<'_>) -> BTreeMap<(&'a str, &'a str), Vec<u32>> {
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
            pids: pids.iter().copied().take(crate::detect::MAX_PIDS).collect(),
            share_ratio: 1.0,
            title: format!("PM2 app {app}"),
        }),
        message,
        advice: advice.to_owned(),
        ..Judgement::default()
    }
}

fn pm2_memory(seen: &Seen<'_>, found: &mut Vec<Judgement>) {
    let rows = &seen.snapshot.limit.rows;
    let limits: BTreeMap<u32, &Bound> =
        rows.iter().filter(|row| row.resource == "pm2_memory").map(|row| (row.pid, row)).collect();
    for (key, pids) in pm2_apps(seen) {
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

fn workers(seen: &Seen<'_>, found: &mut Vec<Judgement>) {
    let cpus = seen.snapshot.limit.host.cpus;
    let apps = pm2_apps(seen).into_iter().filter(|(_, pids)| cpus > 0 && pids.len() as u64 > cpus);
    found.extend(apps.map(|(key, pids)| {
        let text =
            format!("PM2 app {} has {} workers, and the host has {cpus} CPUs", key.1, pids.len());
        of_app(key, &pids, text, "start as many workers as there are CPUs (pm2 scale)")
    }));
}

fn files(seen: &Seen<'_>, found: &mut Vec<Judgement>) {
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

fn no_swap(seen: &Seen<'_>, found: &mut Vec<Judgement>) {
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
    let apps = pm2_apps(seen)
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
