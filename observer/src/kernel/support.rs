//! What this kernel and these privileges offer, as plain data: probed once, printed by `observer check --json`, and all
//! that `plan` knows of the host.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    maps::MapType,
    programs::{ProgramError, ProgramType},
    sys::{is_map_supported, is_program_supported},
};
use serde::{Deserialize, Serialize};

use super::{
    btf,
    offsets::{self, Found},
    plan::Rung,
    programs::{Hook, hooks},
    tracefs::{self, Field},
    trial::{self, Attach},
};

/// A function that every kernel with fentry has, made to be hooked (net/bpf/test_run.c).
const ENTRY_TRIAL: &str = "bpf_fentry_test1";

/// What is offered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Support {
    /// As `uname -r` has it.
    pub release: String,
    /// As `uname -m` has it.
    pub arch: String,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// The kernel's own type information.
    pub btf: Types,
    /// Trial calls of bpf(2), by what was tried.
    pub bpf: Bpf,
    /// Classic tracepoints; `None` if no tracefs can be read.
    pub tracefs: Option<Tracefs>,
    /// What this process may do.
    pub privileges: Privileges,
    /// 1 or 2; 0 without control groups.
    pub cgroup_version: u8,
    /// Rungs that turned out not to work when they were tried, with the kernel's reason.
    #[serde(default)]
    pub refused: BTreeMap<Rung, Offer>,
}

/// What BTF tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Types {
    /// Where it was looked for.
    pub path: PathBuf,
    /// Why it cannot be used; empty if it can.
    pub error: String,
    /// Tracepoints that we know of: whether each parameter is a pointer.
    pub tracepoints: BTreeMap<String, Vec<bool>>,
    /// Targets of iterators.
    pub iterators: BTreeSet<String>,
    /// Functions that we would hook.
    pub functions: BTreeSet<String>,
    /// `structure.member` of the fields that the programs read elsewhere and this kernel does not have.
    pub missing_fields: Vec<String>,
}

/// Answer to a trial call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offer {
    /// It works.
    Yes,
    /// It does not.
    No {
        /// The kernel's words, or ours.
        reason: String,
        /// The kernel's number.
        errno: Option<i32>,
    },
    /// Could not be tried.
    #[default]
    Untried,
}

/// Kinds of maps and programs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bpf {
    /// `BPF_MAP_TYPE_RINGBUF` (5.8).
    pub ring_buffer: Offer,
    /// `BPF_MAP_TYPE_QUEUE` (4.20).
    pub queue: Offer,
    /// BTF-typed tracepoints (5.5).
    pub tp_btf: Offer,
    /// Entries of functions (5.5; 6.0 on arm64).
    pub fentry: Offer,
    /// Iterators (5.8).
    pub iterator: Offer,
    /// Classic tracepoints (4.7).
    pub tracepoint: Offer,
    /// Perf events (4.9).
    pub perf_event: Offer,
}

/// The tracing file system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracefs {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Fields of the tracepoints that we know of, by `category/name`.
    pub events: BTreeMap<String, Vec<Field>>,
}

/// What this process may do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privileges {
    /// Effective user id.
    pub uid: u32,
    /// Effective capabilities as a mask, in hexadecimal as in /proc/PID/status.
    pub capabilities: String,
    /// `none`, `integrity` or `confidentiality`; empty if the kernel has no lockdown.
    pub lockdown: String,
    /// RLIMIT_MEMLOCK; `None` for no limit. Counts for maps before 5.11.
    pub memlock_bytes: Option<u64>,
    /// kernel.unprivileged_bpf_disabled.
    pub unprivileged_bpf_disabled: Option<i32>,
    /// kernel.perf_event_paranoid.
    pub perf_event_paranoid: Option<i32>,
}

impl Support {
    /// Asks this kernel, with what its type information says of the structures; `None` if there is none. Takes some 0.1 s,
    /// most of it for the BTF.
    pub fn probe(btf_path: &Path) -> (Self, Option<Found>) {
        let system = rustix::system::uname();
        let privileges = privileges();
        let (btf, bpf, mut found) = match fs::read(btf_path) {
            Ok(blob) => types(btf_path, &blob),
            Err(error) => no_types(btf_path, &error),
        };
        if let Some(found) = found.as_mut().filter(|_| privileges.is_confidential()) {
            found.layout.user_memory = 0;
        }
        let support = Self {
            release: system.release().to_string_lossy().into_owned(),
            arch: system.machine().to_string_lossy().into_owned(),
            page_bytes: rustix::param::page_size() as u64,
            btf,
            bpf: Bpf {
                ring_buffer: map_offer(MapType::RingBuf),
                queue: map_offer(MapType::Queue),
                tracepoint: program_offer(ProgramType::TracePoint),
                perf_event: program_offer(ProgramType::PerfEvent),
                ..bpf
            },
            tracefs: tracefs(),
            privileges,
            cgroup_version: cgroup_version(),
            refused: BTreeMap::new(),
        };
        (support, found)
    }
}

impl Privileges {
    /// Whether perf_event_open(2) is closed to this process, as Debian and Ubuntu have it: kernel.perf_event_paranoid above 2
    /// then asks for CAP_SYS_ADMIN, which CAP_PERFMON does not stand for.
    pub fn is_too_paranoid(&self) -> bool {
        self.perf_event_paranoid.is_some_and(|level| level > 2) && !self.is_capable(21)
    }

    /// Whether packet(7) is open to this process: CAP_NET_RAW.
    pub fn opens_packet_sockets(&self) -> bool {
        self.is_capable(13)
    }

