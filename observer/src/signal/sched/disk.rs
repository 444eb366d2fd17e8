//! Who waits for disks now, and whether it matters who uses them.

use std::{cmp::Reverse, collections::BTreeMap};

use observer_abi::alloc::{TASK_BLOCKED, TASK_KERNEL, TaskRow};

use super::{Disk, Uninterruptible};
use crate::{signal::comm_text, snapshot::MAX_ROWS};

/// Those who use disks are read from this time of a request on, of a disk that has requests for this share of the time.
const SENDERS_WAIT_NS: u64 = 10_000_000;
/// See [`SENDERS_WAIT_NS`].
const SENDERS_BUSY: f64 = 0.5;

/// Whether it matters who has these disks read and write: one of them is slow.
pub(super) fn want_senders(disks: &[Disk]) -> bool {
    let slow = |disk: &Disk| disk.wait_ns >= SENDERS_WAIT_NS && disk.busy_ratio >= SENDERS_BUSY;
    disks.iter().any(slow)
}

/// Processes with tasks that sleep uninterruptibly now, be it for a moment; those with most of them first.
pub(super) fn uninterruptible(tasks: &[TaskRow]) -> Vec<Uninterruptible> {
    let mut rows: BTreeMap<u32, Uninterruptible> = BTreeMap::new();
    let blocked =
        tasks.iter().filter(|row| row.flags & (TASK_BLOCKED | TASK_KERNEL) == TASK_BLOCKED);
    for row in blocked {
        let one = rows.entry(row.tgid).or_insert_with(|| Uninterruptible {
            pid: row.tgid,
            name: comm_text(&row.comm),
            tasks: 0,
        });
        one.tasks += 1;
    }
    let mut rows: Vec<_> = rows.into_values().collect();
    rows.sort_by_key(|row| Reverse(row.tasks));
    rows.truncate(MAX_ROWS);
    rows
}
