//! The agent itself: a collector that does not take what is sent (incident I5), and what the agent cannot see.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Detector, Evidence, Judgement, Kind, Level, Party, Seen, State, evidence, mean::Mean, party,
};
use crate::{
    config::{self, Config, Setting},
    snapshot::{Exporter, Verdict},
};

/// A collector does not take data.
pub static HELD: Kind = Kind {
    name: "agent.uplink",
    signal: "agent",
    help: "a collector does not take what the agent sends",
    reason: "A refusal (401, 403, 404) does not mend itself and is told at once; a collector that is away is often only being \
             deployed, so it gets a minute. Data that is dropped is lost for good: CRITICAL.",
    raise: Duration::from_secs(2),
    clear: Duration::from_secs(10),
    hazard: false,
    settings: &[PATIENCE],
    detector: |config| Box::new(Held::new(config)),
};

/// The agent cannot see something.
pub static BLIND: Kind = Kind {
    name: "agent.blind",
    signal: "agent",
    help: "the agent loses events, or some of its programs do not run",
    reason: "Any loss makes counts lower bounds, so it is told, at WATCH: the host is not in danger. Stacks of page faults \
             are samples, and the kernel's table has one place for each of 4,096 hashes: of a few hundred some always \
             collide. Without a tenth of them the order of the rest is the same.",
    raise: Duration::ZERO,
    clear: Duration::from_secs(60),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Blind::default()),
};

/// How long a collector may be away.
pub const PATIENCE: Setting = Setting {
    key: "detect.uplink_patience",
    kind: config::Kind::Duration { min_ms: 1000, max_ms: 3_600_000 },
    default: "1m",
    otel: &[],
    help: "how long a collector may be away before it is a WARN; a refusal is one at once",
};

/// Destinations remembered.
const MAX_DESTINATIONS: usize = 16;

struct Held {
    patience_ns: u64,
    /// By destination: since when it is not open, and what it had dropped before.
    since: BTreeMap<String, (u64, u64)>,
}

impl Held {
    fn new(config: &Config) -> Self {
        Self { patience_ns: config.duration(&PATIENCE).as_nanos() as u64, since: BTreeMap::new() }
    }

    fn judge(&mut self, exporter: &Exporter, now_ns: u64) -> State {
        if exporter.state == "open" {
            self.since.remove(&exporter.destination);
            return State::Clear;
        }
        if self.since.len() >= MAX_DESTINATIONS && !self.since.contains_key(&exporter.destination) {
            return State::Undecided("there are more destinations than are followed".into());
        }
        let first = (now_ns, exporter.dropped);
        let (since_ns, dropped) = *self.since.entry(exporter.destination.clone()).or_insert(first);
        let away = now_ns.saturating_sub(since_ns) >= self.patience_ns;
        State::Firing(match exporter.state.as_str() {
            _ if exporter.dropped > dropped => Level::Critical,
            "held" => Level::Warn,
            _ if away => Level::Warn,
            _ => Level::Watch,
        })
    }
}

impl Detector for Held {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        for exporter in &seen.snapshot.health.exporters {
            let state = self.judge(exporter, seen.now_ns);
            found.push(Judgement {
                subject: exporter.destination.clone(),
                state,
                culprit: Some(Party {
                    name: exporter.name.clone(),
                    ..party::peer(&exporter.destination)
                }),
                evidence: [("queued", exporter.queued), ("dropped", exporter.dropped)]
                    .map(|(name, count)| evidence(name, count as f64, "1", "exporter"))
                    .into(),
                message: format!(
                    "{} does not take the agent's data: {}",
                    exporter.destination, exporter.reason
                ),
                advice:
                    "mend the collector or its credentials; the agent keeps what it has, goes on \
                         seeing, and goes on trying"
                        .to_owned(),
                ..Judgement::default()
            });
        }
    }
}

/// Loss that is one of samples.
const SAMPLES: &str = "alloc.stacks";
/// Share of the samples of about a minute that may be lost.
const SAMPLES_LOST: f64 = 0.1;
const SAMPLES_OVER: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Blind {
    /// Count of each loss at the tick before, in the order of the table.
    losses: Vec<u64>,
    /// Samples that there had been at the tick before; samples and those lost at each tick, of late.
    samples: u64,
    taken: Mean,
    lost: Mean,
}

impl Blind {
    /// Whether so many samples are lost of late that what is left says little.
    fn misses_samples(&mut self, lost: u64, seen: &Seen<'_>) -> bool {
        let samples = seen.snapshot.alloc.fault_samples;
        let taken = samples.saturating_sub(std::mem::replace(&mut self.samples, samples));
        let taken = self.taken.add(taken as f64, seen.elapsed_ns, SAMPLES_OVER);
        let missed = self.lost.add(lost as f64, seen.elapsed_ns, SAMPLES_OVER);
        // Agents before this one did not tell how many there are.
        lost > 0 && (samples == 0 || missed >= SAMPLES_LOST * taken)
    }
}

