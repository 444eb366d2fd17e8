//! Settings: one list of definitions, five sources, each value with its origin.
//!
//! Later sources win: default, TOML file, `OTEL_*`, `OBSERVER_*`, flags (`--set key=value`). All is read and checked once,
//! at start, by [`Config::load`]; every fault found is reported, with its place and how to mend it. What is wrong with a
//! standard `OTEL_*` variable is only a warning, because other programs read the same variable.

mod load;
mod print;
mod source;
#[cfg(test)]
mod tests;
mod units;
mod value;

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

pub(crate) use self::print::without_credentials;
use self::value::Value;
pub use self::{
    source::{DEFAULT_FILE, File, Sources},
    units::{format_bytes, format_duration, parse_bytes, parse_duration},
    value::{Count, Fault},
};

/// How the text of a setting is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// Whole number within bounds.
    Integer {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// Duration with a unit (`10s`, `250ms`, `5m`), bounds in milliseconds.
    Duration {
        /// Shortest.
        min_ms: u64,
        /// Longest.
        max_ms: u64,
    },
    /// Size with a unit (`64MiB`), bounds in bytes.
    Bytes {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// Text.
    Text,
    /// Text that is never shown (`observer config` prints `***`).
    Secret,
    /// List of texts, separated by commas outside TOML.
    List,
    /// List of ports, separated by commas outside TOML.
    Ports,
    /// List of numbers at a host and port, as `HOST:PORT=NUMBER`, separated by commas outside TOML.
    Counts,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// Definition of a setting. Its environment variable is `OBSERVER_` + the key in capitals with `_` for `.`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    /// Dotted key: section and name in the TOML file, such as `tcp.ports`.
    pub key: &'static str,
    /// How it is read.
    pub kind: Kind,
    /// Default, as one would write it in the environment.
    pub default: &'static str,
    /// Standard `OTEL_*` variables that also set it, the more specific first.
    pub otel: &'static [&'static str],
    /// One sentence for `observer config` and the docs.
    pub help: &'static str,
}

impl Setting {
    /// Name of its environment variable: `tcp.ports` is `OBSERVER_TCP_PORTS`.
    pub fn variable(&self) -> String {
        format!("OBSERVER_{}", self.key.replace('.', "_").to_ascii_uppercase())
    }
}

/// Where the agent keeps things; see [`Config::store_dir`].
pub const STATE_DIR: Setting = Setting {
    key: "state_dir",
    kind: Kind::Text,
    default: "",
    otel: &[],
    help: "Folder of the local store, the lock and the socket; empty: /var/lib/observer and /run/observer.",
};

/// Who may read the control socket beside root.
pub const GROUP: Setting = Setting {
    key: "group",
    kind: Kind::Text,
    default: "observer",
    otel: &[],
    help: "Group whose members may run `observer top`; if the group does not exist, only root may.",
};

/// The tick.
pub const INTERVAL: Setting = Setting {
    key: "interval",
    kind: Kind::Duration { min_ms: 200, max_ms: 60_000 },
    default: "1s",
    otel: &[],
    help: "How often the agent reads its maps and takes a snapshot.",
};

/// How much the agent says about itself.
pub const LOG_LEVEL: Setting = Setting {
    key: "log.level",
    kind: Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
    default: "info",
    otel: &["OTEL_LOG_LEVEL"],
    help: "Least severity of the agent's own messages on standard error.",
};

/// General settings, those of no signal.
pub const SETTINGS: &[Setting] =
    &[STATE_DIR, GROUP, INTERVAL, LOG_LEVEL, LOG_PROBES, BTF, RING_SIZE, DNS];

/// Log of the BPF programs.
pub const LOG_PROBES: Setting = Setting {
    key: "log.probes",
    kind: Kind::Choice(&["off", "error", "warn", "info", "debug", "trace"]),
    default: "off",
    otel: &[],
    help: "least severity of the messages of the BPF programs; off costs nothing",
};

/// Kernel type information.
pub const BTF: Setting = Setting {
    key: "btf",
    kind: Kind::Text,
    default: crate::kernel::BTF_PATH,
    otel: &[],
    help: "type information (BTF) of the running kernel",
};

/// Event ring.
pub const RING_SIZE: Setting = Setting {
    key: "ring_size",
    kind: Kind::Bytes { min: 4096, max: 1 << 28 },
    default: "1MiB",
    otel: &[],
    help: "memory of the ring in which the kernel side leaves rare events; what finds it full is counted",
};

/// Names of peers.
pub const DNS: Setting = Setting {
    key: "dns",
    kind: Kind::Choice(&["off", "network", "all"]),
    default: "network",
    otel: &[],
    help: "where answers of name servers are read, to know databases by name: on interfaces with a default route, or on all, loopback included (which costs a Redis on it 1 to 2 % a request)",
};

