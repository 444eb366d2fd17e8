//! Hands records of the ring to the signals.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use observer_abi::{
    Header, Kind,
    alloc::Exit,
    oom::{Kill, Reclaim},
    sched::{LoopGap, Stall},
    tcp::{Closed, Listening},
};
use zerocopy::FromBytes as _;

use super::{Directory, NamesAt};
use crate::{
    dns::Names,
    proc,
    signal::{Now, Output, alloc::Alloc, oom::Oom, sched::Sched, tcp::Tcp},
};

/// The folds, while records are handed to them.
pub(super) struct Fold<'a> {
    pub(super) alloc: &'a mut Alloc,
    pub(super) oom: &'a mut Oom,
    pub(super) tcp: &'a mut Tcp,
    pub(super) proc: &'a mut proc::Rows,
    pub(super) sched: &'a mut Sched,
    pub(super) who: &'a mut Directory,
    pub(super) output: &'a mut Output,
    pub(super) listeners: &'a mut BTreeSet<u32>,
    pub(super) names: &'a Names,
    pub(super) now: Now,
}

impl Fold<'_> {
    /// Folds one record of the ring; `None` if it is malformed.
    pub(super) fn record(&mut self, bytes: &[u8]) -> Option<()> {
        let (header, _) = Header::read_from_prefix(bytes).ok()?;
        let (now, who, out) = (self.now, &mut *self.who, &mut *self.output);
        match Kind::from_number(header.kind)? {
            Kind::TcpClosed => {
                let names = NamesAt(self.names, now.unix_ns);
                let closed = Closed::read_from_bytes(bytes).ok()?;
                let own = (closed.key, closed.owned.birth_ktime_ns);
                let told = self.proc.told_as(&closed.socket).unwrap_or(own);
                self.tcp.closed_as(&closed, told, now, &names, who, out);
            }
            Kind::TcpListening => {
                let record = Listening::read_from_bytes(bytes).ok()?;
                self.listeners.insert(record.header.tgid);
                self.tcp.listening(&record);
            }
            Kind::LoopGap => self.sched.gap(LoopGap::read_from_bytes(bytes).ok()?, now, who, out),
            Kind::Stall => self.sched.stall(&Stall::read_from_bytes(bytes).ok()?, now, who, out),
            Kind::Reclaim => {
                self.oom.reclaim(&Reclaim::read_from_bytes(bytes).ok()?, now, who, out)
            }
            Kind::OomKill => {
                let kill = Kill::read_from_bytes(bytes).ok()?;
                let last = self.alloc.process_memory(kill.header.tgid);
                self.oom.kill(&kill, last, now, who, out);
            }
            Kind::Exit => self.alloc.exit(&Exit::read_from_bytes(bytes).ok()?, now, who, out),
        }
        Some(())
    }
}
