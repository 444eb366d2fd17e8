//! Programs of the object one at a time, and empty ones in their place, for `cargo xtask bench instructions`. The agent
//! does not come here.

use std::{
    io::Read as _,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf,
    programs::{
        Iter, Program,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
    sys::{Stats, enable_stats},
};
use observer_abi::RING_BYTES;

use super::{BTF_PATH, Options, btf, load, offsets, programs::Hook, replies, tables::Tables};

/// A threshold that nothing reaches: what is rare is not measured.
const NEVER: Duration = Duration::MAX;

/// The loaded object.
pub struct Alone {
    object: Ebpf,
    types: aya::Btf,
    buffer: Vec<u8>,
    /// Packet sockets that a filter is on.
    sockets: Vec<OwnedFd>,
    /// Its maps.
    pub tables: Tables,
}

impl Alone {
    /// Loads the object; nothing is attached.
    ///
    /// # Errors
    /// Without privileges or BTF.
    pub fn load() -> Result<Self> {
        let options = Options {
            btf: BTF_PATH.into(),
            ring_bytes: RING_BYTES,
            fault_period: 1,
            gap_threshold: NEVER,
            stall_threshold: NEVER,
            run_delay_threshold: NEVER,
            reclaim_threshold: NEVER,
            ports: Vec::new(),
            log_level: 0,
        };
        let found = offsets::find(&btf::Btf::parse(&std::fs::read(BTF_PATH).context(BTF_PATH)?)?);
        let types = aya::Btf::from_sys_fs()?;
        let mut object = load::object(&types, &found, &options)?;
        let tables = Tables::take(&mut object)?;
        Ok(Self { object, types, buffer: Vec::new(), sockets: Vec::new(), tables })
    }

    /// Attaches a program; one for an iterator waits for [`Alone::read`]. Of page faults every one is taken.
    ///
    /// # Errors
    /// If there is no such program, or the kernel refuses it: why, in a line.
    pub fn attach(&mut self, name: &str, hook: Hook) -> Result<()> {
        self.try_attach(name, hook).map_err(|error| anyhow!("{name}: {}", load::brief(&error)))
    }

    fn try_attach(&mut self, name: &str, hook: Hook) -> Result<()> {
        let types = &self.types;
        let program = self.object.program_mut(name).context("it is not in the BPF object")?;
        match (program, hook) {
            (Program::BtfTracePoint(program), Hook::TpBtf(hook)) => {
                program.load(hook, types)?;
                program.attach()?;
            }
            (Program::FEntry(program), Hook::Entry(hook)) => {
                program.load(hook, types)?;
                program.attach()?;
            }
            (Program::Iter(program), Hook::Iter(hook)) => program.load(hook, types)?,
            (Program::PerfEvent(program), Hook::PageFaults) => {
                program.load()?;
                let config = PerfEventConfig::Software(SoftwareEvent::PageFaults);
                let here = PerfEventScope::AllProcessesOneCpu { cpu: 0 };
                program.attach(config, here, SamplePolicy::Period(1), false)?;
            }
            (Program::SocketFilter(program), Hook::Packets) => {
                program.load()?;
                self.sockets = replies::on_loopback(program.fd()?.as_fd())?.into();
            }
            (_, hook) => bail!("{name} does not go on {hook:?}"),
        }
        Ok(())
    }

    /// Detaches and unloads it.
    ///
    /// # Errors
    /// If it was not attached.
    pub fn detach(&mut self, name: &str) -> Result<()> {
        match self.object.program_mut(name).context("it is not in the BPF object")? {
            Program::BtfTracePoint(program) => program.unload()?,
            Program::FEntry(program) => program.unload()?,
            Program::Iter(program) => program.unload()?,
            Program::PerfEvent(program) => program.unload()?,
            Program::SocketFilter(program) => {
                self.sockets.clear();
                program.unload()?;
            }
            _ => bail!("{name} is of no type that is measured"),
        }
        Ok(())
    }

    /// Runs an iterator once, as the agent does, and drops its rows.
    ///
    /// # Errors
    /// If it is not attached, or is none.
    pub fn read(&mut self, name: &str) -> Result<()> {
        let program: &mut Iter =
            self.object.program_mut(name).context("it is not in the BPF object")?.try_into()?;
        let link = program.attach()?;
        let mut file = program.take_link(link)?.into_file()?;
        self.buffer.clear();
        file.read_to_end(&mut self.buffer)?;
        Ok(())
    }

    /// How often it ran while [`count_runs`] was on, since it was attached, and for how long in all.
    ///
    /// # Errors
    /// If it is not attached.
    pub fn runs(&self, name: &str) -> Result<(u64, Duration)> {
        let program = self.object.program(name).context("it is not in the BPF object")?;
        let info = program.info()?;
        Ok((info.run_count(), info.run_time()))
    }
}

/// Has the kernel count the runs of all programs for as long as the result lives.
///
/// # Errors
/// Without privileges.
pub fn count_runs() -> Result<OwnedFd> {
    Ok(enable_stats(Stats::RunTime)?)
}

/// The program that does nothing on such a hook.
pub fn empty(hook: Hook) -> &'static str {
    match hook {
        Hook::TpBtf(_) => "empty_tp_btf",
        Hook::Iter(_) => "empty_iter",
        Hook::PageFaults => "empty_perf_event",
        Hook::Entry(_) => "empty_fentry",
        Hook::Packets => "empty_socket_filter",
        Hook::Tracepoint(_) => "there is none",
    }
}
