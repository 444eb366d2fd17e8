//! A small made-up host for the detectors of memory: processes whose memory is a function of time.

use std::sync::Arc;

use crate::{
    config::{Config, Sources, all_settings},
    detect::{Detect, Finding, Level},
    identity::Process,
    signal::{Output, alloc::ProcessMemory},
    snapshot::Snapshot,
};

/// Bytes of a MiB.
pub const MIB: f64 = 1048576.0;

/// MiB that a process holds at a second; `None` while it does not live.
pub type Held = Box<dyn Fn(f64) -> Option<f64>>;

/// A process.
pub struct Actor {
    pub pid: u32,
    pub name: &'static str,
    pub held: Held,
}

/// A process that lives all the time.
pub fn actor(pid: u32, name: &'static str, held: impl Fn(f64) -> f64 + 'static) -> Actor {
    Actor { pid, name, held: Box::new(move |second| Some(held(second))) }
}

/// A process that comes and goes.
pub fn guest(pid: u32, name: &'static str, held: impl Fn(f64) -> Option<f64> + 'static) -> Actor {
    Actor { pid, name, held: Box::new(held) }
}

/// What else a snapshot shows at a second.
pub type Also = Box<dyn Fn(f64, &mut Snapshot)>;

/// The host.
pub struct Host {
    pub total: f64,
    pub swap: f64,
    /// MiB that the kernel and small things hold.
    pub kernel: f64,
    pub tick_s: f64,
    pub actors: Vec<Actor>,
    /// What else the snapshot shows at a second.
    pub also: Also,
    /// `key=value` of settings that are not the defaults.
    pub settings: &'static [&'static str],
}

impl Default for Host {
    fn default() -> Self {
        Self {
            total: 4096.0,
            swap: 0.0,
            kernel: 300.0,
            tick_s: 1.0,
            actors: Vec::new(),
            also: Box::new(|_, _| {}),
            settings: &[],
        }
    }
}

/// What was told of a kind in the course of a run.
#[derive(Default)]
pub struct Told {
    /// Second, and the finding as it was when its level changed.
    pub levels: Vec<(f64, Finding)>,
    /// When less than 1 % of the memory was left.
    pub gone_s: Option<f64>,
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, finding) in &self.levels {
            let numbers = finding.evidence.iter().map(|e| format!("{}={:.3e}", e.name, e.value));
            let numbers: Vec<_> = numbers.collect();
            writeln!(f, "\n{at} {:?}: {}; {}", finding.level, finding.message, numbers.join(" "))?;
        }
        write!(f, "gone {:?}", self.gone_s)
    }
}

impl Told {
    /// When a level was first reached.
    pub fn at(&self, level: Level) -> Option<f64> {
        self.levels.iter().find(|(_, finding)| finding.level >= level).map(|(at, _)| *at)
    }

    /// Seconds from a level to the end.
    pub fn lead(&self, level: Level) -> Option<f64> {
        Some(self.gone_s? - self.at(level)?)
    }

    /// The highest level.
    pub fn worst(&self) -> Option<Level> {
        self.levels.iter().map(|(_, finding)| finding.level).max()
    }
}

impl Host {
    /// The snapshot of a second.
    pub fn snapshot(&self, second: f64) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let mut used = self.kernel;
        for actor in &self.actors {
            let Some(held) = (actor.held)(second) else { continue };
            used += held;
            snapshot.alloc.processes.push(ProcessMemory {
                pid: actor.pid,
                name: actor.name.into(),
                rss_bytes: (held * MIB) as u64,
                anon_bytes: (held * MIB) as u64,
                ..ProcessMemory::default()
            });
            let process = Process { pid: actor.pid, name: actor.name.into(), ..Process::default() };
            snapshot.processes.insert(actor.pid, Arc::new(process));
        }
        snapshot.alloc.processes.sort_by_key(|row| std::cmp::Reverse(row.rss_bytes));
        let left = self.total - used;
        let swapped = (self.total * 0.05 - left).clamp(0.0, self.swap);
        let view = &mut snapshot.oom;
        view.memory_total_bytes = (self.total * MIB) as u64;
        view.memory_available_bytes = ((left + swapped).max(0.0) * MIB) as u64;
        view.swap_total_bytes = (self.swap * MIB) as u64;
        view.swap_free_bytes = ((self.swap - swapped) * MIB) as u64;
        let boot_s = 50_000.0 + second;
        snapshot.uptime_ns = (boot_s * 1e9) as u64;
        snapshot.time_unix_ns = 1_700_000_000_000_000_000 + snapshot.uptime_ns;
        (self.also)(second, &mut snapshot);
        snapshot
    }

    /// Lets it run for so long, or until memory is gone, and says what was told of a kind.
    pub fn run(&self, kind: &str, for_s: f64) -> Told {
        let flags = self.settings.iter().map(|flag| (*flag).to_owned()).collect();
        let config = Config::load(&all_settings(), &Sources { flags, ..Sources::default() });
        let mut detect = Detect::new(&config.expect("settings of a test are sound"));
        // The first of them judges for others, too.
        detect.detectors.retain(|(of, _)| of.name == kind || of.name == "memory.exhaustion");
        let mut told = Told::default();
        let mut second = 0.0;
        while second < for_s && told.gone_s.is_none() {
            let snapshot = self.snapshot(second);
            detect.tick(&snapshot, false, &mut Output::default());
            let view = &snapshot.oom;
            let free = view.memory_available_bytes + view.swap_free_bytes;
            if free as f64 <= 0.01 * self.total * MIB {
                told.gone_s = Some(second);
            }
            for finding in detect.view().findings.iter().filter(|finding| finding.kind == kind) {
                if told.levels.last().is_none_or(|(_, last)| {
                    last.level != finding.level || last.subject != finding.subject
                }) {
                    told.levels.push((second, Finding::clone(finding)));
                }
            }
            second += self.tick_s;
        }
        told
    }
}

/// A number between 0 and 1 that looks random and is the same for the same place.
pub fn jitter(place: f64) -> f64 {
    ((place * 12.9898).sin() * 43758.5453).fract().abs()
}
