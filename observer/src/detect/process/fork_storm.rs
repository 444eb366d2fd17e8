//! Processes that become more and more, or that are started faster than they can work.

use std::time::Duration;

use super::starters;
use crate::{
    detect::{
        Detector, Evidence, Judgement, Kind, Level, Party, Seen, State, evidence, mean::Mean,
        party, trend::Trend,
    },
    identity::Process,
};

/// Too many processes.
pub static KIND: Kind = Kind {
    name: "process.fork_storm",
    signal: "alloc",
    help: "processes become too many, or are started faster than they can work",
    reason: "A build starts hundreds of processes a second on each CPU and harms nobody, so starts are WARN only while a \
             service waits for the CPU. A pool that fills stops after some hundred; 500 more than usual, and 20 more each \
             second, does not.",
    raise: Duration::from_secs(5),
    clear: Duration::from_secs(20),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(ForkStorm::default()),
};

/// Over about ten seconds.
const CONSTANT: Duration = Duration::from_secs(5);
/// What is usual: over some ten minutes.
const USUAL: Duration = Duration::from_secs(600);
/// Starts a second, of each CPU: a shell that does nothing else makes some hundreds.
const MANY_STARTS: f64 = 50.0;
/// Share of its time that a service waits for a CPU.
const WAITS: f64 = 0.3;
/// More processes each second, and more than usual.
const GROWTH: f64 = 20.0;
const EXCESS: f64 = 500.0;
/// Where the kernel's limit is not known: its default on small hosts.
const PID_MAX: u64 = 32_768;
/// Processes younger than this were started by whoever starts too many.
const YOUNG_NS: u64 = 30_000_000_000;

#[derive(Default)]
struct ForkStorm {
    forks: Option<u64>,
    starts: Mean,
    waits: Mean,
    count: Trend,
    usual: Mean,
    observed: bool,
}

/// Tasks that may live at once. Processes are counted, but each may have several threads, so this is where it ends at the
/// latest.
fn limit(seen: &Seen<'_>) -> u64 {
    let host = &seen.snapshot.limit.host;
    [host.pid_max, host.threads_max].into_iter().flatten().min().unwrap_or(PID_MAX).max(1)
}

impl ForkStorm {
    fn add(&mut self, seen: &Seen<'_>) {
        let alloc = &seen.snapshot.alloc;
        let before = self.forks.replace(alloc.forks).unwrap_or(alloc.forks);
        let starts =
            alloc.forks.saturating_sub(before) as f64 * 1e9 / seen.elapsed_ns.max(1) as f64;
        self.starts.add(starts, seen.elapsed_ns, CONSTANT);
        let worst = seen.snapshot.sched.threads.iter().map(|thread| thread.run_delay_ratio);
        self.waits.add(worst.fold(0.0, f64::max), seen.elapsed_ns, CONSTANT);
        let count = alloc.process_count as f64;
        self.count.add(seen.now_ns, count, CONSTANT);
        if !self.observed {
            // What is there at the start is taken as usual.
            self.usual.add(count, u64::MAX, CONSTANT);
            self.observed = true;
        }
        // What grows is not usual yet.
        if self.count.rate() < GROWTH {
            self.usual.add(count, seen.elapsed_ns, USUAL);
        }
    }

    fn growth(&self, seen: &Seen<'_>) -> Option<(Level, f64)> {
        let count = seen.snapshot.alloc.process_count as f64;
        let left = self.count.seconds_left(limit(seen) as f64 - count)?;
        let excess = count - self.usual.value();
        let level = match self.count.rate() {
            rate if rate < GROWTH || excess < EXCESS.min(self.usual.value()) => return None,
            _ if excess >= EXCESS && left < 60.0 => Level::Critical,
            _ if excess >= EXCESS => Level::Warn,
            _ => Level::Watch,
        };
        Some((level, left))
    }

    fn storm(&self, seen: &Seen<'_>) -> Option<Level> {
        let cpus = seen.snapshot.limit.host.cpus.max(1) as f64;
        let many = self.starts.value() >= MANY_STARTS * cpus;
        many.then(|| if self.waits.value() >= WAITS { Level::Warn } else { Level::Watch })
    }

    fn numbers(&self, seen: &Seen<'_>) -> Vec<Evidence> {
        vec![
            evidence("starts", self.starts.value(), "1/s", "tp_btf/sched_process_fork"),
            evidence("processes", seen.snapshot.alloc.process_count as f64, "1", "iter/task"),
            evidence("processes_growth", self.count.rate(), "1/s", "iter/task"),
            evidence("processes_usual", self.usual.value(), "1", "iter/task"),
            evidence("service_waits_for_cpu", self.waits.value(), "1", "iter/task"),
        ]
    }
}

/// Whoever started the young processes that are there.
fn culprit_of_growth(seen: &Seen<'_>) -> Option<Party> {
    let now_unix_ns = seen.snapshot.time_unix_ns;
    let young = |process: &&Process| {
        process.start_unix_ns != 0 && now_unix_ns.saturating_sub(process.start_unix_ns) < YOUNG_NS
    };
    let rows = seen.snapshot.alloc.processes.iter();
    starters(seen, rows.filter_map(|row| seen.process(row.pid)).filter(young))
}

/// Whoever uses the CPU through children: they live too short to be seen themselves.
fn culprit_of_storm(seen: &Seen<'_>) -> Option<Party> {
    let rows = seen.snapshot.sched.consumers.iter().filter(|row| row.children_cpu_ratio > 0.0);
    let causes: Vec<_> = rows
        .map(|row| (row.pid, row.name.as_str(), row.children_cpu_ratio + row.cpu_ratio))
        .collect();
    party::culprit(seen.snapshot, &causes).or_else(|| culprit_of_growth(seen))
}

impl Detector for ForkStorm {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        self.add(seen);
        let growth = self.growth(seen);
        let storm = self.storm(seen);
        let Some(level) = growth.map(|(level, _)| level).max(storm) else { return };
        let count = seen.snapshot.alloc.process_count;
        let (culprit, message) = match growth {
            Some((_, left)) => (
                culprit_of_growth(seen),
                format!(
                    "{count} processes, {:.0} more each second; the kernel allows {} tasks, which is {left:.0} s away",
                    self.count.rate(),
                    limit(seen)
                ),
            ),
            None => (
                culprit_of_storm(seen),
                format!(
                    "{:.0} processes are started each second, and services wait {:.0} % of their time for a CPU",
                    self.starts.value(),
                    self.waits.value() * 100.0
                ),
            ),
        };
        let who = culprit
            .as_ref()
            .map_or_else(String::new, |party| format!("; {} starts them", party.title));
        found.push(Judgement {
            subject: "host".to_owned(),
            state: State::Firing(level),
            culprit,
            evidence: self.numbers(seen),
            time_left_seconds: growth.map(|(_, left)| left),
            message: format!("{message}{who}"),
            advice: "stop the program that starts them; give it a task limit (TasksMax=, pids.max), and have it wait before \
                     it tries again"
                .to_owned(),
            ..Judgement::default()
        });
    }
}
