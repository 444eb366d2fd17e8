//! Where a scenario runs: on this host, inside a control group, or in a guest.

use std::{fmt, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::scenarios::{BINARY, Native, Scenario};
use crate::{
    command::{command, line},
    vm::{Disk, Guest, Job, Name, path_with_pm2, stripped},
};

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

    /// Runs `lab` with these arguments and this agent; what it writes is in `out` then. Gives why it is skipped, if it is.
    pub(super) fn run(
        &self,
        scenario: &Scenario,
        agent: &Path,
        args: Vec<String>,
        out: &Path,
    ) -> Result<Option<String>> {
        match self {
            Self::Native => native(scenario, agent, args, out),
            Self::Guest(kernel) => guest(scenario, kernel, agent, args, out),
        }
    }
}

fn native(
    scenario: &Scenario,
    agent: &Path,
    mut args: Vec<String>,
    out: &Path,
) -> Result<Option<String>> {
    match scenario.native() {
        Native::Never => return Ok(Some("would harm this host; use --vm KERNEL".to_owned())),
        Native::Free => {}
        Native::MemoryMib(mib) => args.push(format!("--memory-mib={mib}")),
    }
    args.insert(0, BINARY.to_owned());
    args.extend(["--out".to_owned(), out.to_string_lossy().into_owned()]);
    let mut lab = command(&args);
    if scenario.runs("pm2") {
        lab.env("PATH", path_with_pm2()?);
    }
    println!("$ {}", line(&lab));
    let ended = lab.env("OBSERVER_BIN", agent).output().context(BINARY)?;
    let said = [ended.stdout, ended.stderr].concat();
    verdict(ended.status.code(), &String::from_utf8_lossy(&said))
}

/// Exit status of a run that the machine does not allow.
const SKIPPED: i32 = 3;

/// What the end of `lab` means.
fn verdict(status: Option<i32>, said: &str) -> Result<Option<String>> {
    let reason = || said.lines().find_map(|line| line.strip_prefix("SKIPPED ")).map(str::to_owned);
    match status {
        Some(0) => Ok(None),
        Some(SKIPPED) => Ok(Some(reason().unwrap_or_default())),
        _ => {
            let lines: Vec<_> = said.lines().collect();
            let last = lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n");
            bail!("status {status:?}\n{last}")
        }
    }
}

/// A guest has one CPU: QEMU's emulation of several is neither repeatable nor, before release 8.1, sound.
fn guest(
    scenario: &Scenario,
    kernel: &Name,
    agent: &Path,
    mut args: Vec<String>,
    out: &Path,
) -> Result<Option<String>> {
    let iops = scenario.need("disk_iops").and_then(|iops| u32::try_from(iops).ok());
    let guest = Guest {
        mem_bytes: scenario.need("guest_mib").unwrap_or(512) << 20,
        icount: scenario.need("icount").and_then(|shift| u8::try_from(shift).ok()),
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
            (stripped(Path::new(BINARY), out)?, GUEST_LAB.to_owned()),
            (stripped(agent, out)?, GUEST_AGENT.to_owned()),
        ],
        env: vec![("OBSERVER_BIN".to_owned(), GUEST_AGENT.to_owned())],
        out: Some(out.to_owned()),
    };
    let ended = guest.run(&job);
    job.files.iter().try_for_each(|(small, _)| fs::remove_file(small))?;
    let ended = ended?;
    let (wall_s, cpu_s) = (ended.wall.as_secs_f64(), ended.cpu.as_secs_f64());
    println!("{}: {wall_s:.0} s, {cpu_s:.0} s of CPU", ended.release);
    let said = fs::read_to_string(&ended.log).unwrap_or_default();
    verdict(ended.status, &said)
        .with_context(|| format!("{}; see {}", ended.ended, ended.console.display()))
}

/// Last lines of a failed job that are shown.
const LAST_WORDS: usize = 15;
