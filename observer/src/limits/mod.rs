//! How full everything is that has a bound: open files, threads, ports, heaps of runtimes, and how the host is set.
//!
//! Read by a thread of its own, because these files may make their reader wait: they lie on the disks of processes and
//! of containers, whose owner may have put anything there. The sampler hands it the processes of interest, goes on, and
//! takes the answer at a later tick. Nothing here needs BPF.
//! Cost: docs/measurements.md. What a round costs sets when the next one may begin.

mod file;
mod files;
mod host;
mod hsperf;
mod jvm;
mod node;
mod ports;
mod postgres;
mod redis;
mod round;

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

use self::round::Reader;
use crate::{
    identity::Process,
    signal::{
        Now,
        limit::{Bound, Facts, Host, Jvm, Runtime},
    },
    snapshot::{Program, Verdict},
};

/// Processes looked at in a round: the largest, and those watched. What is beyond is counted.
pub const MAX_CANDIDATES: usize = 256;

/// Share of one CPU that the rounds may take.
const SHARE: f64 = 0.01;

/// A round comes at the latest after this time, whatever it costs.
const LONGEST_NS: u64 = 300_000_000_000;

/// While something fills that will be full within [`SOON_S`], a round comes this often, as far as [`SHARE`] allows.
const HURRY_NS: u64 = 2_000_000_000;

/// Five rounds at the usual pace: one may come too late, and a trend needs some.
const SOON_S: f64 = 60.0;

/// It goes on for so long after the last sign: class space is counted now and then only.
const HURRY_FOR_NS: u64 = 30_000_000_000;

/// What does not come back by itself. Heaps fill and are emptied all the time; the old generation of a JVM only by a full
/// collection, and what that leaves has to be read before the next one.
const FILLS: &[&str] = &[
    "files",
    "host_files",
    "processes",
    "ports",
    "conntrack",
    "jvm_old",
    "jvm_metaspace",
    "jvm_permgen",
    "jvm_class_space",
];

/// Share of the time since the last reading in which a JVM stood still to clean its old generation: it is watched closely.
const STANDS: f64 = 0.05;

/// A round that is not back after this time waits for something: its row in the health table says so.
const LATE_NS: u64 = 60_000_000_000;

/// A process that a round looks at.
#[derive(Debug, Clone, Default)]
pub struct Candidate {
    /// Who.
    pub process: Arc<Process>,
    /// Resident memory.
    pub rss_bytes: u64,
    /// Anonymous memory, also what is swapped out.
    pub anon_bytes: u64,
    /// Processes whose parent it is.
    pub children: u64,
}

/// What a round is to look at.
#[derive(Debug, Default)]
pub struct Round {
    /// Processes, [`MAX_CANDIDATES`] at most.
    pub candidates: Vec<Candidate>,
    /// MemTotal, by which runtimes choose their default limits.
    pub memory_total_bytes: u64,
}

/// What a round has found.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// What has a bound.
    pub rows: Vec<Bound>,
    /// Runtimes and servers.
    pub runtimes: Vec<Runtime>,
    /// How the host is set.
    pub host: Host,
    /// Processes that did not let us look.
    pub unreadable: u64,
    /// CPU time that the round took.
    pub cpu_ns: u64,
}

/// The thread that reads, as the sampler sees it.
pub struct Limits {
    rounds: SyncSender<Round>,
    readings: Receiver<Reading>,
    interval_ns: u64,
    /// When the round began that is not back yet.
    waiting_since_ns: Option<u64>,
    next_ns: u64,
    cost_ns: u64,
    unreadable: u64,
    late: bool,
    gone: bool,
    pace: Pace,
}

