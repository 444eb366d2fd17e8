//! Why somebody who could run waits for a CPU, and who is to blame. Whoever uses the CPU at that time need not be: while
//! memory is short, programs use it to read back pages that they lost a moment ago, and a quota leaves CPUs idle.

use std::time::Duration;

use super::{is_memory_short, stack::Class, throttled};
use crate::{
    detect::{
        Evidence, Party, Seen, evidence,
        judgement::Blamed,
        key::ByKey,
        mean::Mean,
        memory::cgroup::ancestors,
        party::{self, Cause},
    },
    signal::sched::Consumer,
};

/// Over about ten seconds, as the waiting that is explained.
const CONSTANT: Duration = Duration::from_secs(5);
const LATELY_NS: u64 = 10_000_000_000;
/// If the hypervisor takes this share, or a quota holds a group back in this share of its periods, it may be that.
const ELSEWHERE: f64 = 0.1;
/// A quota must hold a group back for this part of what is waited.
const QUOTA: f64 = 0.5;
/// Nobody gets on for want of memory: no less than lmkd's threshold, and for this part of what is waited. What a program
/// computes meanwhile is not counted in that time, so beside programs that really compute it stays below.
const STALLED: f64 = 0.07;
const PAGING: f64 = 0.25;
/// Who takes less than this part of what is waited for is one of many.
const SUBSTANTIAL: f64 = 1.0 / 3.0;
/// Real-time programs with so many CPUs are named whatever others use: nobody below them can run.
const REAL_TIME: f64 = 0.3;
/// Rows from which on there may be more programs that use the CPU than are shown.
const MANY_ROWS: usize = 64;
/// Control groups and processes followed.
const MAX_GROUPS: usize = 4096;
const MAX_RECLAIMERS: usize = 1024;

/// What to do about want of memory.
pub(super) const MEMORY_ADVICE: &str =
    "memory is short: see who grows (memory findings), and stop it";

/// What to do about a quota.
pub(super) const QUOTA_ADVICE: &str = "raise the quota (CPUQuota=, the container's CPU limit), or give the service less to \
    do; the host itself may have CPU time left";

/// Why a thread that could run does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The CPU quota of its control group is used up.
    Quota,
    /// The hypervisor runs other machines.
    Stolen,
    /// Memory is short: the CPU goes into freeing memory and reading pages back.
    Paging,
    /// Others have the CPU.
    Taken,
}

impl Why {
    /// For a person, after "it waits for a CPU".
    pub fn text(self) -> &'static str {
        match self {
            Self::Quota => ", and the quota of its control group is used up",
            Self::Stolen => ", and the hypervisor gives it to others",
            Self::Paging => {
                ", and memory is short: programs use the CPU to free it and to read pages back"
            }
            Self::Taken => "",
        }
    }
}

/// Why, and who is to blame for it, if that is known.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Blame {
    pub why: Why,
    pub culprit: Option<Party>,
}

/// Now, and of late: what has just begun counts, and what ended a moment ago, too.
#[derive(Debug, Clone, Copy, Default)]
struct Lately {
    now: f64,
    mean: Mean,
}

impl Lately {
    fn add(&mut self, now: f64, elapsed_ns: u64) {
        self.now = if now.is_finite() { now.clamp(0.0, 1.0) } else { 0.0 };
        self.mean.add(self.now, elapsed_ns, CONSTANT);
    }

    fn value(&self) -> f64 {
        self.now.max(self.mean.value())
    }
}

/// Hits of a memory limit.
#[derive(Debug)]
struct Limit {
    hits: u64,
    /// When the last came.
    at_ns: Option<u64>,
    round: u64,
}

/// What is followed to tell.
#[derive(Debug, Default)]
pub(super) struct Blamer {
    /// Share of the time in which nobody got on for want of memory (PSI full), and its total at the tick before.
    stalled: Lately,
    stalled_ns: Option<u64>,
    /// When memory was short last.
    short_ns: Option<u64>,
    /// Hits of memory limits by path, and when the last came; followed while tasks stall.
    limits: ByKey<String, Limit>,
    /// By path: share of its periods in which a quota holds a group back, and the round in which it had one last.
    quotas: ByKey<String, (Lately, u64)>,
    round: u64,
    /// Direct reclaims at the tick before, time in them by pid, and the share of the tick that they took.
    reclaims: u64,
    reclaimed_ns: ByKey<u32, u64>,
    reclaiming: ByKey<u32, f64>,
    /// What memory's own kinds have told.
    told: Vec<Blamed>,
}

impl Blamer {
    /// Takes what findings of memory say at this tick.
    pub fn hear(&mut self, told: &[Blamed]) {
        self.told.clear();
        self.told.extend_from_slice(told);
    }

