//! What the sampler tells: the snapshot, with health and losses.

use std::collections::{BTreeMap, BTreeSet};

use observer_abi::Counter;

use super::{
    Sampler,
    clock::{self, now},
};
use crate::{
    detect,
    host::cgroup::Cgroups,
    snapshot::{Exporter, Health, Loss, Snapshot, VERSION},
};

impl Sampler {
    /// The present state. `exporters` and `losses` come from the exporter, if there is one.
    pub fn snapshot(&mut self, exporters: Vec<Exporter>, losses: Vec<Loss>) -> Snapshot {
        let now = now();
        let mut snapshot = Snapshot {
            version: VERSION,
            time_unix_ns: now.unix_ns,
            host_name: self.info.host_name.clone(),
            kernel: self.info.kernel.clone(),
            uptime_ns: clock::boottime_ns(),
            alloc: self.alloc.view(),
            oom: self.oom.view(),
            tcp: self.tcp.view(),
            sched: self.sched.view(),
            detect: detect::View::default(),
            limit: self.limit.view(),
            processes: BTreeMap::new(),
            health: Health {
                programs: self.programs(),
                losses: [self.losses(), losses].concat(),
                cpu_ratio: self.usage.cpu_ratio(),
                rss_bytes: self.usage.rss_bytes,
                bpf_map_bytes: self.map_bytes,
                exporters,
            },
        };
        let mut pids: BTreeSet<u32> = snapshot.alloc.processes.iter().map(|row| row.pid).collect();
        pids.extend(snapshot.tcp.connections.iter().map(|row| row.pid));
        pids.extend(snapshot.sched.threads.iter().map(|row| row.pid));
        pids.extend(snapshot.sched.consumers.iter().map(|row| row.pid));
        pids.extend(snapshot.sched.blocked.iter().map(|row| row.pid));
        pids.extend(snapshot.oom.reclaimers.iter().map(|row| row.pid));
        pids.extend(snapshot.oom.kills.iter().flat_map(|kill| [kill.victim_pid, kill.trigger_pid]));
        pids.extend(snapshot.limit.rows.iter().map(|row| row.pid));
        pids.extend(snapshot.limit.runtimes.iter().map(|runtime| runtime.pid));
        pids.extend(snapshot.alloc.failures.iter().map(|failure| failure.pid));
        pids.remove(&0);
        let known = pids.into_iter().filter_map(|pid| Some((pid, self.who.0.get(pid, None)?)));
        snapshot.processes = known.collect();
        snapshot
    }

    /// Judges the snapshot and puts what is found into it. `ends` at the last tick.
    pub fn judge(&mut self, snapshot: &mut Snapshot, ends: bool) {
        self.detect.tick(snapshot, ends, &mut self.output);
        snapshot.detect = self.detect.view().clone();
        let clock = snapshot.detect.findings.iter().find(|f| f.kind == detect::EXHAUSTION.name);
        let left_s = clock.and_then(|finding| finding.time_left_seconds);
        let culprit_pid = clock.and_then(|finding| finding.culprit.as_ref()?.pid);
        self.oom.foretell(left_s, culprit_pid);
        (snapshot.oom.exhaustion_seconds, snapshot.oom.culprit_pid) = (left_s, culprit_pid);
        if !ends {
            self.probe_malloc(snapshot);
        }
    }

    fn losses(&self) -> Vec<Loss> {
        let ring = self
            .counters
            .ring_losses()
            .map(|(kind, count)| (format!("ring.{}", kind.name()), count));
        let own = [
            ("ring.malformed", self.malformed),
            ("ledger.full", self.counters.get(Counter::LedgerFull)),
            ("ledger.unseen", self.counters.get(Counter::TcpUnseen)),
            ("alloc.stacks", self.counters.get(Counter::FaultsLost)),
            ("alloc.failures", self.counters.get(Counter::FailuresUntold)),
            ("oom.reclaimers", self.counters.get(Counter::ReclaimersFull)),
            ("sched.watchlist", self.watchlist.refused()),
            ("sched.run_delay_spans", self.sched.limited()),
            ("identity.evicted", self.who.0.evicted()),
            ("tcp.peers", self.lost_peers),
            ("dns.names", self.names.evicted()),
            ("limit.processes", self.limits_refused),
            ("cgroups", self.files.cgroups.as_ref().map_or(0, Cgroups::refused)),
            ("tick.items", self.output.dropped),
        ];
        let own = own.map(|(stage, count)| (stage.to_owned(), count));
        let missed = self.misses.iter().map(|(name, count)| (format!("missed.{name}"), *count));
        let all = ring.into_iter().chain(own).chain(missed);
        all.map(|(stage, count)| Loss { stage, count }).collect()
    }
}
