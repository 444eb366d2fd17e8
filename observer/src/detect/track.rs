//! From judgements to findings: a level is told when it has held, and cleared when it has been gone; in between nobody is
//! told twice. What cannot be judged stays as it is.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use super::{Finding, Judgement, Kind, Level, MAX_FINDINGS, Party, State, judgement::Blamed};

/// A finding that cannot be judged any more is cleared after this time: better no word than one of yesterday.
const UNDECIDED_NS: u64 = 600_000_000_000;

/// An EMERGENCY is a matter of seconds: what was gone for so long was survived, and is CRITICAL until that is gone too.
const SURVIVED_NS: u64 = 10_000_000_000;

/// Another culprit is told when it has been another for this long, and no sooner after the last word: where several share
/// the blame, each may be in front for a moment.
const RETELL_NS: u64 = 10_000_000_000;

/// What became of a finding at this tick.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// It is new.
    Raised,
    /// It has another level than before.
    Level(Level),
    /// It has another culprit than was told before.
    Culprit,
    /// It is over.
    Cleared,
}

/// One subject of one kind.
#[derive(Debug, Default)]
struct Track {
    /// Since when each level has been reached without a break; by [`Level`].
    reached_ns: [Option<u64>; 4],
    /// Since when less than the told level is the case.
    below_ns: Option<u64>,
    undecided_ns: Option<u64>,
    told_ns: u64,
    told_culprit: Option<Party>,
    /// Since when the culprit is another.
    other_ns: Option<u64>,
    finding: Option<Arc<Finding>>,
    round: u64,
}

/// The subjects of a kind.
#[derive(Debug)]
struct OfKind {
    kind: &'static Kind,
    tracks: BTreeMap<String, Track>,
}

/// What is told: the finding, and what became of it.
pub(super) type News = (Arc<Finding>, Change);

/// All subjects of all kinds.
#[derive(Debug, Default)]
pub(super) struct Tracks {
    kinds: BTreeMap<&'static str, OfKind>,
    /// Subjects of all of them.
    len: usize,
    round: u64,
    pub(super) raised: u64,
    pub(super) dropped: u64,
}

/// One instant on both clocks: since boot, and Unix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Instant {
    pub(super) boot_ns: u64,
    pub(super) unix_ns: u64,
}

impl Tracks {
    /// Begins a tick.
    pub(super) fn begin(&mut self) {
        self.round += 1;
    }

    /// Takes what a detector says of one subject.
    pub(super) fn take(
        &mut self,
        kind: &'static Kind,
        judgement: Judgement,
        at: Instant,
    ) -> Option<News> {
        let idle = !matches!(judgement.state, State::Firing(_));
        let known = self.kinds.get_mut(kind.name);
        let track = match known.and_then(|of| of.tracks.get_mut(&judgement.subject)) {
            Some(track) => track,
            None if idle => return None,
            None if self.len >= MAX_FINDINGS => {
                self.dropped += 1;
                return None;
            }
            None => {
                self.len += 1;
                let new = || OfKind { kind, tracks: BTreeMap::new() };
                let of = self.kinds.entry(kind.name).or_insert_with(new);
                of.tracks.entry(judgement.subject.clone()).or_default()
            }
        };
        track.round = self.round;
        let change = track.step(kind, judgement, at)?;
        self.raised += u64::from(change.1 == Change::Raised);
        Some(change)
    }

    /// Nobody has looked for a while: what was so before says nothing of how long it has held.
    pub(super) fn pause(&mut self) {
        for track in self.kinds.values_mut().flat_map(|of| of.tracks.values_mut()) {
            track.reached_ns = [None; 4];
            (track.below_ns, track.undecided_ns, track.other_ns) = (None, None, None);
        }
    }

