//! What the tests of detectors share: snapshots in, what is told and when out.

use std::sync::Arc;

use super::{
    Finding, Judgement, Kind, Seen,
    track::{Change, Instant, Tracks},
};
use crate::{
    config::{Config, all_settings},
    identity::Process,
    snapshot::Snapshot,
};

/// Nanoseconds.
pub(crate) const SECOND: u64 = 1_000_000_000;

/// Shows a kind's detector a snapshot every `step_ns`; returns what was told, with the second.
pub(crate) fn findings(
    kind: &'static Kind,
    step_ns: u64,
    snapshots: impl IntoIterator<Item = Snapshot>,
) -> Vec<(u64, &'static str, Finding)> {
    let mut detector = (kind.detector)(&Config::default_for_tests(&all_settings()));
    let (mut tracks, mut told) = (Tracks::default(), Vec::new());
    for (snapshot, index) in snapshots.into_iter().zip(0_u64..) {
        let now_ns = (index + 1) * step_ns;
        let elapsed_ns = if index == 0 { 0 } else { step_ns };
        let mut found: Vec<Judgement> = Vec::new();
        detector.look(&Seen { snapshot: &snapshot, now_ns, elapsed_ns }, &mut found);
        let at = Instant { boot_ns: now_ns, unix_ns: now_ns };
        tracks.begin();
        let changes: Vec<_> =
            found.into_iter().filter_map(|judgement| tracks.take(kind, judgement, at)).collect();
        for (finding, change) in changes.into_iter().chain(tracks.end(at)) {
            let what = match change {
                Change::Raised | Change::Level(_) => finding.level.text(),
                Change::Culprit => "culprit",
                Change::Cleared => "clear",
            };
            told.push((now_ns / SECOND, what, Finding::clone(&finding)));
        }
    }
    told
}

/// The same as `second:what` in one line.
pub(crate) fn told(
    kind: &'static Kind,
    step_ns: u64,
    snapshots: impl IntoIterator<Item = Snapshot>,
) -> String {
    let told = findings(kind, step_ns, snapshots);
    let words: Vec<_> = told.iter().map(|(second, what, _)| format!("{second}:{what}")).collect();
    words.join(" ")
}

/// Adds identities.
pub(crate) fn with(
    mut snapshot: Snapshot,
    processes: impl IntoIterator<Item = Process>,
) -> Snapshot {
    snapshot
        .processes
        .extend(processes.into_iter().map(|process| (process.pid, Arc::new(process))));
    snapshot
}

/// A process of this name.
pub(crate) fn process(pid: u32, name: &str) -> Process {
    Process { pid, name: name.to_owned(), parent_pid: 1, ..Process::default() }
}
