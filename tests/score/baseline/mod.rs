//! The rules of others, as functions over snapshots. Thresholds are their defaults; each names its source. What they look
//! at more often than once a second, they see once a second here, as do our own.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};

use observer::{signal::alloc::ProcessMemory, snapshot::Snapshot};

use crate::rule::{Alarm, Level, Rule};

/// All, in the order of the table.
pub(crate) fn all() -> Vec<Box<dyn Rule>> {
    vec![
        Box::new(Earlyoom),
        Box::new(Oomd::default()),
        Box::new(Lmkd::default()),
        Box::new(Nohang),
        Box::new(PredictLinear::new("predict_linear [1h]", 3600)),
        Box::new(PredictLinear::new("predict_linear [4h]", 4 * 3600)),
        Box::new(Coroot::default()),
    ]
}

/// Share of memory, and of swap, that is free; without swap none is.
fn free_percent(snapshot: &Snapshot) -> (f64, f64) {
    let percent = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 / of as f64 * 100.0 };
    let view = &snapshot.oom;
    (
        percent(view.memory_available_bytes, view.memory_total_bytes),
        percent(view.swap_free_bytes, view.swap_total_bytes),
    )
}

/// The process with the most resident and swapped memory and page tables: what the kernel's oom_score is without adjustment
/// (mm/oom_kill.c, `oom_badness`), and what those kill that go by it.
fn largest(snapshot: &Snapshot) -> Option<(u32, &str)> {
    let size = |row: &ProcessMemory| row.rss_bytes + row.swap_bytes + row.page_table_bytes;
    let row = snapshot.alloc.processes.iter().max_by_key(|row| size(row))?;
    Some((row.pid, row.name.as_str()))
}

/// earlyoom 1.9 (its man page): SIGTERM if at most 10 % of memory and of swap are free, SIGKILL at 5 %.
struct Earlyoom;

impl Rule for Earlyoom {
    fn name(&self) -> &'static str {
        "earlyoom"
    }

    fn tick(&mut self, snapshot: &Snapshot, alarms: &mut Vec<Alarm>) {
        let (memory, swap) = free_percent(snapshot);
        let level = match memory.max(swap) {
            free if free <= 5.0 => Level::Critical,
            free if free <= 10.0 => Level::Warn,
            _ => return,
        };
        alarms.push(Alarm::memory("available", level, largest(snapshot)));
    }
}

/// systemd-oomd (oomd.conf(5)): full pressure of memory above 60 % for 30 s, or swap used above 90 %. It kills the control
/// group that reclaims most; by swap the one with most of it.
#[derive(Default)]
struct Oomd {
    above_s: u32,
    reclaimed: HashMap<u32, u64>,
}

impl Rule for Oomd {
    fn name(&self) -> &'static str {
        "systemd-oomd"
    }

    fn tick(&mut self, snapshot: &Snapshot, alarms: &mut Vec<Alarm>) {
        let full = pressure(snapshot, "full").map_or(0.0, |row| row.avg10_percent);
        self.above_s = if full > 60.0 { self.above_s + 1 } else { 0 };
        let reclaims = &snapshot.oom.reclaimers;
        let recent =
            |pid: u32, now: u64| now - self.reclaimed.get(&pid).copied().unwrap_or(0).min(now);
        let most = reclaims.iter().max_by_key(|row| recent(row.pid, row.pages));
        if self.above_s >= 30 {
            let culprit = most.map(|row| (row.pid, row.name.as_str()));
            alarms.push(Alarm::memory("pressure", Level::Critical, culprit));
        }
        self.reclaimed = reclaims.iter().map(|row| (row.pid, row.pages)).collect();
        let (memory, swap) = free_percent(snapshot);
        if snapshot.oom.swap_total_bytes > 0 && swap < 10.0 && memory < 10.0 {
            let row = snapshot.alloc.processes.iter().max_by_key(|row| row.swap_bytes);
            let culprit = row.map(|row| (row.pid, row.name.as_str()));
            alarms.push(Alarm::memory("swap", Level::Critical, culprit));
        }
    }
}

