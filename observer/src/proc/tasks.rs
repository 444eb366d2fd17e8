//! Rows of tasks from `/proc/PID`.
//!
//! At each reading only `statm` of every process: it tells anonymous memory, which is what grows. The dearer `stat` and
//! `status` are read for a process that is new, blocked or watched, whose mapped memory moved, and else in turn.

use std::collections::BTreeMap;

use anyhow::Result;
use observer_abi::alloc::{TASK_BLOCKED, TASK_KERNEL, TASK_LEADER, TASK_WATCHED, TaskRow};
use rustix::param::{clock_ticks_per_second, page_size};
use zerocopy::FromZeros as _;

use super::{
    file::{Files, schedstat, stat, statm, status},
    pids,
};

/// PF_KTHREAD (include/linux/sched.h), in the flags of `stat`.
const KERNEL_THREAD: u64 = 0x0020_0000;
/// Every process is read in full once in this many readings.
const TURNS: u32 = 10;
/// A process whose shared pages, or anonymous ones downwards, moved by this much is read in full at once.
const MOVED_BYTES: i64 = 1 << 20;

/// What is known of every process.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    known: BTreeMap<u32, Known>,
    files: Files,
    round: u32,
}

/// A process, or kernel thread, as it was last read.
#[derive(Debug)]
struct Known {
    row: TaskRow,
    /// Anonymous and shared pages when it was last read in full.
    full: (i64, i64),
    round: u32,
}

impl Tasks {
    /// Reads every process and the watched threads (process, thread).
    pub(super) fn read(
        &mut self,
        watched: impl Iterator<Item = (u32, u32)>,
        rows: &mut Vec<TaskRow>,
    ) -> Result<()> {
        self.round = self.round.wrapping_add(1);
        let mut threads: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (pid, tid) in watched {
            threads.entry(pid).or_default().push(tid);
        }
        rows.clear();
        for pid in pids()? {
            let watched = threads.get(&pid).map_or(&[][..], Vec::as_slice);
            self.process(pid, watched.contains(&pid));
            let Some(known) = self.known.get(&pid).filter(|known| known.round == self.round) else {
                continue;
            };
            let row = known.row;
            if row.flags & TASK_KERNEL == 0 || row.flags & TASK_BLOCKED != 0 {
                rows.push(row);
            }
            for tid in watched.iter().filter(|tid| **tid != pid) {
                rows.extend(thread(&mut self.files, &row, *tid));
            }
        }
        let round = self.round;
        self.known.retain(|_, known| known.round == round);
        Ok(())
    }

    /// Brings a process up to date. One that ended meanwhile keeps its old round, and goes.
    fn process(&mut self, pid: u32, watched: bool) {
        let turn = pid.wrapping_add(self.round).is_multiple_of(TURNS);
        let Some(known) = self.known.get_mut(&pid) else {
            return self.full(pid, watched);
        };
        if known.row.flags & (TASK_BLOCKED | TASK_WATCHED) != 0 || watched || turn {
            return self.full(pid, watched);
        }
        if known.row.flags & TASK_KERNEL != 0 {
            known.round = self.round;
            return;
        }
        let Some((resident, shared)) = self.files.read(pid, pid, "statm").ok().and_then(statm)
        else {
            return;
        };
        let anon = resident - shared;
        let moved = MOVED_BYTES / page_size() as i64;
        if known.full.0 - anon >= moved || (known.full.1 - shared).abs() >= moved {
            return self.full(pid, watched);
        }
        known.row.anon_pages = anon;
        known.row.file_pages = shared - known.row.shmem_pages;
        known.round = self.round;
    }

    /// Reads all that there is of a process.
    fn full(&mut self, pid: u32, watched: bool) {
        let Some(stat) = self.files.read(pid, pid, "stat").ok().and_then(stat) else { return };
        let mut row = TaskRow::new_zeroed();
        (row.tgid, row.tid, row.parent_tgid) = (pid, pid, stat.parent);
        row.flags = TASK_LEADER;
        row.comm = stat.comm;
        row.threads = stat.threads;
        let tick_ns = 1_000_000_000 / clock_ticks_per_second().max(1);
        row.start_boottime_ns = stat.start_ticks.saturating_mul(tick_ns);
        if stat.state == b'D' {
            row.flags |= TASK_BLOCKED;
        }
        let mut full = (0, 0);
        if stat.flags & KERNEL_THREAD != 0 {
            row.flags |= TASK_KERNEL;
        } else {
            full = self.memory(&mut row);
        }
        if watched {
            row.flags |= TASK_WATCHED;
            times(&mut self.files, &mut row);
        }
        if row.flags & (TASK_BLOCKED | TASK_WATCHED) != 0 {
            switches(&mut self.files, &mut row);
        }
        self.known.insert(pid, Known { row, full, round: self.round });
    }

