//! The host reads back what it has just thrown away: programs wait for their own pages, long before or long after memory
//! looks low.

use std::time::Duration;

use super::{
    bytes,
    history::{MAX_FOLLOWED, Marks, private_bytes},
    pressure::Pressure,
};
use crate::{
    config::{self, Config, Setting},
    detect::{Detector, Judgement, Kind, Level, Party, Seen, State, evidence, party},
    signal::oom,
};

/// The kind.
pub static KIND: Kind = Kind {
    name: "memory.thrash",
    signal: "oom",
    help: "the file pages that programs run on no longer fit",
    reason: "A tenth of the file LRU read back a second is the working set being read in circles (WARN), three tenths a host \
             that only reads (CRITICAL; lmkd kills there); it must stall somebody (7 % of the time), because a backup or a cold \
             start reads much and harms nobody. A slow disk cannot read so many, and who waits for read(2) of pages not in \
             use lately is not in memory's PSI: there counts what share of the time all wait for disks (PSI of io), by the \
             share that refaults have of what goes to and from disks. kswapd, kcompactd and khugepaged on half a core for as long are WARN if \
             somebody waits.",
    raise: Duration::from_secs(5),
    clear: Duration::from_secs(30),
    hazard: false,
    settings: &[REFAULTS],
    detector: |config| Box::new(Thrash::new(config)),
};

/// File pages read back.
pub const REFAULTS: Setting = Setting {
    key: "detect.thrash",
    kind: config::Kind::Integer { min: 1, max: 100 },
    default: "10",
    otel: &[],
    help: "percent of the file pages read back each second that is a WARN while somebody waits; three times as many are CRITICAL",
};

/// Cores that the kernel's own reclaim may use.
const RECLAIM_CORES: f64 = 0.5;
/// Refaults that are unusual, and CRITICAL, by those of a WARN.
const FACTORS: [f64; 2] = [0.3, 3.0];
/// Share of the time that all lose by evicted pages: unusual, and a WARN if somebody's growth has evicted them.
const LOST: [f64; 2] = [0.1, 0.3];
/// The kernel has evicted lately: what is read again after that was evicted by what is over, as after a kill.
const EVICTED_S: f64 = 10.0;

struct Thrash {
    pressure: Pressure,
    marks: Marks,
    /// Refaults a second at WARN, as a share of the file LRU.
    refaults: f64,
    /// Wakes of kswapd and direct reclaims so far.
    reclaims: u64,
    /// When there were more.
    evicted_s: f64,
}

impl Thrash {
    fn new(config: &Config) -> Self {
        Self {
            pressure: Pressure::new(config),
            marks: Marks::default(),
            refaults: config.integer(&REFAULTS) as f64 / 100.0,
            reclaims: 0,
            evicted_s: f64::NEG_INFINITY,
        }
    }

    fn tick(&mut self, seen: &Seen<'_>, now_s: f64) {
        let view = &seen.snapshot.oom;
        let reclaims = view.kswapd_wakes.saturating_add(view.direct_reclaims);
        if std::mem::replace(&mut self.reclaims, reclaims) != reclaims {
            self.evicted_s = now_s;
        }
        self.pressure.tick(seen);
        self.marks.tick(seen.snapshot, now_s);
    }

    /// `lost`: share of the time lost by pages that are evicted now; `grew`: whether that has a cause.
    fn level(&self, reclaim_cores: f64, lost: f64, grew: bool) -> Option<Level> {
        let [unusual_loss, loss] = LOST;
        let pressure = &self.pressure;
        let warn = self.refaults;
        let [unusual, critical] = FACTORS.map(|factor| factor * warn);
        let refaults = pressure.refault_ratio;
        let waits = pressure.is_stalled();
        Some(match () {
            () if waits && refaults >= critical => Level::Critical,
            () if pressure.is_stuck() && refaults >= warn => Level::Critical,
            () if waits && (refaults >= warn || reclaim_cores >= RECLAIM_CORES) => Level::Warn,
            () if lost >= loss && grew => Level::Warn,
            () if lost >= unusual_loss => Level::Watch,
            () if refaults >= unusual && pressure.stall_ratio >= pressure.stall / 2.0 => {
                Level::Watch
            }
            () if reclaim_cores >= RECLAIM_CORES => Level::Watch,
            () => return None,
        })
    }