    /// Ends the tick: subjects that were not mentioned are clear.
    pub(super) fn end(&mut self, at: Instant) -> Vec<News> {
        let round = self.round;
        let mut changes = Vec::new();
        self.len = 0;
        for OfKind { kind, tracks } in self.kinds.values_mut() {
            for track in tracks.values_mut().filter(|track| track.round != round) {
                changes.extend(track.step(kind, Judgement::default(), at));
            }
            tracks.retain(|_, track| !track.is_forgotten());
            self.len += tracks.len();
        }
        changes
    }

    /// Whom findings of these kinds were told to be the fault of, in this order; of WARN or worse.
    pub(super) fn blamed(&self, kinds: &[&'static Kind]) -> Vec<Blamed> {
        let known = kinds.iter().filter_map(|kind| self.kinds.get(kind.name));
        let raised = known.flat_map(|of| &of.tracks).filter(|(_, track)| {
            track.finding.as_ref().is_some_and(|finding| finding.level >= Level::Warn)
        });
        raised
            .filter_map(|(subject, track)| {
                let culprit = track.told_culprit.clone()?;
                Some(Blamed { subject: subject.clone(), culprit })
            })
            .collect()
    }

    /// What is raised now, the most urgent first.
    pub(super) fn findings(&self) -> Vec<Arc<Finding>> {
        let tracks = self.kinds.values().flat_map(|of| of.tracks.values());
        let mut findings: Vec<_> = tracks.filter_map(|track| track.finding.clone()).collect();
        findings.sort_by(|a, b| (b.level, a.since_unix_ns).cmp(&(a.level, b.since_unix_ns)));
        findings
    }
}

impl Track {
    fn is_forgotten(&self) -> bool {
        self.finding.is_none() && self.reached_ns.iter().all(Option::is_none)
    }

    fn step(&mut self, kind: &Kind, judgement: Judgement, at: Instant) -> Option<News> {
        let level = match &judgement.state {
            State::Undecided(_) => {
                let since_ns = *self.undecided_ns.get_or_insert(at.boot_ns);
                let stale = at.boot_ns.saturating_sub(since_ns) >= UNDECIDED_NS;
                return stale.then(|| self.clear()).flatten();
            }
            State::Clear => None,
            State::Firing(level) => Some(*level),
        };
        self.undecided_ns = None;
        let held = self.held(kind, level, at);
        match (&mut self.finding, held) {
            (None, None) => None,
            (None, Some(held)) => {
                let new = raised(kind, held, judgement, at, self.reached_ns[0]);
                let finding = self.finding.insert(Arc::new(new)).clone();
                self.said(&finding, at);
                Some((finding, Change::Raised))
            }
            (Some(finding), held) => {
                let told = finding.level;
                if level.is_some_and(|level| level >= told) {
                    self.below_ns = None;
                }
                // What is less than was told may be somebody else's doing; it is told of them when the level is.
                let names_other = finding.culprit.as_ref().zip(judgement.culprit.as_ref());
                let names_other = names_other.is_some_and(|(known, other)| !known.is(other));
                let mut later = None;
                if level.is_some_and(|level| level < told) && names_other {
                    later = Some(judgement);
                } else if level.is_some() {
                    describe(finding, judgement);
                }
                if let Some(held) = held.filter(|held| *held > told) {
                    return self.tell(held, at);
                }
                if level.is_some_and(|level| level >= told) {
                    return self.retell(at);
                }
                let since_ns = *self.below_ns.get_or_insert(at.boot_ns);
                let below_ns = at.boot_ns.saturating_sub(since_ns);
                if told == Level::Emergency && below_ns >= SURVIVED_NS {
                    return self.tell(Level::Critical, at);
                }
                if below_ns < kind.clear.as_nanos() as u64 {
                    return None;
                }
                if let Some(judgement) = later {
                    describe(finding, judgement);
                }
                self.below_ns = None;
                match level {
                    Some(level) => self.tell(level, at),
                    None => self.clear(),
                }
            }
        }
    }

