//! Who uses the CPU, while that is worth asking: time of whole processes and of the children that they have waited for.
//!
//! The iterator gives the time of first threads only. The kernel sums a process's threads when `/proc/PID/stat` is read, so
//! that is read of some processes: of those whose first thread uses most, of those that used most before, and of those with
//! several threads in turn.

use std::collections::{BTreeMap, BTreeSet};

use observer_abi::alloc::{TASK_KERNEL, TASK_LEADER, TaskRow};
use rustix::param::clock_ticks_per_second;

use super::file::{Files, Stat, stat};
use crate::signal::{Now, comm_text, ratio, sched::Consumer};

/// Files read at a tick: about a millisecond.
const MAX_READ: usize = 96;
/// Of these, for first threads that use most, and for processes that used most before.
const MAX_BUSIEST: usize = 32;
/// Rows given.
const MAX_CONSUMERS: usize = 64;
/// Less than this, in cores, is not worth a row.
const MIN_CORES: f64 = 0.01;

/// What is known of the processes' use of the CPU; nothing while nobody asks.
#[derive(Debug, Default)]
pub struct Consumers {
    known: BTreeMap<u32, Known>,
    files: Files,
    round: u32,
    rows: Vec<Consumer>,
}

/// A process at its last reading.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    start_boottime_ns: u64,
    parent: u32,
    /// Time on a CPU of its first thread, and how much of it is new.
    first_ns: u64,
    first_delta_ns: u64,
    /// When `stat` was read; 0 if it never was.
    read_ktime_ns: u64,
    own_ns: u64,
    children_ns: u64,
    /// Time of children that have ended, as far as it was seen while they lived.
    seen_ns: u64,
    cores: f64,
    children_cores: f64,
    nice: i32,
    rt_priority: u32,
    policy: u32,
    round: u32,
}

impl Consumers {
    /// Who uses most now. Not asked (`wanted`), it forgets all, and the first answer takes two ticks.
    pub fn read(
        &mut self,
        wanted: bool,
        now: Now,
        elapsed_ns: u64,
        tasks: &[TaskRow],
    ) -> &[Consumer] {
        let mut files = std::mem::take(&mut self.files);
        let read = |pid| files.read(pid, pid, "stat").ok().and_then(stat);
        self.fold(wanted, now, elapsed_ns, tasks, read);
        self.files = files;
        &self.rows
    }

    fn fold(
        &mut self,
        wanted: bool,
        now: Now,
        elapsed_ns: u64,
        tasks: &[TaskRow],
        mut read: impl FnMut(u32) -> Option<Stat>,
    ) {
        self.rows.clear();
        if !wanted {
            self.known.clear();
            return;
        }
        self.round = self.round.wrapping_add(1);
        let leaders =
            || tasks.iter().filter(|row| row.flags & (TASK_LEADER | TASK_KERNEL) == TASK_LEADER);
        leaders().for_each(|row| self.take(row, elapsed_ns));
        self.bury();
        for pid in self.candidates(leaders()) {
            if let Some((known, stat)) = self.known.get_mut(&pid).zip(read(pid)) {
                known.read(&stat, now);
            }
        }
        let names: BTreeMap<u32, &TaskRow> = leaders().map(|row| (row.tgid, row)).collect();
        for (pid, known) in &self.known {
            let Some(row) = names.get(pid) else { continue };
            if known.cores + known.children_cores >= MIN_CORES {
                self.rows.push(known.consumer(*pid, row));
            }
        }
        let used = |row: &Consumer| row.cpu_ratio + row.children_cpu_ratio;
        self.rows.sort_by(|a, b| used(b).total_cmp(&used(a)));
        self.rows.truncate(MAX_CONSUMERS);
    }

    /// Takes the time of a process's first thread.
    fn take(&mut self, row: &TaskRow, elapsed_ns: u64) {
        let known = self.known.entry(row.tgid).or_default();
        if known.round == 0 || known.start_boottime_ns != row.start_boottime_ns {
            let start_boottime_ns = row.start_boottime_ns;
            *known = Known { start_boottime_ns, first_ns: row.on_cpu_ns, ..Known::default() };
        }
        known.first_delta_ns = row.on_cpu_ns.saturating_sub(known.first_ns);
        (known.first_ns, known.parent) = (row.on_cpu_ns, row.parent_tgid);
        known.round = self.round;
        if row.threads <= 1 {
            known.cores = ratio(known.first_delta_ns, elapsed_ns);
        }
    }

