//! The agent's own detectors, as a rule among others.

use observer::{
    config::{Config, Sources, all_settings},
    detect::{ALL, Detect, Kind},
    signal::Output,
    snapshot::Snapshot,
};

use crate::rule::{Alarm, Family, Rule};

/// The detectors with their default settings.
pub(crate) struct Ours {
    detect: Detect,
    out: Output,
}

impl Ours {
    /// With nothing found yet.
    pub(crate) fn new() -> Self {
        let config = Config::load(&all_settings(), &Sources::default())
            .expect("the defaults are a configuration");
        Self { detect: Detect::new(&config), out: Output::default() }
    }
}

impl Rule for Ours {
    fn name(&self) -> &'static str {
        "observer"
    }

    fn tick(&mut self, snapshot: &Snapshot, alarms: &mut Vec<Alarm>) {
        self.detect.tick(snapshot, false, &mut self.out);
        // Events and spans are for the export; the bench asks for the state.
        self.out.batch.events.clear();
        self.out.batch.spans.clear();
        self.out.dropped = 0;
        let told = self.detect.view().findings.iter().filter(|finding| !finding.hazard);
        alarms.extend(told.filter_map(|finding| {
            let kind = ALL.iter().find(|kind| kind.name == finding.kind)?;
            Some(Alarm {
                family: family(kind),
                kind: kind.name,
                level: finding.level,
                culprit: finding.culprit.clone(),
                time_left_s: finding.time_left_seconds,
                says: finding.message.clone(),
            })
        }));
    }
}

/// What a kind is about, by the first word of its name.
fn family(kind: &Kind) -> Family {
    match kind.name.split('.').next().unwrap_or_default() {
        "memory" => Family::Memory,
        "connection" | "connections" | "tcp" | "peer" | "pool" => Family::Connections,
        _ if kind.name == "sched.event_loop" => Family::Loops,
        "cpu" | "sched" | "scheduler" | "disk" | "task" => Family::Cpu,
        "limit" | "limits" => Family::Limits,
        "process" | "pm2" | "restart" | "crash" => Family::Restarts,
        _ => Family::Agent,
    }
}
