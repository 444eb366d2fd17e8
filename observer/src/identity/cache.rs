//! The bounded cache from (pid, start time) to [`Process`].

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{Process, read::Reader};

/// Identities kept; about 1 KiB each at most hosts. Beyond it the least recently used go and are counted.
pub const MAX_PROCESSES: usize = 16384;

/// Share of the cache that goes at once when it is full, so that the search for the oldest is paid for once in a while.
const EVICTED_SHARE: usize = 16;

/// Rounds of [`Identities::forget_dead`] that a dead process stays known, for what is told of it late: at one a second, a
/// minute.
const ROUNDS_AFTER_DEATH: u32 = 60;

/// Rounds after which a process is read a second time, because it may have set its title (Node under PM2) or changed its
/// user and group after its start.
const ROUNDS_TO_SETTLE: u32 = 5;

/// Processes by (pid, start time). Cheap to ask for: a process is read once, again after it settled, and after an exec.
#[derive(Debug)]
pub struct Identities {
    reader: Reader,
    entries: BTreeMap<(u32, u64), Entry>,
    round: u32,
    clock: u64,
    evicted: u64,
    capacity: usize,
}

#[derive(Debug)]
struct Entry {
    process: Arc<Process>,
    /// When it was last asked for, in calls.
    used: u64,
    /// The last round it was alive in.
    alive: u32,
    /// The round from which on it is to be read again.
    reread: Option<u32>,
}

impl Identities {
    /// A cache that reads below `proc_root` (`/proc`) and takes user names from `passwd` (`/etc/passwd`). `boot_unix_ns` is
    /// the time of boot, taken once: CLOCK_REALTIME less CLOCK_BOOTTIME. A process keeps its start time, and so its
    /// identity, when the clock is set.
    pub fn new(proc_root: &Path, passwd: &Path, boot_unix_ns: u64) -> Self {
        Identities {
            reader: Reader::new(proc_root, passwd, boot_unix_ns),
            entries: BTreeMap::new(),
            round: 0,
            clock: 0,
            evicted: 0,
            capacity: MAX_PROCESSES,
        }
    }

    /// The process with this pid and start (`task_struct.start_boottime`, ns since boot). Without a start: the process that
    /// has this pid now. `None` if it is gone and was never read.
    pub fn get(&mut self, pid: u32, start_boot_ns: Option<u64>) -> Option<Arc<Process>> {
        self.clock += 1;
        let ticks = start_boot_ns.map(|ns| self.reader.ticks(ns));
        let key = ticks.map_or_else(|| self.newest(pid), |ticks| Some((pid, ticks)));
        let known = key.and_then(|key| self.entries.get_mut(&key)).map(|entry| {
            entry.used = self.clock;
            let settled = entry.reread.is_none_or(|round| self.round < round);
            // Without a start, the pid of a dead process may be another's by now.
            let certain = ticks.is_some() || entry.alive + 1 >= self.round;
            if !settled {
                entry.reread = None;
            }
            (entry.process.clone(), settled && certain)
        });
        match known {
            Some((process, true)) => Some(process),
            known => self.read(pid, ticks).or(known.map(|(process, _)| process)),
        }
    }

    /// As [`Identities::get`]; for a process that is gone before it could be read, what the kernel's record says of it.
    pub fn get_or_name(
        &mut self,
        pid: u32,
        start_boot_ns: Option<u64>,
        name: &str,
    ) -> Arc<Process> {
        if let Some(process) = self.get(pid, start_boot_ns) {
            return process;
        }
        let ticks = start_boot_ns.map(|ns| self.reader.ticks(ns));
        let process = Arc::new(Process {
            pid,
            start_unix_ns: ticks.map_or(0, |ticks| self.reader.start_unix_ns(ticks)),
            name: name.to_owned(),
            service_name: name.to_owned(),
            ..Process::default()
        });
        if let Some(ticks) = ticks {
            self.insert((pid, ticks), process.clone(), None);
        }
        process
    }

    /// Ids of the threads that a process has now; none if it is gone.
    pub fn threads(&self, pid: u32) -> Vec<u32> {
        self.reader.threads(pid)
    }

    /// Start as in [`Process::start_unix_ns`], of a `task_struct.start_boottime`.
    pub fn start_unix_ns(&self, start_boot_ns: u64) -> u64 {
        self.reader.start_unix_ns(self.reader.ticks(start_boot_ns))
    }

    /// Tells which processes live (pid, `start_boottime` of the group leader, its name), once a second. Those that do not
    /// are forgotten a while later. One that has another name has run exec, or set its title: what is known of it may be
    /// what it had from its parent, and is read again when it is next asked for.
    pub fn forget_dead<'a>(&mut self, live: impl IntoIterator<Item = (u32, u64, &'a [u8])>) {
        self.round += 1;
        for (pid, start_boot_ns, name) in live {
            if let Some(entry) = self.entries.get_mut(&(pid, self.reader.ticks(start_boot_ns))) {
                entry.alive = self.round;
                let known = &entry.process.name;
                if known.as_bytes() != name && *known != String::from_utf8_lossy(name) {
                    entry.reread = Some(0);
                }
            }
        }
        let round = self.round;
        self.entries.retain(|_, entry| round - entry.alive <= ROUNDS_AFTER_DEATH);
    }

    /// Keeps only the processes that `keep` wants.
    pub fn retain(&mut self, mut keep: impl FnMut(&Process) -> bool) {
        self.entries.retain(|_, entry| keep(&entry.process));
    }

    /// Processes known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Processes forgotten because the cache was full, since it was made.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn newest(&self, pid: u32) -> Option<(u32, u64)> {
        self.entries.range((pid, 0)..=(pid, u64::MAX)).next_back().map(|(&key, _)| key)
    }

    /// Reads the process that has the pid now, if its start is the wanted one. A zombie no longer shows its executable; what
    /// was known of it before is better.
    fn read(&mut self, pid: u32, ticks: Option<u64>) -> Option<Arc<Process>> {
        let (directory, stat) = self.reader.find(pid)?;
        let key = (pid, stat.start_ticks);
        if ticks.is_some_and(|ticks| ticks != stat.start_ticks) {
            return None;
        }
        let process = self.reader.describe(&directory, stat);
        let known = self.entries.get(&key).map(|entry| entry.process.clone());
        if let Some(known) = known
            .as_ref()
            .filter(|known| process.executable.is_empty() && !known.executable.is_empty())
        {
            return Some(known.clone());
        }
        let process = Arc::new(process);
        let reread = known.is_none().then(|| self.round + ROUNDS_TO_SETTLE);
        self.insert(key, process.clone(), reread);
        Some(process)
    }

    fn insert(&mut self, key: (u32, u64), process: Arc<Process>, reread: Option<u32>) {
        if self.entries.len() >= self.capacity && !self.entries.contains_key(&key) {
            self.evict();
        }
        self.entries.insert(key, Entry { process, used: self.clock, alive: self.round, reread });
    }

    fn evict(&mut self) {
        let mut uses: Vec<u64> = self.entries.values().map(|entry| entry.used).collect();
        let index = uses.len() / EVICTED_SHARE;
        let (_, &mut limit, _) = uses.select_nth_unstable(index);
        let before = self.entries.len();
        self.entries.retain(|_, entry| entry.used > limit);
        self.evicted += (before - self.entries.len()) as u64;
    }
}

#[cfg(test)]
mod tests;