    /// Forgets the dead. Their time appears with their parents when those have waited for them, and was told already.
    fn bury(&mut self) {
        let round = self.round;
        let dead: Vec<_> =
            self.known.values().filter(|known| known.round != round).copied().collect();
        self.known.retain(|_, known| known.round == round);
        for child in dead {
            if let Some(parent) = self.known.get_mut(&child.parent) {
                let seen_ns = child.own_ns.max(child.first_ns).saturating_add(child.children_ns);
                parent.seen_ns = parent.seen_ns.saturating_add(seen_ns);
            }
        }
    }

    /// Whose `stat` is read.
    fn candidates<'a>(&self, leaders: impl Iterator<Item = &'a TaskRow>) -> BTreeSet<u32> {
        let mut all: Vec<(u32, Known, bool)> = leaders
            .filter_map(|row| Some((row.tgid, *self.known.get(&row.tgid)?, row.threads > 1)))
            .collect();
        all.sort_by_key(|(_, known, _)| std::cmp::Reverse(known.first_delta_ns));
        let mut pids: BTreeSet<u32> = all.iter().take(MAX_BUSIEST).map(|(pid, ..)| *pid).collect();
        let cores = |known: &Known| known.cores + known.children_cores;
        all.sort_by(|a, b| cores(&b.1).total_cmp(&cores(&a.1)));
        pids.extend(all.iter().take(MAX_BUSIEST).map(|(pid, ..)| *pid));
        // Without the iterator the time of first threads is not known either.
        all.retain(|(_, known, several)| *several || known.first_ns == 0);
        all.sort_by_key(|(_, known, _)| known.read_ktime_ns);
        let room = MAX_READ.saturating_sub(pids.len());
        pids.extend(all.iter().take(room).map(|(pid, ..)| *pid));
        pids
    }
}

impl Known {
    fn read(&mut self, stat: &Stat, now: Now) {
        let tick_ns = 1_000_000_000 / clock_ticks_per_second().max(1);
        let (own_ns, children_ns) =
            (stat.own_ticks.saturating_mul(tick_ns), stat.children_ticks.saturating_mul(tick_ns));
        let elapsed_ns = now.since(self.read_ktime_ns);
        if self.read_ktime_ns != 0 && elapsed_ns > 0 {
            if stat.threads > 1 || self.first_ns == 0 {
                self.cores = ratio(own_ns.saturating_sub(self.own_ns), elapsed_ns);
            }
            let unseen = children_ns.saturating_sub(self.children_ns).saturating_sub(self.seen_ns);
            self.children_cores = ratio(unseen, elapsed_ns);
        }
        (self.own_ns, self.children_ns, self.seen_ns) = (own_ns, children_ns, 0);
        (self.nice, self.rt_priority, self.policy) = (stat.nice, stat.rt_priority, stat.policy);
        self.read_ktime_ns = now.ktime_ns;
    }

    fn consumer(&self, pid: u32, row: &TaskRow) -> Consumer {
        Consumer {
            pid,
            name: comm_text(&row.comm),
            cpu_ratio: self.cores,
            children_cpu_ratio: self.children_cores,
            policy: policy(self.policy).to_owned(),
            rt_priority: self.rt_priority,
            nice: self.nice,
        }
    }
}

