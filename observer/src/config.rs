//! Settings: one list of definitions, five sources, each value with its origin.

use std::time::Duration;

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

/// The effective configuration. Getters take the definition, so a key is written once.
pub struct Config {}

impl Config {
    /// Value of a [`Kind::Bool`].
    pub fn bool(&self, _setting: &Setting) -> bool {
        false
    }
    /// Value of a [`Kind::Integer`].
    pub fn integer(&self, _setting: &Setting) -> u64 {
        0
    }
    /// Value of a [`Kind::Duration`].
    pub fn duration(&self, _setting: &Setting) -> Duration {
        Duration::ZERO
    }
    /// Value of a [`Kind::Bytes`].
    pub fn bytes(&self, _setting: &Setting) -> u64 {
        0
    }
    /// Value of a [`Kind::Text`], [`Kind::Secret`] or [`Kind::Choice`].
    pub fn text(&self, _setting: &Setting) -> &str {
        ""
    }
    /// Value of a [`Kind::List`].
    pub fn list(&self, _setting: &Setting) -> &[String] {
        &[]
    }
    /// Value of a [`Kind::Ports`].
    pub fn ports(&self, _setting: &Setting) -> &[u16] {
        &[]
    }
}
