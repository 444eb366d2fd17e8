//! The slower rounds of the sampler: who holds which socket, whose threads are watched, where memory comes from.

use std::collections::{BTreeMap, BTreeSet};

use observer_abi::{
    alloc::{TASK_KERNEL, TASK_LEADER},
    tcp::state,
};

use super::{Sampler, clock::now};
use crate::{
    signal::{Now, comm_text},
    symbolize::{Request, Response},
};

/// The table of socket holders is read at least this often; it tells who listens.
const HOLDERS_EVERY_NS: u64 = 10_000_000_000;
/// A connection whose owner was not found is looked for again after this time, then twice as long, up to the above.
pub(super) const HOLDERS_RETRY_NS: u64 = 500_000_000;
/// Sampled faults are taken this often while a process grows.
const FAULTS_EVERY_NS: u64 = 3_000_000_000;
/// Without one, they are dropped this often, so that the tables do not fill with what nobody asks for.
const FAULTS_DROPPED_EVERY_NS: u64 = 30_000_000_000;
/// A process's stacks are named at most this often: it takes a child process some tenths of a second.
const NAMES_EVERY_NS: u64 = 10_000_000_000;

impl Sampler {
    /// Finds owners of connections that have none, and who listens.
    pub(super) fn find_holders(&mut self, now: Now) {
        let unowned = self.rows.sockets.iter().any(|row| row.owned.tgid == 0);
        let pause = if unowned { self.last.holders_pause_ns } else { HOLDERS_EVERY_NS };
        if self.last.holders_ns != 0 && now.since(self.last.holders_ns) < pause {
            return;
        }
        self.last.holders_ns = now.ktime_ns;
        if let Err(error) = self.kernel.holders(&mut self.rows.holders) {
            tracing::warn!("{error:#}");
            return;
        }
        self.listeners.clear();
        let mut found = 0;
        for row in &self.rows.holders {
            if row.state == state::LISTEN {
                self.listeners.insert(row.tgid);
                self.tcp.listener(row);
            } else if let Some(tables) = self.kernel.tables() {
                let unowned = tables.owned(row.key).filter(|owned| owned.tgid == 0);
                if let Some(mut owned) = unowned {
                    (owned.tgid, owned.tid, owned.comm) = (row.tgid, row.tgid, row.comm);
                    tables.set_owned(row.key, owned);
                    found += 1;
                }
            }
        }
        let patience = if found > 0 { HOLDERS_RETRY_NS } else { self.last.holders_pause_ns * 2 };
        self.last.holders_pause_ns = patience.min(HOLDERS_EVERY_NS);
    }

    /// Watches the threads of processes that listen, own connections, or are named in the configuration.
    pub(super) fn update_watchlist(&mut self) {
        let owners = self.rows.sockets.iter().map(|row| row.owned.tgid).filter(|pid| *pid != 0);
        let mut pids: BTreeSet<u32> = owners.chain(self.listeners.iter().copied()).collect();
        let own_pid = std::process::id();
        let mut threads: BTreeMap<u32, u32> = BTreeMap::new();
        for row in self
            .rows
            .tasks
            .iter()
            .filter(|row| row.flags & TASK_LEADER != 0 && row.flags & TASK_KERNEL == 0)
        {
            threads.insert(row.tgid, row.threads);
            if self.watch_names.iter().any(|name| *name == comm_text(&row.comm)) {
                pids.insert(row.tgid);
            }
        }
        pids.retain(|pid| threads.contains_key(pid) && *pid != own_pid);
        let mut known: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for (pid, tid) in self.watchlist.threads() {
            known.entry(pid).or_default().insert(tid);
        }
        let wanted = pids.iter().map(|pid| {
            let same = known
                .remove(pid)
                .filter(|tids| threads.get(pid).copied() == u32::try_from(tids.len()).ok());
            (*pid, same.unwrap_or_else(|| self.who.0.threads(*pid).into_iter().collect()))
        });
        let changes = self.watchlist.update(wanted.collect());
        if let Some(tables) = self.kernel.tables() {
            changes.remove.iter().for_each(|tid| tables.unwatch(*tid));
            for tid in changes.add {
                if !tables.watch(tid) {
                    self.watchlist.refuse(tid);
                }
            }
        }
        if let Some(cgroups) = &mut self.files.cgroups {
            let processes: Vec<_> =
                pids.iter().filter_map(|pid| self.who.0.get(*pid, None)).collect();
            let reclaimers: Vec<_> = self
                .rows
                .reclaimers
                .iter()
                .filter_map(|(pid, _)| self.who.0.get(*pid, None))
                .collect();
            let paths: BTreeSet<&str> = processes
                .iter()
                .chain(&reclaimers)
                .map(|process| process.cgroup.as_str())
                .filter(|path| !path.is_empty())
                .collect();
            cgroups.watch(paths);
        }
    }

    /// Takes sampled faults for processes that grow, and drops the others.
    pub(super) fn take_faults(&mut self, now: Now) {
        let growers = self.alloc.growers();
        let pause = if growers.is_empty() { FAULTS_DROPPED_EVERY_NS } else { FAULTS_EVERY_NS };
        if now.since(self.last.faults_ns) < pause {
            return;
        }
        self.last.faults_ns = now.ktime_ns;
        let Some(tables) = self.kernel.tables() else { return };
        let faults = tables.take_faults();
        let mut stacks = BTreeSet::new();
        for (site, samples) in &faults {
            stacks.insert(site.stack_id);
            if growers.contains(&site.tgid) {
                let addresses = tables.stack(site.stack_id);
                if !addresses.is_empty() {
                    self.alloc.add_stack(site.tgid, addresses, site.leaf_return, *samples);
                }
            }
        }
        stacks.into_iter().for_each(|id| tables.forget_stack(id));
    }

    /// What should be given names now; the answer goes to [`Sampler::name`].
    pub fn name_request(&mut self) -> Option<Request> {
        let now = now();
        if now.since(self.last.names_ns) < NAMES_EVERY_NS {
            return None;
        }
        let kernel_stacks: Vec<Vec<u64>> =
            self.sched.unnamed().into_iter().take(64).map(|address| vec![address]).collect();
        let user = self.alloc.unnamed().into_iter().next();
        if kernel_stacks.is_empty() && user.is_none() {
            return None;
        }
        self.last.names_ns = now.ktime_ns;
        let (pid, stacks) = user.unwrap_or_default();
        let (stacks, leaf_returns) = stacks.into_iter().unzip();
        Some(Request { pid, stacks, leaf_returns, kernel_stacks })
    }

    /// Takes the answer to [`Sampler::name_request`].
    pub fn name(&mut self, request: &Request, response: Response) {
        let asked = request.stacks.iter().zip(&request.leaf_returns);
        for ((addresses, leaf_return), frames) in asked.zip(response.stacks) {
            self.alloc.name_stack(request.pid, addresses, *leaf_return, frames);
        }
        for (addresses, frames) in request.kernel_stacks.iter().zip(response.kernel_stacks) {
            if let (Some(address), Some(name)) = (addresses.first(), frames.into_iter().next()) {
                self.sched.name(*address, name);
            }
        }
    }
}