    /// By number (include/uapi/linux/capability.h).
    fn is_capable(&self, capability: u32) -> bool {
        u64::from_str_radix(&self.capabilities, 16).unwrap_or(0) >> capability & 1 != 0
    }

    /// Whether the kernel is locked down so far that no helper reads memory.
    pub fn is_confidential(&self) -> bool {
        self.lockdown == "confidentiality"
    }
}

impl Offer {
    /// Whether it works.
    pub fn is_yes(&self) -> bool {
        *self == Self::Yes
    }

    fn of(tried: io::Result<()>) -> Self {
        match tried {
            Ok(()) => Self::Yes,
            Err(error) => Self::No { reason: error.to_string(), errno: error.raw_os_error() },
        }
    }
}

fn no_types(path: &Path, error: &dyn std::fmt::Display) -> (Types, Bpf, Option<Found>) {
    let types = Types { path: path.to_owned(), error: error.to_string(), ..Types::default() };
    (types, Bpf::default(), None)
}

fn types(path: &Path, blob: &[u8]) -> (Types, Bpf, Option<Found>) {
    let btf = match btf::Btf::parse(blob) {
        Ok(btf) => btf,
        Err(error) => return no_types(path, &error),
    };
    let found = offsets::find(&btf);
    let mut types =
        Types { path: path.to_owned(), missing_fields: found.missing.clone(), ..Types::default() };
    let mut bpf = Bpf::default();
    let try_once = |offer: &mut Offer, attach: Attach, id: u32| {
        if *offer == Offer::Untried {
            *offer = Offer::of(trial::tracing(attach, id));
        }
    };
    for hook in hooks() {
        match hook {
            Hook::TpBtf(name) => {
                let Some(id) = btf.tracepoint_id(name) else { continue };
                let parameters = btf.tracepoint_parameters(name).unwrap_or_default();
                types.tracepoints.insert(name.to_owned(), parameters);
                try_once(&mut bpf.tp_btf, Attach::Tracepoint, id);
            }
            Hook::Iter(name) => {
                let Some(id) = btf.function_id(&format!("bpf_iter_{name}")) else { continue };
                types.iterators.insert(name.to_owned());
                try_once(&mut bpf.iterator, Attach::Iterator, id);
            }
            Hook::Entry(name) if btf.function_id(name).is_some() => {
                types.functions.insert(name.to_owned());
            }
            _ => {}
        }
    }
    if let Some(id) = btf.function_id(ENTRY_TRIAL) {
        try_once(&mut bpf.fentry, Attach::Entry, id);
    }
    (types, bpf, Some(found))
}

fn map_offer(kind: MapType) -> Offer {
    let unknown = || io::Error::from_raw_os_error(libc::EINVAL);
    Offer::of(match is_map_supported(kind) {
        Ok(true) => Ok(()),
        Ok(false) => Err(unknown()),
        Err(error) => Err(error.io_error),
    })
}

fn program_offer(kind: ProgramType) -> Offer {
    let unknown = || io::Error::from_raw_os_error(libc::EINVAL);
    Offer::of(match is_program_supported(kind) {
        Ok(true) => Ok(()),
        Ok(false) => Err(unknown()),
        Err(ProgramError::SyscallError(error)) => Err(error.io_error),
        Err(error) => Err(io::Error::other(error)),
    })
}

fn tracefs() -> Option<Tracefs> {
    let path = tracefs::find()?;
    let events = hooks()
        .filter_map(|hook| match hook {
            Hook::Tracepoint(name) => Some((name.to_owned(), tracefs::fields(&path, name).ok()?)),
            _ => None,
        })
        .collect();
    Some(Tracefs { path, events })
}

fn privileges() -> Privileges {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let number = |path: &str| text(path).trim().parse().ok();
    let status = text("/proc/self/status");
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    // The mode in force stands in brackets: `none [integrity] confidentiality`.
    let lockdown = text("/sys/kernel/security/lockdown");
    let mode = lockdown.split(['[', ']']).nth(1);
    Privileges {
        uid: rustix::process::geteuid().as_raw(),
        capabilities: mask.unwrap_or_default().trim().to_owned(),
        lockdown: mode.unwrap_or_default().to_owned(),
        memlock_bytes: rustix::process::getrlimit(rustix::process::Resource::Memlock).current,
        unprivileged_bpf_disabled: number("/proc/sys/kernel/unprivileged_bpf_disabled"),
        perf_event_paranoid: number("/proc/sys/kernel/perf_event_paranoid"),
    }
}

fn cgroup_version() -> u8 {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    match groups.lines().any(|line| !line.starts_with("0:")) {
        true => 1,
        false if groups.is_empty() => 0,
        false => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_describes_itself() {
        let (support, found) = Support::probe(Path::new(super::super::BTF_PATH));
        assert!(!support.release.is_empty() && support.page_bytes >= 4096);
        assert_eq!(found.is_some(), support.btf.error.is_empty());
        let text = serde_json::to_string(&support).unwrap();
        assert_eq!(serde_json::from_str::<Support>(&text).unwrap(), support);
    }

    #[test]
    fn a_kernel_without_btf_says_where_it_was_looked_for() {
        let (support, found) = Support::probe(Path::new("/nonexistent"));
        assert!(found.is_none());
        assert!(support.btf.error.contains("os error 2"), "{}", support.btf.error);
        assert_eq!(support.bpf.tp_btf, Offer::Untried);
    }
}
