//! Loads the object of a rung, and each program by itself in the first way that the kernel takes.

use std::{io, time::Duration};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Queue, RingBuf},
    programs::{
        BtfTracePoint, FEntry, Iter, PerfEvent, ProgramError, SocketFilter, TracePoint,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
    util::online_cpus,
};
use observer_abi::{classic::Fields, offsets::Layout};

use super::{
    Events, Loaded, Options,
    offsets::{self, Found},
    plan::{Choice, Plan, Refusal, remedy},
    programs::{Hook, PROGRAMS, Spec, Variant},
    replies::Replies,
    support::Support,
    tables::{Tables, Wire},
};
use crate::snapshot::Program;

/// Aligned, because it is parsed as an ELF file in place.
static FULL: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/observer-ebpf"));
/// Aligned, as above.
static CLASSIC: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/observer-classic"));

/// Name in the object of the program that goes on the entry of a function, where the one named by its [`Spec`] goes on
/// something else.
pub(super) const EPOLL_ENTRY: &str = "epoll_wait_enter";

/// The standby program that goes on a tracepoint or a function.
const EPOLL: &str = "epoll_enter";

/// The standby program of packet sockets.
pub(super) const REPLIES: &str = "reply_ends";

/// Loads the full object and starts what the plan says. The verdicts are those of what happened.
pub(super) fn full(
    plan: &Plan,
    support: &Support,
    found: &Found,
    options: &Options,
) -> Result<(Loaded, Vec<Program>)> {
    let types = aya::Btf::parse_file(&options.btf, aya::Endianness::default())
        .context("cannot read the kernel's type information")?;
    let mut object = object(&types, found, options)?;
    let (programs, epoll_hook) = start_all(&mut object, plan, Some(&types), support, options);
    let ring =
        RingBuf::try_from(object.take_map("EVENTS").context("the BPF object has no map EVENTS")?)?;
    let mut tables = Tables::take(&mut object)?;
    tables.set_ports(&options.ports)?;
    let logger =
        (options.log_level > 0).then(|| aya_log::EbpfLogger::init(&mut object)).transpose()?;
    let events = Events::Ring(ring);
    let loaded = Loaded {
        object,
        events,
        tables,
        epoll_hook,
        epoll: None,
        replies: Replies::default(),
        logger,
    };
    Ok((loaded, programs))
}

/// Loads the classic object, likewise.
pub(super) fn classic(
    plan: &Plan,
    support: &Support,
    options: &Options,
) -> Result<(Loaded, Vec<Program>)> {
    let fields = support.tracefs.as_ref().map_or(Fields::NONE, offsets::fields);
    let mut object = EbpfLoader::new()
        .btf(None)
        .override_global("FIELDS", &Wire(fields), true)
        .override_global("LAYOUT", &Wire(layout(Layout::NONE, options)), true)
        .load(CLASSIC)
        .context("cannot load the classic BPF object")?;
    let (programs, epoll_hook) = start_all(&mut object, plan, None, support, options);
    let queue =
        Queue::try_from(object.take_map("QUEUE").context("the BPF object has no map QUEUE")?)?;
    let mut tables = Tables::take(&mut object)?;
    tables.set_ports(&options.ports)?;
    let events = Events::Queue(queue);
    let loaded = Loaded {
        object,
        events,
        tables,
        epoll_hook,
        epoll: None,
        replies: Replies::default(),
        logger: None,
    };
    Ok((loaded, programs))
}

fn layout(of_kernel: Layout, options: &Options) -> Layout {
    Layout {
        gap_threshold_ns: nanos(options.gap_threshold),
        stall_threshold_ns: nanos(options.stall_threshold),
        run_delay_threshold_ns: nanos(options.run_delay_threshold),
        reclaim_threshold_ns: nanos(options.reclaim_threshold),
        page_kib: rustix::param::page_size() as u64 >> 10,
        ..of_kernel
    }
}

/// Starts every program by itself; also gives the hook of the probe on epoll, which waits until it is needed.
fn start_all(
    object: &mut Ebpf,
    plan: &Plan,
    types: Option<&aya::Btf>,
    support: &Support,
    options: &Options,
) -> (Vec<Program>, Option<Hook>) {
    let mut epoll = None;
    let mut programs = Vec::with_capacity(PROGRAMS.len());
    for (spec, choice) in PROGRAMS.iter().zip(&plan.choices) {
        let (row, hook) = start(object, spec, choice, types, support, options);
        programs.push(row);
        epoll = hook.filter(|_| spec.name == EPOLL).or(epoll);
    }
    (programs, epoll)
}

/// The object with all its maps; no program is loaded yet.
pub(super) fn object(types: &aya::Btf, found: &Found, options: &Options) -> Result<Ebpf> {
    EbpfLoader::new()
        .btf(Some(types))
        .override_global("OFFSETS", &Wire(found.offsets), true)
        .override_global("LAYOUT", &Wire(layout(found.layout, options)), true)
        .override_global(aya_log::LEVEL, &options.log_level, false)
        .map_max_entries("EVENTS", ring_bytes(options.ring_bytes))
        .load(FULL)
        .context("cannot load the BPF object")
}

