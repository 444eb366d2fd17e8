//! Who has disks read and write, while that is worth asking: `/proc/PID/io` (proc_pid_io(5)), which the kernel sums over the
//! threads of a process and the children that it has waited for.

use std::collections::{BTreeMap, BTreeSet};

use observer_abi::alloc::{TASK_BLOCKED, TASK_KERNEL, TASK_LEADER, TaskRow};

use super::file::{Files, number, words};
use crate::signal::{Now, comm_text, per_second, sched::Sender};

/// Files read at a tick: about a millisecond.
const MAX_READ: usize = 96;
/// Of these, for processes that wait in the kernel, and for those that sent most before.
const MAX_BUSIEST: usize = 32;
/// Rows given.
const MAX_SENDERS: usize = 32;
/// Less than this keeps no disk busy: sixteen requests of a page.
const MIN_BYTES_PER_SECOND: f64 = 65536.0;

/// What is known of what processes read and write; nothing while nobody asks.
#[derive(Debug, Default)]
pub struct Senders {
    known: BTreeMap<u32, Known>,
    files: Files,
    round: u32,
    rows: Vec<Sender>,
}

/// Bytes that the disks were to move.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Moved {
    read: u64,
    written: u64,
}

/// A process at its last reading.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    start_boottime_ns: u64,
    parent: u32,
    /// When it was read; 0 if it never was.
    read_ktime_ns: u64,
    moved: Moved,
    /// Of children that have ended, as far as it was seen while they lived.
    seen: Moved,
    read_per_second: f64,
    written_per_second: f64,
    round: u32,
}

impl Senders {
    /// Who sends most now. Not asked (`wanted`), it forgets all, and the first answer takes two ticks.
    pub fn read(&mut self, wanted: bool, now: Now, tasks: &[TaskRow]) -> &[Sender] {
        let mut files = std::mem::take(&mut self.files);
        let read = |pid| files.read(pid, pid, "io").ok().and_then(moved);
        self.fold(wanted, now, tasks, read);
        self.files = files;
        &self.rows
    }

    fn fold(
        &mut self,
        wanted: bool,
        now: Now,
        tasks: &[TaskRow],
        mut read: impl FnMut(u32) -> Option<Moved>,
    ) {
        self.rows.clear();
        if !wanted {
            self.known.clear();
            return;
        }
        self.round = self.round.wrapping_add(1);
        let leaders =
            || tasks.iter().filter(|row| row.flags & (TASK_LEADER | TASK_KERNEL) == TASK_LEADER);
        for row in leaders() {
            let known = self.known.entry(row.tgid).or_default();
            if known.start_boottime_ns != row.start_boottime_ns {
                let start_boottime_ns = row.start_boottime_ns;
                *known = Known { start_boottime_ns, ..Known::default() };
            }
            (known.parent, known.round) = (row.parent_tgid, self.round);
        }
        self.bury();
        for pid in self.candidates(tasks) {
            if let Some((known, moved)) = self.known.get_mut(&pid).zip(read(pid)) {
                known.read(moved, now);
            }
        }
        let row = |row: &TaskRow| Some(self.known.get(&row.tgid)?.sender(row));
        let sent = |row: &Sender| row.read_bytes_per_second + row.written_bytes_per_second;
        self.rows.extend(leaders().filter_map(row).filter(|row| sent(row) >= MIN_BYTES_PER_SECOND));
        self.rows.sort_by(|a, b| sent(b).total_cmp(&sent(a)));
        self.rows.truncate(MAX_SENDERS);
    }

    /// Forgets the dead. What they moved appears with their parents when those have waited for them, and was told already.
    fn bury(&mut self) {
        let round = self.round;
        let dead: Vec<_> =
            self.known.values().filter(|known| known.round != round).copied().collect();
        self.known.retain(|_, known| known.round == round);
        for child in dead {
            if let Some(parent) = self.known.get_mut(&child.parent) {
                parent.seen = parent.seen.plus(child.moved);
            }
        }
    }

    /// Whose file is read: who waits in the kernel, who sent most, and the others in turn.
    fn candidates(&self, tasks: &[TaskRow]) -> BTreeSet<u32> {
        let waiting = tasks.iter().filter(|row| row.flags & TASK_BLOCKED != 0);
        let mut pids: BTreeSet<u32> = waiting.map(|row| row.tgid).take(MAX_BUSIEST).collect();
        let mut all: Vec<(u32, Known)> =
            self.known.iter().map(|(pid, known)| (*pid, *known)).collect();
        let sent = |known: &Known| known.read_per_second + known.written_per_second;
        all.sort_by(|a, b| sent(&b.1).total_cmp(&sent(&a.1)));
        pids.extend(all.iter().take(MAX_BUSIEST).map(|(pid, _)| *pid));
        all.sort_by_key(|(_, known)| known.read_ktime_ns);
        let room = MAX_READ.saturating_sub(pids.len());
        pids.extend(all.iter().take(room).map(|(pid, _)| *pid));
        pids
    }
}

