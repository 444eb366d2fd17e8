//! One reading of tasks, sockets, holders and maps: from BPF where it runs, else from `/proc` and the kernel's socket
//! diagnosis.

use anyhow::Result;
use observer_abi::{
    Counter,
    alloc::TaskRow,
    oom::Reclaimer,
    sched::Watch,
    tcp::{Closed, ENDED, HolderRow, SocketRow},
};

use super::{NamesAt, Sampler};
use crate::{
    proc::Brought,
    signal::{Now, tcp},
};

/// Rows read at a tick; kept, so that a tick allocates nothing once they have grown.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) tasks: Vec<TaskRow>,
    pub(super) sockets: Vec<SocketRow>,
    pub(super) holders: Vec<HolderRow>,
    pub(super) watches: Vec<(u32, Watch)>,
    pub(super) reclaimers: Vec<(u32, Reclaimer)>,
}

impl Sampler {
    /// Reads maps, tasks and sockets. What cannot be read stays as it was at the tick before; false if that is the tasks.
    pub(super) fn read_rows(&mut self, now: Now) -> bool {
        let tasks = self.read_tasks(now);
        let sockets = self.read_sockets(now);
        let fresh = matches!(tasks, Ok(Brought::Fresh));
        for error in [tasks.err(), sockets.err()].into_iter().flatten() {
            self.last.warn(now, &error);
        }
        let rows = &mut self.rows;
        rows.watches.clear();
        rows.reclaimers.clear();
        if let Some(tables) = self.kernel.tables() {
            self.counters = tables.counters();
            let (ended, unseen) = self.swept;
            for (counter, swept) in [(Counter::TcpClosed, ended), (Counter::TcpUnseen, unseen)] {
                self.counters.set(counter, self.counters.get(counter) + swept);
            }
            rows.watches.extend(
                self.watchlist.threads().filter_map(|(_, tid)| Some((tid, tables.watched(tid)?))),
            );
            rows.reclaimers.extend(tables.reclaimers());
        } else {
            // Nobody counts their turns; their time on a CPU and waiting for one is known.
            rows.watches.extend(self.watchlist.threads().map(|(_, tid)| (tid, Watch::default())));
        }
        if let Some((opened, closed, refused)) = self.proc.counts() {
            self.counters.set(Counter::TcpOpened, opened);
            self.counters.set(Counter::TcpClosed, closed);
            self.counters.set(Counter::LedgerFull, refused);
        }
        fresh
    }

    fn read_tasks(&mut self, now: Now) -> Result<Brought> {
        let rows = &mut self.rows.tasks;
        match self.proc.tasks(now, self.watchlist.threads(), rows) {
            Some(read) => read,
            None => self.kernel.tasks(rows).map(|()| Brought::Fresh),
        }
    }

    fn read_sockets(&mut self, now: Now) -> Result<()> {
        let mut closed: Vec<Closed> = Vec::new();
        let rows = &mut self.rows.sockets;
        let Some(read) = self.proc.sockets(now, rows, &mut closed) else {
            self.kernel.sockets(rows)?;
            self.proc.name_owners(rows);
            return Ok(());
        };
        for record in &closed {
            let names = NamesAt(&self.names, now.unix_ns);
            self.tcp.closed(record, now, &names, &mut self.who, &mut self.output);
        }
        read.map(drop)
    }

    /// Reads at which events programs were skipped. The kernel adds that up over all CPUs: not at each tick.
    pub(super) fn read_misses(&mut self, now: Now) {
        const READ_EVERY_NS: u64 = 10_000_000_000;
        if now.since(self.last.misses_ns) >= READ_EVERY_NS {
            self.last.misses_ns = now.ktime_ns;
            self.misses.clear();
            self.misses.extend(self.kernel.misses().read());
        }
    }

    /// Tells connections of the ledger as ended whose socket is gone. Only the iterator's rows have its keys.
    pub(super) fn sweep_ledger(&mut self, now: Now) {
        const SWEEP_EVERY_NS: u64 = 60_000_000_000;
        if now.since(self.last.sweep_ns) < SWEEP_EVERY_NS || !self.proc.iterator_has_sockets() {
            return;
        }
        self.last.sweep_ns = now.ktime_ns;
        let Some(tables) = self.kernel.tables() else { return };
        for (key, owned) in self.gone.look(tables.ledger(), &self.rows.sockets, now) {
            if tables.strike(key, owned.birth_ktime_ns) && owned.role != ENDED {
                let (record, is_unseen) = tcp::end(key, owned, now);
                self.swept.0 += 1;
                self.swept.1 += u64::from(is_unseen);
                let names = NamesAt(&self.names, now.unix_ns);
                self.tcp.closed(&record, now, &names, &mut self.who, &mut self.output);
            }
        }
    }

    /// Reads who holds which socket; owners of connections that had none are then in their rows.
    pub(super) fn read_holders(&mut self, now: Now) -> Result<()> {
        let rows = &mut self.rows;
        match self.proc.holders(now, &mut rows.holders, &mut rows.sockets) {
            Some(read) => read.map(drop),
            None => self.kernel.holders(&mut rows.holders),
        }
    }
}
