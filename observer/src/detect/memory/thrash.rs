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
};

/// The kind.
pub static KIND: Kind = Kind {
    name: "memory.thrash",
    signal: "oom",
    help: "the file pages that programs run on no longer fit",
    reason: "A tenth of the file LRU read back a second is the working set being read in circles (WARN), three tenths a host \
             that only reads (CRITICAL; lmkd kills there); it must stall somebody (7 % of the time), because a backup or a cold \
             start reads much and harms nobody. kswapd, kcompactd and khugepaged on half a core for as long are WARN if \
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

struct Thrash {
    pressure: Pressure,
    marks: Marks,
    /// Refaults a second at WARN, as a share of the file LRU.
    refaults: f64,
}

impl Thrash {
    fn new(config: &Config) -> Self {
        Self {
            pressure: Pressure::new(config),
            marks: Marks::default(),
            refaults: config.integer(&REFAULTS) as f64 / 100.0,
        }
    }

    fn level(&self, reclaim_cores: f64) -> Option<Level> {
        let pressure = &self.pressure;
        let warn = self.refaults;
        let [unusual, critical] = FACTORS.map(|factor| factor * warn);
        let refaults = pressure.refault_ratio;
        let waits = pressure.is_stalled();
        Some(match () {
            () if waits && refaults >= critical => Level::Critical,
            () if pressure.is_stuck() && refaults >= warn => Level::Critical,
            () if waits && (refaults >= warn || reclaim_cores >= RECLAIM_CORES) => Level::Warn,
            () if refaults >= unusual && pressure.stall_ratio >= pressure.stall / 2.0 => {
                Level::Watch
            }
            () if reclaim_cores >= RECLAIM_CORES => Level::Watch,
            () => return None,
        })
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
        self.pressure.tick(seen);
        self.marks.tick(seen.snapshot, seen.now_ns as f64 / 1e9);
        let cores = if view.reclaim_cpu_ratio.is_finite() { view.reclaim_cpu_ratio } else { 0.0 };
        let Some(level) = self.level(cores) else { return };
        let reclaimers = view.reclaimers.iter().filter(|row| row.total_ns > 0).take(4);
        let victims = reclaimers.map(|row| party::process(seen.snapshot, row.pid, &row.name, 0.0));
        let mut numbers = vec![
            evidence("file_lru", view.file_lru_bytes as f64, "By", "/proc/meminfo"),
            evidence("major_faults", view.major_faults_per_second, "1/s", "/proc/vmstat"),
            evidence("reclaim_cores", cores, "1", "iter/task"),
            evidence("memory_available", view.memory_available_bytes as f64, "By", "/proc/meminfo"),
        ];
        numbers.extend(self.pressure.evidence());
        found.push(Judgement {
            subject: "host".to_owned(),
            state: State::Firing(level),
            culprit: self.culprit(seen),
            victims: victims.collect(),
            evidence: numbers,
            message: format!(
                "memory is read in circles: {:.0} % of the file pages ({}) come back each second, and somebody waits {:.0} % \
                 of the time",
                self.pressure.refault_ratio * 100.0,
                bytes(view.file_lru_bytes as f64),
                self.pressure.stall_ratio * 100.0
            ),
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
    use crate::signal::oom;

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
}