    fn says(&self, view: &oom::View, lost: f64) -> String {
        if lost > self.pressure.stall_ratio {
            return format!(
                "memory is read in circles: {:.0} % of the time all wait for a disk to read back file pages that were evicted \
                 ({:.0} each second; {} are left)",
                lost * 100.0,
                view.refault_per_second,
                bytes(view.file_lru_bytes as f64),
            );
        }
        format!(
            "memory is read in circles: {:.0} % of the file pages ({}) come back each second, and somebody waits {:.0} % of \
             the time",
            self.pressure.refault_ratio * 100.0,
            bytes(view.file_lru_bytes as f64),
            self.pressure.stall_ratio * 100.0
        )
    }

    /// Who grew most lately, if that was a good part of the memory; else nobody is to blame that we know of.
    fn culprit(&self, seen: &Seen<'_>) -> Option<Party> {
        let rows = seen.snapshot.alloc.processes.iter().take(MAX_FOLLOWED);
        let causes: Vec<party::Cause<'_>> = rows
            .map(|row| (row.pid, row.name.as_str(), self.marks.growth(row.pid, private_bytes(row))))
            .filter(|cause| cause.2 > 0.0)
            .collect();
        let grown: f64 = causes.iter().map(|cause| cause.2).sum();
        let enough = grown >= seen.snapshot.oom.memory_total_bytes as f64 * 0.03;
        enough.then(|| party::culprit(seen.snapshot, &causes)).flatten()
    }
}