/// A power of two of whole pages, which are up to 64 KiB on arm64 (kernel/bpf/ringbuf.c refuses others).
fn ring_bytes(wanted: u32) -> u32 {
    let page_bytes = u32::try_from(rustix::param::page_size()).unwrap_or(u32::MAX >> 1);
    wanted.max(page_bytes).next_power_of_two()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Starts one program in the first way that works.
fn start(
    object: &mut Ebpf,
    spec: &Spec,
    choice: &Choice,
    types: Option<&aya::Btf>,
    support: &Support,
    options: &Options,
) -> (Program, Option<Hook>) {
    let mut refusal = choice.refusal.clone();
    for way in &choice.ways {
        match try_start(object, spec, way, types, options) {
            Ok(()) => return (spec.running(way, &refusal), Some(way.hook)),
            Err(error) if refusal.reason.is_empty() => refusal = refused(spec, &error, support),
            Err(error) => drop(refused(spec, &error, support)),
        }
    }
    (spec.impossible(&refusal), None)
}

/// Why the kernel has refused.
pub(super) fn refused(spec: &Spec, error: &anyhow::Error, support: &Support) -> Refusal {
    if let Some(ProgramError::LoadError { verifier_log, .. }) = error.downcast_ref::<ProgramError>()
    {
        tracing::debug!(program = spec.name, %verifier_log, "the verifier refused a program");
    }
    Refusal::new(brief(error), remedy(errno(error), support))
}

/// The system's number of an error, wherever it is in the chain.
pub(super) fn errno(error: &anyhow::Error) -> Option<i32> {
    error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error())
}

/// What the verifier writes after its reason: how long it took, and how much it looked at.
const VERIFIER_STATISTICS: &[&str] = &["verification time", "stack depth", "processed"];

/// The error without the verifier's log, which is long: its last line tells.
pub(super) fn brief(error: &anyhow::Error) -> String {
    match error.downcast_ref::<ProgramError>() {
        Some(ProgramError::LoadError { io_error, verifier_log }) => {
            let log = verifier_log.to_string();
            let tells = |line: &&str| {
                !line.trim().is_empty()
                    && !VERIFIER_STATISTICS.iter().any(|start| line.starts_with(start))
            };
            let told = log.lines().rev().find(tells);
            format!("the kernel refused it: {io_error}: {}", told.unwrap_or_default())
        }
        _ => format!("{error:#}"),
    }
}

fn try_start(
    object: &mut Ebpf,
    spec: &Spec,
    way: &Variant,
    types: Option<&aya::Btf>,
    options: &Options,
) -> Result<()> {
    let name = if matches!(way.hook, Hook::Entry(_)) { EPOLL_ENTRY } else { spec.name };
    let program = object.program_mut(name).context("it is not in the BPF object")?;
    let types = || types.context("it needs the kernel's type information");
    match way.hook {
        Hook::TpBtf(name) => {
            let program: &mut BtfTracePoint = program.try_into()?;
            program.load(name, types()?)?;
            if !spec.standby {
                program.attach()?;
            }
        }
        Hook::Entry(name) => {
            let program: &mut FEntry = program.try_into()?;
            program.load(name, types()?)?;
        }
        Hook::Iter(name) => {
            let program: &mut Iter = program.try_into()?;
            program.load(name, types()?)?;
        }
        Hook::PageFaults => page_faults(program.try_into()?, options.fault_period)?,
        Hook::Tracepoint(event) => {
            let (category, name) = event.split_once('/').context("no category")?;
            let program: &mut TracePoint = program.try_into()?;
            program.load()?;
            program.attach(category, name)?;
        }
        Hook::Packets => {
            let program: &mut SocketFilter = program.try_into()?;
            program.load()?;
        }
    }
    Ok(())
}

fn page_faults(program: &mut PerfEvent, period: u64) -> Result<()> {
    program.load()?;
    let config = PerfEventConfig::Software(SoftwareEvent::PageFaults);
    let policy = SamplePolicy::Period(period);
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
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BPF_JMP | BPF_CALL, and BPF_PSEUDO_CALL in its source register (include/uapi/linux/bpf.h).
    const CALL: u8 = 0x85;
    const OWN_FUNCTION: u8 = 1;

    /// See `observer-ebpf/build.rs`: on kernels before 6.5 such a program may stop the host's kernel.
    #[test]
    fn no_program_calls_a_function_of_its_own() {
        for bytes in [FULL, CLASSIC, super::super::malloc::OBJECT] {
            let object = aya_obj::Object::parse(bytes).expect("an object");
            assert!(object.programs.len() >= 5, "the programs are found");
            for (name, program) in &object.programs {
                let function = &object.functions[&program.function_key()];
                let calls = function
                    .instructions
                    .iter()
                    .filter(|insn| insn.code == CALL && insn.src_reg() == OWN_FUNCTION);
                assert_eq!(calls.count(), 0, "{name} calls a function: memset, memcpy, or ours");
            }
        }
    }
}
