//! The hypervisor gives the CPU to others: the neighbours, or, on a burstable instance, everybody who still has credits.

use std::time::Duration;

use super::percent;
use crate::detect::{Detector, Judgement, Kind, Level, Seen, State, evidence, mean::Mean, party};

/// The hypervisor takes CPU time.
pub static KIND: Kind = Kind {
    name: "sched.steal",
    signal: "sched",
    help: "the hypervisor gives this machine's CPU time to others",
    reason: "Some percent for some seconds happen on every shared host. A tenth of all CPU time for a minute is lost \
             capacity (WARN); if four fifths of the wanted time are taken, the machine seems to hang, and nothing on it is \
             to blame (CRITICAL).",
    raise: Duration::from_secs(40),
    clear: Duration::from_secs(60),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Steal::default()),
};

/// What the host got lately, and before that.
const SHORT: Duration = Duration::from_secs(8);
const LONG: Duration = Duration::from_secs(1800);
/// Share of all CPU time.
const SOME: f64 = 0.05;
const MUCH: f64 = 0.1;
/// Share of the time that was wanted.
const MOST: f64 = 0.8;
/// What is achieved moves less than this, relatively, if it is held at a baseline.
const PINNED: f64 = 0.15;

#[derive(Default)]
struct Steal {
    stolen: Mean,
    busy: Mean,
    /// Mean deviation of what is achieved from its mean.
    deviation: Mean,
    /// What was achieved in the half hour before.
    past: Mean,
    observed_ns: u64,
}

impl Steal {
    /// Whether the host was allowed more before, and gets the same little all the time now: how an instance with spent
    /// credits looks from inside.
    fn is_pinned(&self) -> bool {
        let busy = self.busy.value();
        self.deviation.value() <= PINNED * busy && self.past.value() >= 1.2 * busy && busy < 0.6
    }
}

impl Detector for Steal {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let sched = &seen.snapshot.sched;
        let stolen = self.stolen.add(sched.steal_ratio, seen.elapsed_ns, SHORT);
        let busy = self.busy.add(sched.busy_ratio, seen.elapsed_ns, SHORT);
        self.deviation.add((sched.busy_ratio - busy).abs(), seen.elapsed_ns, SHORT);
        if stolen < SOME {
            self.past.add(busy, seen.elapsed_ns, LONG);
            self.observed_ns = self.observed_ns.saturating_add(seen.elapsed_ns);
            return;
        }
        let of_wanted = stolen / (stolen + busy);
        let level = match stolen {
            _ if stolen >= MUCH && of_wanted >= MOST => Level::Critical,
            _ if stolen >= MUCH => Level::Warn,
            _ => Level::Watch,
        };
        let burst = if self.is_pinned() {
            format!(
                "; what it gets is held at {} %, as on a burstable instance whose CPU credits are spent",
                percent(busy)
            )
        } else {
            String::new()
        };
        found.push(Judgement {
            subject: "host".to_owned(),
            state: State::Firing(level),
            culprit: Some(party::kernel("hypervisor (steal)", 1.0)),
            evidence: vec![
                evidence("steal", stolen, "1", "/proc/stat"),
                evidence("busy", busy, "1", "/proc/stat"),
                evidence("busy_before", self.past.value(), "1", "/proc/stat"),
            ],
            message: format!(
                "the hypervisor takes {} % of the CPU time that this machine wants{burst}",
                percent(of_wanted)
            ),
            advice: "nothing on this machine causes it: move it, buy CPU credits (unlimited mode), or take a larger or a \
                     dedicated instance"
                .to_owned(),
            ..Judgement::default()
        });
    }
}
