//! What a test needs of the host. Where it is missing, the test says `SKIPPED <name>: <reason>` and passes;
//! `cargo xtask test` compares the list of skips with the one it expects, so a skipped suite cannot look green.

use std::{fs::File, io::Write as _, path::Path};

use crate::{agent, find_program, postgres};

/// CAP_SYS_ADMIN, CAP_PERFMON and CAP_BPF (include/uapi/linux/capability.h).
const NEEDED_CAPABILITIES: u64 = 1 << 21 | 1 << 38 | 1 << 39;

/// Says that one test at a time uses the host. Tests change what the whole host does, and one agent runs on a host.
pub struct Host {
    _lock: File,
}

/// The host, if it lets BPF programs run and has these programs; else says that `test` is skipped and why.
pub fn host(test: &str, programs: &[&str]) -> Option<Host> {
    let lock = lock();
    match missing(programs) {
        None => Some(Host { _lock: lock }),
        Some(reason) => {
            skip(test, &reason);
            None
        }
    }
}

/// The host for a test without BPF, so that it does not meet the agent of another test.
pub fn quiet_host() -> Host {
    Host { _lock: lock() }
}

/// Says that `test` is skipped. Goes around the capture of libtest, which hides what passing tests print.
pub fn skip(test: &str, reason: &str) {
    writeln!(std::io::stdout(), "SKIPPED {test}: {reason}").expect("stdout is open");
}

fn missing(programs: &[&str]) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".into());
    }
    if capabilities() & NEEDED_CAPABILITIES != NEEDED_CAPABILITIES {
        return Some("no CAP_SYS_ADMIN, CAP_PERFMON or CAP_BPF".into());
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("kernel without BTF".into());
    }
    if let Err(reason) = agent::find_binary() {
        panic!("{reason}");
    }
    programs.iter().find(|name| !has(name)).map(|name| format!("{name} is not installed"))
}

fn has(name: &str) -> bool {
    match name {
        "postgres" => postgres::find_binary("postgres").is_some(),
        _ => find_program(name).is_some(),
    }
}

fn capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn lock() -> File {
    // One file a user: a sticky directory lets root not open the file of another (fs.protected_regular).
    let user = rustix::process::geteuid().as_raw();
    let path = std::env::temp_dir().join(format!("observer-tests-{user}.lock"));
    let file = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.lock().expect("the lock file can be locked");
    file
}
