//! The witness: what the host's users and its kernel went through, told by processes that need nothing of what runs out.
//! Each kind of probe is a process, so that one that blocks stops no other.

mod http;
mod shell;
mod vitals;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use observer_tests::monotonic_ns;
use rustix::mm::{MlockAllFlags, mlockall};
use serde_json::{Value, json};

use crate::timeline::Fixed;

/// A kind of probe, with the file that its events go to.
#[derive(Subcommand)]
pub enum Probe {
    /// Memory, reclaim and pressure, four times a second.
    Vitals {
        /// Events.
        #[arg(long)]
        out: PathBuf,
        /// Memory control group to look at as well.
        #[arg(long)]
        cgroup: Option<PathBuf>,
    },
    /// A shell that lists a folder and asks for the date, every second.
    Shell {
        /// Events.
        #[arg(long)]
        out: PathBuf,
        /// Memory control group to run it in.
        #[arg(long)]
        cgroup: Option<PathBuf>,
    },
    /// A GET request, twice a second, however long the earlier ones take.
    Http {
        /// Events.
        #[arg(long)]
        out: PathBuf,
        /// Port of the loopback interface.
        #[arg(long)]
        port: u16,
        /// Path to ask for.
        #[arg(long)]
        path: String,
    },
}

/// Events of a run of ten minutes: 2,400 lines of vitals, 1,200 of each other probe.
const VITALS_BYTES: u64 = 2 << 20;
const PROBE_BYTES: u64 = 512 << 10;

/// Looks until it is killed.
pub fn run(probe: &Probe) {
    let open = |out: &Path, size| {
        Fixed::create(out, size).unwrap_or_else(|error| panic!("{}: {error}", out.display()))
    };
    match probe {
        Probe::Vitals { out, cgroup } => {
            let mut out = open(out, VITALS_BYTES);
            out.event("witness", hardened("vitals"));
            vitals::run(&mut out, cgroup.as_deref())
        }
        Probe::Shell { out, cgroup } => {
            let mut out = open(out, PROBE_BYTES);
            out.event("witness", hardened("shell"));
            shell::run(&mut out, cgroup.as_deref())
        }
        Probe::Http { out, port, path } => {
            let mut out = open(out, PROBE_BYTES);
            out.event("witness", hardened("http"));
            http::run(&mut out, *port, path)
        }
    }
}

/// Makes this process hard to stop, and says how far that went.
fn hardened(probe: &str) -> Value {
    let locked = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).is_ok();
    let oom = std::fs::write("/proc/self/oom_score_adj", "-1000").is_ok();
    json!({ "probe": probe, "memory_locked": locked, "oom_exempt": oom, "real_time": is_real_time() })
}

/// Whether this process has a real-time scheduling class (proc_pid_stat(5), field 41).
fn is_real_time() -> bool {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    // Field 3 is the first after the name.
    after_name.split(' ').nth(41 - 3).is_some_and(|policy| policy != "0")
}

/// Times at even distances, from now on.
struct Ticks {
    next_ns: u64,
    every_ns: u64,
}

impl Ticks {
    fn every_ms(ms: u64) -> Self {
        Self { next_ns: monotonic_ns(), every_ns: ms * 1_000_000 }
    }

    /// Nanoseconds until the next is due; 0 if it is.
    fn left_ns(&self) -> u64 {
        self.next_ns.saturating_sub(monotonic_ns())
    }

    /// Takes one that is due, and gives when it was due. Those that were missed are not made up for.
    fn take(&mut self) -> u64 {
        let due = self.next_ns;
        let missed = monotonic_ns().saturating_sub(due) / self.every_ns;
        self.next_ns = due + (missed + 1) * self.every_ns;
        due
    }

    /// Waits for the next, and gives when it was due.
    fn wait(&mut self) -> u64 {
        // sleep: the pace of the witness
        std::thread::sleep(std::time::Duration::from_nanos(self.left_ns()));
        self.take()
    }
}
