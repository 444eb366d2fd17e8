//! Control groups of a test, v1 or v2, removed when the guard is dropped.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{seconds, wait_until};

/// A control group.
pub struct Cgroup {
    dir: PathBuf,
    /// Path below the root of its hierarchy.
    pub path: String,
}

impl Cgroup {
    /// One whose processes may use `bytes` of memory; `None` if this host has no memory controller.
    pub fn with_memory_limit(name: &str, bytes: u64) -> Option<Self> {
        let (group, v2) = Self::new("memory", name)?;
        group.write(if v2 { "memory.max" } else { "memory.limit_in_bytes" }, &bytes.to_string());
        Some(group)
    }

    /// One whose processes may use `percent` of one CPU; `None` if this host has no CPU controller.
    pub fn with_cpu_quota(name: &str, percent: u32) -> Option<Self> {
        let (group, _) = Self::new("cpu", name)?;
        group.set_cpu_quota(Some(percent));
        Some(group)
    }

    /// One that may hold `count` tasks, processes and threads together; `None` if this host has no such controller.
    pub fn with_task_limit(name: &str, count: u32) -> Option<Self> {
        let (group, _) = Self::new("pids", name)?;
        group.write("pids.max", &count.to_string());
        Some(group)
    }

    /// Its processes may use `percent` of one CPU from now on, or all they want.
    pub fn set_cpu_quota(&self, percent: Option<u32>) {
        let quota_us = percent.map(|percent| (percent * 1000).to_string());
        if self.dir.join("cpu.max").exists() {
            let quota_us = quota_us.as_deref().unwrap_or("max");
            return self.write("cpu.max", &format!("{quota_us} 100000"));
        }
        self.write("cpu.cfs_period_us", "100000");
        self.write("cpu.cfs_quota_us", quota_us.as_deref().unwrap_or("-1"));
    }

    /// Puts a process with its threads into it.
    pub fn add(&self, pid: u32) {
        self.write("cgroup.procs", &pid.to_string());
    }

    /// A command that runs `program` inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ >"$0" && exec "$@""#]);
        command.arg(self.dir.join("cgroup.procs")).arg(program);
        command
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Text of one of its files; empty if there is none.
    pub fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.dir.join(file)).unwrap_or_default()
    }

    fn new(controller: &str, name: &str) -> Option<(Self, bool)> {
        let (root, v2) = hierarchy(controller)?;
        let path = format!("/observer-test-{name}-{}", std::process::id());
        let dir = root.join(&path[1..]);
        std::fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        Some((Self { dir, path }, v2))
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.dir.join(file);
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its processes have been ended, but the kernel takes a moment to empty it.
        let gone = || std::fs::remove_dir(&self.dir).ok();
        if !std::thread::panicking() {
            wait_until("the control group is empty", seconds(5), gone);
        } else {
            gone();
        }
    }
}

/// Where the controller is mounted, and whether as v2.
fn hierarchy(controller: &str) -> Option<(PathBuf, bool)> {
    let v1 = Path::new("/sys/fs/cgroup").join(controller);
    if v1.join("cgroup.procs").exists() {
        return Some((v1, false));
    }
    let v2 = PathBuf::from("/sys/fs/cgroup");
    let controllers = std::fs::read_to_string(v2.join("cgroup.controllers")).ok()?;
    controllers.split_whitespace().find(|name| *name == controller)?;
    std::fs::write(v2.join("cgroup.subtree_control"), format!("+{controller}")).ok()?;
    Some((v2, true))
}
