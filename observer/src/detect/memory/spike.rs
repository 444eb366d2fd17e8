//! Memory taken at once: a step that nearly took all there was, and one that an event loop makes in a single turn.

use std::time::Duration;

use super::{bytes, history::MAX_FOLLOWED, history::private_bytes};
use crate::{
    config::{self, Config, Setting},
    detect::{Detector, Judgement, Kind, Level, Quality, Seen, State, evidence, key::ByKey, party},
    signal::{alloc::ProcessMemory, sched::EventLoop},
};

/// The kind.
pub static KIND: Kind = Kind {
    name: "memory.spike",
    signal: "alloc",
    help: "a process took much memory at once: a near miss, or a giant string in one turn of an event loop",
    reason: "What took half of the room within seconds may take all of it next time, and then there is no warning: WARN if less \
             than a tenth of the memory is left, else WATCH. A turn of an event loop that takes 256 MB (of 4 GB) builds one \
             giant value: JSON.stringify ends at half a gigabyte with `RangeError: Invalid string length`.",
    raise: Duration::ZERO,
    clear: Duration::from_secs(60),
    hazard: false,
    settings: &[NEAR_MISS],
    detector: |config| Box::new(Spike::new(config)),
};

/// What is a near miss.
pub const NEAR_MISS: Setting = Setting {
    key: "detect.memory_spike",
    kind: config::Kind::Integer { min: 10, max: 95 },
    default: "50",
    otel: &[],
    help: "percent of what was left that a process must take within seconds to be a near miss",
};

/// A step is what was taken within this time.
const STEP_S: f64 = 4.0;
/// What falls back to this share of a step has given it back.
const GIVEN_BACK: f64 = 0.3;
/// Steps below this share of the memory are nobody's concern.
const LEAST: f64 = 0.03;
/// What one turn of a loop may take, as a share of the memory: 256 MB of 4 GB.
const TURN: f64 = 0.0625;
/// The same on hosts of any size: a string of V8 has at most half a gigabyte, or one.
const TURN_BYTES: (f64, f64) = (128e6, 512e6);
/// A turn that has been open for less is no long one.
const OPEN_NS: u64 = 100_000_000;

/// What a process takes, step by step, in bytes and seconds.
#[derive(Debug, Clone, Copy, Default)]
struct Steps {
    /// When the present step began, and what was held then.
    from: (f64, f64),
    /// The most of the present step.
    now: f64,
    /// What the last one before took, of those that were given back.
    before: f64,
}

impl Steps {
    /// What it has taken within the time of a step.
    fn add(&mut self, now_s: f64, held: f64) -> f64 {
        let grown = held - self.from.1;
        let back = held < self.from.1 + self.now * GIVEN_BACK;
        if back && self.now > 0.0 {
            (self.before, self.now) = (self.now, 0.0);
        }
        if grown <= 0.0 || back || now_s - self.from.0 >= STEP_S {
            self.from = (now_s, held);
        }
        self.now = self.now.max(grown);
        grown.max(0.0)
    }

    /// What the next one takes if it is as much larger as this is than the one before.
    fn next(&self) -> f64 {
        if self.before > 0.0 { self.now + (self.now - self.before).max(0.0) } else { self.now }
    }
}

struct Spike {
    near_miss: f64,
    /// By pid.
    steps: ByKey<u32, Steps>,
    /// What was available at the base of the present step, and when.
    available: Option<(f64, f64)>,
}

impl Spike {
    fn new(config: &Config) -> Self {
        let near_miss = config.integer(&NEAR_MISS) as f64 / 100.0;
        Self { near_miss, steps: ByKey::default(), available: None }
    }

    /// What a process has taken within the time of a step, and its steps; `None` if it was not there before.
    fn step(&mut self, row: &ProcessMemory, now_s: f64) -> Option<(f64, Steps)> {
        let held = private_bytes(row);
        let Some(steps) = self.steps.get_mut(&row.pid) else {
            if self.steps.len() < MAX_FOLLOWED * 2 {
                self.steps.insert(row.pid, Steps { from: (now_s, held), ..Steps::default() });
            }
            return None;
        };
        Some((steps.add(now_s, held), *steps))
    }
}

impl Detector for Spike {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let snapshot = seen.snapshot;
        let total = snapshot.oom.memory_total_bytes as f64;
        if total == 0.0 {
            return;
        }
        let now_s = seen.now_ns as f64 / 1e9;
        let left = snapshot.oom.memory_available_bytes as f64;
        let before = self.available.map_or(left, |(_, available)| available);
        if self.available.is_none_or(|(at, known)| left >= known || now_s - at >= STEP_S) {
            self.available = Some((now_s, left));
        }
        let turn = (total * TURN).clamp(TURN_BYTES.0, TURN_BYTES.1);
        for row in snapshot.alloc.processes.iter().take(MAX_FOLLOWED) {
            let taken = self.step(row, now_s).filter(|(step, _)| *step >= total * LEAST);
            let Some((step, steps)) = taken else { continue };
            let open_ns = open(seen, row.pid);
            let near_miss = step >= before * self.near_miss && before - left >= step * 0.5;
            let level = match (near_miss, open_ns) {
                (_, Some(open_ns)) if step >= turn && open_ns >= OPEN_NS => Level::Warn,
                (true, _) if left < total * 0.1 || steps.next() >= before => Level::Warn,
                (true, _) => Level::Watch,
                _ => continue,
            };
            found.push(judgement(seen, row, step, before, open_ns, level));
        }
        if self.steps.len() > snapshot.alloc.processes.len() {
            self.steps.retain(|pid, _| snapshot.alloc.processes.iter().any(|row| row.pid == *pid));
        }
    }
}

