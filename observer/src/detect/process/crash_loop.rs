//! A program that dies and is started again, over and over (incident I2): each start costs CPU, memory and connections, and
//! what it should serve is not served.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{
    detect::{
        Detector, Evidence, Group, Judgement, Kind, Level, Party, Seen, State, evidence,
        key::ByKey, party,
    },
    identity::Process,
    signal::alloc::Failure,
};

/// A program dies again and again.
pub static KIND: Kind = Kind {
    name: "process.crash_loop",
    signal: "alloc",
    help: "a program dies and is started again, over and over",
    reason: "Once is an accident and twice a bad one. The third time within a minute it will not end by itself: systemd gives \
             up after five starts in ten seconds, PM2 after sixteen that live less than a second each, and until then \
             each start opens its connections anew.",
    raise: Duration::ZERO,
    clear: Duration::from_secs(60),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(CrashLoop::default()),
};

/// Deaths within this time belong together.
const WINDOW_NS: u64 = 60_000_000_000;
/// Deaths of one program that are remembered.
const MAX_DEATHS: usize = 64;
/// Programs followed.
const MAX_PROGRAMS: usize = 1024;
/// Processes remembered as services after they were last seen as one.
const MAX_SERVICES: usize = 8192;
/// PM2 gives up after so many restarts of an app (`max_restarts`) that lived less than [`PM2_STABLE_NS`] (`min_uptime`).
const PM2_RESTARTS: usize = 16;
/// See [`PM2_RESTARTS`].
const PM2_STABLE_NS: u64 = 1_000_000_000;
/// A worker of PM2 that is replaced sooner than this did not end by a deployment.
const SHORT_LIFE_NS: u64 = 15_000_000_000;
/// Signals by which managers and people end programs: HUP, INT, QUIT, KILL, PIPE, TERM.
const ENDED: &[u32] = &[1, 2, 3, 9, 13, 15];
/// Signals by which the kernel ends a broken program: ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS.
const BROKEN: &[u32] = &[4, 5, 6, 7, 8, 11, 31];

/// One end of a program.
#[derive(Debug, Clone)]
struct Death {
    at_ns: u64,
    pid: u32,
    lived_ns: u64,
    how: String,
}

#[derive(Debug, Default)]
struct Program {
    title: String,
    pm2: bool,
    /// The first of its processes that died: the culprit is the program, so its pid stays the same.
    first_pid: Option<u32>,
    deaths: VecDeque<Death>,
}

#[derive(Default)]
struct CrashLoop {
    programs: BTreeMap<String, Program>,
    /// The newest failure that was taken, and those of the same instant.
    taken: (u64, Vec<u32>),
    /// Processes that were services, and when they were last seen.
    services: ByKey<u32, u64>,
    /// Workers of PM2: (home, app, number) -> pid and since when.
    workers: BTreeMap<(String, String, u32), (u32, u64)>,
}

/// What a program is called, and for a person.
fn program(process: &Process) -> (String, String) {
    let (group, name) = party::group_of(process);
    match (&process.pm2, group) {
        (Some(pm2), Group::Pm2App) => (name, format!("PM2 app {}", pm2.app)),
        (_, Group::Unit) => {
            (format!("{name} {}", process.name), format!("{} of {name}", process.name))
        }
        (_, Group::Container) => {
            let short: String = name.chars().take(12).collect();
            (format!("{name} {}", process.name), format!("{} of container {short}", process.name))
        }
        _ => (format!("{name} {}", process.command_line), process.name.clone()),
    }
}

/// Whether somebody keeps it running: its parent is a daemon of PM2, or systemd and it is of a service, or it is the first
/// of a container. What such a process starts may fail without that anything is wrong.
fn is_kept(failure: &Failure, process: Option<&Process>, seen: &Seen<'_>) -> bool {
    let parent_pid = match failure.parent_pid {
        0 => process.map_or(0, |process| process.parent_pid),
        pid => pid,
    };
    let parent = seen.process(parent_pid);
    let in_container = |process: &Process| !process.container_id.is_empty();
    parent.is_some_and(|parent| parent.pm2_daemon_home.is_some())
        || process.is_some_and(|process| {
            parent_pid == 1 && process.unit.ends_with(".service")
                || in_container(process) && parent.is_some_and(|parent| !in_container(parent))
        })
}

