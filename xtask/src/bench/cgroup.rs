//! A cgroup that holds a workload with its servers, and counts their CPU time.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, id},
};

use anyhow::{Context as _, Result, bail};

/// The cgroup; removed when dropped, if its processes have ended.
pub(super) struct Cgroup {
    folder: PathBuf,
    counter: Counter,
}

/// Where the CPU time stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counter {
    /// `cpuacct.usage` of version 1, in nanoseconds.
    Cpuacct,
    /// `usage_usec` in `cpu.stat` of version 2.
    CpuStat,
}

impl Cgroup {
    /// Makes the cgroup, in version 1 if its `cpuacct` is mounted.
    pub(super) fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts").context("/proc/mounts")?;
        let Some((mount, counter)) = hierarchy(&mounts) else {
            bail!("no cgroup hierarchy is mounted that counts CPU time (cpuacct or cgroup2)");
        };
        let folder = Path::new(mount).join(format!("observer-bench-{}", id()));
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { folder, counter })
    }

    /// CPU time of everything that ran in it.
    pub(super) fn cpu_ns(&self) -> Result<u64> {
        let file = match self.counter {
            Counter::Cpuacct => "cpuacct.usage",
            Counter::CpuStat => "cpu.stat",
        };
        let path = self.folder.join(file);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        cpu_ns(self.counter, &text)
            .with_context(|| format!("{}: no CPU time in it", path.display()))
    }

    /// A command that runs in it, ahead of what else the machine does.
    pub(super) fn command(&self, words: &[String]) -> Command {
        let procs = self.folder.join("cgroup.procs");
        let script = r#"echo 0 >"$1" && shift && exec nice -n -10 "$@""#;
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(procs).args(words);
        command
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A server that is still ending keeps it for a moment.
        let removed =
            super::wait_for("the cgroup to be empty", std::time::Duration::from_secs(5), || {
                fs::remove_dir(&self.folder).ok()
            });
        if let Err(error) = removed {
            println!("warning: {} stays: {error:#}", self.folder.display());
        }
    }
}

fn hierarchy(mounts: &str) -> Option<(&str, Counter)> {
    let fields = || mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let v1 = fields()
        .find(|field| field[2] == "cgroup" && field[3].split(',').any(|option| option == "cpuacct"))
        .map(|field| (field[1], Counter::Cpuacct));
    v1.or_else(|| {
        fields().find(|field| field[2] == "cgroup2").map(|field| (field[1], Counter::CpuStat))
    })
}

fn cpu_ns(counter: Counter, text: &str) -> Option<u64> {
    match counter {
        Counter::Cpuacct => text.trim().parse().ok(),
        Counter::CpuStat => {
            let usec = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
            Some(usec.trim().parse::<u64>().ok()? * 1000)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_found() {
        let v1 = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n";
        let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        let check = |mounts: &str, expected| assert_eq!(hierarchy(mounts), expected, "{mounts}");
        check(v1, Some(("/sys/fs/cgroup/cpu,cpuacct", Counter::Cpuacct)));
        check(v2, Some(("/sys/fs/cgroup", Counter::CpuStat)));
        check(&format!("{v2}{v1}"), Some(("/sys/fs/cgroup/cpu,cpuacct", Counter::Cpuacct)));
        check("proc /proc proc rw 0 0\n", None);
    }

    #[test]
    fn cpu_time_is_read() {
        assert_eq!(cpu_ns(Counter::Cpuacct, "12345\n"), Some(12345));
        assert_eq!(cpu_ns(Counter::CpuStat, "usage_usec 7\nuser_usec 3\n"), Some(7000));
        assert_eq!(cpu_ns(Counter::CpuStat, "nonsense\n"), None);
    }
}
