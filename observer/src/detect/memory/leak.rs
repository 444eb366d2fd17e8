//! A process that grows and never falls back, hours before anybody would notice: whose, how fast, and from where in its code.

use std::time::Duration;

use super::{
    bytes,
    envelope::{Trend, Window},
    history::{Histories, History},
    room::Room,
    seconds,
};
use crate::{
    config::{self, Config, Setting},
    detect::{Judgement, Kind, Level, Quality, Seen, State, evidence, judgement::Never, party},
    signal::alloc::AllocationStack,
};

/// The kind.
pub static KIND: Kind = Kind {
    name: "memory.leak",
    signal: "alloc",
    help: "a process grows without falling back, and will matter within a day",
    reason: "Ten minutes of growth that is sure by rank (Kendall, 90 %), where the process has not been before, and that does not \
             slow down: WATCH. Warm-ups look the same for an hour, so WARN takes two hours of growth that would end the host's \
             memory, or the heap limit of the process, within as long again; nearer ends are `memory.exhaustion`'s.",
    raise: Duration::from_secs(30),
    clear: Duration::from_secs(300),
    hazard: false,
    settings: &[HORIZON, PATIENCE],
    detector: |_| Box::new(Never),
};

/// Further ends are not told.
pub const HORIZON: Setting = Setting {
    key: "detect.leak_horizon",
    kind: config::Kind::Duration { min_ms: 3_600_000, max_ms: 2_592_000_000 },
    default: "24h",
    otel: &[],
    help: "a leak that takes longer to end the memory is not told",
};

/// The shortest growth that is a WARN.
pub const PATIENCE: Setting = Setting {
    key: "detect.leak_patience",
    kind: config::Kind::Duration { min_ms: 600_000, max_ms: 86_400_000 },
    default: "2h",
    otel: &[],
    help: "growth without falling back for so long is a WARN if no more than as long is left; warm-ups take less",
};

/// The shortest growth that is told.
const MIN_SPAN_S: f64 = 600.0;
/// Growth below this share of the memory, or of what the process held, does not matter yet.
const LEAST: (f64, f64) = (0.01, 0.1);
/// How often all processes are looked at.
const EVERY_S: f64 = 10.0;
/// Leaks told at once, the fastest.
const MAX_LEAKS: usize = 8;

pub(super) struct Leak {
    horizon_s: f64,
    patience_s: f64,
    looked_s: Option<f64>,
    leaks: Vec<Leaking>,
}

/// A process that leaks.
struct Leaking {
    pid: u32,
    trend: Trend,
    /// What it may still take: of the host's room as much as its share of all leaks, or what its own limit leaves.
    room: f64,
}

impl Leaking {
    fn left_s(&self) -> f64 {
        self.room / self.trend.slope.per_second.max(1.0)
    }
}

impl Leak {
    pub(super) fn look(
        &mut self,
        seen: &Seen<'_>,
        processes: &Histories,
        found: &mut Vec<Judgement>,
    ) {
        let now_s = seen.now_ns as f64 / 1e9;
        if self.looked_s.is_none_or(|looked_s| now_s - looked_s >= EVERY_S) {
            self.looked_s = Some(now_s);
            self.find(seen, processes, now_s);
        }
        for leak in &self.leaks {
            let process = processes.get(leak.pid);
            found.extend(process.map(|process| judgement(self.patience_s, seen, process, leak)));
        }
    }

    pub(super) fn new(config: &Config) -> Self {
        Self {
            horizon_s: config.duration(&HORIZON).as_secs_f64(),
            patience_s: config.duration(&PATIENCE).as_secs_f64(),
            looked_s: None,
            leaks: Vec::new(),
        }
    }

    fn find(&mut self, seen: &Seen<'_>, processes: &Histories, now_s: f64) {
        let total = seen.snapshot.oom.memory_total_bytes as f64;
        let left = Room::of(&seen.snapshot.oom).left();
        self.leaks.clear();
        // What would not be told anyway need not be looked at: this much within the shortest growth.
        let least = left * MIN_SPAN_S / self.horizon_s * 0.3;
        let grown = |process: &History| process.growth_since(now_s - MIN_SPAN_S) >= least.min(1e8);
        for (pid, process) in processes.all().filter(|(_, process)| grown(process)) {
            let trend = trend(processes, process, total);
            self.leaks.extend(trend.map(|trend| Leaking { pid, trend, room: left }));
        }
        // Workers that leak together end the memory together.
        let rate: f64 = self.leaks.iter().map(|leak| leak.trend.slope.per_second).sum();
        for leak in &mut self.leaks {
            leak.room = left * leak.trend.slope.per_second / rate.max(1.0);
            let process = seen.process(leak.pid);
            let held = processes.get(leak.pid).and_then(|process| process.private.last());
            if let Some(limit) = process.and_then(|process| heap_limit(&process.command_line)) {
                leak.room = leak.room.min((limit - held.unwrap_or(0.0)).max(0.0));
            }
        }
        self.leaks
            .retain(|leak| leak.left_s() <= self.horizon_s && leak.trend.rest >= leak.room * 0.5);
        let rate = |leak: &Leaking| leak.trend.slope.per_second;
        self.leaks.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
        self.leaks.truncate(MAX_LEAKS);
    }
}