impl CrashLoop {
    fn die(&mut self, key: String, title: String, pm2: bool, death: Death) {
        if self.programs.len() >= MAX_PROGRAMS && !self.programs.contains_key(&key) {
            return;
        }
        let program = self.programs.entry(key).or_default();
        (program.title, program.pm2) = (title, pm2);
        program.first_pid.get_or_insert(death.pid);
        program.deaths.push_back(death);
        if program.deaths.len() > MAX_DEATHS {
            program.deaths.pop_front();
        }
    }

    /// Remembers who serves: a script's `grep` that finds nothing exits with 1, too, and is no crash.
    fn services(&mut self, seen: &Seen<'_>) {
        for thread in seen.snapshot.sched.threads.iter().filter(|thread| thread.pid == thread.tid) {
            if self.services.len() < MAX_SERVICES || self.services.contains_key(&thread.pid) {
                self.services.insert(thread.pid, seen.now_ns);
            }
        }
        self.services.retain(|_, at_ns| seen.now_ns.saturating_sub(*at_ns) < WINDOW_NS);
    }

    fn failures(&mut self, seen: &Seen<'_>) {
        let failures = &seen.snapshot.alloc.failures;
        let (taken_ns, taken_pids) = self.taken.clone();
        let is_new = |failure: &&Failure| {
            failure.time_unix_ns > taken_ns
                || failure.time_unix_ns == taken_ns && !taken_pids.contains(&failure.pid)
        };
        let new: Vec<Failure> = failures.iter().filter(is_new).cloned().collect();
        for failure in new.iter().rev() {
            if failure.time_unix_ns > self.taken.0 {
                self.taken = (failure.time_unix_ns, Vec::new());
            }
            self.taken.1.push(failure.pid);
            self.failure(failure, seen);
        }
    }

    fn failure(&mut self, failure: &Failure, seen: &Seen<'_>) {
        let same = |process: &&Process| {
            failure.start_unix_ns == 0 || process.start_unix_ns == failure.start_unix_ns
        };
        let process = seen.process(failure.pid).filter(same);
        let killed = seen.snapshot.oom.kills.iter().any(|kill| kill.victim_pid == failure.pid);
        let crashed = match (failure.signal, failure.exit_code) {
            (Some(signal), _) => killed || !ENDED.contains(&signal),
            // 128 + a signal is what shells and managers make of an end by a signal.
            (None, Some(code)) => code != 0 && !ENDED.iter().any(|signal| signal + 128 == code),
            (None, None) => killed,
        };
        let broken = failure.signal.is_some_and(|signal| BROKEN.contains(&signal));
        let serves = self.services.contains_key(&failure.pid) || is_kept(failure, process, seen);
        if !crashed || !(serves || broken || killed) {
            return;
        }
        let (key, title) =
            process.map_or_else(|| (failure.name.clone(), failure.name.clone()), program);
        let how = match (failure.signal, failure.exit_code) {
            _ if killed => "killed for want of memory".to_owned(),
            (Some(signal), _) => format!("signal {signal}"),
            (None, Some(code)) => format!("exit code {code}"),
            (None, None) => "an unknown end".to_owned(),
        };
        let pm2 = process.is_some_and(|process| process.pm2.is_some());
        let ago_ns = seen.snapshot.time_unix_ns.saturating_sub(failure.time_unix_ns);
        if ago_ns > WINDOW_NS {
            return;
        }
        let at_ns = seen.now_ns.saturating_sub(ago_ns);
        let death = Death { at_ns, pid: failure.pid, lived_ns: failure.lived_ns, how };
        self.die(key, title, pm2, death);
    }

