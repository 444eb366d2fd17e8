//! Why a turn of an event loop takes so long, and who is to blame for it.

use std::{cell::OnceCell, collections::BTreeMap};

use super::{
    blame::{self, Blame, Blamer, Why},
    stack::{Class, Classes},
};
use crate::{
    detect::{Party, Seen},
    signal::sched::{EventLoop, Thread},
};

/// A snapshot, with what is looked up in it only if a loop stands still.
pub(super) struct Tick<'a> {
    pub seen: &'a Seen<'a>,
    pub blamer: &'a Blamer,
    /// Processes with several loops, in order.
    several: OnceCell<Vec<u32>>,
    /// What blocked threads wait for.
    blocked: OnceCell<BTreeMap<u32, Class>>,
}

/// Why a turn takes so long.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cause {
    Computes,
    /// It waits for a CPU, for a reason.
    Starved(Blame),
    /// It does not get on, because memory is short.
    Paging,
    Blocked(Class),
    Sleeps,
    /// Somebody else was to blame, and has been named.
    Past,
}

/// Threads that turn an event loop.
pub(super) fn loops<'a>(seen: &Seen<'a>) -> impl Iterator<Item = (&'a Thread, &'a EventLoop)> {
    let threads = seen.snapshot.sched.threads.iter();
    threads.filter_map(|thread| Some((thread, thread.event_loop.as_ref()?)))
}

impl<'a> Tick<'a> {
    /// With nothing looked up yet.
    pub fn new(seen: &'a Seen<'a>, blamer: &'a Blamer) -> Self {
        Self { seen, blamer, several: OnceCell::new(), blocked: OnceCell::new() }
    }

    /// Whether this process has one loop only.
    pub fn is_alone(&self, pid: u32) -> bool {
        let several = || {
            let mut pids: Vec<u32> = loops(self.seen).map(|(thread, _)| thread.pid).collect();
            pids.sort_unstable();
            let several = pids.chunk_by(|one, other| one == other).filter(|same| same.len() > 1);
            several.filter_map(|same| same.first().copied()).collect()
        };
        self.several.get_or_init(several).binary_search(&pid).is_err()
    }

    /// What a thread that neither computes nor waits for a CPU is blocked on in the kernel.
    fn class(&self, tid: u32) -> Option<Class> {
        let snapshot = self.seen.snapshot;
        let classes = || {
            let short = super::is_memory_short(snapshot);
            let rows = snapshot.sched.blocked.iter();
            let mut known = Classes::default();
            rows.map(|row| (row.tid, known.of(&row.stack).with_memory(short))).collect()
        };
        let known = self.blocked.get_or_init(classes).get(&tid).copied();
        // It is not in that sleep for long enough to be listed.
        let pages = snapshot.oom.refault_ratio >= 0.1;
        known.or(pages.then_some(Class::PageIn))
    }

    /// What a turn of this length is due to that waited so long for a CPU, if that is not the loop's own doing.
    pub fn excuse(&self, pid: u32, waited_ns: u64, length_ns: u64) -> Option<Cause> {
        if waited_ns >= length_ns / 2 {
            return Some(self.starved(pid, waited_ns, length_ns));
        }
        self.blamer.is_paging(pid, 1.0, self.seen).then_some(Cause::Paging)
    }

    fn starved(&self, pid: u32, waited_ns: u64, length_ns: u64) -> Cause {
        let share = waited_ns as f64 / length_ns.max(1) as f64;
        // Not who was to blame for the turn before.
        Cause::Starved(self.blamer.of(pid, share, self.seen, |row| row.pid != pid))
    }
}

/// Whether the open turn of a loop waits for something that is not seen: a child, another thread, a lock.
pub(super) fn is_asleep(turning: &EventLoop, thread: &Thread, tick: &Tick<'_>) -> bool {
    let half_ns = turning.open_ns / 2;
    turning.open_on_cpu_ns < half_ns
        && turning.open_waiting_ns < half_ns
        && tick.class(thread.tid).is_none()
}

