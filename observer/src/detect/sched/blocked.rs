//! Tasks that nobody can even kill: they wait in the kernel for a disk, a file server, memory or a lock.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    SECOND_NS,
    blame::takes_memory,
    is_memory_short, seconds,
    stack::{Class, Classes},
};
use crate::{
    config::{self, Config, Setting},
    detect::{
        Detector, Judgement, Kind, Level, MAX_PIDS, Party, Seen, State, evidence,
        judgement::Blamed, mean::Mean, party,
    },
    signal::sched::BlockedTask,
};

/// Tasks hang in the kernel.
pub static KIND: Kind = Kind {
    name: "sched.blocked",
    signal: "sched",
    help: "tasks hang in uninterruptible sleep",
    reason: "A flush of a slow disk takes seconds and a sync of a large cache half a minute, so one process that nobody \
             waits for is no WARN before a minute. The kernel's own watchdog speaks after two.",
    raise: Duration::ZERO,
    clear: Duration::from_secs(10),
    hazard: false,
    settings: &[LIMIT],
    detector: |config| Box::new(Blocked::new(config)),
};

/// How long a task may hang.
pub const LIMIT: Setting = Setting {
    key: "detect.blocked",
    kind: config::Kind::Duration { min_ms: 1000, max_ms: 600_000 },
    default: "10s",
    otel: &[],
    help: "uninterruptible sleep of a service, or of three processes, that is a WARN; six times as long is CRITICAL",
};

/// So many processes are no accident.
const SEVERAL: usize = 3;
/// So many tasks that have waited for [`LIMIT`] stop a host.
const MANY: usize = 16;
/// Waits of over a second count as a slow disk if a service is in one for this share of half a minute.
const OFTEN: f64 = 0.6;
/// A disk answers within some milliseconds; from here on it is slow.
const SLOW_NS: u64 = 200_000_000;
const CONSTANT: Duration = Duration::from_secs(15);

struct Blocked {
    limit_ns: u64,
    /// By what is told: share of the time in which a service's task waits.
    often: BTreeMap<&'static str, Mean>,
    /// Who takes the memory.
    memory: Vec<Blamed>,
}

/// Tasks that wait for the same.
#[derive(Default)]
struct Crowd<'a> {
    class: Class,
    tasks: Vec<&'a BlockedTask>,
    pids: BTreeSet<u32>,
    longest: Option<&'a BlockedTask>,
    serves: bool,
}

impl<'a> Crowd<'a> {
    fn add(&mut self, class: Class, task: &'a BlockedTask, serves: bool) {
        if self.longest.is_none_or(|longest| longest.blocked_ns < task.blocked_ns) {
            self.longest = Some(task);
            self.class = class;
        }
        self.tasks.push(task);
        self.pids.insert(task.pid);
        self.serves |= serves;
    }
}

/// Whether it is a thread of the kernel: those may wait for ever, and no program waits with them.
fn is_kernel(seen: &Seen<'_>, task: &BlockedTask) -> bool {
    task.pid == 2 || seen.process(task.pid).is_some_and(|process| process.parent_pid == 2)
}

/// Tasks by what they wait for. Who waits for a lock waits for the one who holds it, so if others wait for something that
/// explains it, they are counted there.
fn crowds<'a>(seen: &'a Seen<'_>) -> BTreeMap<&'static str, Crowd<'a>> {
    let sched = &seen.snapshot.sched;
    let mut crowds: BTreeMap<&'static str, Crowd<'a>> = BTreeMap::new();
    if sched.blocked.is_empty() {
        return crowds;
    }
    let watched: BTreeSet<u32> = sched.threads.iter().map(|thread| thread.pid).collect();
    let serves = |pid: u32| {
        watched.contains(&pid) || seen.process(pid).is_some_and(|process| process.pm2.is_some())
    };
    let short = is_memory_short(seen.snapshot);
    let mut known = Classes::default();
    let classes: Vec<(Class, &BlockedTask)> = sched
        .blocked
        .iter()
        .filter(|task| !is_kernel(seen, task))
        .map(|task| (known.of(&task.stack).with_memory(short), task))
        .filter(|(class, _)| *class != Class::Own)
        .collect();
    let causes = classes.iter().filter(|(class, _)| class.is_cause());
    let cause = causes.max_by_key(|(_, task)| task.blocked_ns).map(|(class, _)| *class);
    for (class, task) in classes {
        let class = if class.is_cause() { class } else { cause.unwrap_or(class) };
        crowds.entry(class.subject()).or_default().add(class, task, serves(task.pid));
    }
    crowds
}

impl Blocked {
    fn new(config: &Config) -> Self {
        Self {
            limit_ns: config.duration(&LIMIT).as_nanos() as u64,
            often: BTreeMap::new(),
            memory: Vec::new(),
        }
    }

