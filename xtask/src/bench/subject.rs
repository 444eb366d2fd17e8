//! What is measured: nothing, ours, or a tool of others; started, and ended by its pid.

use std::{
    env, fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use clap::ValueEnum;

use super::{bpf, servers::PORTS, wait_for};
use crate::{
    command::{command, find, succeeds},
    run::BINARY,
};

/// A configuration of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Subject {
    /// Nothing attached.
    Base,
    /// The same again: what differs from `Base` is noise.
    Base2,
    /// An empty program on `sched_switch`.
    Empty,
    /// Ours, at its defaults.
    Observer,
    /// Run-queue latency, of libbpf-tools.
    Runqlat,
    /// TCP lifetimes, of libbpf-tools.
    Tcplife,
}

impl Subject {
    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Base2 => "A/A",
            Self::Empty => "empty",
            Self::Observer => "observer",
            Self::Runqlat => "runqlat",
            Self::Tcplife => "tcplife",
        }
    }

    /// Starts it, and waits until its programs are attached. `None`, if there is nothing to start.
    pub(super) fn start(self) -> Result<Option<Running>> {
        let mut command = match self {
            Self::Base | Self::Base2 => return Ok(None),
            Self::Empty => tool("bpftrace", &["-e", "tracepoint:sched:sched_switch { }"])?,
            Self::Observer => observer(),
            Self::Runqlat => tool("runqlat", &[])?,
            Self::Tcplife => tool("tcplife", &[])?,
        };
        let mut running = Running::start(self.name(), &mut command)?;
        wait_until_attached(&mut running)?;
        Ok(Some(running))
    }
}

/// Mounts tracefs, which tools of others need, where only the tool sees it.
const WITH_TRACEFS: &str = "
    test -e /sys/kernel/tracing/events || mount -t tracefs tracefs /sys/kernel/tracing
    exec \"$@\"";

fn tool(name: &str, args: &[&str]) -> Result<Command> {
    let path = find(name).with_context(|| format!("{name} is not installed"))?;
    let mut command = command(&["unshare", "--mount", "sh", "-c", WITH_TRACEFS, "sh"]);
    command.arg(path).args(args);
    Ok(command)
}

fn observer() -> Command {
    let mut observer = command(&[BINARY, "run"]);
    observer.env("OBSERVER_STATE_DIR", state_folder());
    observer.env("OBSERVER_TCP_PORTS", PORTS.map(|port| port.to_string()).join(","));
    observer
}

/// Where the measured agent keeps its state, apart from an agent that the host may have.
pub(super) fn state_folder() -> PathBuf {
    env::temp_dir().join(format!("observer-bench-state-{}", std::process::id()))
}

/// Attached is who holds programs, and no more of them than half a second ago.
fn wait_until_attached(running: &mut Running) -> Result<()> {
    const STEADY_LOOKS: u32 = 25;
    let (mut last, mut steady) = (0, 0);
    let what = format!("{} to attach its programs", running.name);
    wait_for(&what, Duration::from_secs(30), || {
        if let Some(error) = running.ended() {
            return Some(Err(error));
        }
        let count = bpf::held_by(running.pid()).len();
        steady = if count > 0 && count == last { steady + 1 } else { 0 };
        last = count;
        (steady >= STEADY_LOOKS).then_some(Ok(()))
    })?
}

/// A program that we started; ended when dropped.
pub(super) struct Running {
    name: &'static str,
    child: Child,
    /// Where its messages go.
    log: PathBuf,
}

impl Running {
    /// Starts a program; what it prints goes to a log.
    pub(super) fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        let log = PathBuf::from(format!("target/bench-{name}.log"));
        let file = fs::File::create(&log).with_context(|| log.display().to_string())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, child, log })
    }

    /// What it said, if it has ended by itself.
    fn ended(&mut self) -> Option<anyhow::Error> {
        let status = self.child.try_wait().ok()??;
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        Some(anyhow!("{} ended by itself ({status}): {}", self.name, said.trim_end()))
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            println!(
                "warning: {} ended by itself ({status}); see {}",
                self.name,
                self.log.display()
            );
            return;
        }
        let pid = self.pid().to_string();
        let asked = succeeds(&mut command(&["sh", "-c", r#"kill -INT "$1""#, "sh", &pid]));
        let ended = asked
            && wait_for("it to end", Duration::from_secs(10), || {
                self.child.try_wait().ok().flatten()
            })
            .is_ok();
        if !ended {
            println!("warning: {} does not end when asked to, and is killed", self.name);
            if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
                println!("warning: {error}");
            }
        }
    }
}