impl Limits {
    /// Starts the thread; a round begins each `interval` at the most often.
    ///
    /// # Errors
    /// If the host gives no thread.
    pub fn start(interval: Duration) -> io::Result<Self> {
        // One round on its way, one reading on its way back: neither side ever waits for room.
        let (rounds, work) = sync_channel::<Round>(1);
        let (answer, readings) = sync_channel(1);
        let run = move || {
            let mut reader = Reader::open();
            while let Ok(round) = work.recv() {
                let before = cpu_ns();
                let mut reading = reader.read(&round);
                reading.cpu_ns = cpu_ns().saturating_sub(before);
                if answer.send(reading).is_err() {
                    break;
                }
            }
        };
        thread::Builder::new().name("observer-limits".into()).spawn(run)?;
        let interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        Ok(Self {
            rounds,
            readings,
            interval_ns,
            waiting_since_ns: None,
            next_ns: 0,
            cost_ns: 0,
            unreadable: 0,
            late: false,
            gone: false,
            pace: Pace::default(),
        })
    }

    /// Whether the next round should begin.
    pub fn is_due(&self, now: Now) -> bool {
        !self.gone && self.waiting_since_ns.is_none() && now.ktime_ns >= self.next_ns
    }

    /// Begins a round.
    pub fn begin(&mut self, now: Now, round: Round) {
        self.gone |= self.rounds.try_send(round).is_err();
        self.waiting_since_ns = Some(now.ktime_ns);
    }

    /// The reading of the last round, once.
    pub fn take(&mut self, now: Now) -> Option<Reading> {
        let since = self.waiting_since_ns?;
        self.late = now.since(since) >= LATE_NS;
        match self.readings.try_recv() {
            Ok(reading) => {
                self.waiting_since_ns = None;
                self.late = false;
                self.cost_ns = reading.cpu_ns;
                self.unreadable = reading.unreadable;
                let hurries = self.pace.hurries(&reading, since);
                let interval_ns = self.interval_ns.min(if hurries { HURRY_NS } else { u64::MAX });
                let pause = pause_ns(interval_ns, reading.cpu_ns);
                self.next_ns = since.saturating_add(pause);
                Some(reading)
            }
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                self.gone = true;
                None
            }
        }
    }

    /// How the reading goes.
    pub fn program(&self) -> Program {
        let paced = pause_ns(self.interval_ns, self.cost_ns) > self.interval_ns;
        let (verdict, reason, remedy) = if self.gone {
            (Verdict::Impossible, "its thread has ended".to_owned(), "restart the agent")
        } else if self.late {
            let reason = "a file of some process has not answered for a minute".to_owned();
            (Verdict::Degraded, reason, "look for a mount that hangs")
        } else if self.unreadable > 0 {
            let reason = format!("{} processes do not let us look at their files", self.unreadable);
            (Verdict::Degraded, reason, "grant CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH")
        } else if paced {
            let reason =
                format!("a round takes {:.0} ms of CPU, so it is read less often", self.cost_ms());
            (Verdict::Degraded, reason, "")
        } else {
            (Verdict::Attached, String::new(), "")
        };
        Program {
            name: "limits".to_owned(),
            signal: "limit".to_owned(),
            hook: "/proc/PID/{fd,limits,root}, /proc/sys".to_owned(),
            verdict,
            reason,
            remedy: remedy.to_owned(),
        }
    }

    /// CPU of the last round, in milliseconds.
    fn cost_ms(&self) -> f64 {
        self.cost_ns as f64 / 1e6
    }
}

/// What was in use at the last reading, by resource, process and scope, and how long JVMs had stood still, by pid.
#[derive(Debug, Default)]
struct Pace {
    at_ns: u64,
    until_ns: u64,
    used: HashMap<(String, u32, String), u64>,
    stood_ns: HashMap<u32, u64>,
}

