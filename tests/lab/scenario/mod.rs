//! The scenarios: each a file with one constant, and a line in [`ALL`].

mod backend_401;
mod cache_thrash;
mod cpu_neighbours;
mod cpu_quota;
pub mod cpu_realtime_hog;
mod cpu_steal;
mod database;
mod disk;
mod disk_slow;
mod disk_suspended;
mod event_loop_block;
mod fd_exhaustion;
mod fork_storm;
mod idle_in_transaction;
mod jobs;
mod json_giants;
mod jvm_gc_thrash;
mod jvm_metaspace;
pub mod load;
mod lock_pile_up;
mod orders;
mod peer;
mod pid_exhaustion;
mod pm2_crash_loop;
mod pm2_two_daemons;
mod pool_budget;
mod port_exhaustion;
mod redis_fill;
mod redis_save_thp;
mod shop;
mod upload_leak;

use observer_tests::{find_program, postgres};
use serde::Serialize;

use crate::stage::Stage;

/// All of them, in the order of the report.
pub const ALL: &[&Scenario] = &[
    &upload_leak::SCENARIO,
    &json_giants::SCENARIO,
    &redis_fill::SCENARIO,
    &jvm_metaspace::SCENARIO,
    &cache_thrash::SCENARIO,
    &event_loop_block::SCENARIO,
    &pm2_crash_loop::SCENARIO,
    &pm2_two_daemons::SCENARIO,
    &idle_in_transaction::SCENARIO,
    &lock_pile_up::SCENARIO,
    &pool_budget::SCENARIO,
    &peer::BLACK_HOLED,
    &peer::FROZEN,
    &fd_exhaustion::SCENARIO,
    &port_exhaustion::SCENARIO,
    &pid_exhaustion::SCENARIO,
    &cpu_quota::SCENARIO,
    &cpu_neighbours::SCENARIO,
    &cpu_realtime_hog::SCENARIO,
    &cpu_steal::SCENARIO,
    &fork_storm::SCENARIO,
    &disk_suspended::SCENARIO,
    &disk_slow::SCENARIO,
    &jvm_gc_thrash::SCENARIO,
    &redis_save_thp::SCENARIO,
    &backend_401::SCENARIO,
];

/// Those in which the agent exports: to a collector that the stage runs at [`Stage::collector_port`].
const EXPORTING: &[&Scenario] = &[&backend_401::SCENARIO];

/// Those whose scene is set before the agent starts, as on a host that has run for long: setting it looks like a fault.
const SET_BEFORE: &[&Scenario] = &[&redis_save_thp::SCENARIO];

/// A fault with real programs, and its healthy twin.
#[derive(Serialize)]
pub struct Scenario {
    /// Name, as on the command line.
    pub name: &'static str,
    /// Row of the incidents that it belongs to, I1 to I5.
    pub incident: &'static str,
    /// What it shows, in a sentence.
    pub shows: &'static str,
    /// Who must be named.
    pub culprit: &'static str,
    /// What the number of `--rate` is.
    pub rate_unit: &'static str,
    /// Its default.
    pub rate: f64,
    /// Longest time from the fault on.
    pub seconds: u32,
    /// What the machine must have.
    pub needs: Needs,
    /// Whether CI runs it.
    pub ci: bool,
    /// Sets the scene, calls [`Stage::begin`], breaks something.
    #[serde(skip)]
    pub fault: fn(&mut Stage),
    /// The same, healthy.
    #[serde(skip)]
    pub twin: fn(&mut Stage),
}

/// What a machine must have.
#[derive(Serialize)]
pub struct Needs {
    /// Programs.
    pub programs: &'static [&'static str],
    /// Memory of the guest, in MiB.
    pub guest_mib: u32,
    /// Operations a second that the guest's disk may do; unlimited if none.
    pub disk_iops: Option<u32>,
    /// Guest time that an instruction takes, 2^n ns. None where the disk is slow: that stays in host time.
    pub icount: Option<u8>,
    /// Whether it makes network namespaces or block devices.
    pub privileged: bool,
    /// Whether it can be run without a guest.
    pub native: Native,
}

/// A CPU of 500 MIPS. Healthy programs leave most of it, and the agent's own work is as small as on a small host.
const SMALL: Option<u8> = Some(1);
/// A CPU of 125 MIPS, which the load of a few programs fills.
const WEAK: Option<u8> = Some(3);

/// How a scenario runs without a guest.
#[derive(PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Native {
    /// It would harm the host.
    Never,
    /// Not at all, and not in a guest either: in a guest of a guest, whose host takes CPU time away.
    Nested,
    /// It takes nothing that others miss.
    Free,
    /// In a network namespace of its own, also in a guest.
    OwnNetwork,
    /// In a memory control group of so many MiB.
    MemoryMib(u32),
}

/// The scenario of this name.
pub fn find(name: &str) -> Result<&'static Scenario, String> {
    let known: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
    let found = ALL.iter().find(|scenario| scenario.name == name);
    found.copied().ok_or_else(|| format!("no scenario {name}; there are {}", known.join(", ")))
}

/// Prints all of them.
pub fn list(json: bool) {
    if json {
        let text = serde_json::to_string(ALL).expect("plain data");
        println!("{text}");
        return;
    }
    for scenario in ALL {
        println!("{:<28} {}  {}", scenario.name, scenario.incident, scenario.shows);
    }
}

impl Scenario {
    /// Whether the agent exports in it.
    pub fn exports(&self) -> bool {
        EXPORTING.iter().any(|scenario| scenario.name == self.name)
    }

    /// Whether the agent starts when the stage has said [`Stage::scene_is_set`], and not before.
    pub fn is_set_before(&self) -> bool {
        SET_BEFORE.iter().any(|scenario| scenario.name == self.name)
    }

    /// What this machine lacks.
    pub fn lacking(&self) -> Option<String> {
        let has = |name: &str| match name {
            "postgres" => postgres::find_binary(name).is_some(),
            _ => find_program(name).is_some(),
        };
        let missing = self.needs.programs.iter().find(|name| !has(name))?;
        Some(format!("{missing} is not installed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_rows_exist() {
        let mut names: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        for scenario in ALL {
            assert!(
                ["I1", "I2", "I3", "I4", "I5"].contains(&scenario.incident),
                "{}",
                scenario.name
            );
        }
    }
}
