//! Where a scenario runs: on this host, inside a control group, or in a guest.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{
    FOLDER,
    scenarios::{BINARY, Native, Scenario},
};
use crate::{
    command::{command, run},
    vm::{Disk, Guest, Job, Name, path_with_pm2},
};

/// Time of the guest for an instruction, 2^n ns: a CPU of 125 MIPS, on which a hang looks as it does on a small host.
const ICOUNT_SHIFT: u8 = 3;

/// Host seconds for a second of a guest, and for what comes before and after the fault.
const HOST_S_PER_S: u64 = 6;
const HOST_S: u64 = 600;

/// Where things are in a guest.
const GUEST_LAB: &str = "/usr/local/bin/lab";
const GUEST_AGENT: &str = "/usr/local/bin/observer";

/// A place.
pub(super) enum Place {
    /// This host.
    Native,
    /// A guest with a kernel of this name.
    Guest(Name),
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native => out.write_str("native"),
            Self::Guest(kernel) => write!(out, "VM {kernel}"),
        }
    }
}

impl Place {
    pub(super) fn of(kernel: Option<&str>) -> Result<Self> {
        kernel.map_or(Ok(Self::Native), |kernel| Ok(Self::Guest(kernel.parse()?)))
    }

    /// Runs `lab` with these arguments and this agent; what it writes is in `out` then.
    pub(super) fn run(
        &self,
        scenario: &Scenario,
        agent: &Path,
        args: Vec<String>,
        out: &Path,
    ) -> Result<()> {
        match self {
            Self::Native => native(scenario, agent, args, out),
            Self::Guest(kernel) => guest(scenario, kernel, agent, args, out),
        }
    }
}

fn native(scenario: &Scenario, agent: &Path, mut args: Vec<String>, out: &Path) -> Result<()> {
    match scenario.native() {
        Native::Never => bail!("not on this host: it would harm it; use --vm KERNEL"),
        Native::Free => {}
        Native::MemoryMib(mib) => args.push(format!("--memory-mib={mib}")),
    }
    args.insert(0, BINARY.to_owned());
    args.extend(["--out".to_owned(), out.to_string_lossy().into_owned()]);
    let mut lab = command(&args);
    if scenario.runs("pm2") {
        lab.env("PATH", path_with_pm2()?);
    }
    run(lab.env("OBSERVER_BIN", agent))
}

/// A guest has one CPU: QEMU's emulation of several is neither repeatable nor, before release 8.1, sound.
fn guest(
    scenario: &Scenario,
    kernel: &Name,
    agent: &Path,
    mut args: Vec<String>,
    out: &Path,
) -> Result<()> {
    let iops = scenario.need("disk_iops").and_then(|iops| u32::try_from(iops).ok());
    let guest = Guest {
        mem_bytes: scenario.need("guest_mib").unwrap_or(512) << 20,
        icount: scenario.needs("icount").then_some(ICOUNT_SHIFT),
        disk: Some(Disk { iops }),
        nested: scenario.is_nested(),
        time_limit: Duration::from_secs(HOST_S + HOST_S_PER_S * scenario.seconds()),
        show: false,
        ..Guest::new(kernel.clone())
    };
    args.insert(0, GUEST_LAB.to_owned());
    args.extend(["--out", "/out"].map(str::to_owned));
    let job = Job {
        command: args,
        files: vec![
            (stripped(Path::new(BINARY))?, GUEST_LAB.to_owned()),
            (stripped(agent)?, GUEST_AGENT.to_owned()),
        ],
        env: vec![("OBSERVER_BIN".to_owned(), GUEST_AGENT.to_owned())],
        out: Some(out.to_owned()),
    };
    let ended = guest.run(&job)?;
    println!(
        "{}: {:.0} s, {:.0} s of CPU",
        ended.release,
        ended.wall.as_secs_f64(),
        ended.cpu.as_secs_f64()
    );
    if ended.status != Some(0) {
        let said = fs::read_to_string(&ended.log).unwrap_or_default();
        let said = said.lines().rev().take(LAST_WORDS).collect::<Vec<_>>();
        let said = said.into_iter().rev().collect::<Vec<_>>().join("\n");
        let (how, console) = (ended.ended, ended.console.display());
        bail!("{how}; status {:?}; see {console}\n{said}", ended.status);
    }
    Ok(())
}

/// Last lines of a failed job that are shown.
const LAST_WORDS: usize = 15;

/// A program without what only a debugger needs: a small guest has no memory for that.
fn stripped(program: &Path) -> Result<PathBuf> {
    let name = program.file_name().context("a program has a name")?;
    let small = Path::new(FOLDER).join(name);
    run(command(&["strip", "--strip-debug", "-o"]).arg(&small).arg(program))?;
    Ok(small)
}