    /// Where no hook tells how processes end, PM2's workers that are replaced soon tell it.
    fn replaced(&mut self, seen: &Seen<'_>) {
        let mut present = BTreeMap::new();
        for process in seen.snapshot.processes.values() {
            let Some(pm2) = process.pm2.as_ref().filter(|_| process.pm2_daemon_home.is_none())
            else {
                continue;
            };
            let daemon = seen.process(process.parent_pid);
            if daemon.is_some_and(|daemon| daemon.pm2_daemon_home.is_some()) {
                let key = (pm2.home.clone(), pm2.app.clone(), pm2.worker);
                present.insert(key, process);
            }
        }
        let told = !seen.snapshot.alloc.failures.is_empty();
        for (key, process) in present {
            if self.workers.len() >= MAX_PROGRAMS && !self.workers.contains_key(&key) {
                continue;
            }
            let before = self.workers.insert(key.clone(), (process.pid, seen.now_ns));
            let Some((pid, since_ns)) = before else { continue };
            if pid == process.pid {
                self.workers.insert(key, (pid, since_ns));
                continue;
            }
            let lived_ns = seen.now_ns.saturating_sub(since_ns);
            if !told && lived_ns < SHORT_LIFE_NS {
                let (program, title) = program(process);
                let death =
                    Death { at_ns: seen.now_ns, pid, lived_ns, how: "a short life".to_owned() };
                self.die(program, title, true, death);
            }
        }
        self.workers
            .retain(|_, (_, since_ns)| seen.now_ns.saturating_sub(*since_ns) < 86_400_000_000_000);
    }
}

impl Program {
    fn judgement(&self, key: &str, seen: &Seen<'_>) -> Option<Judgement> {
        let last = self.deaths.back()?;
        let count = self.deaths.len();
        let level = match count {
            0..=1 => return None,
            2 => Level::Watch,
            3..=9 => Level::Warn,
            _ => Level::Critical,
        };
        let short = self.deaths.iter().filter(|death| death.lived_ns < PM2_STABLE_NS).count();
        let span_ns = last.at_ns.saturating_sub(self.deaths.front()?.at_ns);
        let every_s = span_ns as f64 / 1e9 / (count.max(2) - 1) as f64;
        let gives_up = (self.pm2 && short == count)
            .then(|| (PM2_RESTARTS.saturating_sub(count)) as f64 * every_s);
        let mut message = format!(
            "{} has died {count} times in a minute, last by {} after {:.1} s",
            self.title,
            last.how,
            last.lived_ns as f64 / 1e9
        );
        if let Some(seconds) = gives_up {
            message.push_str(&format!(
                "; PM2 gives it up after {PM2_RESTARTS} such restarts, in {seconds:.0} s"
            ));
        }
        Some(Judgement {
            subject: key.to_owned(),
            state: State::Firing(level),
            culprit: Some(self.party(last, seen)),
            evidence: self.numbers(every_s),
            time_left_seconds: gives_up,
            message,
            advice: "see what it writes before it ends (journalctl, pm2 logs --err), and the events observer.process.exit; \
                     stop it, or let its manager wait longer between starts"
                .to_owned(),
            ..Judgement::default()
        })
    }

    fn party(&self, last: &Death, seen: &Seen<'_>) -> Party {
        let group = seen.process(last.pid).map(|process| party::group_of(process).0);
        let pids: Vec<u32> =
            self.deaths.iter().rev().map(|death| death.pid).take(crate::detect::MAX_PIDS).collect();
        let name = match group {
            Some(Group::Pm2App) => self.title.trim_start_matches("PM2 app ").to_owned(),
            _ => self.title.clone(),
        };
        Party {
            group: group.unwrap_or_default(),
            name,
            pid: self.first_pid,
            pids,
            share_ratio: 1.0,
            title: self.title.clone(),
        }
    }

    fn numbers(&self, every_s: f64) -> Vec<Evidence> {
        vec![
            evidence(
                "deaths_in_a_minute",
                self.deaths.len() as f64,
                "1",
                "tp_btf/sched_process_exit",
            ),
            evidence("between_deaths", every_s, "s", "tp_btf/sched_process_exit"),
        ]
    }
}

impl Detector for CrashLoop {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        self.failures(seen);
        self.replaced(seen);
        self.services(seen);
        let is_old = |death: &Death| seen.now_ns.saturating_sub(death.at_ns) > WINDOW_NS;
        for program in self.programs.values_mut() {
            while program.deaths.front().is_some_and(is_old) {
                program.deaths.pop_front();
            }
        }
        self.programs.retain(|_, program| !program.deaths.is_empty());
        found
            .extend(self.programs.iter().filter_map(|(key, program)| program.judgement(key, seen)));
    }
}
