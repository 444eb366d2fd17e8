//! What is compared: a rule looks at one snapshot a second and says what alarms it.

pub(crate) use observer::detect::Level;
use observer::{detect::Party, snapshot::Snapshot};

/// What an alarm is about, so that a slow database is no answer to a leak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Family {
    Memory,
    Connections,
    Loops,
    Cpu,
    Limits,
    Restarts,
    Agent,
}

/// Something that a rule says at one instant. It is repeated for as long as it holds.
#[derive(Debug, Clone)]
pub(crate) struct Alarm {
    /// What it is about.
    pub(crate) family: Family,
    /// The rule's own name for it.
    pub(crate) kind: &'static str,
    /// How loud. A rule with one threshold has the level that its product acts at.
    pub(crate) level: Level,
    /// Who is blamed. `None`: the rule blames nobody.
    pub(crate) culprit: Option<Party>,
    /// Seconds until it is too late, if the rule says so.
    pub(crate) time_left_s: Option<f64>,
    /// Its sentence, if it has one.
    pub(crate) says: String,
}

impl Alarm {
    /// An alarm about memory that blames a process.
    pub(crate) fn memory(kind: &'static str, level: Level, blamed: Option<(u32, &str)>) -> Self {
        let party = |(pid, name): (u32, &str)| Party {
            name: name.to_owned(),
            pid: Some(pid),
            pids: vec![pid],
            ..Party::default()
        };
        Self {
            family: Family::Memory,
            kind,
            level,
            culprit: blamed.map(party),
            time_left_s: None,
            says: String::new(),
        }
    }
}

/// A rule with its state.
pub(crate) trait Rule {
    /// How it is called in the table.
    fn name(&self) -> &'static str;

    /// Looks at the next second; adds what alarms it.
    fn tick(&mut self, snapshot: &Snapshot, alarms: &mut Vec<Alarm>);
}