fn pressure<'a>(
    snapshot: &'a Snapshot,
    scope: &str,
) -> Option<&'a observer::signal::oom::Pressure> {
    snapshot.oom.pressure.iter().find(|row| row.resource == "memory" && row.scope == scope)
}

/// Android's lmkd (its README and lmkd.cpp): some pressure of 70 ms in a second, full of 700 ms, refaults of all file pages
/// (`thrashing_limit` 100 %; 30 % on devices with little RAM, here below 4 GB) while the pressure lasts, swap free below 10 %.
/// Partial stalls alone wake it to look, so they only warn; it kills the largest of those that matter least.
#[derive(Default)]
struct Lmkd {
    stalled_ns: [u64; 2],
    refaulted: f64,
    calm_s: u32,
}

impl Rule for Lmkd {
    fn name(&self) -> &'static str {
        "lmkd"
    }

    fn tick(&mut self, snapshot: &Snapshot, alarms: &mut Vec<Alarm>) {
        let total = |scope| pressure(snapshot, scope).map_or(0, |row| row.total_ns);
        let now = [total("some"), total("full")];
        let before = std::mem::replace(&mut self.stalled_ns, now);
        if before[0] == 0 {
            return;
        }
        let (some, full) = (now[0].saturating_sub(before[0]), now[1].saturating_sub(before[1]));
        let stalls = some > 70_000_000;
        self.calm_s = if stalls { 0 } else { self.calm_s + 1 };
        // It sums refaults from the first stall on, and begins anew when memory has been calm.
        self.refaulted =
            if self.calm_s > 1 { 0.0 } else { self.refaulted + snapshot.oom.refault_ratio };
        let limit = if snapshot.oom.memory_total_bytes < 4 << 30 { 0.3 } else { 1.0 };
        let swap_low = snapshot.oom.swap_total_bytes > 0 && free_percent(snapshot).1 < 10.0;
        let level = match () {
            () if full > 700_000_000
                || (stalls && self.refaulted > limit)
                || (stalls && swap_low) =>
            {
                Level::Critical
            }
            () if stalls => Level::Warn,
            () => return,
        };
        alarms.push(Alarm::memory("pressure", level, largest(snapshot)));
    }
}

/// nohang 0.2 (nohang.conf): a warning below 20 % of memory and 25 % of swap (off unless asked for: WATCH here), SIGTERM at 5
/// and 10 %, SIGKILL at 2 and 4 %. Its pressure rule is off by default.
struct Nohang;

impl Rule for Nohang {
    fn name(&self) -> &'static str {
        "nohang"
    }

    fn tick(&mut self, snapshot: &Snapshot, alarms: &mut Vec<Alarm>) {
        let (memory, swap) = free_percent(snapshot);
        let below = |least: f64, least_swap: f64| memory <= least && swap <= least_swap;
        let level = match () {
            () if below(2.0, 4.0) => Level::Critical,
            () if below(5.0, 10.0) => Level::Warn,
            () if below(20.0, 25.0) => Level::Watch,
            () => return,
        };
        alarms.push(Alarm::memory("available", level, largest(snapshot)));
    }
}

/// Prometheus: `predict_linear(node_memory_MemAvailable_bytes[W], 4 * 3600) < 0` for 5 minutes, scraped and evaluated every
/// 15 s; least squares over the window as in promql/functions.go, and the form of the alert as in Prometheus's docs for
/// disks. WARN, as is usual for a prediction.
struct PredictLinear {
    name: &'static str,
    window_s: f64,
    samples: VecDeque<(f64, f64)>,
    seconds: u64,
    below_since_s: Option<f64>,
    left_s: Option<f64>,
}

impl PredictLinear {
    fn new(name: &'static str, window_s: u32) -> Self {
        let window_s = f64::from(window_s);
        let samples = VecDeque::new();
        Self { name, window_s, samples, seconds: 0, below_since_s: None, left_s: None }
    }

