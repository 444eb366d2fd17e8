//! What disks do while tasks wait for them: `/proc/diskstats` (Documentation/admin-guide/iostats.rst), and whether the
//! device mapper has suspended one, which its counters do not tell: its requests are held back before they are counted.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::file::{KeptFile, number, words};
use crate::signal::{Now, ratio, sched::Disk};

/// A line has some hundred bytes.
const SIZE: usize = 256 * 1024;
/// Disks followed. Partitions are not, nor is what never had a request.
const MAX_DISKS: usize = 1024;
/// Rows given.
const MAX_ROWS: usize = 64;

/// Counters of a disk since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counters {
    completed: u64,
    /// Sum of the times of all completed requests.
    spent_ms: u64,
    in_flight: u64,
    busy_ms: u64,
}

#[derive(Debug, Default)]
struct Known {
    counters: Counters,
    read_ktime_ns: u64,
    /// Since when requests wait and none completes; 0 if not so.
    silent_ktime_ns: u64,
    round: u32,
}

/// The open file, and what it said before.
#[derive(Debug)]
pub struct Disks {
    file: Option<KeptFile>,
    sys_root: PathBuf,
    known: BTreeMap<String, Known>,
    round: u32,
    rows: Vec<Disk>,
}

impl Disks {
    /// Opens it below `proc_root`; the device mapper's state is read below `sys_root`. A kernel without the file gives no
    /// rows.
    pub fn open(proc_root: &Path, sys_root: &Path) -> Self {
        Self {
            file: KeptFile::open(&proc_root.join("diskstats"), SIZE, "").ok(),
            sys_root: sys_root.to_owned(),
            known: BTreeMap::new(),
            round: 0,
            rows: Vec::new(),
        }
    }

    /// Disks that have requests, those that answer worst first. Not asked (`wanted`), it forgets all.
    pub fn read(&mut self, wanted: bool, now: Now) -> &[Disk] {
        self.rows.clear();
        if !wanted {
            self.known.clear();
            return &self.rows;
        }
        self.round = self.round.wrapping_add(1);
        let text = self.file.as_mut().and_then(|file| file.read().ok()).unwrap_or_default();
        for (name, counters) in text.split(|&byte| byte == b'\n').filter_map(parse) {
            let room = self.known.len() < MAX_DISKS || self.known.contains_key(name);
            if !room || !is_disk(&self.sys_root, name) {
                continue;
            }
            let suspended = name.starts_with("dm-") && is_suspended(&self.sys_root, name);
            let known = self.known.entry(name.to_owned()).or_default();
            known.round = self.round;
            let row = known.row(name, counters, suspended, now);
            if row.suspended || row.in_flight > 0 || row.busy_ratio > 0.0 {
                self.rows.push(row);
            }
        }
        let round = self.round;
        self.known.retain(|_, known| known.round == round);
        let rank = |disk: &Disk| (disk.suspended, disk.silent_ns, disk.wait_ns);
        self.rows.sort_by_key(|disk| std::cmp::Reverse(rank(disk)));
        self.rows.truncate(MAX_ROWS);
        &self.rows
    }
}

impl Known {
    fn row(&mut self, name: &str, counters: Counters, suspended: bool, now: Now) -> Disk {
        let before = std::mem::replace(&mut self.counters, counters);
        let first = self.read_ktime_ns == 0;
        let elapsed_ns = now.since(std::mem::replace(&mut self.read_ktime_ns, now.ktime_ns));
        let completed = if first { 0 } else { counters.completed.saturating_sub(before.completed) };
        let silent = counters.in_flight > 0 && completed == 0 && (first || before.in_flight > 0);
        if !silent {
            self.silent_ktime_ns = 0;
        } else if self.silent_ktime_ns == 0 {
            self.silent_ktime_ns = now.ktime_ns;
        }
        let spent_ms = counters.spent_ms.saturating_sub(before.spent_ms);
        let busy_ms = if first { 0 } else { counters.busy_ms.saturating_sub(before.busy_ms) };
        Disk {
            name: name.to_owned(),
            suspended,
            in_flight: counters.in_flight,
            silent_ns: if silent { now.since(self.silent_ktime_ns) } else { 0 },
            wait_ns: spent_ms.saturating_mul(1_000_000).checked_div(completed).unwrap_or(0),
            busy_ratio: ratio(busy_ms.saturating_mul(1_000_000), elapsed_ns).min(1.0),
        }
    }
}

