//! Findings: what precedes a hang, who causes it, and how long is left. Pure functions over snapshots, so that a recording
//! and a live host give the same findings.
//!
//! A detector ([`Detector`]) looks at each snapshot and judges subjects: clear, firing at a level, or undecided.
//! `track` makes findings of that, with hysteresis; `incident` makes one trace of those that belong together; `tell` makes
//! the events. [`ALL`] is the one list that export, `top`, docs and config read. A new kind: a file with a detector and its
//! [`Kind`], and a line in [`ALL`].

mod connection;
mod disk;
mod finding;
mod incident;
mod judgement;
mod key;
pub mod limit;
mod mean;
mod memory;
pub mod party;
pub mod process;
mod rows;
pub mod sched;
mod tell;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod track;
mod trend;
mod uplink;

pub use self::memory::growing_processes;
pub use self::{
    finding::{
        Evidence, Finding, Group, Level, Link, MAX_PIDS, Party, Quality, Undecided, View, evidence,
    },
    judgement::{Detector, Judgement, Kind, Seen, State},
    tell::{CLEARED, FINDING, Told, told},
};
/// The kind that is the clock of signal `oom`.
pub const EXHAUSTION: &Kind = &memory::exhaustion::KIND;

use self::{
    incident::Incident,
    track::{Change, Instant, Tracks},
};
use std::sync::Arc;

use crate::{config::Config, signal::Output, snapshot::Snapshot};

/// Kinds that say who takes the memory, those that know best first.
const MEMORY: &[&Kind] = &[
    &memory::exhaustion::KIND,
    &memory::thrash::KIND,
    &memory::spike::KIND,
    &memory::cgroup::KIND,
];

/// Findings raised at once, over all kinds; what is beyond is counted.
pub const MAX_FINDINGS: usize = 256;

/// Findings remembered after they were cleared.
pub const MAX_CLEARED: usize = 32;

/// Nobody has looked for so long: the machine was suspended, or a recording has a gap.
const PAUSE_NS: u64 = 60_000_000_000;

/// Reasons kept why something cannot be judged.
const MAX_UNDECIDED: usize = 64;

/// All kinds of findings; the order is the order of the docs.
pub const ALL: &[&Kind] = &[
    &uplink::HELD,
    &uplink::BLIND,
    // Scheduler, processes and limits.
    &sched::event_loop::KIND,
    &sched::starvation::KIND,
    &sched::throttled::KIND,
    &sched::steal::KIND,
    &sched::blocked::KIND,
    &sched::responsiveness::KIND,
    &disk::KIND,
    &process::crash_loop::KIND,
    &process::fork_storm::KIND,
    &process::duplicate_managers::KIND,
    &limit::near::KIND,
    &limit::jvm::KIND,
    &limit::runtime::NODE,
    &limit::runtime::REDIS,
    &limit::hazard::REDIS_OVERCOMMIT,
    &limit::hazard::REDIS_HUGE_PAGES,
    &limit::hazard::REDIS_MAXMEMORY,
    &limit::hazard::HEAP_LIMITS,
    &limit::hazard::PM2_MEMORY,
    &limit::hazard::WORKERS,
    &limit::hazard::FILES,
    &limit::hazard::NO_SWAP,
    &limit::hazard::MEMORY_LIMIT,
    &limit::hazard::KEEPALIVE,
    // Connections.
    &connection::dead::DEAD_PEER,
    &connection::waiting::FROZEN_PEER,
    &connection::waiting::PILE_UP,
    &connection::waiting::LONG_WAIT,
    &connection::unread::UNREAD,
    &connection::transaction::IDLE_IN_TRANSACTION,
    &connection::saturation::SATURATION,
    &connection::leak::LEAK,
    &connection::duplicate::DUPLICATE_POOLS,
    &connection::orphan::ORPHANS,
    &connection::budget::BUDGET,
    &connection::budget::REACH,
    // Memory.
    &memory::exhaustion::KIND,
    &memory::cgroup::KIND,
    &memory::thrash::KIND,
    &memory::leak::KIND,
    &memory::spike::KIND,
    &memory::kill::KIND,
];

/// All detectors and what they have found.
pub struct Detect {
    detectors: Vec<(&'static Kind, Box<dyn Detector>)>,
    tracks: Tracks,
    incident: Incident,
    before_ns: u64,
    view: View,
    judgements: Vec<Judgement>,
}

impl Detect {
    /// With nothing found yet.
    pub fn new(config: &Config) -> Self {
        Self {
            detectors: ALL.iter().map(|kind| (*kind, (kind.detector)(config))).collect(),
            tracks: Tracks::default(),
            incident: Incident::default(),
            before_ns: 0,
            view: View::default(),
            judgements: Vec::new(),
        }
    }

    /// Looks at a snapshot: what changed goes out as events, an incident that is over as spans. `ends` at the last tick.
    pub fn tick(&mut self, snapshot: &Snapshot, ends: bool, out: &mut Output) {
        let now_ns = snapshot.uptime_ns;
        let elapsed_ns =
            if self.before_ns == 0 { 0 } else { now_ns.saturating_sub(self.before_ns) };
        self.before_ns = now_ns;
        if elapsed_ns > PAUSE_NS {
            self.tracks.pause();
        }
        let seen = Seen { snapshot, now_ns, elapsed_ns };
        let at = Instant { boot_ns: now_ns, unix_ns: snapshot.time_unix_ns };
        self.tracks.begin();
        self.view.undecided.clear();
        let mut changes = Vec::new();
        let memory = self.tracks.blamed(MEMORY);
        for (kind, detector) in &mut self.detectors {
            detector.hear(&memory);
            detector.look(&seen, &mut self.judgements);
            for judgement in self.judgements.drain(..) {
                if let State::Undecided(reason) = &judgement.state
                    && self.view.undecided.len() < MAX_UNDECIDED
                {
                    self.view.undecided.push(Undecided {
                        kind: judgement.kind.unwrap_or(kind).name.to_owned(),
                        subject: judgement.subject.clone(),
                        reason: reason.to_string(),
                    });
                }
                let kind = judgement.kind.unwrap_or(kind);
                changes.extend(self.tracks.take(kind, judgement, at));
            }
        }
        changes.extend(self.tracks.end(at));
        for (finding, change) in changes {
            self.tell(&finding, &change, snapshot, out);
        }
        self.view.findings = self.tracks.findings();
        for finding in self.view.findings.iter().filter(|finding| !finding.hazard) {
            self.incident.follow(finding);
        }
        self.incident.tick(at, ends, out);
        self.view.raised = self.tracks.raised;
        self.view.dropped = self.tracks.dropped;
    }

    /// What the snapshot shows.
    pub fn view(&self) -> &View {
        &self.view
    }

    fn tell(
        &mut self,
        finding: &Arc<Finding>,
        change: &Change,
        snapshot: &Snapshot,
        out: &mut Output,
    ) {
        let new = *change == Change::Raised;
        let context = if finding.hazard { None } else { self.incident.take(finding, new) };
        out.event(tell::event(finding, change, snapshot, context));
        if *change == Change::Cleared {
            self.incident.end(finding, snapshot.time_unix_ns);
            self.view.cleared.insert(0, finding.clone());
            self.view.cleared.truncate(MAX_CLEARED);
        }
    }
}
