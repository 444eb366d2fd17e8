//! Rows without BPF: what the iterators would give, from `/proc/PID` and the socket diagnosis of the kernel.
//!
//! They take the place of an iterator that cannot run. They see less, which their verdict says: what comes and goes between
//! two readings, the owner of a connection that closed before its files were looked through, the stacks of blocked tasks.
//! They need no privilege for what the agent's user may see.
//!
//! Each kind of row is read as often as its cost allows ([`Pace`]), so that a host with ten thousand processes gets older
//! rows and not a dearer agent.

mod consumers;
mod diag;
mod file;
mod holders;
mod pace;
mod senders;
mod sockets;
mod tasks;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use observer_abi::{
    alloc::TaskRow,
    tcp::{Closed, HolderRow, Socket, SocketRow},
};

pub(crate) use self::diag::Diag;
pub use self::{consumers::Consumers, senders::Senders};
use self::{holders::look, pace::Pace, sockets::Sockets, tasks::Tasks};
use crate::{
    signal::Now,
    snapshot::{Program, Verdict},
};

/// What takes the place of the iterators that do not run here.
pub struct Rows {
    tasks: Option<(Tasks, Pace)>,
    /// Followed if the iterator of connections does not run, or that of their holders.
    sockets: Option<(Sockets, Pace)>,
    /// Whether rows of connections come from the iterator all the same.
    iterator_has_sockets: bool,
    /// Why there are no sockets, although the iterator does not run.
    no_sockets: String,
    holders: Pace,
    /// Whether a program tells of connections that end.
    ends_are_told: bool,
    /// Processes whose files could not be looked through at the last look, and those whose could.
    unreadable: u64,
    readable: u64,
}

/// What a reading brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brought {
    /// New rows.
    Fresh,
    /// It was not yet time for the next reading: the rows are those before.
    Same,
}

impl Rows {
    /// Opens what takes the place of the iterators that do not run, by the verdicts of the programs.
    pub fn open(programs: &[Program], ports: &[u16], hz: u64) -> Self {
        let missing = |name: &str| {
            programs.iter().any(|row| row.name == name && row.verdict == Verdict::Impossible)
        };
        let without = missing("tcp_rows") || missing("socket_holders");
        let sockets = without.then(|| Sockets::open(ports, hz));
        let no_sockets = match &sockets {
            Some(Err(error)) => format!("{error:#}"),
            _ => String::new(),
        };
        Self {
            tasks: missing("task_rows").then(Default::default),
            sockets: sockets.and_then(Result::ok).map(|sockets| (sockets, Pace::default())),
            iterator_has_sockets: !missing("tcp_rows"),
            no_sockets,
            holders: Pace::default(),
            ends_are_told: !missing("inet_sock_set_state"),
            unreadable: 0,
            readable: 0,
        }
    }

    /// Every process, and of the other threads those of `watched` (process, thread); `None` if the iterator runs.
    pub fn tasks(
        &mut self,
        now: Now,
        watched: impl Iterator<Item = (u32, u32)>,
        rows: &mut Vec<TaskRow>,
    ) -> Option<Result<Brought>> {
        let (tasks, pace) = self.tasks.as_mut()?;
        Some(pace.read(now, || tasks.read(watched, rows)))
    }

    /// Whether the iterator tells every open connection.
    pub fn iterator_has_sockets(&self) -> bool {
        self.iterator_has_sockets
    }

    /// Every open connection of the ports and peers that are followed. Those that have ended since the last reading are
    /// added to `closed`, unless a program tells of them. `None` if the iterator runs, or nothing can take its place.
    pub fn sockets(
        &mut self,
        now: Now,
        rows: &mut Vec<SocketRow>,
        closed: &mut Vec<Closed>,
    ) -> Option<Result<Brought>> {
        if self.iterator_has_sockets {
            return None;
        }
        let (sockets, pace) = self.sockets.as_mut()?;
        let brought = pace.read(now, || sockets.read(now, rows, closed));
        if self.ends_are_told {
            closed.clear();
        }
        Some(brought)
    }