    /// Value now and slope a second, by least squares.
    fn line(&self, now_s: f64) -> Option<(f64, f64)> {
        let n = self.samples.len() as f64;
        if n < 2.0 {
            return None;
        }
        let (mut x, mut y, mut xx, mut xy) = (0.0, 0.0, 0.0, 0.0);
        for (at, value) in &self.samples {
            let at = at - now_s;
            (x, y, xx, xy) = (x + at, y + value, xx + at * at, xy + at * value);
        }
        let slope = (xy - x * y / n) / (xx - x * x / n);
        Some((y / n - slope * x / n, slope))
    }
}

impl Rule for PredictLinear {
    fn name(&self) -> &'static str {
        self.name
    }

    fn tick(&mut self, snapshot: &Snapshot, alarms: &mut Vec<Alarm>) {
        let now_s = self.seconds as f64;
        self.seconds += 1;
        if self.seconds % 15 == 1 {
            self.samples.push_back((now_s, snapshot.oom.memory_available_bytes as f64));
            while self.samples.front().is_some_and(|(at, _)| now_s - at > self.window_s) {
                self.samples.pop_front();
            }
            let line = self.line(now_s);
            let below = line.is_some_and(|(now, slope)| now + slope * 4.0 * 3600.0 < 0.0);
            self.below_since_s = if below { self.below_since_s.or(Some(now_s)) } else { None };
            self.left_s =
                line.filter(|(_, slope)| *slope < 0.0).map(|(now, slope)| (now / -slope).max(0.0));
        }
        if self.below_since_s.is_some_and(|since| now_s - since >= 300.0) {
            let alarm = Alarm::memory("predicted", Level::Warn, None);
            alarms.push(Alarm { time_left_s: self.left_s, ..alarm });
        }
    }
}

/// coroot (release 0.11: memory leak detection): an application's resident memory grows by more than 10 MB an hour, by linear
/// regression over the last hour, looked at every minute. Its largest process is blamed.
#[derive(Default)]
struct Coroot {
    seconds: u64,
    memory: HashMap<String, VecDeque<f64>>,
    leaks: Vec<(u32, String)>,
}

/// Memory of an application, and its largest process.
type Applications<'a> = HashMap<&'a str, (f64, &'a ProcessMemory)>;

/// Processes by the application that they belong to.
fn applications(snapshot: &Snapshot) -> Applications<'_> {
    let mut found: Applications<'_> = HashMap::new();
    for row in &snapshot.alloc.processes {
        let identity = snapshot.processes.get(&row.pid);
        let name = identity.map_or(row.name.as_str(), |process| process.service_name.as_str());
        let (bytes, largest) = found.entry(name).or_insert((0.0, row));
        *bytes += row.rss_bytes as f64;
        if row.rss_bytes > largest.rss_bytes {
            *largest = row;
        }
    }
    found
}

/// Samples of an hour, one a minute.
const HOUR: usize = 60;

impl Rule for Coroot {
    fn name(&self) -> &'static str {
        "coroot"
    }

    fn tick(&mut self, snapshot: &Snapshot, alarms: &mut Vec<Alarm>) {
        self.seconds += 1;
        if self.seconds % 60 == 1 {
            self.leaks.clear();
            let applications = applications(snapshot);
            self.memory.retain(|name, _| applications.contains_key(name.as_str()));
            for (name, (bytes, largest)) in applications {
                let samples = self.memory.entry(name.to_owned()).or_default();
                samples.push_back(bytes);
                if samples.len() > HOUR {
                    samples.pop_front();
                }
                if samples.len() == HOUR && growth_per_hour(samples) > 10e6 {
                    self.leaks.push((largest.pid, largest.name.clone()));
                }
            }
        }
        for (pid, name) in &self.leaks {
            alarms.push(Alarm::memory("growth", Level::Warn, Some((*pid, name))));
        }
    }
}

fn growth_per_hour(samples: &VecDeque<f64>) -> f64 {
    let n = samples.len() as f64;
    let middle = (n - 1.0) / 2.0;
    let (mut xy, mut xx) = (0.0, 0.0);
    for (at, value) in samples.iter().enumerate() {
        let x = at as f64 - middle;
        (xy, xx) = (xy + x * value, xx + x * x);
    }
    xy / xx * HOUR as f64
}
