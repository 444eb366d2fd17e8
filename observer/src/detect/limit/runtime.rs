//! Heaps of Node.js and memory of Redis against their own limits.

use std::time::Duration;

use super::{duration, size};
use crate::{
    detect::{
        Detector, Judgement, Kind, Level, Seen, State, evidence, judgement::worst, party,
        rows::Rows, trend::Trend,
    },
    signal::limit::{Bound, Facts, Redis},
};

/// A Node.js heap is as good as full.
pub static NODE: Kind = Kind {
    name: "limit.node_heap",
    signal: "limit",
    help: "a Node.js process comes near the limit of its heap, at which it aborts",
    reason: "What is seen is the process's anonymous memory, which is more than its heap (buffers are outside), so this is \
             never more than WARN, and only while it grows.",
    raise: Duration::from_secs(10),
    clear: Duration::from_secs(60),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Node::default()),
};

/// A Redis fills its memory.
pub static REDIS: Kind = Kind {
    name: "limit.redis",
    signal: "limit",
    help: "a Redis fills the memory that it may use, or has no limit and grows",
    reason: "A cache that may evict is always full, and well. Without eviction writes fail at maxmemory; without maxmemory \
             the host is the limit, which matters once Redis has a quarter of it and fills the rest within the hour.",
    raise: Duration::from_secs(10),
    clear: Duration::from_secs(60),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Caches::default()),
};

/// Processes followed by each.
const MAX_FOLLOWED: usize = 1024;
/// Over some minutes: heaps rise and fall with each collection.
const CONSTANT: Duration = Duration::from_secs(60);
/// A trend says nothing before.
const OBSERVED: Duration = Duration::from_secs(60);
/// Share of a limit.
const NEAR: f64 = 0.9;
const AT: f64 = 0.97;
/// Share of RAM from which on a Redis without a limit matters.
const LARGE: f64 = 0.25;
/// What is left of the host's memory is gone within this many seconds.
const SOON_S: f64 = 3600.0;
const NOW_S: f64 = 600.0;

/// Trends by process, of which those that were not seen at a reading go.
#[derive(Default)]
struct Trends(Rows<Trend>);

impl Trends {
    fn add(&mut self, row: &Bound, read_unix_ns: u64) -> Option<Trend> {
        let trend = self.0.get(u64::from(row.pid), MAX_FOLLOWED)?;
        trend.add(read_unix_ns, row.used as f64, CONSTANT);
        Some(*trend)
    }
}

#[derive(Default)]
struct Node(Trends);

impl Detector for Node {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let limit = &seen.snapshot.limit;
        let mut near = Vec::new();
        for row in limit.rows.iter().filter(|row| row.resource == "node_heap") {
            let Some(trend) = self.0.add(row, limit.read_unix_ns) else { continue };
            let Some((share, max)) = row.share().zip(row.limit) else { continue };
            let grows = trend.rate() > 0.0 && trend.observed() >= OBSERVED;
            let level = match share {
                _ if share >= AT && grows => Level::Warn,
                _ if share >= NEAR => Level::Watch,
                _ => continue,
            };
            let left = trend.seconds_left(max.saturating_sub(row.used) as f64).filter(|_| grows);
            near.push((level, share, row, max, trend.rate(), left));
        }
        self.0.0.end();
        let rank = |(level, share, ..): &(Level, f64, _, _, _, _)| (*level, (share * 1e3) as u64);
        for (level, _, row, max, rate, left) in worst(near, rank, found) {
            let own = party::process(seen.snapshot, row.pid, &row.name, 1.0);
            found.push(Judgement {
                subject: format!("{} {}", row.name, row.pid),
                state: State::Firing(level),
                evidence: vec![
                    evidence("anonymous_memory", row.used as f64, "By", "iter/task"),
                    evidence("heap_limit", max as f64, "By", row.source.clone()),
                    evidence("growth", rate, "By/s", "iter/task"),
                ],
                time_left_seconds: left,
                message: format!(
                    "{} has {} of memory, and V8 aborts it when its heap has {}",
                    own.title,
                    size(row.used as f64),
                    size(max as f64)
                ),
                advice: "take a heap snapshot and see what it keeps; raise --max-old-space-size only if that is needed, and \
                         RAM allows"
                    .to_owned(),
                culprit: Some(own),
                ..Judgement::default()
            });
        }
    }
}

#[derive(Default)]
struct Caches(Trends);

/// How bad it is, and how long is left.
fn redis_level(
    redis: &Redis,
    row: &Bound,
    trend: Trend,
    seen: &Seen<'_>,
) -> Option<(Level, Option<f64>)> {
    let oom = &seen.snapshot.oom;
    let grows = trend.observed() >= OBSERVED && trend.rate() > 0.0;
    if let Some(max) = row.limit {
        let evicts = !redis.maxmemory_policy.is_empty() && redis.maxmemory_policy != "noeviction";
        let share = row.share()?;
        let left = trend.seconds_left(max.saturating_sub(row.used) as f64).filter(|_| grows);
        // Resident memory is more than what Redis counts; only growth tells that writes go on.
        return match share {
            _ if evicts || share < NEAR => None,
            _ if grows && share >= AT => Some((Level::Warn, left)),
            _ => Some((Level::Watch, left)),
        };
    }
    if !redis.maxmemory_known || oom.memory_total_bytes == 0 {
        return None;
    }
    let large = row.used as f64 >= LARGE * oom.memory_total_bytes as f64;
    let left = trend.seconds_left(oom.memory_available_bytes as f64).filter(|_| grows)?;
    match left {
        _ if !large || left > SOON_S => None,
        _ if left < NOW_S => Some((Level::Warn, Some(left))),
        _ => Some((Level::Watch, Some(left))),
    }
}

impl Detector for Caches {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let limit = &seen.snapshot.limit;
        for row in limit.rows.iter().filter(|row| row.resource == "redis_memory") {
            let Some(trend) = self.0.add(row, limit.read_unix_ns) else { continue };
            let runtime = limit.runtimes.iter().find(|runtime| runtime.pid == row.pid);
            let Some(Facts::Redis(redis)) = runtime.map(|runtime| &runtime.facts) else { continue };
            let Some((level, left)) = redis_level(redis, row, trend, seen) else { continue };
            let own = party::process(seen.snapshot, row.pid, &row.name, 1.0);
            let until = left.map_or_else(String::new, |left| format!(" in {}", duration(left)));
            let what = match row.limit {
                Some(max) => format!(
                    "reaches its maxmemory of {}{until}, and refuses writes then",
                    size(max as f64)
                ),
                None => format!("has no maxmemory and takes the rest of the host's memory{until}"),
            };
            found.push(Judgement {
                subject: format!("{} {}", row.name, row.pid),
                state: State::Firing(level),
                evidence: vec![
                    evidence("resident", row.used as f64, "By", "iter/task"),
                    evidence("growth", trend.rate(), "By/s", "iter/task"),
                ],
                time_left_seconds: left,
                message: format!("{} has {}, {what}", own.title, size(row.used as f64)),
                advice: "set maxmemory, and a maxmemory-policy that evicts if it is a cache; give keys a time to live"
                    .to_owned(),
                culprit: Some(own),
                ..Judgement::default()
            });
        }
        self.0.0.end();
    }
}