impl Detector for Blind {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let health = &seen.snapshot.health;
        let counts: Vec<u64> = health.losses.iter().map(|loss| loss.count).collect();
        let before = std::mem::replace(&mut self.losses, counts);
        let mut evidence: Vec<Evidence> = Vec::new();
        for (loss, before) in health.losses.iter().zip(before) {
            let lost = loss.count.saturating_sub(before);
            let is_told =
                if loss.stage == SAMPLES { self.misses_samples(lost, seen) } else { lost > 0 };
            if is_told {
                evidence.push(super::evidence(
                    loss.stage.clone(),
                    lost as f64,
                    "1",
                    "health.losses",
                ));
            }
        }
        let named = |list: &[Evidence]| {
            list.iter().map(|evidence| &*evidence.name).collect::<Vec<_>>().join(", ")
        };
        if !evidence.is_empty() {
            found.push(Judgement {
                subject: "losses".to_owned(),
                state: State::Firing(Level::Watch),
                message: format!("the agent loses events: {}", named(&evidence)),
                advice: "see the table of losses in docs/operating.md for the setting of each"
                    .to_owned(),
                evidence,
                ..Judgement::default()
            });
        }
        // Where the agent tells what it sees (`kmsg`) is no eye of it.
        let eyes = health.programs.iter().filter(|row| row.signal != "agent");
        let blind = eyes.filter(|row| row.verdict == Verdict::Impossible);
        let blind: Vec<&str> = blind.map(|row| row.name.as_str()).collect();
        if !blind.is_empty() {
            found.push(Judgement {
                subject: "programs".to_owned(),
                state: State::Firing(Level::Watch),
                message: format!("the agent cannot see all: {} do not run", blind.join(", ")),
                advice: "`observer check` says why, and what to do".to_owned(),
                ..Judgement::default()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Health, Loss, Snapshot};

    fn config() -> Config {
        Config::default_for_tests(&[&[PATIENCE]])
    }

    #[track_caller]
    fn check(state: &str, away_s: u64, dropped: u64, expect: State) {
        let mut held = Held::new(&config());
        let exporter = |state: &str, dropped| Exporter {
            destination: "c:4317".into(),
            state: state.into(),
            dropped,
            ..Exporter::default()
        };
        held.judge(&exporter(state, 5), 1_000_000_000);
        let found = held.judge(&exporter(state, 5 + dropped), (1 + away_s) * 1_000_000_000);
        assert_eq!(found, expect, "{state} for {away_s} s");
    }

    #[test]
    fn a_refusal_is_told_at_once_and_a_pause_is_not() {
        check("open", 100, 0, State::Clear);
        check("backoff", 30, 0, State::Firing(Level::Watch));
        check("backoff", 61, 0, State::Firing(Level::Warn));
        check("held", 1, 0, State::Firing(Level::Warn));
        check("held", 1, 3, State::Firing(Level::Critical));
    }

    #[test]
    fn only_new_losses_count() {
        let mut blind = Blind::default();
        let mut look = |count| {
            let losses = vec![Loss { stage: "ring.tcp".into(), count }];
            let snapshot =
                Snapshot { health: Health { losses, ..Health::default() }, ..Snapshot::default() };
            let mut found = Vec::new();
            blind.look(&Seen { snapshot: &snapshot, now_ns: 0, elapsed_ns: 0 }, &mut found);
            found.len()
        };
        assert_eq!([look(7), look(7), look(9), look(9)], [0, 0, 1, 0]);
    }

    #[test]
    fn of_samples_a_few_may_be_lost() {
        #[track_caller]
        fn check(samples: u64, lost_every_s: u64, expect: bool) {
            let mut blind = Blind::default();
            let told = (1..=60).filter(|second| {
                let loss = Loss { stage: SAMPLES.into(), count: second / lost_every_s };
                let health = Health { losses: vec![loss], ..Health::default() };
                let mut snapshot = Snapshot { health, ..Snapshot::default() };
                snapshot.alloc.fault_samples = samples * second;
                let mut found = Vec::new();
                let now_ns = second * 1_000_000_000;
                let elapsed_ns = 1_000_000_000;
                blind.look(&Seen { snapshot: &snapshot, now_ns, elapsed_ns }, &mut found);
                !found.is_empty()
            });
            assert_eq!(
                told.count() > 0,
                expect,
                "{samples} a second, one lost in {lost_every_s} s"
            );
        }
        check(20, 10, false);
        check(20, 1, false);
        check(5, 1, true);
        // Nobody knows of how many.
        check(0, 10, true);
    }
}
