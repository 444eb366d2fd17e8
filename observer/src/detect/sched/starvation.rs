//! Services that get no CPU, and who has it.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use super::{
    blame::{self, Blame, Blamer, Why, cpus_of, has_real_time},
    percent,
};
use crate::detect::{
    Detector, Evidence, Group, Judgement, Kind, Level, MAX_PIDS, Party, Quality, Seen, State,
    evidence, judgement::Blamed, key::ByKey, mean::Mean, party,
};

/// Services wait for a CPU.
pub static KIND: Kind = Kind {
    name: "sched.starvation",
    signal: "sched",
    help: "threads of services wait for a CPU that others have",
    reason: "A tenth of a second in each second is felt (WATCH). A compiler beside a service costs about that much, because \
             the scheduler lets whoever sleeps a lot go first; so WARN needs three tenths, and work that takes three times \
             as long as it would on a host of its own. The scheduler gives a fair share to each: beside some compilers a \
             service gets a fifth, and only beside a crowd or a real-time program a tenth of what it wants (CRITICAL). A service that waits for its own threads has too much to do, and \
             starves nobody.",
    raise: Duration::from_secs(10),
    clear: Duration::from_secs(15),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Starvation::default()),
};

/// Processes followed; as many as threads can be watched.
const MAX_PROCESSES: usize = 4096;
/// Processes judged, those that wait most.
const MAX_VICTIMS: usize = 256;
/// Share of its time that a thread waits from which on its process is followed, until its mean is below the other.
const FOLLOWED: f64 = 0.05;
const FORGOTTEN: f64 = 0.001;
/// Over about ten seconds.
const CONSTANT: Duration = Duration::from_secs(5);
/// Share of its time that the worst thread waits, and how many times as long the process's work takes: for each level.
const LEVELS: [(Level, f64, f64); 3] =
    [(Level::Critical, 0.6, 10.0), (Level::Warn, 0.3, 3.0), (Level::Watch, 0.1, 1.0)];
/// Programs whose processes come and go are remembered for this long.
const COME_AND_GO_NS: u64 = 60_000_000_000;
/// At most so many of them: as many as there are rows of those who use the CPU.
const MAX_PROGRAMS: usize = 64;

/// How a process does, of late.
#[derive(Debug, Clone, Copy, Default)]
struct Wait {
    /// Share of its time that its worst thread waits.
    worst: Mean,
    /// Sums over its threads, in CPUs.
    waiting: Mean,
    running: Mean,
    /// Both at the last tick.
    wanted: f64,
    /// Of the threads of the round: the worst, and the sums.
    sums: (f64, f64, f64),
    round: u32,
}

impl Wait {
    /// How many times as long its work takes as on a host of its own with so many CPUs, on which its threads would wait for
    /// each other; as if it never did, for 0.
    fn slowdown(self, cpus: u64) -> f64 {
        let (waiting, running) = (self.waiting.value(), self.running.value());
        // The means begin at zero.
        let wanted = self.wanted.max(waiting + running);
        let alone = if cpus == 0 { 1.0 } else { (wanted / cpus as f64).max(1.0) };
        // Below a thousandth of a CPU everything is noise.
        (1.0 + waiting / running.max(0.001)) / alone
    }

    fn level(self, cpus: u64) -> Option<Level> {
        let reaches = |(_, ratio, slowdown): &&(Level, f64, f64)| {
            self.worst.value() >= *ratio && self.slowdown(cpus) >= *slowdown
        };
        LEVELS.iter().find(reaches).map(|(level, ..)| *level)
    }
}

#[derive(Default)]
struct Starvation {
    waits: ByKey<u32, Wait>,
    round: u32,
    /// Who used the CPU at the tick before.
    before: Vec<(u32, String)>,
    /// When a process of a program that uses the CPU ended last.
    ended_ns: HashMap<String, u64>,
    blamer: Blamer,
}

/// A process that waits.
struct Victim<'a> {
    pid: u32,
    name: &'a str,
    wait: Wait,
    slowdown: f64,
    level: Level,
}

impl Starvation {
    /// Keeps in mind which programs' processes come and go.
    fn follow_programs(&mut self, seen: &Seen<'_>) {
        let rows = &seen.snapshot.sched.consumers;
        let is_there =
            |pid: u32| seen.process(pid).is_some() || rows.iter().any(|row| row.pid == pid);
        for (_, name) in self.before.drain(..).filter(|(pid, _)| !is_there(*pid)) {
            if self.ended_ns.len() < MAX_PROGRAMS {
                self.ended_ns.insert(name, seen.now_ns);
            }
        }
        self.ended_ns.retain(|_, at_ns| seen.now_ns.saturating_sub(*at_ns) < COME_AND_GO_NS);
        let rows = rows.iter().take(MAX_PROGRAMS).filter(|row| is_plain(row.pid, seen));
        self.before.extend(rows.map(|row| (row.pid, row.name.clone())));
    }