    /// The highest level that has held long enough.
    fn held(&mut self, kind: &Kind, level: Option<Level>, at: Instant) -> Option<Level> {
        let raise_ns = kind.raise.as_nanos() as u64;
        let mut held = None;
        for (reached_ns, candidate) in self.reached_ns.iter_mut().zip(Level::ALL) {
            if level.is_none_or(|level| level < candidate) {
                *reached_ns = None;
                continue;
            }
            let since_ns = *reached_ns.get_or_insert(at.boot_ns);
            if at.boot_ns.saturating_sub(since_ns) >= raise_ns {
                held = Some(candidate);
            }
        }
        held
    }

    fn tell(&mut self, level: Level, at: Instant) -> Option<News> {
        let finding = Arc::make_mut(self.finding.as_mut()?);
        let before = std::mem::replace(&mut finding.level, level);
        finding.level_since_unix_ns = at.unix_ns;
        let finding = self.finding.clone()?;
        self.said(&finding, at);
        Some((finding, Change::Level(before)))
    }

    /// A word goes out.
    fn said(&mut self, finding: &Finding, at: Instant) {
        self.told_ns = at.boot_ns;
        self.told_culprit.clone_from(&finding.culprit);
        self.other_ns = None;
    }

    /// A culprit that was not known before, or is another now, is worth a word.
    fn retell(&mut self, at: Instant) -> Option<News> {
        let finding = self.finding.as_ref()?;
        let culprit = finding.culprit.as_ref()?;
        if self.told_culprit.as_ref().is_some_and(|told| told.is(culprit)) {
            self.other_ns = None;
            return None;
        }
        let since_ns = match &self.told_culprit {
            // Nobody was named yet.
            None => 0,
            Some(_) => *self.other_ns.get_or_insert(at.boot_ns),
        };
        if at.boot_ns.saturating_sub(since_ns.max(self.told_ns)) < RETELL_NS {
            return None;
        }
        let finding = finding.clone();
        self.said(&finding, at);
        Some((finding, Change::Culprit))
    }

    fn clear(&mut self) -> Option<News> {
        self.reached_ns = [None; 4];
        (self.undecided_ns, self.other_ns) = (None, None);
        Some((self.finding.take()?, Change::Cleared))
    }
}

/// It began when the lowest level was reached, not when that had held.
fn raised(
    kind: &Kind,
    level: Level,
    judgement: Judgement,
    at: Instant,
    reached_ns: Option<u64>,
) -> Finding {
    let held_ns = reached_ns.map_or(0, |reached_ns| at.boot_ns.saturating_sub(reached_ns));
    let finding = Finding {
        id: format!("{}/{}/{}", kind.name, judgement.subject, at.unix_ns),
        kind: kind.name.to_owned(),
        level,
        since_unix_ns: at.unix_ns.saturating_sub(held_ns),
        level_since_unix_ns: at.unix_ns,
        hazard: kind.hazard,
        ..Finding::default()
    };
    described(finding, judgement)
}

/// Brings a finding's words and numbers up to date, beside the ones that were shown: those may still be read.
fn describe(finding: &mut Arc<Finding>, judgement: Judgement) {
    let same = Finding {
        id: finding.id.clone(),
        kind: finding.kind.clone(),
        level: finding.level,
        since_unix_ns: finding.since_unix_ns,
        level_since_unix_ns: finding.level_since_unix_ns,
        culprit: if judgement.culprit.is_none() { finding.culprit.clone() } else { None },
        links: finding.links.clone(),
        hazard: finding.hazard,
        ..Finding::default()
    };
    *finding = Arc::new(described(same, judgement));
}

/// A finding with the words and numbers of a judgement. A culprit that was known is kept while nobody else is named.
fn described(finding: Finding, judgement: Judgement) -> Finding {
    Finding {
        subject: judgement.subject,
        culprit: judgement.culprit.or(finding.culprit),
        victims: judgement.victims,
        evidence: judgement.evidence,
        time_left_seconds: judgement.time_left_seconds,
        message: judgement.message,
        advice: judgement.advice,
        ..finding
    }
}
