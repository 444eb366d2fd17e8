//! The hypervisor gives the CPU to others: the neighbours, or, on a burstable instance, everybody who still has credits.

use std::time::Duration;

use super::{credits::Credits, percent};
use crate::{
    config::{self, Config, Setting},
    detect::{Detector, Judgement, Kind, Level, Seen, State, evidence, mean::Mean, party},
};

/// The hypervisor takes CPU time.
pub static KIND: Kind = Kind {
    name: "sched.steal",
    signal: "sched",
    help: "the hypervisor gives this machine's CPU time to others",
    reason: "Some percent for some seconds happen on every shared host. A tenth of all CPU time for a minute is lost \
             capacity (WARN); if four fifths of the wanted time are taken, the machine seems to hang, and nothing on it is \
             to blame (CRITICAL). Before that, credits are counted where the baseline is known: half an hour is time to \
             move, ten minutes to act.",
    raise: Duration::from_secs(40),
    clear: Duration::from_secs(60),
    hazard: false,
    settings: &[BASELINE],
    detector: |config| Box::new(Steal::new(config)),
};

/// What a burstable instance may always use.
pub const BASELINE: Setting = Setting {
    key: "detect.cpu_baseline",
    kind: config::Kind::Integer { min: 0, max: 100 },
    default: "0",
    otel: &[],
    help: "percent of all its CPUs that this burstable instance may always use, as its provider says (t3.medium: 20); 0 if it \
           is none, or not known",
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
/// A baseline is learned when it has held for this long.
const LEARNED_NS: u64 = 60_000_000_000;
/// Time until credits end from which on they are told of, and from which on it is urgent.
const SOON_S: f64 = 1800.0;
const URGENT_S: f64 = 600.0;

struct Steal {
    stolen: Mean,
    busy: Mean,
    /// Mean deviation of what is achieved from its mean.
    deviation: Mean,
    /// What was achieved in the half hour before.
    past: Mean,
    /// For how long it has been held at a baseline.
    pinned_ns: u64,
    credits: Option<Credits>,
}

impl Steal {
    fn new(config: &Config) -> Self {
        let percent = config.integer(&BASELINE) as f64;
        Self {
            stolen: Mean::default(),
            busy: Mean::default(),
            deviation: Mean::default(),
            past: Mean::default(),
            pinned_ns: 0,
            credits: (percent > 0.0).then(|| Credits::told(percent / 100.0)),
        }
    }

    /// Whether the host was allowed more before, and gets the same little all the time now: how an instance with spent
    /// credits looks from inside.
    fn is_pinned(&self) -> bool {
        let busy = self.busy.value();
        self.deviation.value() <= PINNED * busy && self.past.value() >= 1.2 * busy && busy < 0.6
    }

    /// Counts credits; what is held at a baseline has none.
    fn count(&mut self, busy_ratio: f64, steal_ratio: f64, elapsed_ns: u64) {
        let is_held = steal_ratio.min(self.stolen.value()) >= MUCH && self.is_pinned();
        self.pinned_ns = if is_held { self.pinned_ns.saturating_add(elapsed_ns) } else { 0 };
        if self.pinned_ns >= LEARNED_NS {
            let baseline = self.busy.value();
            self.credits.get_or_insert_with(|| Credits::learned(baseline)).spent(baseline);
        }
        if let Some(credits) = &mut self.credits {
            credits.count(busy_ratio, self.stolen.value() >= SOME, elapsed_ns);
        }
    }

    /// What will be when the credits are spent, while nothing is stolen yet.
    fn outlook(&self) -> Option<Judgement> {
        let credits = self.credits.as_ref()?;
        let left_s = credits.left_s().filter(|left_s| *left_s <= SOON_S)?;
        let urgent = credits.is_told() && left_s <= URGENT_S;
        let whence = if credits.is_told() { "set" } else { "learned when they were spent before" };
        Some(Judgement {
            subject: "credits".to_owned(),
            state: State::Firing(if urgent { Level::Warn } else { Level::Watch }),
            culprit: None,
            evidence: vec![
                evidence("busy", credits.busy(), "1", "/proc/stat"),
                evidence("baseline", credits.baseline(), "1", whence),
            ],
            time_left_seconds: Some(left_s),
            message: format!(
                "this machine uses {} % of its CPUs, and {} % is what it may always use ({whence}): its CPU credits end in \
                 {:.0} min at the latest, if that goes on",
                percent(credits.busy()),
                percent(credits.baseline()),
                (left_s / 60.0).ceil(),
            ),
            advice: ADVICE.to_owned(),
            ..Judgement::default()
        })
    }
}

const ADVICE: &str = "see who uses the CPU (sched.consumers); move load away, buy CPU credits (unlimited mode), or take a \
                      larger or a dedicated instance";

impl Detector for Steal {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let sched = &seen.snapshot.sched;
        let stolen = self.stolen.add(sched.steal_ratio, seen.elapsed_ns, SHORT);
        let busy = self.busy.add(sched.busy_ratio, seen.elapsed_ns, SHORT);
        self.deviation.add((sched.busy_ratio - busy).abs(), seen.elapsed_ns, SHORT);
        self.count(sched.busy_ratio, sched.steal_ratio, seen.elapsed_ns);
        if stolen < SOME {
            self.past.add(busy, seen.elapsed_ns, LONG);
            found.extend(self.outlook());
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