impl Pace {
    /// Whether something fills, or has filled lately, so fast that it will be full soon, or a JVM does little else than to
    /// collect garbage.
    fn hurries(&mut self, reading: &Reading, at_ns: u64) -> bool {
        let elapsed_ns = at_ns.saturating_sub(self.at_ns) as f64;
        let elapsed_s = elapsed_ns / 1e9;
        let jvms = || reading.runtimes.iter().filter_map(|one| Some((one.pid, jvm(one)?)));
        let has_no_old = |pid| jvms().any(|(of, jvm)| of == pid && !jvm::has_old_generation(jvm));
        let rows = || {
            let filling = reading.rows.iter().filter(|row| FILLS.contains(&row.resource.as_str()));
            filling.filter(|row| row.resource != "jvm_old" || !has_no_old(row.pid))
        };
        let key = |row: &Bound| (row.resource.clone(), row.pid, row.scope.clone());
        let soon = rows().any(|row| {
            // No destination had more ports than all had together, at a reading at which they were not counted apart.
            let all = || self.used.get(&(row.resource.clone(), 0, "host".to_owned()));
            let before =
                self.used.get(&key(row)).or_else(|| all().filter(|_| row.resource == "ports"));
            let (Some(before), Some(limit)) = (before, row.limit) else { return false };
            let filled = row.used.saturating_sub(*before) as f64;
            filled > 0.0 && limit.saturating_sub(row.used) as f64 * elapsed_s <= filled * SOON_S
        });
        let stands = jvms().any(|(pid, jvm)| {
            let before = self.stood_ns.get(&pid);
            let stood_ns = before.map_or(0, |before| jvm.stopped_ns().saturating_sub(*before));
            jvm.in_full_collection || stood_ns as f64 >= STANDS * elapsed_ns && stood_ns > 0
        });
        self.at_ns = at_ns;
        self.used = rows().map(|row| (key(row), row.used)).collect();
        self.stood_ns = jvms().map(|(pid, jvm)| (pid, jvm.stopped_ns())).collect();
        if soon || stands {
            self.until_ns = at_ns.saturating_add(HURRY_FOR_NS);
        }
        at_ns < self.until_ns
    }
}

fn jvm(runtime: &Runtime) -> Option<&Jvm> {
    match &runtime.facts {
        Facts::Jvm(jvm) => Some(jvm),
        _ => None,
    }
}

/// Time from the begin of a round to that of the next.
fn pause_ns(interval_ns: u64, cost_ns: u64) -> u64 {
    interval_ns.max(((cost_ns as f64 / SHARE) as u64).min(LONGEST_NS))
}

