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

/// A page is read within this time by any disk that works, in seconds. One that takes longer is not slow for the refaults.
const READ_S: f64 = 0.02;

/// Seconds over which the numbers are averaged.
const OVER_S: f64 = 4.0;

/// What the kernel does for want of memory, averaged over some seconds.
#[derive(Debug, Default)]
pub struct Pressure {
    /// Stall that counts, as a share of the time.
    pub stall: f64,
    before: Option<[u64; 4]>,
    /// Share of the time in which somebody waited for memory.
    pub stall_ratio: f64,
    /// Share of the time in which nobody got on for want of memory.
    pub full_ratio: f64,
    /// Direct reclaims a second.
    pub reclaims_per_second: f64,
    /// Refaults a second as a share of the file LRU.
    pub refault_ratio: f64,
    /// Share of the time in which nobody got on for want of file pages that had been evicted.
    pub lost_ratio: f64,
}

impl Pressure {
    /// Calm.
    pub fn new(config: &Config) -> Self {
        Self { stall: config.integer(&STALL) as f64 / 100.0, ..Self::default() }
    }

    /// Takes a tick.
    pub fn tick(&mut self, seen: &Seen<'_>) {
        let view = &seen.snapshot.oom;
        let stalled_ns = |resource, scope| {
            let mut rows = view.pressure.iter();
            let row = rows.find(|row| row.resource == resource && row.scope == scope);
            row.map_or(0, |row| row.total_ns)
        };
        let counts = [
            stalled_ns("memory", "some"),
            stalled_ns("memory", "full"),
            view.direct_reclaims,
            stalled_ns("io", "full"),
        ];
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
        let [some, full, reclaims, disk] = [0, 1, 2, 3].map(|at: usize| {
            let (now, before) = (counts.get(at), before.get(at));
            now.zip(before).map_or(0, |(now, before)| now.saturating_sub(*before)) as f64
        });
        average(&mut self.stall_ratio, (some / elapsed_ns).min(1.0));
        average(&mut self.full_ratio, (full / elapsed_ns).min(1.0));
        average(&mut self.reclaims_per_second, reclaims * 1e9 / elapsed_ns);
        average(&mut self.refault_ratio, view.refault_ratio);
        average(&mut self.lost_ratio, lost(view, (disk / elapsed_ns).min(1.0)));
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

/// Of the time in which all waited for disks, the share in which they did for pages that had been evicted: as much as these
/// are of what goes to and from disks. A backup and a cold start read for the first time, and a save writes. 0 if not known.
fn lost(view: &oom::View, disk_ratio: f64) -> f64 {
    let traffic = view.disk_read_bytes_per_second + view.disk_written_bytes_per_second;
    let refaults = view.refault_ratio * view.file_lru_bytes as f64;
    if !(traffic > 0.0 && refaults > 0.0) {
        return 0.0;
    }
    disk_ratio.min(view.refault_per_second * READ_S) * (refaults / traffic).min(1.0)
}
