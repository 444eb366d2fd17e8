//! Hands the processes of interest to the thread that reads limits, and takes what it has found.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
};

use observer_abi::alloc::{TASK_KERNEL, TASK_LEADER, TaskRow};

use super::Sampler;
use crate::{
    limits::{Candidate, MAX_CANDIDATES, Reading, Round},
    signal::Now,
};

/// A process that is smaller and neither listens nor has a connection is not looked at: what fails for want of files,
/// heap or ports on a server is none of these.
const MIN_BYTES: u64 = 16 << 20;

impl Sampler {
    /// The reading of a round that has just ended, if one has; begins the next one.
    pub(super) fn read_limits(&mut self, now: Now, memory_total_bytes: u64) -> Option<Reading> {
        let limits = self.limits.as_mut()?;
        let reading = limits.take(now);
        if limits.is_due(now) && !self.rows.tasks.is_empty() {
            let round = Round { candidates: self.candidates(), memory_total_bytes };
            self.limits.as_mut()?.begin(now, round);
        }
        reading
    }

    /// Watched processes, then the largest; what is beyond the bound is counted.
    fn candidates(&mut self) -> Vec<Candidate> {
        let mut children: HashMap<u32, u64> = HashMap::new();
        for row in self.rows.tasks.iter().filter(|row| is_process(row)) {
            *children.entry(row.parent_tgid).or_default() += 1;
        }
        let bytes = |pages: i64| u64::try_from(pages).unwrap_or(0).saturating_mul(self.page_bytes);
        let size = |row: &TaskRow| {
            bytes(row.anon_pages)
                .saturating_add(bytes(row.file_pages))
                .saturating_add(bytes(row.shmem_pages))
        };
        let watched: BTreeSet<u32> = self.watchlist.pids().collect();
        let own_pid = std::process::id();
        let mut wanted: Vec<_> = self
            .rows
            .tasks
            .iter()
            .filter(|row| is_process(row) && row.tgid != own_pid)
            .map(|row| (watched.contains(&row.tgid), size(row), row))
            .filter(|(is_watched, size, _)| *is_watched || *size >= MIN_BYTES)
            .collect();
        wanted.sort_unstable_by_key(|(is_watched, size, row)| {
            (Reverse(*is_watched), Reverse(*size), row.tgid)
        });
        self.limits_refused += wanted.len().saturating_sub(MAX_CANDIDATES) as u64;
        let rows = wanted.into_iter().take(MAX_CANDIDATES).filter_map(|(_, rss_bytes, row)| {
            Some(Candidate {
                process: self.who.0.get(row.tgid, Some(row.start_boottime_ns))?,
                rss_bytes,
                anon_bytes: bytes(row.anon_pages).saturating_add(bytes(row.swap_pages)),
                children: children.get(&row.tgid).copied().unwrap_or(0),
            })
        });
        rows.collect()
    }
}

fn is_process(row: &TaskRow) -> bool {
    row.flags & TASK_LEADER != 0 && row.flags & TASK_KERNEL == 0
}
