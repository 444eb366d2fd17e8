//! Which way each program runs on a kernel, or why it does not. Pure: all that is known of the kernel is in [`Support`].

use serde::{Deserialize, Serialize};

use super::{
    programs::{Hook, PROGRAMS, Spec, Variant},
    support::{Offer, Support},
};
use crate::snapshot::{Program, Verdict};

/// What `mark_victim` cannot say before 6.9.
const VICTIM_BY_PID: &str =
    "the victim is named by its pid only: its sizes are those of the last tick";

/// How much of the agent a kernel can run. docs/kernels.md says what works on each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// Type information and a ring buffer: all programs.
    Full,
    /// Classic tracepoints and a queue.
    Classic,
    /// No program of ours: what `/proc` says.
    Proc,
}

/// What the user has asked for, as far as it changes the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Whether page faults are sampled.
    pub page_faults: bool,
}

/// What comes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The rung that the programs are taken from.
    pub rung: Rung,
    /// One a program, in the order of [`PROGRAMS`].
    pub choices: Vec<Choice>,
}

/// What becomes of one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Its name.
    pub name: &'static str,
    /// The ways that should work here, best first; empty if none does.
    pub ways: Vec<Variant>,
    /// Why the best way that there is does not work; empty if it should.
    pub refusal: Refusal,
}

/// Why something does not work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
}

impl Plan {
    /// Whether enough of it came true to stay on this rung: any tracepoint.
    pub fn stands(&self, programs: &[Program]) -> bool {
        let on_tracepoint =
            |row: &Program| row.hook.starts_with("tp_btf/") || row.hook.starts_with("tracepoint/");
        programs.iter().any(|row| row.verdict != Verdict::Impossible && on_tracepoint(row))
    }
}

/// Chooses.
pub fn plan(support: &Support, wanted: Wanted) -> Plan {
    let rung = rung(support);
    let choices = PROGRAMS.iter().map(|spec| choose(spec, rung, support, wanted)).collect();
    Plan { rung, choices }
}

fn choose(spec: &Spec, rung: Rung, support: &Support, wanted: Wanted) -> Choice {
    let tried = spec.variants.iter().map(|variant| {
        hook(variant.hook, rung, support, wanted).map(|loss| Variant {
            loss: if variant.loss.is_empty() { loss } else { variant.loss },
            ..*variant
        })
    });
    let (mut ways, mut refusals) = (Vec::new(), Vec::new());
    for way in tried {
        match way {
            Ok(way) => ways.push(way),
            Err(refusal) => refusals.push(refusal),
        }
    }
    let refusal = if ways.is_empty() {
        Refusal::all(refusals)
    } else {
        refusals.into_iter().next().unwrap_or_default()
    };
    Choice { name: spec.name, ways, refusal }
}

/// The highest rung that this kernel reaches.
fn rung(support: &Support) -> Rung {
    if full(support).is_ok() {
        Rung::Full
    } else if classic(support).is_ok() {
        Rung::Classic
    } else {
        Rung::Proc
    }
}

/// What the full object needs as a whole.
fn full(support: &Support) -> Result<(), Refusal> {
    let btf = &support.btf;
    if !btf.error.is_empty() {
        return Err(Refusal::new(
            format!("no kernel type information in {}: {}", btf.path.display(), btf.error),
            "use a kernel built with CONFIG_DEBUG_INFO_BTF (all current distributions), or name a BTF file of this \
             kernel with OBSERVER_BTF",
        ));
    }
    support.bpf.ring_buffer.needed("the kernel gives no ring buffer", support)?;
    support.bpf.tp_btf.needed("the kernel takes no BTF-typed tracepoint", support)?;
    not_refused(Rung::Full, support)
}

/// What the classic object needs as a whole.
fn classic(support: &Support) -> Result<(), Refusal> {
    if support.tracefs.is_none() {
        return Err(Refusal::new(
            "no tracefs can be read in /sys/kernel/tracing".to_owned(),
            "mount it: mount -t tracefs tracefs /sys/kernel/tracing",
        ));
    }
    perf_events(support)?;
    support.bpf.queue.needed("the kernel gives no queue", support)?;
    support.bpf.tracepoint.needed("the kernel takes no program on a tracepoint", support)?;
    not_refused(Rung::Classic, support)
}

/// What a classic tracepoint and sampled page faults are attached through.
fn perf_events(support: &Support) -> Result<(), Refusal> {
    if !support.privileges.is_too_paranoid() {
        return Ok(());
    }
    Err(Refusal::new(
        "kernel.perf_event_paranoid is above 2".to_owned(),
        "sysctl kernel.perf_event_paranoid=2, or grant CAP_SYS_ADMIN",
    ))
}

fn not_refused(rung: Rung, support: &Support) -> Result<(), Refusal> {
    let refused = support.refused.get(&rung);
    refused.map_or(Ok(()), |offer| offer.needed("the kernel refused the programs", support))
}