    /// Fills the sizes; gives anonymous and shared pages. A zombie has none.
    fn memory(&mut self, row: &mut TaskRow) -> (i64, i64) {
        let pid = row.tgid;
        let pages = self.files.read(pid, pid, "statm").ok().and_then(statm);
        let (resident, shared) = pages.unwrap_or_default();
        let status = self.files.read(pid, pid, "status").map(status).unwrap_or_default();
        let page_kib = (page_size() as i64 / 1024).max(1);
        row.anon_pages = resident - shared;
        row.shmem_pages = status.shmem_kib / page_kib;
        row.file_pages = shared - row.shmem_pages;
        row.swap_pages = status.swap_kib / page_kib;
        row.page_table_bytes = status.page_table_kib.saturating_mul(1024);
        (row.anon_pages, shared)
    }
}

/// Row of a watched thread that is not the first of its process.
fn thread(files: &mut Files, leader: &TaskRow, tid: u32) -> Option<TaskRow> {
    let stat = files.read(leader.tgid, tid, "stat").ok().and_then(stat)?;
    let mut row = TaskRow { tid, comm: stat.comm, flags: TASK_WATCHED, ..*leader };
    times(files, &mut row);
    if stat.state == b'D' {
        row.flags |= TASK_BLOCKED;
        switches(files, &mut row);
    }
    Some(row)
}

/// A kernel without schedstats leaves zeroes.
fn times(files: &mut Files, row: &mut TaskRow) {
    let read = files.read(row.tgid, row.tid, "schedstat").ok().and_then(schedstat);
    (row.on_cpu_ns, row.run_delay_ns) = read.unwrap_or_default();
}

fn switches(files: &mut Files, row: &mut TaskRow) {
    let read = files.read(row.tgid, row.tid, "status").map(status).unwrap_or_default();
    row.voluntary_switches = read.voluntary_switches;
    row.involuntary_switches = read.involuntary_switches;
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn this_process_and_its_threads_are_seen_as_they_are() {
        let pid = std::process::id();
        let own = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        let mut tasks = Tasks::default();
        let mut rows = Vec::new();
        tasks.read([(pid, own), (pid, pid)].into_iter(), &mut rows).unwrap();
        let row = |rows: &[TaskRow], tid| *rows.iter().find(|row| row.tid == tid).unwrap();
        let leader = row(&rows, pid);
        assert_eq!(leader.flags & !TASK_BLOCKED, TASK_LEADER | TASK_WATCHED);
        assert_eq!(
            leader.parent_tgid,
            rustix::process::getppid().unwrap().as_raw_nonzero().get() as u32
        );
        assert!(leader.anon_pages > 0 && leader.file_pages > 0 && leader.page_table_bytes > 0);
        let thread = row(&rows, own);
        assert!(thread.on_cpu_ns > 0 && thread.flags & TASK_WATCHED != 0, "{thread:?}");
        let grown = vec![1_u8; 128 << 20];
        tasks.read(std::iter::empty(), &mut rows).unwrap();
        let more = row(&rows, pid).anon_pages - leader.anon_pages;
        let expected = grown.len() as i64 / page_size() as i64;
        // Tests beside this one take and give back memory of the same process.
        assert!((more - expected).abs() < expected / 4, "{more} of {expected}");
    }

    #[test]
    fn the_dead_go_and_the_living_stay() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut tasks = Tasks::default();
        let mut rows = Vec::new();
        let mut has = |tasks: &mut Tasks, pid| {
            tasks.read(std::iter::empty(), &mut rows).unwrap();
            rows.iter().any(|row| row.tgid == pid)
        };
        for _ in 0..TURNS + 1 {
            assert!(has(&mut tasks, child.id()));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!has(&mut tasks, child.id()));
        assert!(!tasks.known.contains_key(&child.id()));
    }
}
