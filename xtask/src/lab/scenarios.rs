//! The registry of scenarios, which the binary `lab` holds.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    command::{command, output},
    setup::Tools,
};

/// The binary of the laboratory, as cargo leaves it.
pub(super) const BINARY: &str = "target/debug/lab";

/// A scenario, as the registry tells it (tests/lab/scenario/mod.rs).
#[derive(Debug, Clone)]
pub(super) struct Scenario(Value);

/// How it runs without a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Native {
    /// Not at all: it would harm the host.
    Never,
    /// It takes nothing that others miss.
    Free,
    /// In a memory control group of so many MiB.
    MemoryMib(u64),
}

/// Builds the binary and asks it.
pub(super) fn all(tools: &Tools) -> Result<Vec<Scenario>> {
    crate::command::run(&mut tools.cargo(&[
        "build",
        "--package",
        "observer-tests",
        "--bin",
        "lab",
    ]))?;
    parse(&output(&mut command(&[BINARY, "list", "--json"]))?)
}

fn parse(json: &str) -> Result<Vec<Scenario>> {
    let list: Vec<Value> = serde_json::from_str(json).context("list of scenarios")?;
    Ok(list.into_iter().map(Scenario).collect())
}

impl Scenario {
    pub(super) fn name(&self) -> &str {
        self.0["name"].as_str().unwrap_or_default()
    }

    /// One with a name and nothing else.
    #[cfg(test)]
    pub(super) fn named(name: &str) -> Self {
        Self(serde_json::json!({ "name": name }))
    }

    pub(super) fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_default()
    }

    /// A number among its needs.
    pub(super) fn need(&self, key: &str) -> Option<u64> {
        self.0["needs"][key].as_u64()
    }

    /// Whether it runs this program.
    pub(super) fn runs(&self, program: &str) -> bool {
        let programs = self.0["needs"]["programs"].as_array();
        programs.is_some_and(|programs| programs.iter().any(|name| name == program))
    }

    pub(super) fn is_in_ci(&self) -> bool {
        self.0["ci"] == true
    }

    /// Longest time from the fault on, by the clock of the run.
    pub(super) fn seconds(&self) -> u64 {
        self.0["seconds"].as_u64().unwrap_or(120)
    }

    /// Whether it needs a guest inside a guest.
    pub(super) fn is_nested(&self) -> bool {
        self.0["needs"]["native"] == "nested"
    }

    pub(super) fn native(&self) -> Native {
        let native = &self.0["needs"]["native"];
        match native["memory_mib"].as_u64() {
            Some(mib) => Native::MemoryMib(mib),
            // A network of its own, where it needs one, is the binary's business.
            None if native == "free" || native == "own_network" => Native::Free,
            None => Native::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_understood() {
        let one = |native: &str| {
            let json = format!(
                r#"[{{"name":"a","ci":true,"seconds":9,"needs":{{"guest_mib":512,"disk_iops":null,"icount":3,"native":{native}}}}}]"#
            );
            parse(&json).expect("a list").remove(0)
        };
        let scenario = one(r#""free""#);
        assert_eq!((scenario.name(), scenario.is_in_ci(), scenario.seconds()), ("a", true, 9));
        assert_eq!((scenario.need("guest_mib"), scenario.need("disk_iops")), (Some(512), None));
        assert_eq!(scenario.need("icount"), Some(3));
        assert_eq!(scenario.native(), Native::Free);
        assert_eq!(one(r#"{"memory_mib":256}"#).native(), Native::MemoryMib(256));
        assert_eq!(one(r#""own_network""#).native(), Native::Free);
        assert_eq!(one(r#""never""#).native(), Native::Never);
        assert!(one(r#""nested""#).is_nested() && one(r#""nested""#).native() == Native::Never);
    }
}