/// For how long a process's event loop has not turned.
fn open(seen: &Seen<'_>, pid: u32) -> Option<u64> {
    let threads = seen.snapshot.sched.threads.iter().filter(|thread| thread.pid == pid);
    threads
        .filter_map(|thread| thread.event_loop.as_ref())
        .map(|turn: &EventLoop| turn.open_ns)
        .max()
}

fn judgement(
    seen: &Seen<'_>,
    row: &ProcessMemory,
    step: f64,
    before: f64,
    open_ns: Option<u64>,
    level: Level,
) -> Judgement {
    let culprit = party::process(seen.snapshot, row.pid, &row.name, 1.0);
    let mut message = format!(
        "{} took {} at once, {:.0} % of what was left",
        culprit.title,
        bytes(step),
        step / before.max(1.0) * 100.0
    );
    let mut numbers = vec![
        evidence("step", step, "By", "iter/task").with(Quality::Sampled),
        evidence("available_before", before, "By", "/proc/meminfo"),
    ];
    if let Some(open_ns) = open_ns.filter(|open_ns| *open_ns >= OPEN_NS) {
        message +=
            &format!(", in one turn of its event loop ({:.1} s so far)", open_ns as f64 / 1e9);
        numbers.push(evidence("turn_open", open_ns as f64 / 1e9, "s", "sched_switch"));
    }
    Judgement {
        subject: format!("{} {}", row.name, row.pid),
        state: State::Firing(level),
        culprit: Some(culprit),
        evidence: numbers,
        message,
        advice: "send large answers as a stream or in pages; limit the size of uploads and of result sets".to_owned(),
        ..Judgement::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Host, actor};
    use super::*;
    use crate::signal::sched::Thread;

    /// A process takes so many MiB within two seconds, with its loop open or not; the highest level.
    #[track_caller]
    fn check(used: f64, step: f64, open: bool, expect: Option<Level>) {
        let taken = move |second: f64| 200.0 + step * ((second - 60.0) / 2.0).clamp(0.0, 1.0);
        let mut host = Host {
            actors: vec![actor(1, "redis-server", move |_| used), actor(2, "node", taken)],
            ..Host::default()
        };
        host.also = Box::new(move |_, snapshot| {
            let turn =
                EventLoop { open_ns: if open { 900_000_000 } else { 0 }, ..EventLoop::default() };
            snapshot.sched.threads =
                vec![Thread { pid: 2, tid: 2, event_loop: Some(turn), ..Thread::default() }];
        });
        let told = host.run(KIND.name, 120.0);
        assert_eq!(told.worst(), expect, "{used} {step} {open}: {told:?}");
        for (_, finding) in &told.levels {
            assert_eq!(finding.culprit.as_ref().and_then(|party| party.pid), Some(2));
        }
    }

    /// Giant values of so many MiB, one each minute; the highest level.
    #[track_caller]
    fn check_steps(sizes: &'static [f64], expect: Option<Level>) {
        let taken = move |second: f64| {
            let size = sizes.get((second / 60.0) as usize).copied().unwrap_or(0.0);
            200.0 + if (5.0..10.0).contains(&(second % 60.0)) { size } else { 0.0 }
        };
        let actors = vec![actor(1, "redis-server", |_| 1000.0), actor(2, "node", taken)];
        let told = Host { actors, ..Host::default() }.run(KIND.name, 240.0);
        assert_eq!(told.worst(), expect, "{sizes:?}: {told:?}");
    }

    #[test]
    fn steps_that_grow_so_that_the_next_does_not_fit() {
        check_steps(&[700.0, 1400.0, 700.0], Some(Level::Watch));
        check_steps(&[900.0, 1800.0], Some(Level::Warn));
        check_steps(&[1500.0, 1500.0, 1500.0], Some(Level::Watch));
    }

    #[test]
    fn a_step_that_nearly_took_all_and_a_giant_turn() {
        check(1000.0, 100.0, false, None);
        check(1000.0, 500.0, false, None);
        check(1000.0, 500.0, true, Some(Level::Warn));
        check(1000.0, 1500.0, false, Some(Level::Watch));
        check(2000.0, 1200.0, false, Some(Level::Warn));
    }
}