    /// Of a program whose processes come and go, none is to blame: the next is there before anybody has looked.
    fn lasting(&self, party: Party, seen: &Seen<'_>) -> Party {
        let rows = seen.snapshot.sched.consumers.iter();
        // Who waits for them stays: it is whoever starts them.
        let starts =
            |pid: u32| rows.clone().any(|row| row.pid == pid && row.children_cpu_ratio > 0.0);
        let is_one = party.pid.is_some_and(|pid| is_plain(pid, seen) && !starts(pid));
        if !is_one || !self.ended_ns.contains_key(&party.name) {
            return party;
        }
        let same = rows.filter(|row| row.name == party.name);
        let pids: Vec<u32> = same.map(|row| row.pid).take(MAX_PIDS).collect();
        let title = format!("{} (processes that come and go)", party.name);
        Party { group: Group::Program, pid: None, pids, title, ..party }
    }

    /// Brings those who wait, or waited of late, up to date; the others cost nothing.
    fn follow(&mut self, seen: &Seen<'_>) {
        self.round = self.round.wrapping_add(1);
        let threads = &seen.snapshot.sched.threads;
        for thread in threads.iter().filter(|thread| thread.run_delay_ratio >= FOLLOWED) {
            if self.waits.len() < MAX_PROCESSES {
                self.waits.entry(thread.pid).or_default();
            }
        }
        if self.waits.is_empty() {
            return;
        }
        let round = self.round;
        for thread in threads {
            let Some(wait) = self.waits.get_mut(&thread.pid) else { continue };
            if wait.round != round {
                (wait.round, wait.sums) = (round, (0.0, 0.0, 0.0));
            }
            let (worst, waiting, running) = &mut wait.sums;
            *worst = thread.run_delay_ratio.max(*worst);
            *waiting += thread.run_delay_ratio.max(0.0);
            *running += thread.on_cpu_ratio.max(0.0);
        }
        self.waits.retain(|_, wait| {
            if wait.round != round {
                return false;
            }
            let (worst, waiting, running) = wait.sums;
            wait.wanted = waiting + running;
            wait.worst.add(worst, seen.elapsed_ns, CONSTANT);
            wait.waiting.add(waiting, seen.elapsed_ns, CONSTANT);
            wait.running.add(running, seen.elapsed_ns, CONSTANT);
            wait.worst.value() >= FORGOTTEN || seen.elapsed_ns == 0
        });
    }

    /// Processes that wait, the worst first, without those that a quota holds back.
    fn victims<'a>(&self, seen: &'a Seen<'_>) -> Vec<Victim<'a>> {
        // A real-time program is to blame however much the service has to do.
        let cpus = if has_real_time(seen) { 0 } else { seen.snapshot.limit.host.cpus };
        let victim = |(pid, wait): (&u32, &Wait)| {
            let (slowdown, level) = (wait.slowdown(cpus), wait.level(cpus)?);
            Some(Victim { pid: *pid, name: "", wait: *wait, slowdown, level })
        };
        let mut victims: Vec<_> = self.waits.iter().filter_map(victim).collect();
        if victims.is_empty() {
            return victims;
        }
        let rank = |victim: &Victim<'_>| (victim.level, victim.wait.worst.value());
        victims.sort_by(|a, b| rank(b).partial_cmp(&rank(a)).unwrap_or(std::cmp::Ordering::Equal));
        victims.truncate(MAX_VICTIMS);
        victims.retain(|victim| {
            self.blamer.quota(victim.pid, victim.wait.worst.value(), seen).is_none()
        });
        let places: ByKey<u32, usize> =
            victims.iter().zip(0..).map(|(victim, at)| (victim.pid, at)).collect();
        for thread in &seen.snapshot.sched.threads {
            if let Some(victim) = places.get(&thread.pid).and_then(|at| victims.get_mut(*at)) {
                victim.name = &thread.name;
            }
        }
        victims
    }
}

/// Whether a process is of no service, application or container: its program is all that is known of it.
fn is_plain(pid: u32, seen: &Seen<'_>) -> bool {
    seen.process(pid).is_none_or(|process| party::group_of(process).0 == Group::Program)
}

