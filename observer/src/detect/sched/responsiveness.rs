//! Whether a person could still log in: what a shell needs is memory for a fork, pages of programs, and system services
//! that are not held up themselves (incidents I1, I2: SSH was refused for an hour).

use std::{collections::BTreeMap, time::Duration};

use super::{blame::takes_memory, percent, seconds, stack::Class};
use crate::{
    detect::{
        Detector, Judgement, Kind, Level, MAX_PIDS, Party, Seen, State, evidence,
        judgement::Blamed, mean::Mean, party,
    },
    signal::sched::BlockedTask,
};

/// The host stops answering.
pub static KIND: Kind = Kind {
    name: "host.responsiveness",
    signal: "oom",
    help: "the host stops answering: soon nobody can log in",
    reason: "In measured runs tasks waited for memory 7 % of the time 70 to 80 s before the host hung, and all at once 50 to \
             75 s before; pages of programs were read again and again 10 to 40 s before. System services that wait for \
             memory or a disk are how a person notices. None of it counts while there is memory: a group at its own limit \
             stalls too, and the host does not.",
    raise: Duration::from_secs(2),
    clear: Duration::from_secs(20),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Responsiveness::default()),
};

/// Services without which nobody logs in, or knows of it: names as the kernel cuts them, or their beginnings.
const SYSTEM: &[&str] = &[
    "systemd",
    "(sd-",
    "(udev-worker)",
    "sshd",
    "login",
    "agetty",
    "dbus-",
    "crond",
    "cron",
    "rsyslogd",
    "polkitd",
    "snapd",
    "amazon-ssm",
    "ssm-agent",
    "init",
];
/// Processes whose reclaim is followed.
const MAX_RECLAIMERS: usize = 1024;
/// Over about five seconds.
const CONSTANT: Duration = Duration::from_secs(3);
/// Share of time in which some or all wait for memory.
const SOME: f64 = 0.07;
const MUCH: f64 = 0.2;
/// File pages read again, of those there are, in a second.
const THRASH: f64 = 0.1;
/// Share of its time that a system service frees memory before it gets some.
const RECLAIM: f64 = 0.1;
/// How long one may wait for a disk; five times as long means that it hangs.
const BLOCKED_NS: u64 = 5_000_000_000;

#[derive(Default)]
struct Responsiveness {
    /// Totals at the tick before: some and full of memory.
    stalled_ns: Option<[u64; 2]>,
    some: Mean,
    full: Mean,
    /// Time in direct reclaim by pid.
    reclaimed: BTreeMap<u32, u64>,
    reclaim: Mean,
    /// Who takes the memory.
    memory: Vec<Blamed>,
}

fn is_system(name: &str) -> bool {
    SYSTEM.iter().any(|start| name.starts_with(start))
}

impl Responsiveness {
    fn pressure(&mut self, seen: &Seen<'_>) {
        let total = |scope: &str| {
            let rows = &seen.snapshot.oom.pressure;
            rows.iter()
                .find(|row| row.resource == "memory" && row.scope == scope)
                .map(|row| row.total_ns)
        };
        let Some(now) = total("some").map(|some| [some, total("full").unwrap_or(0)]) else {
            return;
        };
        let before = self.stalled_ns.replace(now).unwrap_or(now);
        let share = |index: usize| {
            let stalled = now.get(index).zip(before.get(index));
            let stalled_ns = stalled.map_or(0, |(now, before)| now.saturating_sub(*before));
            stalled_ns as f64 / seen.elapsed_ns.max(1) as f64
        };
        self.some.add(share(0).min(1.0), seen.elapsed_ns, CONSTANT);
        self.full.add(share(1).min(1.0), seen.elapsed_ns, CONSTANT);
    }

    /// Time that system services spent in reclaim; gives those who did since the tick before.
    fn reclaim(&mut self, seen: &Seen<'_>) -> Vec<(u32, String)> {
        let (mut spent_ns, mut who) = (0_u64, Vec::new());
        let mut now = BTreeMap::new();
        let rows = seen.snapshot.oom.reclaimers.iter().filter(|row| is_system(&row.name));
        for row in rows.take(MAX_RECLAIMERS) {
            let before = self.reclaimed.get(&row.pid).copied().unwrap_or(row.total_ns);
            if row.total_ns > before {
                spent_ns = spent_ns.saturating_add(row.total_ns - before);
                who.push((row.pid, row.name.clone()));
            }
            now.insert(row.pid, row.total_ns);
        }
        self.reclaimed = now;
        let share = spent_ns as f64 / seen.elapsed_ns.max(1) as f64;
        self.reclaim.add(share.min(1.0), seen.elapsed_ns, CONSTANT);
        who
    }
}

