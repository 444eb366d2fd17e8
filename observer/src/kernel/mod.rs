//! The agent's side of the kernel: loads the programs, attaches what this kernel allows, reads rings, tables, iterators.
//!
//! The only `unsafe` and the only aya of the agent.
#![expect(
    unsafe_code,
    reason = "one Pod impl for map types and some C calls without a safe wrapper"
)]

pub mod allocator;
pub mod alone;
pub mod btf;
mod load;
pub mod malloc;
mod misses;
pub mod offsets;
mod packets;
pub mod plan;
pub mod prober;
pub mod programs;
mod replies;
mod space;
pub mod support;
pub mod tables;
mod tracefs;
mod trial;

use std::{collections::BTreeSet, net::IpAddr, os::fd::AsFd as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{MapData, Queue, RingBuf},
    programs::{
        BtfTracePoint, FEntry, Iter, SocketFilter, fentry::FEntryLinkId,
        tp_btf::BtfTracePointLinkId,
    },
};
use observer_abi::{
    alloc::TaskRow,
    classic::Slot,
    tcp::{HolderRow, SocketRow},
};
use zerocopy::IntoBytes as _;

pub use self::{
    misses::Misses,
    packets::{Packets, Scope},
    support::Support,
    tables::{Counters, Tables},
};
use self::{
    plan::{Plan, Rung, Wanted},
    programs::{Hook, PROGRAMS},
    replies::Replies,
    support::Offer,
    tables::Wire,
};
use crate::snapshot::{Program, Verdict};

/// The kernel's own type information.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// What the user may change about the kernel side.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the kernel's BTF is.
    pub btf: PathBuf,
    /// Size of the event ring, rounded up to a power of two of pages.
    pub ring_bytes: u32,
    /// One page fault in this many is sampled; 0 switches sampling off.
    pub fault_period: u64,
    /// Event-loop gaps from here on make a span.
    pub gap_threshold: Duration,
    /// Blocked times from here on make a span.
    pub stall_threshold: Duration,
    /// Run-queue delays from here on make a span.
    pub run_delay_threshold: Duration,
    /// Reclaims from here on make a span.
    pub reclaim_threshold: Duration,
    /// Ports whose connections are entered in the ledger.
    pub ports: Vec<u16>,
    /// Log level of the programs, 0 (off) to 5; see aya-log.
    pub log_level: u8,
}

/// The loaded programs.
pub struct Kernel {
    ebpf: Option<Loaded>,
    programs: Vec<Program>,
    misses: Misses,
    support: Support,
    buffer: Vec<u8>,
}

/// What exists only if an object could be loaded.
struct Loaded {
    object: Ebpf,
    events: Events,
    tables: Tables,
    /// Where the probe on epoll goes.
    epoll_hook: Option<Hook>,
    epoll: Option<EpollLink>,
    /// Where ends of replies are looked for.
    replies: Replies,
    logger: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
}

/// Where records come from.
enum Events {
    Ring(RingBuf<MapData>),
    Queue(Queue<MapData, Wire<Slot>>),
}

impl Events {
    /// Hands over every record that waits. Of the queue at most what it holds: who fills it at the same time waits for the
    /// next round.
    fn drain(&mut self, mut take: impl FnMut(&[u8])) {
        match self {
            Self::Ring(ring) => {
                while let Some(record) = ring.next() {
                    take(&record);
                }
            }
            Self::Queue(queue) => {
                for _ in 0..queue.capacity() {
                    let Ok(Wire(slot)) = queue.pop(0) else { return };
                    let used = usize::try_from(slot.used).unwrap_or(usize::MAX);
                    // An impossible length is no record, which the reader counts.
                    take(slot.words.as_bytes().get(..used).unwrap_or_default());
                }
            }
        }
    }
}

/// The probe on epoll while it is attached.
enum EpollLink {
    Syscalls(BtfTracePointLinkId),
    Function(FEntryLinkId),
}

impl Kernel {
    /// Loads and attaches what this kernel and these privileges allow. What is not possible is a row in
    /// [`Kernel::programs`], not an error.
    pub fn open(options: &Options) -> Self {
        let (mut support, found) = Support::probe(&options.btf);
        let wanted = Wanted { page_faults: options.fault_period != 0 };
        let (ebpf, programs) = loop {
            let plan = plan::plan(&support, wanted);
            let loaded = match (plan.rung, &found) {
                (Rung::Full, Some(found)) => load::full(&plan, &support, found, options),
                (Rung::Classic, _) => load::classic(&plan, &support, options),
                _ => break (None, blind(&plan)),
            };
            match loaded {
                Ok((loaded, programs)) if plan.stands(&programs) => {
                    break (Some(loaded), programs);
                }
                // Each by itself was refused: the reasons are alike.
                Ok((_, programs)) => {
                    let reason =
                        programs.into_iter().next().map_or(String::new(), |row| row.reason);
                    support.refused.insert(plan.rung, Offer::No { reason, errno: None });
                }
                Err(error) => {
                    // The next plan is one rung down.
                    let (reason, errno) = (format!("{error:#}"), load::errno(&error));
                    support.refused.insert(plan.rung, Offer::No { reason, errno });
                }
            }
        };
        trim_heap();
        let misses = ebpf.as_ref().map(|loaded| Misses::open(&loaded.object, &programs));
        let misses = misses.unwrap_or_default();
        Self { ebpf, programs, misses, support, buffer: Vec::new() }
    }

    /// What this kernel offers.
    pub fn support(&self) -> &Support {
        &self.support
    }

    /// Verdict of every program.
    pub fn programs(&self) -> &[Program] {
        &self.programs
    }

