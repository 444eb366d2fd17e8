//! Where a scenario runs: on this host, inside a control group, or in a guest.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

use super::scenarios::{BINARY, Native, Scenario};
use crate::{
    command::{command, run},
    vm::path_with_pm2,
};

/// A place.
pub(super) enum Place {
    /// This host.
    Native {
        /// Path of the agent.
        agent: PathBuf,
    },
    /// A guest with a kernel of this name.
    Guest(String),
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native { .. } => out.write_str("native"),
            Self::Guest(kernel) => write!(out, "VM {kernel}"),
        }
    }
}

impl Place {
    pub(super) fn of(kernel: Option<&str>, agent: &Path) -> Self {
        match kernel {
            Some(kernel) => Self::Guest(kernel.to_owned()),
            None => Self::Native { agent: agent.to_owned() },
        }
    }

    /// Runs `lab` with these arguments; what it writes is in `out` then.
    pub(super) fn run(&self, scenario: &Scenario, args: Vec<String>, out: &Path) -> Result<()> {
        match self {
            Self::Native { agent } => native(scenario, agent, args, out),
            Self::Guest(kernel) => bail!("there are no guests yet for {kernel}"),
        }
    }
}

fn native(scenario: &Scenario, agent: &Path, mut args: Vec<String>, out: &Path) -> Result<()> {
    match scenario.native() {
        Native::Never => bail!("not on this host: it would harm it; use --vm KERNEL"),
        Native::Free => {}
        Native::MemoryMib(mib) => args.push(format!("--memory-mib={mib}")),
    }
    args.push("--out".to_owned());
    args.push(out.to_string_lossy().into_owned());
    let mut words = vec![BINARY.to_owned()];
    words.extend(args);
    let mut lab = command(&words);
    if scenario.runs("pm2") {
        lab.env("PATH", path_with_pm2()?);
    }
    run(lab.env("OBSERVER_BIN", agent))
}
