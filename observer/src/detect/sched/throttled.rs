//! A control group whose CPU quota holds it back: the host idles, and the service inside waits.

use std::{collections::BTreeMap, time::Duration};

use super::percent;
use crate::{
    detect::{Detector, Judgement, Kind, Level, Party, Seen, State, evidence, mean::Mean, party},
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
    groups: BTreeMap<String, (Mean, Mean)>,
}

/// Whether a process is inside of a control group.
pub(super) fn is_in(seen: &Seen<'_>, pid: u32, path: &str) -> bool {
    seen.process(pid).is_some_and(|process| {
        let own = if process.cpu_cgroup.is_empty() { &process.cgroup } else { &process.cpu_cgroup };
        let rest = own.strip_prefix(path.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// Watched threads of processes within a group.
fn threads_of<'a>(seen: &'a Seen<'_>, path: &str) -> Vec<&'a Thread> {
    seen.snapshot.sched.threads.iter().filter(|thread| is_in(seen, thread.pid, path)).collect()
}

impl Throttled {
    fn judge(&mut self, group: &CpuCgroup, seen: &Seen<'_>) -> Option<Judgement> {
        if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&group.path) {
            return None;
        }
        let threads = threads_of(seen, &group.path);
        let worst = threads.iter().map(|thread| thread.run_delay_ratio).fold(0.0, f64::max);
        let (periods, waits) = self.groups.entry(group.path.clone()).or_default();
        let ratio = periods.add(group.throttled_ratio, seen.elapsed_ns, CONSTANT);
        let waits = waits.add(worst, seen.elapsed_ns, CONSTANT);
        let level = match ratio {
            _ if ratio >= MOST && waits >= WAITS_MOST => Level::Critical,
            _ if ratio >= MANY && waits >= WAITS => Level::Warn,
            _ if ratio >= SOME => Level::Watch,
            _ => return None,
        };
        Some(judgement(group, level, (ratio, waits), &threads, seen))
    }
}

fn judgement(
    group: &CpuCgroup,
    level: Level,
    (ratio, waits): (f64, f64),
    threads: &[&Thread],
    seen: &Seen<'_>,
) -> Judgement {
    let used: Vec<_> = threads
        .iter()
        .map(|thread| (thread.pid, thread.name.as_str(), thread.on_cpu_ratio))
        .collect();
    let culprit = party::culprit(seen.snapshot, &used);
    let name = group.path.rsplit('/').find(|part| !part.is_empty()).unwrap_or(&group.path);
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
        advice: "raise the quota (CPUQuota=, the container's CPU limit), or give the service less to do; the host itself may \
                 have CPU time left"
            .to_owned(),
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
        let groups = &seen.snapshot.sched.throttled;
        found.extend(groups.iter().filter_map(|group| self.judge(group, seen)));
        self.groups.retain(|path, _| groups.iter().any(|group| group.path == *path));
    }
}
