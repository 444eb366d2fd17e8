//! The slower rounds of the sampler: who holds which socket, whose threads are watched, where memory comes from.

use std::collections::{BTreeMap, BTreeSet};

use observer_abi::{
    alloc::{TASK_KERNEL, TASK_LEADER, TASK_WATCHED},
    tcp::{HolderRow, state},
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
/// Sampled faults are taken this often, also while no process grows: two stacks of one hash have one place in the kernel's
/// table, and the more there are in it, the more are lost.
const FAULTS_EVERY_NS: u64 = 3_000_000_000;
/// Names are asked for at most this often.
const NAMES_EVERY_NS: u64 = 1_000_000_000;
/// The stacks of one process are named at most this often: for a large binary it takes a child process some tenths of a
/// second.
const PROCESS_NAMES_EVERY_NS: u64 = 15_000_000_000;
/// Kernel addresses named at once.
const MAX_KERNEL_ADDRESSES: usize = 64;

impl Sampler {
    /// Finds owners of connections that have none, and who listens.
    pub(super) fn find_holders(&mut self, now: Now) {
        let unowned = self.rows.sockets.iter().filter(|row| row.owned.tgid == 0).count();
        if unowned > self.unowned {
            self.last.holders_pause_ns = HOLDERS_RETRY_NS;
        }
        self.unowned = unowned;
        let pause = if unowned > 0 { self.last.holders_pause_ns } else { HOLDERS_EVERY_NS };
        if self.last.holders_ns != 0 && now.since(self.last.holders_ns) < pause {
            return;
        }
        self.last.holders_ns = now.ktime_ns;
        if let Some(Err(error)) = self.packets.as_mut().map(crate::kernel::Packets::follow_routes) {
            self.last.warn(now, &anyhow::Error::new(error).context("cannot listen for names"));
        }
        if let Err(error) = self.read_holders(now) {
            self.last.warn(now, &error);
            return;
        }
        let (listening, held): (Vec<&HolderRow>, Vec<&HolderRow>) =
            self.rows.holders.iter().partition(|row| row.state == state::LISTEN);
        self.listeners = listening.iter().map(|row| row.tgid).collect();
        listening.into_iter().for_each(|row| self.tcp.listener(row));
        if held.is_empty() {
            self.last.holders_pause_ns = (self.last.holders_pause_ns * 2).min(HOLDERS_EVERY_NS);
        } else if let Err(error) = self.kernel.sockets(&mut self.rows.sockets) {
            // The owners are in the ledger; the next tick reads them.
            self.last.warn(now, &error);
        }
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
        let seen: BTreeSet<u32> = self
            .rows
            .tasks
            .iter()
            .filter(|row| row.flags & TASK_WATCHED != 0)
            .map(|row| row.tid)
            .collect();
        let mut known: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for (pid, tid) in self.watchlist.threads() {
            known.entry(pid).or_default().insert(tid);
        }
        let wanted = pids.iter().map(|pid| {
            let same = known.remove(pid).filter(|tids| {
                threads.get(pid).copied() == u32::try_from(tids.len()).ok() && tids.is_subset(&seen)
            });
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
                .flat_map(|process| [process.cgroup.as_str(), process.cpu_cgroup.as_str()])
                .filter(|path| !path.is_empty())
                .collect();
            cgroups.watch(paths);
        }
    }

    /// Takes sampled faults for processes that grow, and drops the others.
    pub(super) fn take_faults(&mut self, now: Now) {
        if now.since(self.last.faults_ns) < FAULTS_EVERY_NS {
            return;
        }
        let growers = self.alloc.growers();
        self.last.faults_ns = now.ktime_ns;
        let Some(tables) = self.kernel.tables() else { return };
        let faults = tables.take_faults();
        let mut stacks = BTreeSet::new();
        for (site, faults) in &faults {
            stacks.insert(site.stack_id);
            if growers.contains(&site.tgid) {
                let addresses = tables.stack(site.stack_id);
                if !addresses.is_empty() {
                    self.alloc.add_stack(site.tgid, addresses, faults.leaf_return, faults.samples);
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
        let addresses = self.sched.unnamed().into_iter().take(MAX_KERNEL_ADDRESSES);
        let kernel_stacks: Vec<Vec<u64>> = addresses.map(|address| vec![address]).collect();
        self.named.retain(|_, at| now.since(*at) < PROCESS_NAMES_EVERY_NS);
        let user = self.alloc.unnamed().into_iter().find(|(pid, _)| !self.named.contains_key(pid));
        if kernel_stacks.is_empty() && user.is_none() {
            return None;
        }
        self.last.names_ns = now.ktime_ns;
        let (pid, stacks) = user.unwrap_or_default();
        self.named.insert(pid, now.ktime_ns);
        let (stacks, leaf_returns) = stacks.into_iter().unzip();
        Some(Request { pid, stacks, leaf_returns, kernel_stacks })
    }

    /// Takes the answer to [`Sampler::name_request`].
    pub fn name(&mut self, request: &Request, response: Response) {
        for (addresses, frames) in request.stacks.iter().zip(response.stacks) {
            self.alloc.name_stack(request.pid, addresses, frames);
        }
        for (addresses, frames) in request.kernel_stacks.iter().zip(response.kernel_stacks) {
            if let (Some(address), Some(name)) = (addresses.first(), frames.into_iter().next()) {
                self.sched.name(*address, name);
            }
        }
    }
}