    /// Who listens, and who holds a connection that had no owner; `rows` then have the owners. `None` if the iterator runs,
    /// or nothing can take its place.
    pub fn holders(
        &mut self,
        now: Now,
        holders: &mut Vec<HolderRow>,
        rows: &mut Vec<SocketRow>,
    ) -> Option<Result<Brought>> {
        let (sockets, _) = self.sockets.as_mut()?;
        let from_iterator = self.iterator_has_sockets;
        let read = || {
            if from_iterator {
                // Only to know their inodes; how they end is told by others.
                sockets.read(now, &mut Vec::new(), &mut Vec::new())?;
            }
            let look = look(sockets.wanted()?, &sockets.owners())?;
            (self.unreadable, self.readable) = (look.unreadable, look.readable);
            sockets.own(&look.found);
            if from_iterator {
                sockets.name_owners(rows);
            } else {
                sockets.rows(rows);
            }
            *holders = look.found;
            Ok(())
        };
        Some(self.holders.read(now, read))
    }

    /// Gives rows of the iterator the owners that were found in `/proc`.
    pub fn name_owners(&self, rows: &mut [SocketRow]) {
        if let Some((sockets, _)) = &self.sockets {
            sockets.name_owners(rows);
        }
    }

    /// Has connections to this address followed, whatever their port; false if there is no room.
    pub fn add_peer(&mut self, address: [u8; 16]) -> bool {
        self.sockets.as_mut().is_none_or(|(sockets, _)| sockets.add_peer(address))
    }

    /// Key and birth by which the rows here have told of a connection that a program now says has ended; `None` if they have
    /// not, or rows come from the iterator.
    pub fn told_as(&mut self, socket: &Socket) -> Option<(u64, u64)> {
        let (sockets, _) = self.sockets.as_mut().filter(|_| !self.iterator_has_sockets)?;
        sockets.told_as(socket)
    }

    /// Connections opened and closed since the start, and those that there was no room to follow; `None` if programs count
    /// them.
    pub fn counts(&self) -> Option<(u64, u64, u64)> {
        let from_programs = self.iterator_has_sockets || self.ends_are_told;
        self.sockets.as_ref().filter(|_| !from_programs).map(|(sockets, _)| sockets.counts())
    }

    /// Replaces the verdicts of the iterators whose place is taken.
    pub fn amend(&self, programs: &mut [Program]) {
        for row in programs.iter_mut() {
            match row.name.as_str() {
                "task_rows" => {
                    if let Some((_, pace)) = &self.tasks {
                        degrade(row, "proc/PID/{stat,statm,status}", TASKS_LOSS, pace);
                    }
                }
                "tcp_rows" => match &self.sockets {
                    _ if self.iterator_has_sockets => {}
                    Some((_, pace)) => degrade(row, "netlink/sock_diag", SOCKETS_LOSS, pace),
                    None if !self.no_sockets.is_empty() => {
                        row.reason =
                            format!("{}; nor does sock_diag: {}", row.reason, self.no_sockets);
                        row.remedy = format!("{}; or load the kernel module tcp_diag", row.remedy);
                    }
                    None => {}
                },
                "socket_holders"
                    if self.sockets.is_some() && row.verdict == Verdict::Impossible =>
                {
                    degrade(row, "proc/PID/fd", HOLDERS_LOSS, &self.holders);
                    self.tell_unreadable(row);
                }
                _ => {}
            }
        }
    }

    fn tell_unreadable(&self, row: &mut Program) {
        if self.unreadable > 0 {
            row.reason.push_str(&format!(
                "; the files of {} of {} processes cannot be read, their connections have no owner",
                self.unreadable,
                self.unreadable + self.readable
            ));
            row.remedy = format!(
                "{}, or grant CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH to see these files",
                row.remedy
            );
        }
    }
}

const TASKS_LOSS: &str = "a task that blocks is seen only if it is the first of its process, or watched, and without its \
                          stack; swap and shared memory may be ten seconds old";
const SOCKETS_LOSS: &str =
    "a connection that opens and closes between two readings is not seen, nor why one ended";
const HOLDERS_LOSS: &str = "a connection that ends before its holder is looked for has no owner";

fn degrade(row: &mut Program, hook: &str, loss: &str, pace: &Pace) {
    let slower = pace.pause().map_or_else(String::new, |pause| {
        format!(
            "; it is read every {:.1} s, because a reading takes {:.0} ms of CPU",
            pause.0, pause.1
        )
    });
    row.verdict = Verdict::Degraded;
    row.hook = hook.to_owned();
    row.reason = format!("{loss}{slower} (no BPF: {})", row.reason);
}

/// Processes that live now.
fn pids() -> Result<BTreeSet<u32>> {
    let entries = std::fs::read_dir("/proc").context("cannot list /proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}
