//! Reads one process from `/proc`, and user names from `/etc/passwd`.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use rustix::{
    buffer::spare_capacity,
    fd::{AsFd, OwnedFd},
    fs::{CWD, Mode, OFlags, openat, readlinkat},
    io::{Errno, read},
    path::Arg,
};

use super::{
    Environment, Pm2, Process, Stat,
    parse::{parse_command_line, parse_passwd, parse_user_id},
    parse_cgroup, parse_environ, parse_stat,
};

/// Bytes kept of a command line.
const MAX_COMMAND_LINE: usize = 4096;

/// Bytes read of an environment: the kernel's limit of one variable (MAX_ARG_STRLEN, execve(2)), since PM2 in cluster mode
/// puts all into one. What lies behind is not seen.
const MAX_ENVIRON: usize = 128 * 1024;

/// Bytes read of `stat`, `status` and `cgroup`, which are a few hundred to some thousand bytes.
const MAX_SMALL: usize = 16 * 1024;

/// Bytes read of `/etc/passwd`; users behind have no name.
const MAX_PASSWD: usize = 1024 * 1024;

/// Bytes that a buffer grows by.
const READ_STEP: usize = 4096;

/// Users kept of `/etc/passwd`.
const MAX_USERS: usize = 4096;

/// Nanoseconds of a second.
const SECOND_NS: u64 = 1_000_000_000;

/// Where processes are read, and what is the same for all of them.
#[derive(Debug)]
pub(super) struct Reader {
    proc_root: PathBuf,
    boot_unix_ns: u64,
    tick_ns: u64,
    users: HashMap<u32, String>,
    buffer: Vec<u8>,
}

impl Reader {
    pub(super) fn new(proc_root: &Path, passwd: &Path, boot_unix_ns: u64) -> Self {
        let mut buffer = Vec::new();
        let users =
            match open(CWD, passwd).and_then(|file| read_into(&file, &mut buffer, MAX_PASSWD)) {
                Ok(()) => parse_passwd(&String::from_utf8_lossy(&buffer), MAX_USERS),
                Err(_) => HashMap::new(),
            };
        let tick_ns = SECOND_NS / rustix::param::clock_ticks_per_second().max(1);
        Reader { proc_root: proc_root.to_owned(), boot_unix_ns, tick_ns, users, buffer: Vec::new() }
    }

    /// Clock ticks, the resolution of `/proc/PID/stat`, of a time since boot.
    pub(super) fn ticks(&self, start_boot_ns: u64) -> u64 {
        start_boot_ns / self.tick_ns
    }

    /// Time of a start that is known in clock ticks.
    pub(super) fn start_unix_ns(&self, start_ticks: u64) -> u64 {
        self.boot_unix_ns.saturating_add(start_ticks.saturating_mul(self.tick_ns))
    }

    /// Names of the entries of `task`.
    pub(super) fn threads(&self, pid: u32) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir(self.proc_root.join(pid.to_string()).join("task"))
        else {
            return Vec::new();
        };
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
    }

    /// The directory of a process and what its `stat` says. The open directory stays with this process, so that nothing
    /// read through it can be of another one that got the same pid.
    pub(super) fn find(&mut self, pid: u32) -> Option<(OwnedFd, Stat)> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            openat(CWD, self.proc_root.join(pid.to_string()), flags, Mode::empty()).ok()?;
        let stat = parse_stat(self.file(&directory, "stat", MAX_SMALL))?;
        Some((directory, stat))
    }

    /// Everything about a process that [`Reader::find`] found.
    pub(super) fn describe(&mut self, directory: &OwnedFd, stat: Stat) -> Process {
        let executable = readlinkat(directory, "exe", Vec::new())
            .map(|path| path.to_string_lossy().trim_end_matches(" (deleted)").to_owned())
            .unwrap_or_default();
        let user_id = parse_user_id(self.file(directory, "status", MAX_SMALL));
        let cgroup =
            parse_cgroup(&String::from_utf8_lossy(self.file(directory, "cgroup", MAX_SMALL)));
        let command_line = parse_command_line(self.file(directory, "cmdline", MAX_COMMAND_LINE));
        let environment = parse_environ(self.file(directory, "environ", MAX_ENVIRON));

        let pm2_daemon_home = pm2_daemon_home(&stat.name, &command_line, &environment);
        let pm2 = environment.pm2.filter(|_| pm2_daemon_home.is_none());
        let mut process = Process {
            pid: stat.pid,
            start_unix_ns: self.start_unix_ns(stat.start_ticks),
            parent_pid: stat.parent_pid,
            name: stat.name,
            executable,
            command_line,
            user_id: user_id.unwrap_or_default(),
            user_name: user_id.and_then(|id| self.users.get(&id)).cloned().unwrap_or_default(),
            cgroup: cgroup.path,
            cpu_cgroup: cgroup.cpu_path,
            unit: cgroup.unit,
            container_id: cgroup.container_id,
            pm2,
            pm2_daemon_home,
            service_name: String::new(),
        };
        process.service_name = environment.service_name.unwrap_or_else(|| service_name(&process));
        process
    }

    /// A file of a process; empty if it cannot be read.
    fn file(&mut self, directory: &OwnedFd, name: &str, max_bytes: usize) -> &[u8] {
        if open(directory, name)
            .and_then(|file| read_into(&file, &mut self.buffer, max_bytes))
            .is_err()
        {
            self.buffer.clear();
        }
        &self.buffer
    }
}

/// Name of the service that a process belongs to, where its environment does not say. The unit of a process in a container
/// is the runtime's, not the service's.
fn service_name(process: &Process) -> String {
    let app =
        process.pm2.as_ref().map(|Pm2 { app, .. }| app.as_str()).filter(|app| !app.is_empty());
    let unit = process.unit.strip_suffix(".service");
    let unit = unit.filter(|name| process.container_id.is_empty() && !name.starts_with("user@"));
    let executable = process.executable.rsplit('/').next().filter(|name| !name.is_empty());
    app.or(unit).or(executable).unwrap_or(&process.name).to_owned()
}

/// Home of a PM2 daemon. Its title is `PM2 vVERSION: God Daemon (HOME)` (PM2's lib/Daemon.js), but Node cuts a title to the
/// length of the arguments that the process was started with, and the command name to 15 bytes. `pm2-runtime` and
/// `pm2-docker` are a daemon without that title.
fn pm2_daemon_home(name: &str, command_line: &str, environment: &Environment) -> Option<String> {
    let titled = name.starts_with("PM2 v") && name.contains(": ");
    let script = command_line.split(' ').nth(1).and_then(|path| path.rsplit('/').next());
    if !titled && !matches!(script, Some("pm2-runtime" | "pm2-docker")) {
        return None;
    }
    let from_title =
        || Some(command_line.strip_suffix(')')?.split_once(": God Daemon (")?.1.to_owned());
    let by_default = || Some(format!("{}/.pm2", environment.home.as_deref()?));
    Some(environment.pm2_home.clone().or_else(from_title).or_else(by_default).unwrap_or_default())
}

fn open(directory: impl AsFd, path: impl Arg) -> Result<OwnedFd, Errno> {
    openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Reads at most `max_bytes`. The buffer grows only as far as files fill it.
fn read_into(file: &OwnedFd, buffer: &mut Vec<u8>, max_bytes: usize) -> Result<(), Errno> {
    buffer.clear();
    while buffer.len() < max_bytes {
        buffer.reserve(READ_STEP);
        if read(file, spare_capacity(buffer))? == 0 {
            break;
        }
    }
    buffer.truncate(max_bytes);
    Ok(())
}
