//! Which threads are watched: those of processes that listen on TCP or own connections of the ledger.

use std::collections::{BTreeMap, BTreeSet};

use observer_abi::sched::MAX_WATCHED;

/// Changes that the agent is to make to the kernel's table.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Threads to watch.
    pub add: Vec<u32>,
    /// Threads to let go.
    pub remove: Vec<u32>,
}

/// Watched processes and their threads.
#[derive(Debug, Default)]
pub struct Watchlist {
    /// Process -> its watched threads.
    threads: BTreeMap<u32, BTreeSet<u32>>,
    count: usize,
    /// Threads not watched for want of room.
    refused: u64,
}

impl Watchlist {
    /// Threads that are watched, with their process.
    pub fn threads(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.threads.iter().flat_map(|(pid, tids)| tids.iter().map(|tid| (*pid, *tid)))
    }

    /// Watched processes.
    pub fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.threads.keys().copied()
    }

    /// Number of watched threads.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether nothing is watched.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Threads not watched for want of room, since the start.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Makes the list hold exactly the threads of `wanted`; returns what has changed.
    pub fn update(&mut self, wanted: BTreeMap<u32, BTreeSet<u32>>) -> Changes {
        let mut changes = Changes::default();
        let before: BTreeSet<(u32, u32)> = self.threads().collect();
        let after: BTreeSet<(u32, u32)> =
            wanted.iter().flat_map(|(pid, tids)| tids.iter().map(|tid| (*pid, *tid))).collect();
        for (pid, tid) in before.difference(&after) {
            self.drop_thread(*pid, *tid);
            changes.remove.push(*tid);
        }
        for (pid, tid) in after.difference(&before) {
            if self.count >= MAX_WATCHED {
                self.refused += 1;
                continue;
            }
            self.threads.entry(*pid).or_default().insert(*tid);
            self.count += 1;
            changes.add.push(*tid);
        }
        changes
    }

    /// The kernel's table had no room for a thread.
    pub fn refuse(&mut self, tid: u32) {
        let owner = self.threads().find(|(_, other)| *other == tid).map(|(pid, _)| pid);
        if let Some(pid) = owner {
            self.drop_thread(pid, tid);
            self.refused += 1;
        }
    }

    fn drop_thread(&mut self, pid: u32, tid: u32) {
        if let Some(tids) = self.threads.get_mut(&pid) {
            self.count -= usize::from(tids.remove(&tid));
            if tids.is_empty() {
                self.threads.remove(&pid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(threads: &[(u32, &[u32])]) -> BTreeMap<u32, BTreeSet<u32>> {
        threads.iter().map(|(pid, tids)| (*pid, tids.iter().copied().collect())).collect()
    }

    #[test]
    fn only_changes_reach_the_kernel() {
        let mut list = Watchlist::default();
        let first = list.update(wanted(&[(1, &[1, 2]), (9, &[9])]));
        assert_eq!(first, Changes { add: vec![1, 2, 9], remove: vec![] });
        assert_eq!(list.update(wanted(&[(1, &[1, 2]), (9, &[9])])), Changes::default());
        let third = list.update(wanted(&[(1, &[2, 3])]));
        assert_eq!(third, Changes { add: vec![3], remove: vec![1, 9] });
        assert_eq!(list.len(), 2);
        list.refuse(3);
        assert_eq!((list.len(), list.refused()), (1, 1));
    }

    #[test]
    fn threads_beyond_the_bound_are_counted() {
        let mut list = Watchlist::default();
        let many: Vec<u32> = (1..=MAX_WATCHED as u32 + 5).collect();
        let changes = list.update(wanted(&[(1, &many)]));
        assert_eq!((changes.add.len(), list.len(), list.refused()), (MAX_WATCHED, MAX_WATCHED, 5));
    }
}