/// Whether a process belongs to the group that has the CPU.
fn is_own(pid: u32, culprit: &Party, seen: &Seen<'_>) -> bool {
    if culprit.pids.contains(&pid) {
        return true;
    }
    let group = |pid: u32| seen.process(pid).map(party::group_of);
    culprit.group != Group::Process
        && culprit.pid.and_then(group).is_some_and(|other| group(pid) == Some(other))
}

impl Detector for Starvation {
    fn hear(&mut self, memory: &[Blamed]) {
        self.blamer.hear(memory);
    }

    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        self.blamer.follow(seen);
        self.follow(seen);
        self.follow_programs(seen);
        let mut victims = self.victims(seen);
        let Some(worst) = victims.first() else { return };
        let blame = self.blamer.of(worst.pid, worst.wait.worst.value(), seen, |_| true);
        let culprit = blame.culprit.map(|party| self.lasting(party, seen));
        for victim in &mut victims {
            let own = culprit.as_ref().is_some_and(|party| is_own(victim.pid, party, seen));
            if own || blame.why == Why::Stolen {
                victim.level = Level::Watch;
            }
        }
        victims.sort_by_key(|victim| std::cmp::Reverse(victim.level));
        let mut judgement = judgement(&victims, Blame { culprit, ..blame }, seen);
        if blame.why == Why::Paging {
            judgement.evidence.extend(self.blamer.numbers(seen));
        }
        found.push(judgement);
    }
}

fn judgement(victims: &[Victim<'_>], blame: Blame, seen: &Seen<'_>) -> Judgement {
    let Some(worst) = victims.first() else { return Judgement::default() };
    let Blame { why, culprit } = blame;
    let party = |victim: &Victim<'_>| {
        party::process(seen.snapshot, victim.pid, victim.name, victim.wait.worst.value())
    };
    let who = culprit.as_ref().map_or_else(String::new, |party| {
        let used = used(party, seen);
        let policy = policy(party, seen).map_or_else(String::new, |policy| format!(" ({policy})"));
        match why {
            Why::Paging => format!(
                "; memory is short, and the CPU is used to free it and to read pages back: {} takes it",
                party.title
            ),
            _ if used > 0.0 => format!("; {}{policy} uses {used:.1} CPUs", party.title),
            _ => format!("; {} has it", party.title),
        }
    });
    Judgement {
        subject: "host".to_owned(),
        state: State::Firing(worst.level),
        victims: victims.iter().take(MAX_PIDS).map(party).collect(),
        evidence: numbers(worst, seen),
        message: format!(
            "{} waits {} % of its time for a CPU, and takes {:.0} times as long for its work{who}",
            party(worst).title,
            percent(worst.wait.worst.value()),
            worst.slowdown.min(999.0)
        ),
        advice: advice(why, culprit.as_ref(), seen).to_owned(),
        culprit,
        ..Judgement::default()
    }
}

fn numbers(worst: &Victim<'_>, seen: &Seen<'_>) -> Vec<Evidence> {
    vec![
        evidence("waiting_for_cpu", worst.wait.worst.value(), "1", "iter/task")
            .with(Quality::Sampled),
        evidence("slowdown", worst.slowdown, "1", "iter/task").with(Quality::Estimated),
        evidence("busy", seen.snapshot.sched.busy_ratio, "1", "/proc/stat"),
    ]
    .into_iter()
    .filter(|evidence| evidence.value.is_finite())
    .collect()
}

/// Policy of the one who has the CPU, if it is a real-time one.
fn policy<'a>(party: &Party, seen: &Seen<'a>) -> Option<&'a str> {
    let row = seen.snapshot.sched.consumers.iter().find(|row| Some(row.pid) == party.pid)?;
    (row.rt_priority > 0).then_some(row.policy.as_str())
}

/// CPUs that a party's processes use.
fn used(party: &Party, seen: &Seen<'_>) -> f64 {
    let pids: BTreeSet<u32> = party.pids.iter().copied().collect();
    let rows = seen.snapshot.sched.consumers.iter().filter(|row| pids.contains(&row.pid));
    rows.map(cpus_of).sum()
}

fn advice(why: Why, culprit: Option<&Party>, seen: &Seen<'_>) -> &'static str {
    match culprit {
        _ if why == Why::Paging => blame::MEMORY_ADVICE,
        Some(party) if policy(party, seen).is_some() => {
            "give the real-time program an ordinary policy (chrt --other 0), or a CPU of its own"
        }
        Some(_) => {
            "stop it, or run it with less weight (nice, CPUWeight=, chrt --idle 0) or a quota"
        }
        None => "see which processes use the CPU; give the service more weight (CPUWeight=)",
    }
}
