//! BPF programs and maps that a process holds, from `/proc/PID/fdinfo`, and the kernel's statistics of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::command::{command, find, output};

/// The kernel's switch for statistics of BPF programs.
const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// A program, and where it is attached as far as its link says; by id.
pub(super) type Held = BTreeMap<u32, String>;

/// Programs that a process holds, by itself or by a link.
pub(super) fn held_by(pid: u32) -> Held {
    let mut held = Held::new();
    for text in fdinfo(pid) {
        if let Some(id) = field(&text, "prog_id").and_then(|id| id.parse().ok()) {
            let hook = ["tp_name", "target_name", "attach_type"]
                .iter()
                .find_map(|name| field(&text, name));
            let known = held.entry(id).or_default();
            if let Some(hook) = hook {
                *known = hook.to_owned();
            }
        }
    }
    held
}

/// Memory that the kernel charges for the maps of a process.
pub(super) fn map_bytes(pid: u32) -> u64 {
    let mut seen = BTreeSet::new();
    fdinfo(pid)
        .iter()
        .filter(|text| field(text, "map_id").is_some_and(|id| seen.insert(id.to_owned())))
        .filter_map(|text| field(text, "memlock")?.parse::<u64>().ok())
        .sum()
}

fn fdinfo(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten();
    entries.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok()).collect()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// What the kernel counted for a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counted {
    /// Its name, as far as the kernel keeps it.
    pub(super) name: String,
    /// Its type.
    pub(super) kind: String,
    /// Time in it.
    pub(super) run_ns: u64,
    /// How often it ran.
    pub(super) runs: u64,
}

/// Statistics of all programs, by id.
pub(super) fn counted() -> Result<BTreeMap<u32, Counted>> {
    let bpftool = find("bpftool").context("bpftool is not installed")?;
    let text = output(&mut command(&[&bpftool.to_string_lossy(), "--json", "prog", "show"]))?;
    parse(&text).context("bpftool's list of programs")
}

fn parse(text: &str) -> Result<BTreeMap<u32, Counted>> {
    let list: Vec<Value> = serde_json::from_str(text)?;
    let word = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let number = |value: &Value, name: &str| value[name].as_u64().unwrap_or_default();
    let entry = |value: &Value| {
        let id = u32::try_from(value["id"].as_u64()?).ok()?;
        // Without statistics the kernel leaves the two numbers out.
        let (run_ns, runs) = (number(value, "run_time_ns"), number(value, "run_cnt"));
        Some((id, Counted { name: word(value, "name"), kind: word(value, "type"), run_ns, runs }))
    };
    Ok(list.iter().filter_map(entry).collect())
}

/// Statistics are on as long as this lives; then the switch is as it was.
pub(super) struct Statistics {
    before: String,
}

impl Statistics {
    /// Turns them on.
    pub(super) fn on() -> Result<Self> {
        let before = fs::read_to_string(SWITCH).context(SWITCH)?;
        fs::write(SWITCH, "1").context(SWITCH)?;
        Ok(Self { before })
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        if let Err(error) = fs::write(SWITCH, self.before.trim()) {
            println!("warning: {SWITCH} stays on: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_by_their_whole_name() {
        let text =
            "link_type:\traw_tracepoint\nprog_tag:\tab\nprog_id:\t17\ntp_name:\tsched_switch\n";
        assert_eq!(field(text, "prog_id"), Some("17"));
        assert_eq!(field(text, "tp_name"), Some("sched_switch"));
        assert_eq!(field(text, "prog"), None);
    }

    #[test]
    fn statistics_are_read() {
        let text = r#"[{"id":7,"type":"tracing","name":"a","run_time_ns":50,"run_cnt":2},{"id":8,"type":"tracing"}]"#;
        let programs = parse(text).expect("well-formed");
        assert_eq!(
            (programs[&7].run_ns, programs[&7].runs, programs[&7].name.as_str()),
            (50, 2, "a")
        );
        assert_eq!((programs[&8].run_ns, programs[&8].runs), (0, 0));
        assert!(parse("{}").is_err());
    }
}
