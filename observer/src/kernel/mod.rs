//! The agent's side of the kernel: loads the programs, attaches what this kernel allows, reads rings, tables, iterators.
//!
//! The only `unsafe` and the only aya of the agent.
#![expect(
    unsafe_code,
    reason = "one Pod impl for map types and two C calls without a safe wrapper"
)]

pub mod btf;
pub mod offsets;
mod packets;
pub mod plan;
pub mod tables;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::RingBuf,
    programs::{
        BtfTracePoint, Iter, PerfEvent, ProgramError,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
        tp_btf::BtfTracePointLinkId,
    },
    util::online_cpus,
};
use observer_abi::{
    alloc::TaskRow,
    offsets::Layout,
    tcp::{HolderRow, SocketRow},
};

pub use self::{
    packets::{Packets, Scope},
    tables::{Counters, Tables},
};
use self::{
    plan::{Hook, PROGRAMS, Spec, remedy},
    tables::Wire,
};
use crate::snapshot::{Program, Verdict};

/// The kernel's own type information.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Aligned, because it is parsed as an ELF file in place.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/observer-ebpf"));

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
    buffer: Vec<u8>,
}

/// What exists only if the object could be loaded.
struct Loaded {
    object: Ebpf,
    ring: RingBuf<aya::maps::MapData>,
    tables: Tables,
    epoll: Option<BtfTracePointLinkId>,
    logger: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
}

