//! Whether memory is short already: what the kernel does then. None of it depends on a trend.

use crate::{
    config::{Config, Kind, Setting},
    detect::{Evidence, Seen, evidence},
    signal::oom,
};

/// Stall that counts, in percent of the time (Android's lmkd: 70 ms of a second).
pub const STALL: Setting = Setting {
    key: "detect.memory_stall",
    kind: Kind::Integer { min: 1, max: 100 },
    default: "7",
    otel: &[],
    help: "percent of the time in which somebody waits for memory (PSI some) from which on memory is short",
};
/// Share of the time in which all wait that is as bad as it gets before the host is gone.
const STUCK: f64 = 0.1;
/// File pages read back, as a share of the file LRU a second: a tenth is thrashing (signals.md, section 2, row 3).
const REFAULTS: f64 = 0.02;
/// Direct reclaims a second; one every now and then happens on healthy hosts.
const RECLAIMS: f64 = 5.0;

/// Seconds over which the numbers are averaged.
const OVER_S: f64 = 4.0;

/// What the kernel does for want of memory, averaged over some seconds.
#[derive(Debug, Default)]
pub struct Pressure {
    /// Stall that counts, as a share of the time.
    pub stall: f64,
    before: Option<[u64; 3]>,
    /// Share of the time in which somebody waited for memory.
    pub stall_ratio: f64,
    /// Share of the time in which nobody got on for want of memory.
    pub full_ratio: f64,
    /// Direct reclaims a second.
    pub reclaims_per_second: f64,
    /// Refaults a second as a share of the file LRU.
    pub refault_ratio: f64,
}

impl Pressure {
    /// Calm.
    pub fn new(config: &Config) -> Self {
        Self { stall: config.integer(&STALL) as f64 / 100.0, ..Self::default() }
    }

    /// Takes a tick.
    pub fn tick(&mut self, seen: &Seen<'_>) {
        let view = &seen.snapshot.oom;
        let stalled_ns = |scope| stall(view, scope).map_or(0, |row| row.total_ns);
        let counts = [stalled_ns("some"), stalled_ns("full"), view.direct_reclaims];
        let before = self.before.replace(counts).unwrap_or(counts);
        if seen.elapsed_ns == 0 {
            return;
        }
        let elapsed_ns = seen.elapsed_ns as f64;
        let weight = 1.0 - (-elapsed_ns / 1e9 / OVER_S).exp();
        let average = |known: &mut f64, now: f64| {
            if now.is_finite() {
                *known += weight * (now.max(0.0) - *known);
            }
        };
        let [some, full, reclaims] = [0, 1, 2].map(|at: usize| {
            let (now, before) = (counts.get(at), before.get(at));
            now.zip(before).map_or(0, |(now, before)| now.saturating_sub(*before)) as f64
        });
        average(&mut self.stall_ratio, (some / elapsed_ns).min(1.0));
        average(&mut self.full_ratio, (full / elapsed_ns).min(1.0));
        average(&mut self.reclaims_per_second, reclaims * 1e9 / elapsed_ns);
        average(&mut self.refault_ratio, view.refault_ratio);
    }

    /// Whether somebody waits for memory.
    pub fn is_stalled(&self) -> bool {
        self.stall_ratio >= self.stall
    }

    /// Whether often nobody gets on for want of memory.
    pub fn is_stuck(&self) -> bool {
        self.full_ratio >= STUCK
    }

    /// Whether memory is short now.
    pub fn is_on(&self) -> bool {
        self.is_stalled() || self.refault_ratio >= REFAULTS || self.reclaims_per_second >= RECLAIMS
    }

    /// The numbers.
    pub fn evidence(&self) -> [Evidence; 3] {
        [
            evidence("stall_ratio", self.stall_ratio, "1", "/proc/pressure/memory"),
            evidence("refault_ratio", self.refault_ratio, "1/s", "/proc/vmstat"),
            evidence(
                "direct_reclaims",
                self.reclaims_per_second,
                "1/s",
                "mm_vmscan_direct_reclaim",
            ),
        ]
    }
}

/// A row of memory's PSI.
pub fn stall<'a>(view: &'a oom::View, scope: &str) -> Option<&'a oom::Pressure> {
    view.pressure.iter().find(|row| row.resource == "memory" && row.scope == scope)
}