/// Names of sched(7), without their prefix.
fn policy(number: u32) -> &'static str {
    match number {
        0 => "other",
        1 => "fifo",
        2 => "rr",
        3 => "batch",
        5 => "idle",
        6 => "deadline",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn task(pid: u32, parent: u32, threads: u32, on_cpu_ms: u64) -> TaskRow {
        let mut row = TaskRow::new_zeroed();
        (row.tgid, row.tid, row.parent_tgid, row.threads) = (pid, pid, parent, threads);
        (row.flags, row.on_cpu_ns) = (TASK_LEADER, on_cpu_ms * 1_000_000);
        row
    }

    fn fold(
        consumers: &mut Consumers,
        second: u64,
        tasks: &[TaskRow],
        read: impl Fn(u32) -> Stat,
    ) -> Vec<(u32, f64, f64)> {
        let now = Now { ktime_ns: second * SECOND, unix_ns: second * SECOND };
        consumers.fold(true, now, SECOND, tasks, |pid| Some(read(pid)));
        let rows = consumers.rows.iter();
        rows.map(|row| (row.pid, row.cpu_ratio, row.children_cpu_ratio)).collect()
    }

    #[test]
    fn threads_and_children_count_for_their_process() {
        let mut consumers = Consumers::default();
        // Process 8 has two threads of which the first sleeps; 9 starts children that live for less than a tick.
        let tasks = |ms| [task(7, 1, 1, ms), task(8, 1, 2, 1), task(9, 1, 1, ms / 10)];
        let read = |ticks: u64| {
            move |pid| match pid {
                8 => Stat { own_ticks: 2 * ticks, threads: 2, ..Stat::default() },
                9 => Stat { children_ticks: ticks, threads: 1, ..Stat::default() },
                _ => Stat {
                    own_ticks: ticks,
                    threads: 1,
                    policy: 1,
                    rt_priority: 50,
                    ..Stat::default()
                },
            }
        };
        assert_eq!(fold(&mut consumers, 1, &tasks(1000), read(100)), []);
        let rows = fold(&mut consumers, 2, &tasks(1500), read(150));
        assert_eq!(rows, [(8, 1.0, 0.0), (9, 0.05, 0.5), (7, 0.5, 0.0)]);
        let hog = consumers.rows.iter().find(|row| row.pid == 7).expect("it is there");
        assert_eq!((hog.policy.as_str(), hog.rt_priority), ("fifo", 50));
    }

    #[test]
    fn a_child_that_was_seen_does_not_count_twice() {
        let mut consumers = Consumers::default();
        let none = |_| Stat { threads: 1, ..Stat::default() };
        fold(&mut consumers, 1, &[task(9, 1, 1, 1), task(10, 9, 1, 0)], none);
        let rows = fold(&mut consumers, 2, &[task(9, 1, 1, 1), task(10, 9, 1, 900)], none);
        assert_eq!(rows, [(10, 0.9, 0.0)]);
        let waited = |_| Stat { threads: 1, children_ticks: 100, ..Stat::default() };
        assert_eq!(fold(&mut consumers, 3, &[task(9, 1, 1, 1)], waited), [(9, 0.0, 0.1)]);
    }

    #[test]
    fn what_nobody_asks_for_is_forgotten_and_what_is_read_is_bounded() {
        let mut consumers = Consumers::default();
        let tasks: Vec<_> = (1..=500).map(|pid| task(pid, 1, 2, 0)).collect();
        let mut read = BTreeSet::new();
        for second in 1..=10 {
            let now = Now { ktime_ns: second * SECOND, unix_ns: 0 };
            let mut count = 0;
            consumers.fold(true, now, SECOND, &tasks, |pid| {
                read.insert(pid);
                count += 1;
                Some(Stat::default())
            });
            assert!(count <= MAX_READ, "{count}");
        }
        assert_eq!(read.len(), tasks.len(), "all had their turn");
        consumers.fold(false, Now::default(), SECOND, &tasks, |_| None);
        assert!(consumers.known.is_empty() && consumers.rows.is_empty());
    }

    #[test]
    fn this_process_is_seen_to_work() {
        let pid = std::process::id();
        let mut consumers = Consumers::default();
        let mut tasks = [task(pid, 1, 2, 1)];
        let now = |second| Now { ktime_ns: second * SECOND, unix_ns: 0 };
        consumers.read(true, now(1), SECOND, &tasks);
        let before = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let used = || {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            (time.tv_sec - before.tv_sec) * 1000 + (time.tv_nsec - before.tv_nsec) / 1_000_000
        };
        while used() < 100 {
            std::hint::spin_loop();
        }
        tasks[0].on_cpu_ns += 1;
        let rows = consumers.read(true, now(2), SECOND, &tasks);
        assert!(rows.iter().any(|row| row.pid == pid && row.cpu_ratio >= 0.08), "{rows:?}");
    }
}
