//! Between a detector and the tracker: what a detector sees, and what it says of it.

use std::{borrow::Cow, cmp::Reverse, fmt, time::Duration};

use super::{Evidence, Level, Party, Quality};
use crate::{
    config::{Config, Setting},
    identity::Process,
    snapshot::{Snapshot, Verdict},
};

/// Definition of a kind of finding: the one place from which export, `top`, docs and config know it.
pub struct Kind {
    /// Stable name, such as `memory.exhaustion`.
    pub name: &'static str,
    /// Signal whose numbers it is made of.
    pub signal: &'static str,
    /// One sentence for people.
    pub help: &'static str,
    /// Why the thresholds are what they are, for docs/signals.md.
    pub reason: &'static str,
    /// How long a level must hold before it is told.
    pub raise: Duration,
    /// How long it must be gone before the finding is cleared, or its level lowered.
    pub clear: Duration,
    /// Whether it is a standing hazard: no incident is made of it.
    pub hazard: bool,
    /// Its settings, keys starting with `detect.`.
    pub settings: &'static [Setting],
    /// Makes the detector.
    pub detector: fn(&Config) -> Box<dyn Detector>,
}

impl fmt::Debug for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

/// What there is to see at a tick.
pub struct Seen<'a> {
    /// Everything that is known.
    pub snapshot: &'a Snapshot,
    /// Since boot.
    pub now_ns: u64,
    /// Since the tick before; 0 at the first.
    pub elapsed_ns: u64,
}

impl Seen<'_> {
    /// Identity of a process.
    pub fn process(&self, pid: u32) -> Option<&Process> {
        self.snapshot.processes.get(&pid).map(|process| &**process)
    }

    /// How far the numbers of a program (or of a kernel file) can be trusted; `None` if it does not run.
    /// A recording without health rows is taken at its word.
    pub fn quality(&self, program: &str) -> Option<Quality> {
        let row = self.snapshot.health.programs.iter().find(|row| row.name == program);
        match row.map(|row| row.verdict) {
            None | Some(Verdict::Attached | Verdict::Standby) => Some(Quality::Exact),
            Some(Verdict::Degraded) => Some(Quality::Degraded),
            Some(Verdict::Impossible) => None,
        }
    }
}

/// What is so of a subject at this tick.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum State {
    /// Nothing is wrong.
    #[default]
    Clear,
    /// Something is, this much.
    Firing(Level),
    /// There is not enough evidence yet, or it cannot be seen: why. What was raised stays raised.
    Undecided(Cow<'static, str>),
}

/// What a detector says of one subject at a tick. A subject that it does not mention is clear.
#[derive(Debug, Clone, Default)]
pub struct Judgement {
    /// What it is about; the same text means the same thing at the next tick.
    pub subject: String,
    /// What is so.
    pub state: State,
    /// Who causes it.
    pub culprit: Option<Party>,
    /// Who suffers.
    pub victims: Vec<Party>,
    /// Why.
    pub evidence: Vec<Evidence>,
    /// Seconds until it breaks.
    pub time_left_seconds: Option<f64>,
    /// One sentence.
    pub message: String,
    /// What to do.
    pub advice: String,
    /// The kind it is of, if not the detector's own: what several kinds are made of is found once, for all of them.
    pub kind: Option<&'static Kind>,
}

/// Subjects of a kind that are told at once. Where more are in trouble, the host is, and their sentences only cost time.
pub const MAX_TOLD: usize = 32;

/// The worst [`MAX_TOLD`], in the order of their rank, those of the same rank as they came. How many more there are is said.
pub fn worst<T, R: Ord>(
    mut all: Vec<T>,
    rank: impl Fn(&T) -> R,
    found: &mut Vec<Judgement>,
) -> Vec<T> {
    let beyond = all.len().saturating_sub(MAX_TOLD);
    if beyond > 0 {
        all.sort_by_cached_key(|one| Reverse(rank(one)));
        all.truncate(MAX_TOLD);
        found.push(Judgement {
            subject: format!("{beyond} more"),
            state: State::Undecided(format!("only the worst {MAX_TOLD} are told").into()),
            ..Judgement::default()
        });
    }
    all
}

/// Whom a finding that stands, of WARN or worse, was told to be the fault of.
#[derive(Debug, Clone)]
pub struct Blamed {
    /// What it is about.
    pub subject: String,
    /// Whom it names, as last told: whoever comes to the fore for a moment does not count.
    pub culprit: Party,
}

/// Finds one kind of thing. Keeps what it must remember within named bounds; does no IO and reads no clock.
pub trait Detector: Send {
    /// Hears, before it looks, who takes the memory: whom findings of memory name up to the tick before.
    fn hear(&mut self, _memory: &[Blamed]) {}

    /// Looks at a tick and says what it finds.
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>);
}

/// Finds nothing: a kind for which another's detector speaks.
pub(super) struct Never;

impl Detector for Never {
    fn look(&mut self, _seen: &Seen<'_>, _found: &mut Vec<Judgement>) {}
}
