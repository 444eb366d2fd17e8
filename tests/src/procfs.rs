//! What the kernel says of a process: the measure for what the agent says.

/// Memory of a process from `/proc/PID/status`, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// VmRSS.
    pub rss: u64,
    /// RssAnon.
    pub anon: u64,
    /// RssFile.
    pub file: u64,
    /// RssShmem.
    pub shmem: u64,
    /// VmPTE.
    pub page_tables: u64,
}

/// Memory of a process; `None` once it is gone.
pub fn memory(pid: u32) -> Option<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kilobytes: u64 = line?.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kilobytes * 1024)
    };
    Some(Memory {
        rss: field("VmRSS")?,
        anon: field("RssAnon")?,
        file: field("RssFile")?,
        shmem: field("RssShmem")?,
        page_tables: field("VmPTE")?,
    })
}

/// MemTotal and MemAvailable of the host, in bytes.
pub fn host_memory() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/meminfo").expect("procfs is mounted");
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a known field");
        let kilobytes: u64 = line.trim_matches([':', ' ', 'k', 'B']).parse().expect("a number");
        kilobytes * 1024
    };
    (field("MemTotal"), field("MemAvailable"))
}

/// Whether the first thread of a process sleeps.
pub fn is_asleep(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
}

/// Number of processes on the host that have memory of their own: neither kernel threads nor zombies.
pub fn process_count() -> usize {
    let entries = std::fs::read_dir("/proc").expect("procfs is mounted").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    pids.filter(|pid| memory(*pid).is_some()).count()
}

/// Children of a process, whichever of its threads made them.
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let text = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children"));
    let words = tasks.filter_map(|task| text(task).ok()).collect::<Vec<_>>().join(" ");
    words.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}
