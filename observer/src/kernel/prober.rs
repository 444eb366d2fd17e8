//! Probes in a child process, `observer probe-malloc PID START`.
//!
//! The kernel makes whoever lets go of a probe wait for all CPUs to be done with it, three or four times over, under a lock
//! for all: seven take most of a second, several on a busy host, and a process that ends waits likewise. The agent is not to
//! wait for that when it is to end, so it does not hold them. Nor does it hold the symbol tables in which malloc is looked
//! for, and should a malformed file be the end of who reads it, it is not the agent's.

use std::{
    io,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Error, Result};

use super::malloc::{MAX_TIME, Probed, probe};
use crate::child;

/// The argument by which the child is called.
pub const WORD: &str = "probe-malloc";

/// What the child answers: what came of it, or a sentence for a person.
type Answer = Result<Probed, String>;

/// Has the malloc of the process with this pid and start (`task_struct.start_boottime`, ns since boot) probed, and waits
/// until nothing of it is attached any more. If this process ends meanwhile, the child does as well.
///
/// # Errors
/// If it could not be probed; in a sentence for a person.
pub fn probe_in_child(pid: u32, start_boottime_ns: u64) -> Result<Probed> {
    // Not current_exe(): this one is still there after the binary was replaced by an upgrade.
    let mut child = Command::new("/proc/self/exe")
        .args([WORD, &pid.to_string(), &start_boottime_ns.to_string()])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start a child to do it")?;
    // The child ends when nobody holds this.
    let leash = child.stdin.take();
    let output = child.wait_with_output().context("the child that does it cannot be read")?;
    drop(leash);
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("the child that does it ended with {}", output.status))?;
    answer.map_err(Error::msg)
}

/// The child: probes the process that its arguments name, and answers with one [`Answer`] as JSON on its standard output. It is
/// the first to go should memory run out meanwhile.
///
/// # Errors
/// The arguments are not two numbers, or standard output is closed.
pub fn child_main() -> Result<()> {
    child::prepare(c"observer-malloc");
    let number = |index: usize| -> Option<u64> { std::env::args().nth(index)?.parse().ok() };
    let key = number(2).and_then(|pid| u32::try_from(pid).ok()).zip(number(3));
    let (pid, start) = key.context("the arguments are not PID START, start in ns since boot")?;
    let answer: Answer = probe(pid, start, MAX_TIME).map_err(|error| format!("{error:#}"));
    serde_json::to_writer(io::stdout().lock(), &answer).context("cannot write the answer")
}