impl Detector for Thrash {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let view = &seen.snapshot.oom;
        let now_s = seen.now_ns as f64 / 1e9;
        self.tick(seen, now_s);
        let cores = if view.reclaim_cpu_ratio.is_finite() { view.reclaim_cpu_ratio } else { 0.0 };
        let evicts = now_s - self.evicted_s <= EVICTED_S;
        let lost = if evicts { self.pressure.lost_ratio } else { 0.0 };
        let grew = if lost >= LOST[1] { self.culprit(seen) } else { None };
        let Some(level) = self.level(cores, lost, grew.is_some()) else { return };
        let reclaimers = view.reclaimers.iter().filter(|row| row.total_ns > 0).take(4);
        let victims = reclaimers.map(|row| party::process(seen.snapshot, row.pid, &row.name, 0.0));
        let mut numbers = vec![
            evidence("file_lru", view.file_lru_bytes as f64, "By", "/proc/meminfo"),
            evidence("lost_ratio", lost, "1", "/proc/pressure/io"),
            evidence("refaults", view.refault_per_second, "1/s", "/proc/vmstat"),
            evidence("major_faults", view.major_faults_per_second, "1/s", "/proc/vmstat"),
            evidence("reclaim_cores", cores, "1", "iter/task"),
            evidence("memory_available", view.memory_available_bytes as f64, "By", "/proc/meminfo"),
        ];
        numbers.extend(self.pressure.evidence());
        found.push(Judgement {
            subject: "host".to_owned(),
            state: State::Firing(level),
            culprit: grew.or_else(|| self.culprit(seen)),
            victims: victims.collect(),
            evidence: numbers,
            message: self.says(view, lost),
            advice: "free memory now: restart what grew, or stop what is not needed; vm.min_ttl_ms or a memory.min for what \
                     must live keeps the next one from hanging the host"
                .to_owned(),
            ..Judgement::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Host, actor};
    use super::*;

    /// Refaults and stalls from 60 s to 90 s; the highest level.
    #[track_caller]
    fn check(refaults: f64, some: f64, full: f64, cores: f64, expect: Option<Level>) {
        let mut host = Host { actors: vec![actor(1, "node", |s| 300.0 + s)], ..Host::default() };
        host.also = Box::new(move |second, snapshot| {
            let for_s = (second - 60.0).clamp(0.0, 30.0);
            let on = if for_s > 0.0 && second < 90.0 { 1.0 } else { 0.0 };
            snapshot.oom.refault_ratio = refaults * on;
            snapshot.oom.reclaim_cpu_ratio = cores * on;
            let row = |scope: &str, share: f64| oom::Pressure {
                resource: "memory".into(),
                scope: scope.into(),
                total_ns: (share * for_s * 1e9) as u64,
                ..oom::Pressure::default()
            };
            snapshot.oom.pressure = vec![row("some", some), row("full", full)];
        });
        let told = host.run(KIND.name, 200.0);
        assert_eq!(told.worst(), expect, "{refaults} {some} {full} {cores}: {told:?}");
    }

    #[test]
    fn pages_in_circles_and_somebody_who_waits() {
        check(0.0, 0.0, 0.0, 0.0, None);
        check(0.5, 0.0, 0.0, 0.0, None);
        check(0.15, 0.2, 0.0, 0.0, Some(Level::Warn));
        check(0.4, 0.2, 0.0, 0.0, Some(Level::Critical));
        check(0.15, 0.4, 0.3, 0.0, Some(Level::Critical));
        check(0.0, 0.0, 0.0, 0.9, Some(Level::Watch));
        check(0.0, 0.2, 0.0, 0.9, Some(Level::Warn));
        check(0.0, 0.5, 0.0, 0.0, None);
    }

    /// What a slow disk does from 60 s to 90 s.
    struct Disk {
        /// Share of the time in which all wait for it.
        full: f64,
        /// Pages a second.
        refaults: f64,
        /// Bytes a second that are read for the first time, or written.
        others: [f64; 2],
        /// Whether the kernel evicts pages.
        evicts: bool,
        /// MiB a second that a process grows.
        growth: f64,
    }

    #[track_caller]
    fn check_disk(disk: Disk, expect: Option<Level>) {
        let Disk { full, refaults, others, evicts, growth } = disk;
        let mut host = Host {
            actors: vec![actor(7, "leaker", move |s| 300.0 + growth * s)],
            ..Host::default()
        };
        host.also = Box::new(move |second, snapshot| {
            let for_s = (second - 60.0).clamp(0.0, 30.0);
            let on = if for_s > 0.0 && second < 90.0 { 1.0 } else { 0.0 };
            let view = &mut snapshot.oom;
            // 200 MB, of which a slow disk brings back a hundredth each second at most.
            view.file_lru_bytes = 50_000 * 4096;
            view.refault_per_second = refaults * on;
            view.refault_ratio = refaults * on / 50_000.0;
            view.disk_read_bytes_per_second = (refaults * 4096.0 + others[0]) * on;
            view.disk_written_bytes_per_second = others[1] * on;
            view.direct_reclaims = if evicts { for_s as u64 } else { 0 };
            view.pressure = vec![oom::Pressure {
                resource: "io".into(),
                scope: "full".into(),
                total_ns: (full * for_s * 1e9) as u64,
                ..oom::Pressure::default()
            }];
        });
        let told = host.run(KIND.name, 200.0);
        assert_eq!(told.worst(), expect, "{told:?}");
        let blames = |finding: &crate::detect::Finding| {
            finding.culprit.as_ref().is_some_and(|who| who.pid == Some(7))
        };
        let warned = told.levels.iter().filter(|(_, finding)| finding.level >= Level::Warn);
        assert!(warned.into_iter().all(|(at, finding)| *at < 80.0 && blames(finding)), "{told:?}");
    }

    #[test]
    fn a_slow_disk_that_reads_back_what_growth_evicts() {
        let slow =
            |full, refaults| Disk { full, refaults, others: [0.0, 0.0], evicts: true, growth: 4.0 };
        check_disk(slow(0.7, 300.0), Some(Level::Warn));
        check_disk(slow(0.2, 300.0), Some(Level::Watch));
        check_disk(slow(0.05, 300.0), None);
        // Nobody has grown: more is in use at once than there is room for.
        check_disk(Disk { growth: 0.0, ..slow(0.7, 300.0) }, Some(Level::Watch));
        // After a kill what was evicted comes back, and nothing is evicted for it.
        check_disk(Disk { evicts: false, ..slow(0.9, 300.0) }, None);
        // A backup, a save, and a disk that does not answer.
        check_disk(Disk { others: [100e6, 0.0], ..slow(0.8, 300.0) }, None);
        check_disk(Disk { others: [0.0, 30e6], ..slow(0.8, 300.0) }, None);
        check_disk(slow(1.0, 2.0), None);
    }
}