    /// Takes a tick.
    pub fn follow(&mut self, seen: &Seen<'_>) {
        let oom = &seen.snapshot.oom;
        let is_full =
            |row: &&crate::signal::oom::Pressure| row.resource == "memory" && row.scope == "full";
        let now_ns = oom.pressure.iter().find(is_full).map_or(0, |row| row.total_ns);
        let before_ns = self.stalled_ns.replace(now_ns).unwrap_or(now_ns);
        let share = now_ns.saturating_sub(before_ns) as f64 / seen.elapsed_ns.max(1) as f64;
        self.stalled.add(share, seen.elapsed_ns);
        if is_memory_short(seen.snapshot) {
            self.short_ns = Some(seen.now_ns);
        }
        self.round += 1;
        self.follow_limits(seen);
        self.follow_quotas(seen);
        self.follow_reclaim(seen);
    }

    fn follow_limits(&mut self, seen: &Seen<'_>) {
        if self.stalled.value() < STALLED {
            self.limits.clear();
            return;
        }
        let round = self.round;
        let rows = seen.snapshot.oom.cgroups.iter().filter(|row| row.limit_hits > 0);
        for row in rows.take(MAX_GROUPS) {
            let Some(known) = self.limits.get_mut(&row.path) else {
                let new = Limit { hits: row.limit_hits, at_ns: None, round };
                self.limits.insert(row.path.clone(), new);
                continue;
            };
            if row.limit_hits > known.hits {
                known.at_ns = Some(seen.now_ns);
            }
            (known.hits, known.round) = (row.limit_hits, round);
        }
        self.limits.retain(|_, known| known.round == round);
    }

    fn follow_quotas(&mut self, seen: &Seen<'_>) {
        let round = self.round;
        for group in seen.snapshot.sched.throttled.iter().take(MAX_GROUPS) {
            let ratio = group.throttled_ratio;
            if let Some((share, seen_in)) = self.quotas.get_mut(&group.path) {
                share.add(ratio, seen.elapsed_ns);
                *seen_in = round;
            } else if ratio >= ELSEWHERE {
                let mut share = Lately::default();
                share.add(ratio, seen.elapsed_ns);
                self.quotas.insert(group.path.clone(), (share, round));
            }
        }
        self.quotas.retain(|_, (share, seen_in)| {
            if *seen_in != round {
                // It has no quota any more.
                share.add(0.0, seen.elapsed_ns);
            }
            share.value() >= 0.2 * ELSEWHERE
        });
    }

    fn follow_reclaim(&mut self, seen: &Seen<'_>) {
        let oom = &seen.snapshot.oom;
        self.reclaiming.clear();
        if oom.direct_reclaims == self.reclaims {
            return;
        }
        self.reclaims = oom.direct_reclaims;
        let mut now = ByKey::default();
        for row in oom.reclaimers.iter().take(MAX_RECLAIMERS) {
            let before_ns = self.reclaimed_ns.get(&row.pid).copied().unwrap_or(0);
            let spent_ns = row.total_ns.saturating_sub(before_ns);
            self.reclaiming.insert(row.pid, spent_ns as f64 / seen.elapsed_ns.max(1) as f64);
            now.insert(row.pid, row.total_ns);
        }
        self.reclaimed_ns = now;
    }

    /// Why threads of a process wait this share of their time for a CPU. `among`: who can be the one that has it.
    pub fn of(
        &self,
        pid: u32,
        share: f64,
        seen: &Seen<'_>,
        among: impl Fn(&Consumer) -> bool,
    ) -> Blame {
        let taken = || Blame { why: Why::Taken, culprit: self.taker(share, seen, &among) };
        if let Some(path) = self.quota(pid, share, seen) {
            return Blame { why: Why::Quota, culprit: throttled::busiest(path, seen) };
        }
        if has_real_time(seen) {
            return taken();
        }
        if seen.snapshot.sched.steal_ratio >= ELSEWHERE {
            let culprit = Some(party::kernel("hypervisor (steal)", 1.0));
            return Blame { why: Why::Stolen, culprit };
        }
        if self.is_paging(pid, share, seen) {
            return Blame { why: Why::Paging, culprit: Some(self.memory(pid, seen)) };
        }
        taken()
    }

    /// The control group of a process whose quota explains that it waits this share of its time.
    pub fn quota(&self, pid: u32, share: f64, seen: &Seen<'_>) -> Option<&str> {
        if self.quotas.is_empty() {
            return None;
        }
        let own = throttled::cgroup(seen, pid)?;
        let least = (QUOTA * share).max(ELSEWHERE);
        let mut above = ancestors(own).filter_map(|path| self.quotas.get_key_value(path));
        let held = above.find(|(_, (held, _))| held.value() >= least);
        held.map(|(path, _)| path.as_str())
    }

    /// Whether want of memory, of the host or of the process's control group, explains that it does not get on for this
    /// share of its time.
    pub fn is_paging(&self, pid: u32, share: f64, seen: &Seen<'_>) -> bool {
        if self.stalled.value() < (PAGING * share).max(STALLED) {
            return false;
        }
        is_late(self.short_ns, seen) || self.limit(pid, seen).is_some()
    }