/// System services that hang in the kernel.
fn hanging<'a>(seen: &'a Seen<'_>) -> Vec<(Class, &'a BlockedTask)> {
    let rows = seen.snapshot.sched.blocked.iter().filter(|row| is_system(&row.name));
    let short = super::is_memory_short(seen.snapshot);
    rows.map(|row| (Class::of(&row.stack).with_memory(short), row))
        .filter(|(class, _)| *class != Class::Own)
        .collect()
}

impl Responsiveness {
    fn level(&self, hanging: &[(Class, &BlockedTask)], seen: &Seen<'_>) -> Option<Level> {
        let short = super::is_memory_short(seen.snapshot);
        let thrash = seen.snapshot.oom.refault_ratio >= THRASH;
        let longest_ns = hanging.iter().map(|(_, row)| row.blocked_ns).max().unwrap_or(0);
        let full = self.full.value();
        let signs = [
            short && full >= SOME,
            short && self.reclaim.value() >= RECLAIM,
            short && !hanging.is_empty() || longest_ns >= BLOCKED_NS,
            short && thrash,
        ];
        let signs = signs.iter().filter(|sign| **sign).count();
        Some(match signs {
            _ if longest_ns >= 5 * BLOCKED_NS || short && full >= MUCH && thrash => Level::Critical,
            3.. => Level::Critical,
            1..=2 => Level::Warn,
            _ if short && self.some.value() >= SOME => Level::Watch,
            _ => return None,
        })
    }

    /// Who grows; if nobody does, what the services wait for.
    fn culprit(&self, hanging: &[(Class, &BlockedTask)], seen: &Seen<'_>) -> Option<Party> {
        let memory = hanging
            .iter()
            .all(|(class, _)| matches!(class, Class::PageIn | Class::Reclaim | Class::Unknown));
        let grows = if memory { takes_memory(&self.memory, seen) } else { None };
        let waits_for = hanging.first().filter(|(class, _)| class.is_cause());
        grows.or_else(|| waits_for.map(|(class, _)| class.party()))
    }
}

impl Detector for Responsiveness {
    fn hear(&mut self, memory: &[Blamed]) {
        self.memory = memory.to_vec();
    }

    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        self.pressure(seen);
        let reclaiming = self.reclaim(seen);
        let hanging = hanging(seen);
        let Some(level) = self.level(&hanging, seen) else { return };
        let oom = &seen.snapshot.oom;
        let mut suffer = vec![format!(
            "tasks wait for memory {} % of the time, all at once {} %",
            percent(self.some.value()),
            percent(self.full.value())
        )];
        if let Some((class, row)) = hanging.iter().max_by_key(|(_, row)| row.blocked_ns) {
            let waits = seconds(row.blocked_ns);
            suffer.push(format!("{} has waited for {} for {waits:.0} s", row.name, class.text()));
        }
        if let Some((_, name)) = reclaiming.first() {
            suffer.push(format!("{name} has to free memory before it gets some"));
        }
        let victims = hanging
            .iter()
            .map(|(_, row)| (row.pid, row.name.as_str()))
            .chain(reclaiming.iter().map(|(pid, name)| (*pid, name.as_str())))
            .take(MAX_PIDS)
            .map(|(pid, name)| party::process(seen.snapshot, pid, name, 0.0));
        found.push(Judgement {
            subject: "host".to_owned(),
            state: State::Firing(level),
            culprit: self.culprit(&hanging, seen),
            victims: victims.collect(),
            evidence: vec![
                evidence("memory_some", self.some.value(), "1", "/proc/pressure/memory"),
                evidence("memory_full", self.full.value(), "1", "/proc/pressure/memory"),
                evidence("refaults_of_file_pages", oom.refault_ratio, "1/s", "/proc/vmstat"),
                evidence(
                    "memory_available",
                    oom.memory_available_bytes as f64,
                    "By",
                    "/proc/meminfo",
                ),
                evidence(
                    "services_reclaiming",
                    self.reclaim.value(),
                    "1",
                    "tp_btf/mm_vmscan_direct_reclaim_end",
                ),
            ],
            message: format!(
                "the host stops answering, and soon nobody can log in: {}",
                suffer.join("; ")
            ),
            advice:
                "log in now, while it works; stop or restart what grows; nobody can, once it hangs"
                    .to_owned(),
            ..Judgement::default()
        });
        found.iter_mut().for_each(|judgement| judgement.evidence.retain(|e| e.value.is_finite()));
    }
}
