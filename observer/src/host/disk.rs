//! What disks do: `/proc/diskstats` (Documentation/admin-guide/iostats.rst), on which others each stands, and whether the
//! device mapper has suspended one, which its counters do not tell: its requests are held back before they are counted.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::file::{KeptFile, number, words};
use crate::signal::{Now, per_second, ratio, sched::Disk};

/// A line has some hundred bytes.
const SIZE: usize = 256 * 1024;
/// Disks and partitions known. What never had a request is not.
const MAX_DISKS: usize = 1024;
/// Rows given.
const MAX_ROWS: usize = 64;
/// Unit of the kernel's counters, whatever the disk's own sectors are.
const SECTOR_BYTES: u64 = 512;

/// Counters of one direction since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Side {
    completed: u64,
    sectors: u64,
    /// Sum of the times of all completed requests.
    spent_ms: u64,
}

/// Counters of a disk since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counters {
    reads: Side,
    /// Flushes included: a program that commits waits for both.
    writes: Side,
    in_flight: u64,
    busy_ms: u64,
}

#[derive(Debug, Default)]
struct Known {
    /// Partitions are not, and have no row.
    is_disk: bool,
    below: Vec<String>,
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

    /// Disks that have or had requests since the last reading, those that answer worst first.
    pub fn read(&mut self, now: Now) -> &[Disk] {
        self.rows.clear();
        self.round = self.round.wrapping_add(1);
        let text = self.file.as_mut().and_then(|file| file.read().ok()).unwrap_or_default();
        for (name, counters) in text.split(|&byte| byte == b'\n').filter_map(parse) {
            if !self.known.contains_key(name) {
                if self.known.len() >= MAX_DISKS {
                    continue;
                }
                self.known.insert(name.to_owned(), Known::new(&self.sys_root, name));
            }
            let Some(known) = self.known.get_mut(name) else { continue };
            known.round = self.round;
            if !known.is_disk {
                continue;
            }
            let suspended = name.starts_with("dm-") && is_suspended(&self.sys_root, name);
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

impl Side {
    fn plus(self, other: Self) -> Self {
        Self {
            completed: self.completed.saturating_add(other.completed),
            sectors: self.sectors.saturating_add(other.sectors),
            spent_ms: self.spent_ms.saturating_add(other.spent_ms),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            completed: self.completed.saturating_sub(before.completed),
            sectors: self.sectors.saturating_sub(before.sectors),
            spent_ms: self.spent_ms.saturating_sub(before.spent_ms),
        }
    }

    /// Mean time of a request; 0 if there was none.
    fn wait_ns(self) -> u64 {
        self.spent_ms.saturating_mul(1_000_000).checked_div(self.completed).unwrap_or(0)
    }
}

impl Known {
    fn new(sys_root: &Path, name: &str) -> Self {
        Self { is_disk: is_disk(sys_root, name), below: below(sys_root, name), ..Self::default() }
    }

    fn row(&mut self, name: &str, counters: Counters, suspended: bool, now: Now) -> Disk {
        let before = std::mem::replace(&mut self.counters, counters);
        let first = self.read_ktime_ns == 0;
        let elapsed_ns = now.since(std::mem::replace(&mut self.read_ktime_ns, now.ktime_ns));
        let before = if first { counters } else { before };
        let (reads, writes) =
            (counters.reads.since(before.reads), counters.writes.since(before.writes));
        let both = reads.plus(writes);
        let silent = counters.in_flight > 0 && both.completed == 0 && before.in_flight > 0;
        if !silent {
            self.silent_ktime_ns = 0;
        } else if self.silent_ktime_ns == 0 {
            self.silent_ktime_ns = now.ktime_ns;
        }
        let busy_ms = counters.busy_ms.saturating_sub(before.busy_ms);
        let rate = |amount: u64| per_second(amount as f64, elapsed_ns);
        let bytes = |side: Side| rate(side.sectors.saturating_mul(SECTOR_BYTES));
        Disk {
            name: name.to_owned(),
            below: self.below.clone(),
            suspended,
            in_flight: counters.in_flight,
            silent_ns: if silent { now.since(self.silent_ktime_ns) } else { 0 },
            wait_ns: both.wait_ns(),
            read_wait_ns: reads.wait_ns(),
            write_wait_ns: writes.wait_ns(),
            reads_per_second: if first { 0.0 } else { rate(reads.completed) },
            writes_per_second: if first { 0.0 } else { rate(writes.completed) },
            read_bytes_per_second: if first { 0.0 } else { bytes(reads) },
            written_bytes_per_second: if first { 0.0 } else { bytes(writes) },
            busy_ratio: ratio(busy_ms.saturating_mul(1_000_000), elapsed_ns).min(1.0),
        }
    }
}

/// A line: major, minor, name, then reads, merged, sectors, ms, writes, merged, sectors, ms, in flight, busy ms, weighted ms;
/// since Linux 4.18 discards, merged, sectors, ms; since 5.5 flushes, ms.
fn parse(line: &[u8]) -> Option<(&str, Counters)> {
    let mut words = words(line).skip(2);
    let name = str::from_utf8(words.next()?).ok()?;
    let mut next = |skipped: usize| number(words.nth(skipped)?);
    let mut side = || Some(Side { completed: next(0)?, sectors: next(1)?, spent_ms: next(0)? });
    let (reads, writes) = (side()?, side()?);
    let (in_flight, busy_ms) = (next(0)?, next(0)?);
    // Six others stand between.
    let flushes = next(5).zip(next(0));
    let (completed, spent_ms) = flushes.unwrap_or_default();
    let writes = writes.plus(Side { completed, sectors: 0, spent_ms });
    let used = reads.completed > 0 || writes.completed > 0 || in_flight > 0;
    used.then_some((name, Counters { reads, writes, in_flight, busy_ms }))
}

/// Partitions have no folder of their own there.
fn is_disk(sys_root: &Path, name: &str) -> bool {
    !name.contains('/') && sys_root.join("block").join(name).exists()
}

/// The disks that one of the device mapper or of md stands on. Its partitions are links into the folder of their disk.
fn below(sys_root: &Path, name: &str) -> Vec<String> {
    let disk = |entry: fs::DirEntry| {
        let path = fs::canonicalize(entry.path()).ok()?;
        let mut parts = path.iter().skip_while(|part| *part != "block").skip(1);
        Some(parts.next()?.to_str()?.to_owned())
    };
    let slaves = fs::read_dir(sys_root.join("block").join(name).join("slaves"));
    let mut below: Vec<String> =
        slaves.into_iter().flatten().flatten().filter_map(disk).take(MAX_ROWS).collect();
    below.sort();
    below.dedup();
    below
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
            fs::create_dir_all(host.0.path().join("block/sda/sda1")).unwrap();
            fs::create_dir_all(host.0.path().join("block/dm-0/dm")).unwrap();
            fs::create_dir_all(host.0.path().join("block/dm-0/slaves")).unwrap();
            let (partition, link) = ("../../sda/sda1", "block/dm-0/slaves/sda1");
            std::os::unix::fs::symlink(partition, host.0.path().join(link)).unwrap();
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
        assert_eq!(disks.read(now(1)), [], "nothing is known of before");
        host.set("12 0 16 400 12 0 32 500 1 1500", "0");
        let slow = Disk {
            name: "sda".into(),
            in_flight: 1,
            wait_ns: 175_000_000,
            read_wait_ns: 150_000_000,
            write_wait_ns: 200_000_000,
            reads_per_second: 2.0,
            writes_per_second: 2.0,
            read_bytes_per_second: 8192.0,
            written_bytes_per_second: 16384.0,
            busy_ratio: 0.5,
            ..Disk::default()
        };
        assert_eq!(disks.read(now(2)), [slow]);
        host.set("12 0 16 400 12 0 32 500 3 2500", "0");
        disks.read(now(3));
        host.set("12 0 16 400 12 0 32 500 3 3500", "1");
        let rows = disks.read(now(8));
        let told: Vec<_> = rows
            .iter()
            .map(|disk| (disk.name.as_str(), disk.suspended, disk.silent_ns / SECOND))
            .collect();
        assert_eq!(told, [("dm-0", true, 0), ("sda", false, 5)]);
        assert_eq!(rows[0].below, ["sda"], "a disk stands on the disk of its partition");
    }

    #[test]
    fn flushes_are_writes() {
        #[track_caller]
        fn check(line: &str, expect: Option<(u64, u64)>) {
            let parsed = parse(line.as_bytes());
            let writes = parsed.map(|(_, counters)| counters.writes);
            assert_eq!(writes.map(|side| (side.completed, side.spent_ms)), expect, "{line}");
        }
        check("8 0 sda 1 0 8 1 5 0 8 20 0 30 40", Some((5, 20)));
        check("8 0 sda 1 0 8 1 5 0 8 20 0 30 40 7 7 7 7", Some((5, 20)));
        check("8 0 sda 1 0 8 1 5 0 8 20 0 30 40 7 7 7 7 3 100", Some((8, 120)));
        check("8 0 sda 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0", None);
        check("8 0 sda 1 0 8", None);
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