/// The longest growth of a process that is still going on.
fn trend(processes: &Histories, process: &History, total: f64) -> Option<Trend> {
    let (of_total, of_held) = LEAST;
    let mut longest: Option<Trend> = None;
    for window in Window::all().filter(|window| window.is_long()) {
        let Some(trend) = process.private.trend(window) else { continue };
        let grown = trend.slope.least * trend.span_s;
        let enough = grown >= (total * of_total).min(trend.high * of_held).max(total * 0.002);
        if trend.slope.grows()
            && trend.span_s >= MIN_SPAN_S
            && enough
            && !processes.is_known(process, &trend)
        {
            longest = Some(trend);
        }
    }
    longest
}

fn judgement(patience_s: f64, seen: &Seen<'_>, process: &History, leak: &Leaking) -> Judgement {
    let trend = &leak.trend;
    let (rate, left_s) = (trend.slope.per_second, leak.left_s());
    let sure = trend.span_s >= patience_s && trend.rest > leak.room * 2.0;
    let level = if sure && left_s <= trend.span_s { Level::Warn } else { Level::Watch };
    let culprit = party::process(seen.snapshot, leak.pid, &process.name, 1.0);
    let rows = &seen.snapshot.alloc.processes;
    let stacks: &[AllocationStack] =
        rows.iter().find(|row| row.pid == leak.pid).map_or(&[], |row| &row.stacks);
    let mut message = format!(
        "{} has grown by {} an hour for {}, and has not fallen back; at that rate memory lasts {}",
        culprit.title,
        bytes(rate * 3600.0),
        seconds(trend.span_s),
        seconds(left_s)
    );
    if let Some(frame) = stacks.first().and_then(|stack| stack.frames.first()) {
        message += &format!("; most new pages are touched in {frame}");
    }
    let from = "iter/task";
    let mut numbers = vec![
        evidence("growth", rate, "By/s", from).with(Quality::Estimated),
        evidence("growth_least", trend.slope.least, "By/s", from).with(Quality::Estimated),
        evidence("growth_most", trend.slope.most, "By/s", from).with(Quality::Estimated),
        evidence("observed", trend.span_s, "s", from),
        evidence("held", process.private.last().unwrap_or(0.0), "By", from),
    ];
    numbers.extend(stacks.iter().map(|stack| {
        let name = format!("stack {}", stack.frames.join(" < "));
        evidence(name, stack.share, "1", "page faults").with(Quality::Sampled)
    }));
    Judgement {
        subject: format!("{} {}", process.name, leak.pid),
        state: State::Firing(level),
        culprit: Some(culprit),
        evidence: numbers,
        time_left_seconds: Some(left_s),
        message,
        advice: "take a heap snapshot of it now and one in ten minutes, and compare them; until it is mended, restart it when \
                 nobody needs it"
            .to_owned(),
        kind: Some(&KIND),
        ..Judgement::default()
    }
}

/// `--max-old-space-size` of a command line, in bytes.
fn heap_limit(command_line: &str) -> Option<f64> {
    let (_, value) = command_line
        .split(' ')
        .filter_map(|word| word.split_once('='))
        .find(|(key, _)| matches!(*key, "--max-old-space-size" | "--max_old_space_size"))?;
    value.parse::<u32>().ok().map(|mebibytes| f64::from(mebibytes) * 1048576.0)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Actor, Host, actor, jitter};
    use super::*;

    #[track_caller]
    fn check(what: &str, suspect: Actor, for_s: f64, expect: Option<Level>) {
        let host = Host {
            total: 8192.0,
            tick_s: 2.0,
            actors: vec![actor(1, "redis-server", |_| 500.0), suspect],
            ..Host::default()
        };
        let told = host.run(KIND.name, for_s);
        assert_eq!(told.worst(), expect, "{what}: {told:?}");
        for (_, finding) in &told.levels {
            assert_eq!(finding.culprit.as_ref().and_then(|party| party.pid), Some(2), "{what}");
        }
    }

    #[test]
    fn what_does_not_fall_back_is_a_leak() {
        let hour = 3600.0;
        let leak = |rate: f64| {
            actor(2, "node", move |s| 200.0 + rate * s + s % 40.0 * 2.0 + 9.0 * jitter(s))
        };
        check("0.3 MiB/s for an hour", leak(0.3), hour, Some(Level::Watch));
        check("0.3 MiB/s for five hours", leak(0.3), 5.0 * hour, Some(Level::Warn));
        check("1 MiB an hour matters to nobody", leak(1.0 / 3600.0), 4.0 * hour, None);
        let teeth = actor(2, "java", |s| 300.0 + s % 900.0 * 2.0);
        // Its first tooth is one as long as it lasts.
        check("teeth of a quarter of an hour", teeth, 4.0 * hour, Some(Level::Watch));
        let full = actor(2, "java", |s| 100.0 + 800.0 * (1.0 - (-s / 300.0).exp()));
        check("a cache that fills", full, 4.0 * hour, None);
    }

    #[test]
    fn the_limit_of_a_heap_is_read() {
        let read = |line| heap_limit(line).map(|bytes| bytes / 1048576.0);
        assert_eq!(read("node --max-old-space-size=512 app.js"), Some(512.0));
        assert_eq!(read("node app.js --max-old-space-size=x"), None);
        assert_eq!(read("java -Xmx512m -jar a.jar"), None);
    }
}