impl Kernel {
    /// Loads and attaches what this kernel and these privileges allow. What is not possible is a row in
    /// [`Kernel::programs`], not an error.
    pub fn open(options: &Options) -> Self {
        let mut kernel = Self { ebpf: None, programs: Vec::new(), buffer: Vec::new() };
        match load(options) {
            Ok((loaded, programs)) => {
                kernel.ebpf = Some(loaded);
                kernel.programs = programs;
            }
            Err(error) => {
                let errno = error
                    .chain()
                    .find_map(|cause| cause.downcast_ref::<std::io::Error>()?.raw_os_error());
                let reason = format!("{error:#}");
                kernel.programs = PROGRAMS
                    .iter()
                    .map(|spec| spec.impossible(&reason, remedy_of(&error, errno)))
                    .collect();
            }
        }
        trim_heap();
        kernel
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

    /// Hands every waiting record of the ring to `take`.
    pub fn drain(&mut self, mut take: impl FnMut(&[u8])) {
        let Some(loaded) = &mut self.ebpf else { return };
        while let Some(record) = loaded.ring.next() {
            take(&record);
        }
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
        let program: &mut BtfTracePoint =
            loaded.object.program_mut("epoll_enter").context("no such program")?.try_into()?;
        match (on, loaded.epoll.take()) {
            (true, None) => loaded.epoll = Some(program.attach()?),
            (false, Some(link)) => program.detach(link)?,
            (_, unchanged) => loaded.epoll = unchanged,
        }
        Ok(())
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

fn remedy_of(error: &anyhow::Error, errno: Option<i32>) -> &'static str {
    if error.downcast_ref::<NoBtf>().is_some() {
        return "use a kernel built with CONFIG_DEBUG_INFO_BTF (all current distributions), or name a BTF file of this \
                kernel with OBSERVER_BTF";
    }
    remedy(errno)
}

/// The kernel's BTF cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("no kernel type information in {0}: {1}")]
struct NoBtf(PathBuf, String);

fn load(options: &Options) -> Result<(Loaded, Vec<Program>)> {
    let no_btf = |why: &dyn std::fmt::Display| NoBtf(options.btf.clone(), why.to_string());
    let blob = std::fs::read(&options.btf).map_err(|error| no_btf(&error))?;
    let found = offsets::find(&btf::Btf::parse(&blob).map_err(|error| no_btf(&error))?);
    for field in &found.missing {
        tracing::debug!(field, "this kernel has no such field");
    }
    drop(blob);
    let layout = Layout {
        gap_threshold_ns: nanos(options.gap_threshold),
        stall_threshold_ns: nanos(options.stall_threshold),
        run_delay_threshold_ns: nanos(options.run_delay_threshold),
        reclaim_threshold_ns: nanos(options.reclaim_threshold),
        ..found.layout
    };
    let types = aya::Btf::parse_file(&options.btf, aya::Endianness::default())
        .map_err(|error| no_btf(&error))?;
    let mut object = EbpfLoader::new()
        .btf(Some(&types))
        .override_global("OFFSETS", &Wire(found.offsets), true)
        .override_global("LAYOUT", &Wire(layout), true)
        .override_global(aya_log::LEVEL, &options.log_level, false)
        .map_max_entries("EVENTS", options.ring_bytes.next_power_of_two().max(4096))
        .load(OBJECT)
        .context("cannot load the BPF object")?;
    let programs = PROGRAMS.iter().map(|spec| start(&mut object, spec, &types, options)).collect();
    let ring =
        RingBuf::try_from(object.take_map("EVENTS").context("the BPF object has no map EVENTS")?)?;
    let mut tables = Tables::take(&mut object)?;
    tables.set_ports(&options.ports)?;
    let logger =
        (options.log_level > 0).then(|| aya_log::EbpfLogger::init(&mut object)).transpose()?;
    Ok((Loaded { object, ring, tables, epoll: None, logger }, programs))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Loads and attaches one program.
fn start(object: &mut Ebpf, spec: &Spec, types: &aya::Btf, options: &Options) -> Program {
    if spec.hook == Hook::PageFaults && options.fault_period == 0 {
        return spec.impossible("switched off", "set alloc.fault_period");
    }
    match try_start(object, spec, types, options) {
        Ok(()) => spec.running(),
        Err(error) => {
            let errno = error
                .chain()
                .find_map(|cause| cause.downcast_ref::<std::io::Error>()?.raw_os_error());
            if let Some(ProgramError::LoadError { verifier_log, .. }) =
                error.downcast_ref::<ProgramError>()
            {
                tracing::debug!(program = spec.name, %verifier_log, "the verifier refused a program");
            }
            spec.impossible(&brief(&error), remedy(errno))
        }
    }
}

/// The error without the verifier's log, which is long: its last line tells.
fn brief(error: &anyhow::Error) -> String {
    match error.downcast_ref::<ProgramError>() {
        Some(ProgramError::LoadError { io_error, verifier_log }) => {
            let log = verifier_log.to_string();
            let told = log
                .lines()
                .rev()
                .find(|line| !line.trim().is_empty() && !line.starts_with("processed"));
            format!("the kernel refused it: {io_error}: {}", told.unwrap_or_default())
        }
        _ => format!("{error:#}"),
    }
}

fn try_start(object: &mut Ebpf, spec: &Spec, types: &aya::Btf, options: &Options) -> Result<()> {
    let program = object.program_mut(spec.name).context("it is not in the BPF object")?;
    match spec.hook {
        Hook::TpBtf(name) => {
            let program: &mut BtfTracePoint = program.try_into()?;
            program.load(name, types)?;
            if !spec.standby {
                program.attach()?;
            }
        }
        Hook::Iter(name) => {
            let program: &mut Iter = program.try_into()?;
            program.load(name, types)?;
        }
        Hook::PageFaults => {
            let program: &mut PerfEvent = program.try_into()?;
            program.load()?;
            let config = PerfEventConfig::Software(SoftwareEvent::PageFaults);
            let policy = SamplePolicy::Period(options.fault_period);
            let mut links = Vec::new();
            for cpu in online_cpus().map_err(|(path, error)| anyhow::anyhow!("{path}: {error}"))? {
                let scope = PerfEventScope::AllProcessesOneCpu { cpu };
                match program.attach(config, scope, policy, false) {
                    Ok(link) => links.push(link),
                    Err(error) => {
                        // Samples of some CPUs only would name the wrong stacks.
                        links.into_iter().for_each(|link| drop(program.detach(link)));
                        return Err(error.into());
                    }
                }
            }
        }
    }
    Ok(())
}

/// Gives freed memory back to the host: the kernel's type information needed some 40 MiB for a moment.
pub fn trim_heap() {
    // SAFETY: malloc_trim takes no pointer and may be called at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