    fn level(&self, crowd: &Crowd<'_>, often: f64) -> Option<Level> {
        let longest_ns = crowd.longest?.blocked_ns;
        let matters = crowd.serves || crowd.pids.len() >= SEVERAL;
        let old = crowd.tasks.iter().filter(|task| task.blocked_ns >= self.limit_ns).count();
        let long_ns = self.limit_ns.saturating_mul(6);
        Some(match longest_ns {
            _ if longest_ns >= long_ns && matters || old >= MANY => Level::Critical,
            _ if longest_ns >= long_ns || longest_ns >= self.limit_ns && matters => Level::Warn,
            _ if often >= OFTEN => Level::Warn,
            _ if longest_ns >= 3 * SECOND_NS => Level::Watch,
            _ => return None,
        })
    }
}

/// Who is to blame: for memory the one who grows, for a disk the one that does not answer, else the part of the kernel.
fn culprit(class: Class, longest_ns: u64, memory: &[Blamed], seen: &Seen<'_>) -> Option<Party> {
    let known = match class {
        Class::PageIn | Class::Reclaim => takes_memory(memory, seen),
        Class::Disk | Class::Journal => disk(longest_ns, seen),
        _ => None,
    };
    known.or_else(|| (class != Class::Unknown).then(|| class.party()))
}

/// The disk that is suspended, or has been silent for half as long as tasks wait for it, or is slow.
fn disk(longest_ns: u64, seen: &Seen<'_>) -> Option<Party> {
    let disk = seen.snapshot.sched.disks.first()?;
    let name = &disk.name;
    let title = match disk {
        _ if disk.suspended => format!("disk {name} (suspended by the device-mapper)"),
        _ if disk.silent_ns >= longest_ns / 2 => {
            format!("disk {name} (no answer for {:.0} s)", seconds(disk.silent_ns))
        }
        _ if disk.wait_ns >= SLOW_NS => {
            format!("disk {name} ({:.1} s a request)", seconds(disk.wait_ns))
        }
        _ => return None,
    };
    Some(Party { title, ..party::kernel(&format!("disk {name}"), 1.0) })
}

fn judgement(
    subject: &str,
    level: Level,
    crowd: &Crowd<'_>,
    often: f64,
    memory: &[Blamed],
    seen: &Seen<'_>,
) -> Judgement {
    let name = crowd.longest.map_or("", |task| &task.name);
    let longest_ns = crowd.longest.map_or(0, |task| task.blocked_ns);
    let shares = 1.0 / crowd.pids.len().max(1) as f64;
    let victim = |pid: &u32| {
        let row = crowd.tasks.iter().find(|task| task.pid == *pid);
        party::process(seen.snapshot, *pid, row.map_or("", |task| &task.name), shares)
    };
    let message = format!(
        "{} {} in the kernel and cannot be killed: {name} has waited for {} for {:.0} s",
        crowd.tasks.len(),
        if crowd.tasks.len() == 1 { "task hangs" } else { "tasks hang" },
        crowd.class.text(),
        seconds(longest_ns)
    );
    let advice = match crowd.class {
        Class::PageIn | Class::Reclaim => {
            "memory is short: see who grows (memory findings), and stop it"
        }
        Class::Network | Class::Fuse => {
            "see whether the file server answers; mount with soft or a time-out if you may"
        }
        Class::Journal | Class::Disk => {
            "see what the disk does (dmesg, iostat -x 1, dmsetup info, the cloud's volume metrics)"
        }
        _ => "see /proc/PID/stack of the oldest, and dmesg",
    };
    Judgement {
        subject: subject.to_owned(),
        state: State::Firing(level),
        culprit: culprit(crowd.class, longest_ns, memory, seen),
        victims: crowd.pids.iter().take(MAX_PIDS).map(victim).collect(),
        evidence: vec![
            evidence("longest_wait", seconds(longest_ns), "s", "iter/task"),
            evidence("tasks", crowd.tasks.len() as f64, "1", "iter/task"),
            evidence("service_waits", often, "1", "iter/task"),
        ],
        message,
        advice: advice.to_owned(),
        ..Judgement::default()
    }
}

impl Detector for Blocked {
    fn hear(&mut self, memory: &[Blamed]) {
        self.memory = memory.to_vec();
    }

    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let crowds = crowds(seen);
        for (subject, crowd) in &crowds {
            // A few subjects exist, so this is bounded.
            let mean = self.often.entry(subject).or_default();
            let often = mean.add(f64::from(u8::from(crowd.serves)), seen.elapsed_ns, CONSTANT);
            if let Some(level) = self.level(crowd, often) {
                found.push(judgement(subject, level, crowd, often, &self.memory, seen));
            }
        }
        self.often.retain(|subject, mean| {
            crowds.contains_key(subject) || mean.add(0.0, seen.elapsed_ns, CONSTANT) > 0.01
        });
    }
}
