//! What the agent tells a person: that something is about to break, who does it, how it knows, and what to do.

use std::{borrow::Cow, sync::Arc};

use serde::{Deserialize, Serialize};

/// How urgent a finding is.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// Out of the ordinary; nobody needs to get up.
    #[default]
    Watch,
    /// It will break if it goes on; look today, or now if it is day.
    Warn,
    /// It breaks within minutes, or something is broken already.
    Critical,
    /// It breaks within seconds.
    Emergency,
}

impl Level {
    /// All of them, the least first.
    pub const ALL: [Self; 4] = [Self::Watch, Self::Warn, Self::Critical, Self::Emergency];

    /// As it is exported and shown.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Watch => "WATCH",
            Self::Warn => "WARN",
            Self::Critical => "CRITICAL",
            Self::Emergency => "EMERGENCY",
        }
    }
}

/// What kind of group a [`Party`] is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// One process.
    #[default]
    Process,
    /// All workers of a PM2 application.
    Pm2App,
    /// All processes of a container.
    Container,
    /// All processes of a systemd unit.
    Unit,
    /// Processes of the same program and user.
    Program,
    /// The kernel, or nobody that has a pid (slab, tmpfs, page cache).
    Kernel,
    /// A machine at the other end of connections.
    Peer,
}

/// Somebody who causes something, or suffers from it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Party {
    /// What is grouped.
    pub group: Group,
    /// Its name: PM2 application, unit, container, command name, or address of a peer.
    pub name: String,
    /// The process of the group with the largest share; `None` for the kernel and for peers.
    pub pid: Option<u32>,
    /// Processes of the group; bounded by [`MAX_PIDS`], the largest share first.
    pub pids: Vec<u32>,
    /// Its share of the cause, 0 to 1.
    pub share_ratio: f64,
    /// For a person: `PM2 app shop, worker 1 (node 4711)`.
    pub title: String,
}

impl Party {
    /// Whether it is the same one for a person: a group is, whoever of it comes to the fore.
    pub fn is(&self, other: &Self) -> bool {
        let alone = self.group == Group::Process && other.group == Group::Process;
        self.name == other.name && (!alone || self.pid == other.pid)
    }
}

/// Pids that a [`Party`] names.
pub const MAX_PIDS: usize = 16;

/// How far a number can be trusted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quality {
    /// Every event or the present value was seen.
    #[default]
    Exact,
    /// Made from samples.
    Sampled,
    /// An estimate from other numbers.
    Estimated,
    /// From a hook that sees less than the best one.
    Degraded,
    /// Events were lost lately: the number is a lower bound.
    Lossy,
}

/// A number that speaks for the finding.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// What it measures, such as `memory_available` .
    pub name: Cow<'static, str>,
    /// Its value.
    pub value: f64,
    /// UCUM unit, as `By`, `s`, `By/s`, `1`.
    pub unit: Cow<'static, str>,
    /// Hook or file that it came from, such as `/proc/meminfo` or `iter/tcp`.
    pub source: Cow<'static, str>,
    /// How far it can be trusted.
    pub quality: Quality,
}

/// Makes an [`Evidence`] that is exact.
pub fn evidence(
    name: impl Into<Cow<'static, str>>,
    value: f64,
    unit: &'static str,
    source: impl Into<Cow<'static, str>>,
) -> Evidence {
    Evidence {
        name: name.into(),
        value,
        unit: unit.into(),
        source: source.into(),
        quality: Quality::Exact,
    }
}

impl Evidence {
    /// The same with another quality.
    #[must_use]
    pub fn with(self, quality: Quality) -> Self {
        Self { quality, ..self }
    }
}

/// A span elsewhere that belongs to a finding, in hexadecimal as OTLP's JSON writes them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// 32 digits.
    pub trace_id: String,
    /// 16 digits.
    pub span_id: String,
}

/// Something that precedes a hang, as long as it lasts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The same from raise to clear; unique on this host.
    pub id: String,
    /// Stable name of the kind, such as `memory.exhaustion`; see docs/signals.md.
    pub kind: String,
    /// How urgent it is now.
    pub level: Level,
    /// When it was first raised.
    pub since_unix_ns: u64,
    /// When it came to the present level.
    pub level_since_unix_ns: u64,
    /// What it is about: `host`, a control group's path, an endpoint, `name pid`.
    pub subject: String,
    /// Who causes it, if that is known.
    pub culprit: Option<Party>,
    /// Who suffers from it; bounded.
    pub victims: Vec<Party>,
    /// The numbers that speak for it.
    pub evidence: Vec<Evidence>,
    /// Seconds until it breaks, where that can be estimated.
    pub time_left_seconds: Option<f64>,
    /// The sentence for a person.
    pub message: String,
    /// What to do about it.
    pub advice: String,
    /// Its place in the incident's trace, and spans that belong to it.
    pub links: Vec<Link>,
    /// Whether it is a standing hazard (a setting, a missing limit) and no event.
    pub hazard: bool,
}

/// A kind of finding that cannot be judged at the moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undecided {
    /// Kind.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// What is missing.
    pub reason: String,
}

/// What the snapshot holds of `detect`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct View {
    /// What is raised now, the most urgent first; bounded by [`super::MAX_FINDINGS`].
    pub findings: Vec<Arc<Finding>>,
    /// What was cleared last, the newest first; bounded by [`super::MAX_CLEARED`].
    pub cleared: Vec<Arc<Finding>>,
    /// What cannot be judged yet, and why.
    pub undecided: Vec<Undecided>,
    /// Findings raised since the agent started.
    pub raised: u64,
    /// Findings beyond the bound, which were not told.
    pub dropped: u64,
}
