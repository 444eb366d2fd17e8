//! A control group whose CPU quota holds it back: the host idles, and the service inside waits.

use std::{collections::BTreeMap, time::Duration};

use super::percent;
use crate::{
    detect::{
        Detector, Judgement, Kind, Level, Party, Seen, State, evidence,
        key::key,
        mean::Mean,
        memory::cgroup::{Groups, ancestors},
        party,
        rows::Rows,
    },
    signal::sched::{CpuCgroup, Thread},
};

/// A CPU quota is too small.
pub static KIND: Kind = Kind {
    name: "sched.throttled",
    signal: "sched",
    help: "a control group's CPU quota holds back a service in it",
    reason: "A quarter of the periods is where the rules of Kubernetes (CPUThrottlingHigh) begin. A batch job may use up \
             its quota all day, so it is WARN only if threads of a service wait a tenth of their time for a CPU, and \
             CRITICAL if they wait more than half of it in nearly every period.",
    raise: Duration::from_secs(5),
    clear: Duration::from_secs(15),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Throttled::default()),
};

/// Groups followed; as many as are watched at most.
const MAX_GROUPS: usize = 4096;
/// Groups told of at once, the worst.
const MAX_TOLD: usize = 32;
/// Over about ten seconds.
const CONSTANT: Duration = Duration::from_secs(5);
/// Share of the periods.
const SOME: f64 = 0.1;
const MANY: f64 = 0.25;
const MOST: f64 = 0.8;
/// Share of its time that a service's thread waits.
const WAITS: f64 = 0.1;
const WAITS_MOST: f64 = 0.5;

#[derive(Default)]
struct Throttled {
    /// By path: throttled share of the periods, and the share of its time that the worst thread waits.
    groups: Rows<(Mean, Mean)>,
}

/// Path of a process's CPU control group.
pub(super) fn cgroup<'a>(seen: &'a Seen<'_>, pid: u32) -> Option<&'a str> {
    let process = seen.process(pid)?;
    Some(if process.cpu_cgroup.is_empty() { &process.cgroup } else { &process.cpu_cgroup })
}

impl Throttled {
    /// Groups that are throttled of late, the worst first.
    fn worst<'a>(&mut self, seen: &Seen<'a>) -> Vec<(f64, &'a CpuCgroup)> {
        let mut worst = Vec::new();
        for group in &seen.snapshot.sched.throttled {
            let Some(known) = self.groups.get(key(&group.path), MAX_GROUPS) else { continue };
            let ratio = known.0.add(group.throttled_ratio, seen.elapsed_ns, CONSTANT);
            if ratio >= SOME {
                worst.push((ratio, group));
            }
            if ratio <= 0.001 {
                // It was throttled some time ago.
                *known = Default::default();
            }
        }
        worst.sort_by(|a, b| b.0.total_cmp(&a.0));
        worst.truncate(MAX_TOLD);
        worst
    }
}

/// What a person calls a control group.
pub(super) fn name_of(path: &str) -> &str {
    path.rsplit('/').find(|part| !part.is_empty()).unwrap_or(path)
}

/// Who uses most of what a group may use, of the threads that are watched.
pub(super) fn busiest(path: &str, seen: &Seen<'_>) -> Option<Party> {
    let inside = |thread: &&Thread| {
        cgroup(seen, thread.pid).is_some_and(|own| ancestors(own).any(|above| above == path))
    };
    let threads: Vec<_> = seen.snapshot.sched.threads.iter().filter(inside).collect();
    user(&threads, seen)
}

fn user(threads: &[&Thread], seen: &Seen<'_>) -> Option<Party> {
    let used: Vec<_> = threads
        .iter()
        .map(|thread| (thread.pid, thread.name.as_str(), thread.on_cpu_ratio))
        .collect();
    party::culprit(seen.snapshot, &used)
}

fn judgement(
    group: &CpuCgroup,
    level: Level,
    (ratio, waits): (f64, f64),
    threads: &[&Thread],
    seen: &Seen<'_>,
) -> Judgement {
    let culprit = user(threads, seen);
    let name = name_of(&group.path);
    let who = culprit
        .as_ref()
        .map_or_else(String::new, |party| format!(", in which {} runs", party.title));
    Judgement {
        subject: group.path.clone(),
        state: State::Firing(level),
        victims: victims(threads, seen),
        culprit,
        evidence: vec![
            evidence("throttled_periods", ratio, "1", "cpu.stat"),
            evidence("waiting_for_cpu", waits, "1", "iter/task"),
        ],
        message: format!(
            "the CPU quota of control group {name}{who} held it back in {} % of its periods; its threads wait {} % of their \
             time",
            percent(ratio),
            percent(waits)
        ),
        advice: super::blame::QUOTA_ADVICE.to_owned(),
        ..Judgement::default()
    }
}

/// Processes of these threads, those that wait most first.
pub(super) fn victims(threads: &[&Thread], seen: &Seen<'_>) -> Vec<Party> {
    let mut waits: BTreeMap<u32, (&str, f64)> = BTreeMap::new();
    for thread in threads {
        let (_, ratio) = waits.entry(thread.pid).or_insert((&thread.name, 0.0));
        *ratio = ratio.max(thread.run_delay_ratio);
    }
    let mut waits: Vec<_> = waits.into_iter().collect();
    waits.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    let party =
        |(pid, (name, ratio)): (u32, (&str, f64))| party::process(seen.snapshot, pid, name, ratio);
    waits.into_iter().take(crate::detect::MAX_PIDS).map(party).collect()
}

impl Detector for Throttled {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let worst = self.worst(seen);
        if !worst.is_empty() {
            self.judge(&worst, seen, found);
        }
        self.groups.end();
    }
}

impl Throttled {
    fn judge(&mut self, worst: &[(f64, &CpuCgroup)], seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let mut groups = Groups::of(worst.iter().map(|(_, group)| group.path.as_str()));
        let mut inside: Vec<Vec<&Thread>> = vec![Vec::new(); groups.len()];
        for thread in &seen.snapshot.sched.threads {
            for at in groups.above(cgroup(seen, thread.pid).unwrap_or_default()) {
                inside.get_mut(*at).into_iter().for_each(|threads| threads.push(thread));
            }
        }
        for (ratio, group) in worst.iter().copied() {
            let threads = groups.number(&group.path).and_then(|at| inside.get_mut(at));
            let threads = threads.map(std::mem::take).unwrap_or_default();
            let longest = threads.iter().map(|thread| thread.run_delay_ratio).fold(0.0, f64::max);
            let known = self.groups.get(key(&group.path), MAX_GROUPS);
            let Some((_, waits)) = known else { continue };
            let waits = waits.add(longest, seen.elapsed_ns, CONSTANT);
            let level = match ratio {
                _ if ratio >= MOST && waits >= WAITS_MOST => Level::Critical,
                _ if ratio >= MANY && waits >= WAITS => Level::Warn,
                _ => Level::Watch,
            };
            found.push(judgement(group, level, (ratio, waits), &threads, seen));
        }
    }
}