/// Why the open turn of a loop takes so long.
pub(super) fn cause(turning: &EventLoop, thread: &Thread, tick: &Tick<'_>) -> Cause {
    let half_ns = turning.open_ns / 2;
    let pid = thread.pid;
    if turning.open_on_cpu_ns >= half_ns {
        // To free memory and to look for pages takes the CPU, too. Half of its time is that, or it does compute.
        let share = turning.open_on_cpu_ns as f64 / turning.open_ns.max(1) as f64;
        let pages = tick.blamer.is_paging(pid, 2.0 * share, tick.seen);
        return if pages { Cause::Paging } else { Cause::Computes };
    }
    if turning.open_waiting_ns >= half_ns {
        return tick.starved(pid, turning.open_waiting_ns, turning.open_ns);
    }
    tick.class(thread.tid).map_or(Cause::Sleeps, Cause::Blocked)
}

impl Cause {
    /// Whether it is want of memory.
    pub fn is_paging(&self) -> bool {
        match self {
            Self::Starved(blame) => blame.why == Why::Paging,
            Self::Paging | Self::Blocked(Class::PageIn | Class::Reclaim) => true,
            Self::Blocked(_) | Self::Computes | Self::Sleeps | Self::Past => false,
        }
    }

    /// Whether the hypervisor has the CPU.
    pub fn is_stolen(&self) -> bool {
        matches!(self, Self::Starved(Blame { why: Why::Stolen, .. }))
    }

    /// What is to be added of a turn that is over, if somebody else is to blame for it.
    pub fn aside(&self) -> String {
        match self {
            Self::Starved(blame) => blame.why.text().to_owned(),
            Self::Paging => format!(": {}", self.text()),
            Self::Blocked(_) | Self::Computes | Self::Sleeps | Self::Past => String::new(),
        }
    }

    /// For a person.
    pub fn text(&self) -> String {
        match self {
            Self::Computes => "it computes".to_owned(),
            Self::Starved(blame) => format!("it waits for a CPU{}", blame.why.text()),
            Self::Paging => {
                "memory is short, and what it needs is freed or read back first".to_owned()
            }
            Self::Blocked(class) => format!("it waits for {}", class.text()),
            Self::Sleeps => "it waits for a child process, another thread or a lock".to_owned(),
            Self::Past => "that is over".to_owned(),
        }
    }

    /// What to do.
    pub fn advice(&self) -> &'static str {
        match self {
            _ if self.is_paging() => blame::MEMORY_ADVICE,
            Self::Computes | Self::Paging => {
                "take a CPU profile of the process; move the work (large JSON, synchronous hashing, regular expressions) \
                 into a worker thread, or cut it into pieces"
            }
            Self::Starved(Blame { why: Why::Quota, .. }) => blame::QUOTA_ADVICE,
            Self::Starved(_) | Self::Past => {
                "see who takes the CPU (sched.starvation, sched.throttled, sched.steal)"
            }
            Self::Blocked(_) => "see what the disk or file server does (sched.blocked)",
            Self::Sleeps => {
                "look for synchronous calls (execSync, readFileSync, Atomics.wait) in it"
            }
        }
    }

    /// Who is to blame, where that is known.
    pub fn culprit(&self, own: &Party, tick: &Tick<'_>) -> Option<Party> {
        match self {
            Self::Computes | Self::Sleeps => Some(own.clone()),
            Self::Starved(Blame { why: Why::Quota, culprit }) => {
                Some(culprit.as_ref().unwrap_or(own).clone())
            }
            Self::Starved(blame) => blame.culprit.clone(),
            Self::Paging | Self::Blocked(Class::PageIn | Class::Reclaim) => {
                Some(tick.blamer.memory(own.pid?, tick.seen))
            }
            Self::Blocked(class) => class.is_cause().then(|| class.party()),
            Self::Past => None,
        }
    }
}