impl Moved {
    fn plus(self, other: Self) -> Self {
        Self {
            read: self.read.saturating_add(other.read),
            written: self.written.saturating_add(other.written),
        }
    }
}

impl Known {
    fn read(&mut self, moved: Moved, now: Now) {
        let elapsed_ns = now.since(self.read_ktime_ns);
        if self.read_ktime_ns != 0 {
            let before = self.moved.plus(self.seen);
            let rate =
                |now: u64, before: u64| per_second(now.saturating_sub(before) as f64, elapsed_ns);
            self.read_per_second = rate(moved.read, before.read);
            self.written_per_second = rate(moved.written, before.written);
        }
        (self.moved, self.seen, self.read_ktime_ns) = (moved, Moved::default(), now.ktime_ns);
    }

    fn sender(&self, row: &TaskRow) -> Sender {
        Sender {
            pid: row.tgid,
            name: comm_text(&row.comm),
            read_bytes_per_second: self.read_per_second,
            written_bytes_per_second: self.written_per_second,
        }
    }
}

/// Reads `io`. What was to be written, and was deleted or cut off before, is none.
fn moved(bytes: &[u8]) -> Option<Moved> {
    let mut values = [None; 3];
    for line in bytes.split(|&byte| byte == b'\n') {
        let mut fields = words(line);
        let at = match fields.next() {
            Some(b"read_bytes:") => 0,
            Some(b"write_bytes:") => 1,
            Some(b"cancelled_write_bytes:") => 2,
            _ => continue,
        };
        values[at] = fields.next().and_then(number::<u64>);
    }
    let [read, written, cancelled] = values;
    Some(Moved { read: read?, written: written?.saturating_sub(cancelled.unwrap_or(0)) })
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const MB: u64 = 1_000_000;

    fn task(pid: u32, parent: u32) -> TaskRow {
        let mut row = TaskRow::new_zeroed();
        (row.tgid, row.tid, row.parent_tgid, row.flags) = (pid, pid, parent, TASK_LEADER);
        row
    }

    fn fold(
        senders: &mut Senders,
        second: u64,
        pids: &[(u32, u32)],
        read: impl Fn(u32) -> u64,
    ) -> Vec<(u32, u64)> {
        let now = Now { ktime_ns: second * SECOND, unix_ns: 0 };
        let tasks: Vec<_> = pids.iter().map(|(pid, parent)| task(*pid, *parent)).collect();
        senders.fold(true, now, &tasks, |pid| Some(Moved { read: 0, written: read(pid) }));
        senders.rows.iter().map(|row| (row.pid, row.written_bytes_per_second as u64)).collect()
    }

    #[test]
    fn what_is_sent_is_a_rate_and_counts_once() {
        let mut senders = Senders::default();
        let both = [(9, 1), (10, 9)];
        assert_eq!(fold(&mut senders, 1, &both, |_| 50 * MB), [], "nothing is known of before");
        let read = |pid| if pid == 10 { 80 * MB } else { 51 * MB };
        assert_eq!(fold(&mut senders, 2, &both, read), [(10, 30 * MB), (9, MB)]);
        // The child ends, and its parent waits for it: what it sent was told, but for the last 5 MB.
        assert_eq!(fold(&mut senders, 3, &[(9, 1)], |_| 136 * MB), [(9, 5 * MB)]);
        senders.fold(false, Now::default(), &[], |_| None);
        assert!(senders.known.is_empty() && senders.rows.is_empty());
    }

    #[test]
    fn what_is_read_is_bounded_and_all_have_their_turn() {
        let mut senders = Senders::default();
        let tasks: Vec<_> = (1..=500).map(|pid| task(pid, 1)).collect();
        let mut read = BTreeSet::new();
        for second in 1..=12 {
            let mut count = 0;
            senders.fold(true, Now { ktime_ns: second * SECOND, unix_ns: 0 }, &tasks, |pid| {
                read.insert(pid);
                count += 1;
                Some(Moved::default())
            });
            assert!(count <= MAX_READ, "{count}");
        }
        assert_eq!(read.len(), tasks.len());
    }

    #[test]
    fn the_file_of_the_kernel() {
        #[track_caller]
        fn check(text: &str, expect: Option<(u64, u64)>) {
            let moved = moved(text.as_bytes()).map(|moved| (moved.read, moved.written));
            assert_eq!(moved, expect, "{text}");
        }
        let all = "rchar: 9\nwchar: 9\nsyscr: 1\nsyscw: 1\nread_bytes: 4096\nwrite_bytes: 8192\n\
                   cancelled_write_bytes: 4096\n";
        check(all, Some((4096, 4096)));
        check("read_bytes: 1\nwrite_bytes: 2\n", Some((1, 2)));
        check("read_bytes: 1\nwrite_bytes: 2\ncancelled_write_bytes: 3\n", Some((1, 0)));
        check("rchar: 9\n", None);
        check("read_bytes: x\nwrite_bytes: 2\n", None);
        let own = Files::default().read(std::process::id(), std::process::id(), "io").map(moved);
        assert!(matches!(own, Ok(Some(_))), "{own:?}");
    }
}