/// A line: major, minor, name, then reads, merged, sectors, ms, writes, merged, sectors, ms, in flight, busy ms, ...
fn parse(line: &[u8]) -> Option<(&str, Counters)> {
    let mut words = words(line).skip(2);
    let name = str::from_utf8(words.next()?).ok()?;
    let mut next = |skipped: usize| number(words.nth(skipped)?);
    let (reads, read_ms, writes, write_ms) = (next(0)?, next(2)?, next(0)?, next(2)?);
    let (in_flight, busy_ms) = (next(0)?, next(0)?);
    let completed: u64 = reads.saturating_add(writes);
    let counters =
        Counters { completed, spent_ms: read_ms.saturating_add(write_ms), in_flight, busy_ms };
    (completed > 0 || in_flight > 0).then_some((name, counters))
}

/// Partitions have no folder of their own there.
fn is_disk(sys_root: &Path, name: &str) -> bool {
    !name.contains('/') && sys_root.join("block").join(name).exists()
}

fn is_suspended(sys_root: &Path, name: &str) -> bool {
    let path = sys_root.join("block").join(name).join("dm/suspended");
    fs::read(path).is_ok_and(|text| text.starts_with(b"1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(host.0.path().join("block/sda")).unwrap();
            fs::create_dir_all(host.0.path().join("block/dm-0/dm")).unwrap();
            host
        }

        fn set(&self, sda: &str, suspended: &str) {
            let text = format!(
                "   8       0 sda {sda} 0 0 0 0\n   8       1 sda1 9 0 0 9 9 0 0 9 9 9 9\n 253       0 dm-0 7 0 9 9 0 0 0 0 0 0 0\n"
            );
            fs::write(self.0.path().join("diskstats"), text).unwrap();
            fs::write(self.0.path().join("block/dm-0/dm/suspended"), suspended).unwrap();
        }
    }

    fn now(second: u64) -> Now {
        Now { ktime_ns: second * SECOND, unix_ns: 0 }
    }

    #[test]
    fn a_disk_that_does_not_answer_and_one_that_is_slow() {
        let host = Host::new();
        host.set("10 0 0 100 10 0 0 100 0 1000", "0");
        let mut disks = Disks::open(host.0.path(), host.0.path());
        assert_eq!(disks.read(true, now(1)), []);
        host.set("12 0 0 400 12 0 0 500 1 1500", "0");
        let slow = Disk {
            name: "sda".into(),
            in_flight: 1,
            wait_ns: 175_000_000,
            busy_ratio: 0.5,
            ..Disk::default()
        };
        assert_eq!(disks.read(true, now(2)), [slow]);
        host.set("12 0 0 400 12 0 0 500 3 2500", "0");
        disks.read(true, now(3));
        host.set("12 0 0 400 12 0 0 500 3 3500", "1");
        let rows = disks.read(true, now(8));
        let told: Vec<_> = rows
            .iter()
            .map(|disk| (disk.name.as_str(), disk.suspended, disk.silent_ns / SECOND))
            .collect();
        assert_eq!(told, [("dm-0", true, 0), ("sda", false, 5)]);
        assert_eq!(disks.read(false, now(9)), []);
    }

    proptest::proptest! {
        #[test]
        fn never_panics(line in "[0-9 a-z/-]{0,120}") {
            if let Some((name, _)) = parse(line.as_bytes()) {
                proptest::prop_assert!(!name.is_empty());
            }
        }
    }
}