/// Every setting of the program: the general ones, those of each signal, those of each kind of finding.
pub fn all_settings() -> Vec<&'static [Setting]> {
    [SETTINGS, crate::export::settings::SETTINGS, crate::record::SETTINGS, crate::alert::SETTINGS]
        .into_iter()
        .chain(crate::signal::ALL.iter().map(|signal| signal.settings))
        .chain(crate::detect::ALL.iter().map(|kind| kind.settings))
        .collect()
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// Line of a TOML file.
    File {
        /// Its path.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// Environment variable of this name.
    Variable(String),
    /// `--set`.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "environment {name}"),
            Self::Flag => f.write_str("flag --set"),
        }
    }
}

/// Everything wrong with a configuration, one line each: place, what, how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

/// One fault of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {fault}")]
pub struct Problem {
    /// `file:line:column: key`, the variable, or the flag.
    pub place: String,
    /// What is wrong there.
    pub fault: Fault,
}

/// The effective configuration. Getters take the definition, so a key is written once.
///
/// Asking for a setting that was not given to [`Config::load`], or by the getter of another kind, is a bug: debug builds
/// stop there, release builds answer with zero.
#[derive(Clone, PartialEq)]
pub struct Config {
    /// In the order of the definitions.
    entries: Vec<Entry>,
    /// Position in `entries` by key.
    index: BTreeMap<&'static str, usize>,
    warnings: Vec<Problem>,
}

#[derive(Clone, PartialEq)]
struct Entry {
    setting: &'static Setting,
    value: Value,
    origin: Origin,
}

/// Never shows a secret.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_toml())
    }
}

macro_rules! getter {
    ($(#[$doc:meta])* $name:ident, $variant:ident($value:ident) -> $type:ty = $get:expr, else $zero:expr) => {
        $(#[$doc])*
        pub fn $name(&self, setting: &Setting) -> $type {
            match self.entry(setting).map(|entry| &entry.value) {
                Some(Value::$variant($value)) => $get,
                _ => {
                    debug_assert!(false, "{} is not registered, or no {}", setting.key, stringify!($variant));
                    $zero
                }
            }
        }
    };
}

impl Config {
    getter!(
        /// Value of a [`Kind::Bool`].
        bool, Bool(value) -> bool = *value, else false
    );
    getter!(
        /// Value of a [`Kind::Integer`].
        integer, Integer(value) -> u64 = *value, else 0
    );
    getter!(
        /// Value of a [`Kind::Duration`].
        duration, Duration(value) -> Duration = *value, else Duration::ZERO
    );
    getter!(
        /// Value of a [`Kind::Bytes`].
        bytes, Bytes(value) -> u64 = *value, else 0
    );
    getter!(
        /// Value of a [`Kind::Text`], [`Kind::Secret`] or [`Kind::Choice`].
        text, Text(value) -> &str = value, else ""
    );
    getter!(
        /// Value of a [`Kind::List`].
        list, List(value) -> &[String] = value, else &[]
    );
    getter!(
        /// Value of a [`Kind::Ports`].
        ports, Ports(value) -> &[u16] = value, else &[]
    );
    getter!(
        /// Value of a [`Kind::Counts`].
        counts, Counts(value) -> &[Count] = value, else &[]
    );

    /// Where the value of a setting came from.
    pub fn origin(&self, setting: &Setting) -> &Origin {
        self.entry(setting).map_or(&Origin::Default, |entry| &entry.origin)
    }

    /// A fault of a value that only its reader sees, with the place that the value came from.
    pub fn problem(&self, setting: &Setting, fault: Fault) -> Problem {
        let place = match self.origin(setting) {
            Origin::Default => format!("default of {}", setting.key),
            Origin::Flag => format!("--set {}", setting.key),
            origin => format!("{origin}: {}", setting.key),
        };
        Problem { place, fault }
    }

    /// What was ignored: standard variables with a value that does not fit.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// Folder of the local store: `state_dir`, else `/var/lib/observer`.
    pub fn store_dir(&self) -> PathBuf {
        self.state_dir("/var/lib/observer")
    }

    /// Folder of the control socket and the lock: `state_dir`, else `/run/observer`.
    pub fn run_dir(&self) -> PathBuf {
        self.state_dir("/run/observer")
    }

    fn state_dir(&self, fallback: &str) -> PathBuf {
        match self.text(&STATE_DIR) {
            "" => fallback.into(),
            set => set.into(),
        }
    }

    fn entry(&self, setting: &Setting) -> Option<&Entry> {
        self.index.get(setting.key).and_then(|position| self.entries.get(*position))
    }

    /// Every setting at its default, for tests of what reads them. Panics if a default does not fit its kind.
    pub fn default_for_tests(settings: &[&'static [Setting]]) -> Self {
        Self::load(settings, &Sources::default())
            .expect("the default of every setting fits its kind")
    }
}

/// How alike (Jaro-Winkler) two words must be for one to be offered as the spelling of the other.
const LIKENESS_MIN: f64 = 0.8;

/// The candidate that `word` was most likely meant to be.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // In short words one slip makes them unlike, so a single slip always counts as alike.
    let likeness = |candidate: &str| match strsim::osa_distance(word, candidate) {
        0 | 1 if word.len() > 2 => 1.0,
        _ => strsim::jaro_winkler(word, candidate),
    };
    candidates
        .map(|candidate| (likeness(candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}