/// CPU time of this thread.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(ktime_ns: u64) -> Now {
        Now { ktime_ns, unix_ns: ktime_ns }
    }

    #[test]
    fn a_round_comes_back_and_the_next_one_is_paced() {
        let mut limits = Limits::start(Duration::from_secs(10)).unwrap();
        assert!(limits.is_due(at(5)) && limits.take(at(5)).is_none());
        limits.begin(at(5), Round::default());
        assert!(!limits.is_due(at(6)), "one at a time");
        let deadline = Instant::now() + Duration::from_secs(10);
        let reading = loop {
            if let Some(reading) = limits.take(at(6)) {
                break reading;
            }
            assert!(Instant::now() < deadline, "the thread answers");
            thread::yield_now();
        };
        assert!(reading.host.cpus > 0 && reading.cpu_ns > 0, "{reading:?}");
        let next = pause_ns(10 * SECOND, reading.cpu_ns) + 5;
        assert!(!limits.is_due(at(next - 1)) && limits.is_due(at(next)));
        assert_eq!(limits.program().verdict, Verdict::Attached);
    }

    #[test]
    fn what_is_dear_is_read_less_often() {
        assert_eq!(pause_ns(10 * SECOND, 0), 10 * SECOND);
        assert_eq!(pause_ns(10 * SECOND, SECOND), 100 * SECOND);
        assert_eq!(pause_ns(10 * SECOND, u64::MAX), LONGEST_NS);
        assert_eq!(pause_ns(2 * LONGEST_NS, u64::MAX), 2 * LONGEST_NS, "the setting is kept");
    }

    #[test]
    fn what_will_be_full_soon_is_read_more_often() {
        #[track_caller]
        fn check(resource: &str, used: [u64; 2], expect: bool) {
            let reading = |used| Reading {
                rows: vec![Bound {
                    resource: resource.into(),
                    used,
                    limit: Some(128),
                    ..Bound::default()
                }],
                ..Reading::default()
            };
            let mut pace = Pace::default();
            assert!(!pace.hurries(&reading(used[0]), 5 * SECOND), "nothing is known yet");
            let mut at = |second| pace.hurries(&reading(used[1]), second * SECOND);
            assert_eq!((at(15), at(44), at(45)), (expect, expect, false), "{resource} {used:?}");
        }
        check("processes", [7, 52], true);
        check("processes", [7, 15], false);
        check("processes", [52, 52], false);
        check("processes", [52, 20], false);
        check("processes", [127, 128], true);
        check("jvm_old", [7, 52], true);
        // It fills and is emptied.
        check("jvm_heap", [7, 52], false);
    }

    #[test]
    fn a_jvm_that_collects_all_the_time_is_read_more_often() {
        /// Of two readings ten seconds apart, the collections between them, and how full the old generation was.
        #[track_caller]
        fn check(collector: &str, stopped_ns: u64, is_open: bool, old: [u64; 2], expect: bool) {
            let reading = |stopped_ns, old| {
                let facts = Jvm {
                    collector: collector.into(),
                    full_collection_ns: stopped_ns,
                    in_full_collection: is_open && stopped_ns > 0,
                    ..Jvm::default()
                };
                let row = Bound {
                    resource: "jvm_old".into(),
                    pid: 7,
                    used: old,
                    limit: Some(100),
                    ..Bound::default()
                };
                let runtime = Runtime { pid: 7, name: "java".into(), facts: Facts::Jvm(facts) };
                Reading { rows: vec![row], runtimes: vec![runtime], ..Reading::default() }
            };
            let mut pace = Pace::default();
            assert!(!pace.hurries(&reading(0, old[0]), 5 * SECOND));
            let told = pace.hurries(&reading(stopped_ns, old[1]), 15 * SECOND);
            assert_eq!(told, expect, "{collector} {stopped_ns} {old:?}");
        }
        let full = "Serial full collection pauses";
        check(full, 0, false, [40, 40], false);
        check(full, SECOND / 10, false, [40, 40], false);
        check(full, SECOND, false, [40, 40], true);
        check(full, SECOND / 10, true, [40, 40], true);
        check(full, 0, false, [40, 60], true);
        // All of the heap, which fills between two cycles.
        check("Z concurrent cycle pauses", 0, false, [40, 60], false);
    }

    #[test]
    fn a_destination_that_was_not_counted_apart_before_had_no_more_than_all() {
        let row = |scope: &str, used| Bound {
            resource: "ports".into(),
            scope: scope.into(),
            used,
            limit: Some(256),
            ..Bound::default()
        };
        #[track_caller]
        fn check(before: Bound, now: Bound, expect: bool) {
            let reading = |row| Reading { rows: vec![row], ..Reading::default() };
            let mut pace = Pace::default();
            assert!(!pace.hurries(&reading(before), 5 * SECOND));
            assert_eq!(pace.hurries(&reading(now), 15 * SECOND), expect);
        }
        check(row("host", 20), row("10.0.0.9:443", 123), true);
        check(row("host", 120), row("10.0.0.9:443", 123), false);
        check(row("10.0.0.8:443", 20), row("10.0.0.9:443", 123), false);
    }

    #[test]
    fn a_reader_that_hangs_is_told() {
        let (rounds, _work) = sync_channel(1);
        let (_answer, readings) = sync_channel(1);
        let mut limits = Limits {
            rounds,
            readings,
            interval_ns: SECOND,
            waiting_since_ns: None,
            next_ns: 0,
            cost_ns: 0,
            unreadable: 0,
            late: false,
            gone: false,
            pace: Pace::default(),
        };
        limits.begin(at(1), Round::default());
        assert!(limits.take(at(LATE_NS)).is_none());
        assert_eq!(limits.program().verdict, Verdict::Attached);
        assert!(limits.take(at(LATE_NS + 1)).is_none() && !limits.is_due(at(u64::MAX)));
        let row = limits.program();
        assert_eq!((row.verdict, row.remedy.is_empty()), (Verdict::Degraded, false));
    }
}