    /// Whether anything runs.
    pub fn is_loaded(&self) -> bool {
        self.ebpf.is_some()
    }

    /// The maps; `None` if nothing could be loaded.
    pub fn tables(&mut self) -> Option<&mut Tables> {
        self.ebpf.as_mut().map(|loaded| &mut loaded.tables)
    }

    /// Hands every waiting record to `take`.
    pub fn drain(&mut self, take: impl FnMut(&[u8])) {
        let Some(loaded) = &mut self.ebpf else { return };
        loaded.events.drain(take);
        if let Some(logger) = &mut loaded.logger {
            logger.flush();
        }
    }

    /// Every process and every watched or blocked thread.
    pub fn tasks(&mut self, rows: &mut Vec<TaskRow>) -> Result<()> {
        self.rows("task_rows", rows)
    }

    /// Every open connection of the ledger.
    pub fn sockets(&mut self, rows: &mut Vec<SocketRow>) -> Result<()> {
        self.rows("tcp_rows", rows)
    }

    /// Which process holds which listening socket or connection of the ledger.
    pub fn holders(&mut self, rows: &mut Vec<HolderRow>) -> Result<()> {
        self.rows("socket_holders", rows)
    }

    fn rows<T>(&mut self, name: &str, rows: &mut Vec<T>) -> Result<()>
    where
        T: zerocopy::FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + Copy,
    {
        if !self.runs(name) {
            return Ok(());
        }
        let Some(loaded) = &mut self.ebpf else { return Ok(()) };
        let program: &mut Iter =
            loaded.object.program_mut(name).context("no such program")?.try_into()?;
        tables::read_rows(program, &mut self.buffer, rows)
            .with_context(|| format!("cannot read {name}"))
    }

    fn runs(&self, name: &str) -> bool {
        self.programs.iter().any(|row| row.name == name && row.verdict != Verdict::Impossible)
    }

    /// Attaches or detaches the probe on system calls that tells a busy loop from a stuck one.
    pub fn set_epoll_probe(&mut self, on: bool) -> Result<()> {
        if !self.runs("epoll_enter") {
            return Ok(());
        }
        let Some(loaded) = &mut self.ebpf else { return Ok(()) };
        match (on, loaded.epoll.take()) {
            (true, None) => loaded.epoll = Some(loaded.attach_epoll()?),
            (false, Some(link)) => loaded.detach_epoll(link)?,
            (_, unchanged) => loaded.epoll = unchanged,
        }
        Ok(())
    }

    /// Has the ends of replies looked for: those from these ports, on the interfaces that have these addresses. A loopback
    /// address stands for what stays on this host.
    ///
    /// # Errors
    /// What the system refuses. It is then looked where it could be.
    pub fn watch_replies(
        &mut self,
        ports: &BTreeSet<u16>,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<()> {
        if !self.runs(load::REPLIES) {
            return Ok(());
        }
        let Some(loaded) = &mut self.ebpf else { return Ok(()) };
        let program: &SocketFilter =
            loaded.object.program(load::REPLIES).context("no such program")?.try_into()?;
        loaded.replies.watch(program.fd()?.as_fd(), &mut loaded.tables, ports, addresses)
    }

    /// Events at which the kernel has skipped a program, by its name; none where it does not count them (before 5.12).
    pub fn misses(&self) -> &Misses {
        &self.misses
    }

    /// Memory of all maps, as the kernel accounts it (`memlock` in /proc/self/fdinfo).
    pub fn map_bytes(&self) -> u64 {
        let Ok(entries) = std::fs::read_dir("/proc/self/fdinfo") else { return 0 };
        entries
            .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok())
            .filter(|text| text.contains("map_id:"))
            .filter_map(|text| {
                text.lines()
                    .find_map(|line| line.strip_prefix("memlock:")?.trim().parse::<u64>().ok())
            })
            .sum()
    }
}

impl Loaded {
    fn attach_epoll(&mut self) -> Result<EpollLink> {
        Ok(match self.epoll_hook {
            Some(Hook::Entry(_)) => EpollLink::Function(self.epoll_entry()?.attach()?),
            _ => EpollLink::Syscalls(self.epoll_syscalls()?.attach()?),
        })
    }

    fn detach_epoll(&mut self, link: EpollLink) -> Result<()> {
        match link {
            EpollLink::Function(link) => let_go(self.epoll_entry()?.take_link(link)?),
            EpollLink::Syscalls(link) => self.epoll_syscalls()?.detach(link)?,
        }
        Ok(())
    }

    fn epoll_entry(&mut self) -> Result<&mut FEntry> {
        Ok(self.object.program_mut(load::EPOLL_ENTRY).context("no such program")?.try_into()?)
    }

    fn epoll_syscalls(&mut self) -> Result<&mut BtfTracePoint> {
        Ok(self.object.program_mut("epoll_enter").context("no such program")?.try_into()?)
    }
}

/// Drops what holds a program on a function, beside us: the kernel then waits until every thread has slept or run in user
/// mode once (`synchronize_rcu_tasks`), which one that starves may not do for ten seconds (seen on 6.1).
fn let_go(link: impl Send + 'static) {
    // If no thread can be had, it is dropped here.
    std::thread::Builder::new().name("detach".into()).spawn(move || drop(link)).ok();
}

/// The rows of a plan of which no program runs.
fn blind(plan: &Plan) -> Vec<Program> {
    let rows = PROGRAMS.iter().zip(&plan.choices);
    rows.map(|(spec, choice)| spec.impossible(&choice.refusal)).collect()
}

/// Gives freed memory back to the host: the kernel's type information needed some 40 MiB for a moment.
pub fn trim_heap() {
    // SAFETY: malloc_trim takes no pointer and may be called at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