    /// The control group of a process that has hit its memory limit of late.
    fn limit(&self, pid: u32, seen: &Seen<'_>) -> Option<&str> {
        let own = &seen.process(pid)?.cgroup;
        let mut above = ancestors(own).filter_map(|path| self.limits.get_key_value(path));
        above.find(|(_, limit)| is_late(limit.at_ns, seen)).map(|(path, _)| path.as_str())
    }

    /// Who is to blame for the want of memory that a process suffers from: whom memory's own findings name, of its control
    /// group or of the host.
    pub fn memory(&self, pid: u32, seen: &Seen<'_>) -> Party {
        if let Some(path) = self.limit(pid, seen) {
            let told = self.told.iter().find(|told| told.subject == path);
            let limit =
                || party::kernel(&format!("memory limit of {}", throttled::name_of(path)), 1.0);
            return told.map_or_else(limit, |told| told.culprit.clone());
        }
        takes_memory(&self.told, seen).unwrap_or_else(|| Class::Reclaim.party())
    }

    /// Who has the CPU that somebody waits for, if it is a good part of what is waited for. What one of them does to free
    /// memory is not counted as taken, nor is what is left over for those that run when nobody else wants to.
    fn taker(
        &self,
        share: f64,
        seen: &Seen<'_>,
        among: impl Fn(&Consumer) -> bool,
    ) -> Option<Party> {
        let real_time = has_real_time(seen);
        let rows: Vec<_> = seen.snapshot.sched.consumers.iter().filter(|row| among(row)).collect();
        let counts = |row: &Consumer| match real_time {
            true => is_real_time(row),
            false => row.policy != "idle" && !is_reclaimer(row, seen),
        };
        let taken = |row: &Consumer| {
            let reclaiming = self.reclaiming.get(&row.pid).copied().unwrap_or(0.0);
            cpus_of(row) - reclaiming.min(cpus_of(row))
        };
        let causes: Vec<Cause<'_>> = rows
            .iter()
            .filter(|row| counts(row))
            .map(|row| (row.pid, row.name.as_str(), taken(row)))
            .collect();
        let party = party::culprit(seen.snapshot, &causes)?;
        let wanted = rows.iter().filter(|row| row.policy != "idle");
        let all: f64 = wanted.map(|row| cpus_of(row)).sum();
        // Where rows are missing, what is known of the others is all there is.
        let waited = if rows.len() < MANY_ROWS { share.min(1.0) } else { 0.0 };
        let whole: f64 = causes.iter().map(|(.., taken)| taken).sum();
        let is_substantial =
            real_time || party.share_ratio * whole >= SUBSTANTIAL * all.max(waited);
        is_substantial.then_some(party)
    }

    /// The numbers that say that memory is short.
    pub fn numbers(&self, seen: &Seen<'_>) -> [Evidence; 2] {
        let refaults = seen.snapshot.oom.refault_ratio;
        [
            evidence("memory_full", self.stalled.value(), "1", "/proc/pressure/memory"),
            evidence("refaults_of_file_pages", refaults, "1/s", "/proc/vmstat"),
        ]
    }
}

/// Whether something has happened of late.
fn is_late(at_ns: Option<u64>, seen: &Seen<'_>) -> bool {
    at_ns.is_some_and(|at_ns| seen.now_ns.saturating_sub(at_ns) < LATELY_NS)
}

/// Who takes the host's memory: whom findings have named, else whom the clock of its exhaustion points at.
pub(super) fn takes_memory(told: &[Blamed], seen: &Seen<'_>) -> Option<Party> {
    // Subjects of control groups are their paths.
    let told = told.iter().find(|told| !told.subject.starts_with('/'));
    told.map(|told| told.culprit.clone()).or_else(|| {
        let pid = seen.snapshot.oom.culprit_pid?;
        Some(party::process(seen.snapshot, pid, "", 1.0))
    })
}

/// CPUs that a process uses, with the children that it has waited for.
pub(super) fn cpus_of(row: &Consumer) -> f64 {
    row.cpu_ratio.max(0.0) + row.children_cpu_ratio.max(0.0)
}

fn is_real_time(row: &Consumer) -> bool {
    matches!(row.policy.as_str(), "fifo" | "rr" | "deadline")
}

/// Whether real-time programs use so much that nobody below them may run.
pub(super) fn has_real_time(seen: &Seen<'_>) -> bool {
    let rows = seen.snapshot.sched.consumers.iter().filter(|row| is_real_time(row));
    rows.map(cpus_of).sum::<f64>() >= REAL_TIME
}

/// Whether it is a thread of the kernel that frees memory for others.
fn is_reclaimer(row: &Consumer, seen: &Seen<'_>) -> bool {
    let is_kernel = || seen.process(row.pid).is_none_or(|process| process.parent_pid == 2);
    ["kswapd", "kcompactd"].iter().any(|name| row.name.starts_with(name)) && is_kernel()
}