/// Whether a hook can be used; `Ok` with what it cannot say here.
fn hook(
    hook: Hook,
    rung: Rung,
    support: &Support,
    wanted: Wanted,
) -> Result<&'static str, Refusal> {
    let missing = |what: &str| {
        Err(Refusal::new(
            format!("kernel {} has no {what}", support.release),
            "use a kernel that has this hook",
        ))
    };
    if hook == Hook::PageFaults && !wanted.page_faults {
        return Err(Refusal::new("switched off".to_owned(), "set alloc.fault_period"));
    }
    let object = match hook {
        Hook::Tracepoint(_) => Rung::Classic,
        Hook::PageFaults => rung,
        _ => Rung::Full,
    };
    if object != rung || rung == Rung::Proc {
        if object == Rung::Classic {
            classic(support)?
        } else {
            full(support)?
        }
        return missing(&hook.describe());
    }
    match hook {
        Hook::TpBtf(name) => match support.btf.tracepoints.get(name) {
            None => return missing(&hook.describe()),
            Some(parameters) if name == "mark_victim" && parameters.first() == Some(&false) => {
                return Ok(VICTIM_BY_PID);
            }
            Some(_) => {}
        },
        Hook::Entry(name) => {
            if !support.btf.functions.contains(name) {
                return missing(&hook.describe());
            }
            support.bpf.fentry.needed("the kernel takes no program on a function", support)?;
        }
        Hook::Iter(name) => {
            if !support.btf.iterators.contains(name) {
                return missing(&hook.describe());
            }
            support.bpf.iterator.needed("the kernel takes no iterator", support)?;
        }
        Hook::PageFaults => {
            perf_events(support)?;
            support.bpf.perf_event.needed("the kernel takes no program on perf events", support)?;
            if rung == Rung::Classic || support.privileges.is_confidential() {
                return Ok("a leaf function without a frame hides who called it");
            }
        }
        Hook::Tracepoint(name) => {
            let events = support.tracefs.as_ref().map(|tracefs| &tracefs.events);
            let Some(fields) = events.and_then(|events| events.get(name)) else {
                return missing(&hook.describe());
            };
            if name == "oom/mark_victim" && !fields.iter().any(|field| field.name == "anon_rss") {
                return Ok(VICTIM_BY_PID);
            }
        }
        Hook::Packets if !support.privileges.opens_packet_sockets() => {
            return Err(Refusal::new("no packet sockets".to_owned(), "grant CAP_NET_RAW"));
        }
        // Any kernel that has the rest has these.
        Hook::Packets => {}
    }
    Ok("")
}

impl Offer {
    fn needed(&self, what: &str, support: &Support) -> Result<(), Refusal> {
        match self {
            Self::Yes => Ok(()),
            Self::No { reason, errno } => {
                Err(Refusal::new(format!("{what}: {reason}"), remedy(*errno, support)))
            }
            Self::Untried => Err(Refusal::new(what.to_owned(), remedy(None, support))),
        }
    }
}

impl Refusal {
    /// Several at once, each said once.
    fn all(refusals: Vec<Self>) -> Self {
        let (mut reasons, mut remedies) = (Vec::new(), Vec::new());
        for Self { reason, remedy } in refusals {
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
            if !remedies.contains(&remedy) {
                remedies.push(remedy);
            }
        }
        Self { reason: reasons.join("; "), remedy: remedies.join("; or ") }
    }

    /// A reason and its remedy.
    pub fn new(reason: String, remedy: &str) -> Self {
        Self { reason, remedy: remedy.to_owned() }
    }
}

impl Spec {
    /// Row of a program that runs this way, or waits until it is needed. `refusal`: why not in the first way.
    pub fn running(&self, way: &Variant, refusal: &Refusal) -> Program {
        let verdict = match (way.loss.is_empty(), self.standby) {
            (false, _) => Verdict::Degraded,
            (true, true) => Verdict::Standby,
            (true, false) => Verdict::Attached,
        };
        let row = self.row(way.hook, verdict);
        match (way.loss, refusal.reason.as_str()) {
            ("", _) => row,
            (loss, "") => Program {
                reason: loss.to_owned(),
                remedy: "use a kernel that is newer, has type information and is not locked down"
                    .to_owned(),
                ..row
            },
            (loss, reason) => Program {
                reason: format!("{loss}: {reason}"),
                remedy: refusal.remedy.clone(),
                ..row
            },
        }
    }

    /// Row of a program that does not run.
    pub fn impossible(&self, refusal: &Refusal) -> Program {
        Program {
            reason: format!("{}: {}", self.loss, refusal.reason),
            remedy: refusal.remedy.clone(),
            ..self.row(self.variants[0].hook, Verdict::Impossible)
        }
    }

    fn row(&self, hook: Hook, verdict: Verdict) -> Program {
        let (name, signal) = (self.name.to_owned(), self.signal.to_owned());
        Program { name, signal, hook: hook.describe(), verdict, ..Program::default() }
    }
}

/// What to do about an error of the bpf(2) system call.
pub fn remedy(errno: Option<i32>, support: &Support) -> &'static str {
    match errno {
        Some(libc::EPERM | libc::EACCES) if support.privileges.is_confidential() => {
            "start the kernel without lockdown=confidentiality, which forbids to read its memory"
        }
        Some(libc::EPERM | libc::EACCES) => {
            "run as root, or with CAP_BPF, CAP_PERFMON, CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE; in a container, also \
             outside its seccomp profile and its PID namespace"
        }
        Some(libc::ENOSYS) => "use a kernel with CONFIG_BPF_SYSCALL",
        Some(libc::ENOENT | libc::ESRCH | libc::EINVAL) => {
            "use a kernel that has this hook (5.8 or newer)"
        }
        Some(libc::ENOMEM) => {
            "free some memory, or on a kernel before 5.11 raise the memlock limit"
        }
        _ => "see the reason; `observer check --json` shows it in full",
    }
}

#[cfg(test)]
mod tests;
