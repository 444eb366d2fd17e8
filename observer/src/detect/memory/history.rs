//! What each process held, from seconds to hours, and what each program was seen to live with.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::envelope::{Envelope, Past, Trend, Window};
use crate::{
    detect::{key::ByKey, party},
    identity::Process,
    signal::alloc::ProcessMemory,
    snapshot::Snapshot,
};

/// Processes followed, the largest ones: 3 KB each. What is smaller than so many others does not exhaust a host alone.
pub const MAX_FOLLOWED: usize = 512;

/// Programs remembered.
const MAX_PROGRAMS: usize = 512;

/// A process that is this close to what it held before has not left known ground.
const KNOWN_RATIO: f64 = 1.02;
/// One tooth may be so much higher than the ones before, as a share of the deepest fall.
const NEXT_TOOTH: f64 = 0.5;
/// The same while few teeth were seen, which is so for less than this time.
const FEW_TEETH: (f64, f64) = (600.0, 1.5);
/// For another process of the same program: no two runs are quite alike.
const PLATEAU_RATIO: f64 = 1.1;
/// Readings differ by this much without any meaning.
const NOISE_BYTES: f64 = (4 << 20) as f64;
/// What a process held so long ago, and has not grown beyond since, it lives with.
const SETTLED_S: f64 = 300.0;

/// Share of the memory that a process must hold for its end to teach anything, and that must be available then.
const LARGE: f64 = 0.005;
const SHORT: f64 = 0.2;

/// Plateaus are looked for in turns, a share of the processes at each tick.
const LEARN_TURNS: u64 = 16;

/// One process.
#[derive(Debug, Default)]
pub struct History {
    /// Command name.
    pub name: String,
    /// Anonymous memory, also where it is swapped out.
    pub private: Envelope,
    /// Control group.
    pub cgroup: String,
    /// Whether it was seen from its beginning.
    pub born: bool,
    program: u64,
    start_unix_ns: u64,
    round: u64,
}

/// All processes.
#[derive(Debug, Default)]
pub struct Histories {
    by_pid: ByKey<u32, History>,
    /// By program: the most that a process of it held, be it the tips of teeth, without going on to grow.
    plateaus: ByKey<u64, f64>,
    /// By program: the most that a process of it held that has ended well since.
    peaks: ByKey<u64, f64>,
    round: u64,
}

/// Anonymous memory of a process, also where it is swapped out.
pub fn private_bytes(row: &ProcessMemory) -> f64 {
    row.anon_bytes.saturating_add(row.swap_bytes) as f64
}

impl Histories {
    /// Takes a tick.
    pub fn tick(&mut self, snapshot: &Snapshot, now_s: f64) {
        let first = self.round == 0;
        self.round += 1;
        for row in snapshot.alloc.processes.iter().take(MAX_FOLLOWED) {
            let held = private_bytes(row);
            let history = self.by_pid.entry(row.pid).or_default();
            let fell = history.private.last().is_none_or(|before| held < before * 0.5);
            let process = snapshot.processes.get(&row.pid).map(|process| &**process);
            if fell {
                // It is new, or its pid is.
                let start_unix_ns = process.map_or(0, |process| process.start_unix_ns);
                if history.round == 0 || history.start_unix_ns != start_unix_ns {
                    *history = History { born: !first, start_unix_ns, ..History::default() };
                }
            }
            // Managers start a process in their own group, move it, and have it run exec.
            let cgroup = process.map_or("", |process| process.cgroup.as_str());
            if fell || history.cgroup != cgroup || history.name != row.name {
                history.program = program(row, process);
                history.name.clone_from(&row.name);
                cgroup.clone_into(&mut history.cgroup);
            }
            history.round = self.round;
            history.private.add(now_s, held);
        }
        self.learn(now_s);
        self.learn_of_ended(snapshot);
        let round = self.round;
        self.by_pid.retain(|_, history| history.round == round);
    }

    /// What processes held that ended, as jobs, compilers and restarted services do, is what their program may want again;
    /// not of who crashed or was killed for it, and not while memory was short: somebody may have ended it for that.
    fn learn_of_ended(&mut self, snapshot: &Snapshot) {
        let view = &snapshot.oom;
        let total = view.memory_total_bytes as f64;
        if (view.memory_available_bytes as f64) < total * SHORT {
            return;
        }
        let failed = |pid: u32| {
            view.kills.iter().any(|kill| kill.victim_pid == pid)
                || snapshot.alloc.failures.iter().any(|failure| failure.pid == pid)
        };
        let ended = self.by_pid.iter().filter(|(_, history)| history.round != self.round);
        for (pid, history) in ended {
            let peak = history.private.highest();
            if peak < total * LARGE || failed(*pid) {
                continue;
            }
            if self.peaks.len() < MAX_PROGRAMS || self.peaks.contains_key(&history.program) {
                let known = self.peaks.entry(history.program).or_default();
                *known = known.max(peak);
            }
        }
    }

    /// What a process is known to live with: it has been there, and does not grow.
    fn learn(&mut self, now_s: f64) {
        let turn = |pid: u32| u64::from(pid) % LEARN_TURNS == self.round % LEARN_TURNS;
        for (_, history) in self.by_pid.iter().filter(|(pid, _)| turn(**pid)) {
            let Some(past) = history.private.before(now_s - SETTLED_S) else { continue };
            let known = self.plateaus.get(&history.program).copied().unwrap_or(0.0);
            let held = past.high;
            if held <= known || history.grows() {
                continue;
            }
            if self.plateaus.len() < MAX_PROGRAMS || self.plateaus.contains_key(&history.program) {
                let known = self.plateaus.entry(history.program).or_default();
                *known = known.max(held);
            }
        }
    }

    /// All of them, by pid.
    pub fn all(&self) -> impl Iterator<Item = (u32, &History)> {
        self.by_pid.iter().map(|(pid, history)| (*pid, history))
    }

    /// One of them.
    pub fn get(&self, pid: u32) -> Option<&History> {
        self.by_pid.get(&pid)
    }

    /// Whether a rise stays within what the process, or another of its program, has been seen to live with.
    pub fn is_known(&self, history: &History, trend: &Trend) -> bool {
        let own = history.private.before(trend.from_s).map_or(0.0, |past| past.expected());
        trend.high <= own.max(self.plateau(history)) + NOISE_BYTES
    }

    /// Whether it was seen from its beginning, and holds no more than others of its program live with, or held and ended
    /// well: one more of them.
    pub fn is_one_more(&self, history: &History) -> bool {
        let ended = self.peaks.get(&history.program).map_or(0.0, |held| held * PLATEAU_RATIO);
        let usual = self.plateau(history).max(ended);
        history.born && history.private.last().is_some_and(|held| held <= usual)
    }

    fn plateau(&self, history: &History) -> f64 {
        self.plateaus.get(&history.program).map_or(0.0, |held| held * PLATEAU_RATIO)
    }
}

impl Past {
    /// How high it may go and be what it was: collectors choose the next tooth's height anew.
    pub fn expected(&self) -> f64 {
        let (few_s, few) = FEW_TEETH;
        let next = if self.span_s < few_s { few } else { NEXT_TOOTH };
        (self.high * KNOWN_RATIO).max(self.high + self.fall.max(0.0) * next)
    }
}

impl History {
    /// Whether it grows over minutes or hours, however slowly.
    fn grows(&self) -> bool {
        let long = Window::all().filter(|window| window.is_long());
        long.filter_map(|window| self.private.trend(window)).any(|trend| trend.slope.grows())
    }

    /// How much more it holds than at an instant. What it was born with does not count before it is seen to live.
    pub fn growth_since(&self, instant_s: f64) -> f64 {
        let now = self.private.last().unwrap_or(0.0);
        match self.private.since_s() {
            Some(since_s) if since_s > instant_s && self.born => now,
            Some(since_s) => now - self.private.at(instant_s.max(since_s)).unwrap_or(now),
            None => 0.0,
        }
    }
}

/// What other processes have in common with it: name and group, as far as it has an identity.
fn program(row: &ProcessMemory, process: Option<&Process>) -> u64 {
    let Some(process) = process else { return hash(&row.name) };
    let (group, name) = party::group_of(process);
    hash(&(&process.name, group as u8, name))
}

fn hash(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// What processes held some minutes ago, for detectors that need no more.
#[derive(Debug, Default)]
pub struct Marks {
    /// At the last mark, and at the one before.
    marks: [ByKey<u32, f64>; 2],
    marked_s: Option<f64>,
}

/// Seconds between two marks: growth is over five to ten minutes.
const MARK_S: f64 = 300.0;

impl Marks {
    /// Takes a tick.
    pub fn tick(&mut self, snapshot: &Snapshot, now_s: f64) {
        if self.marked_s.is_some_and(|marked_s| now_s - marked_s < MARK_S) {
            return;
        }
        self.marked_s = Some(now_s);
        let rows = snapshot.alloc.processes.iter().take(MAX_FOLLOWED);
        self.marks.swap(0, 1);
        let [last, _] = &mut self.marks;
        last.clear();
        last.extend(rows.map(|row| (row.pid, private_bytes(row))));
    }

    /// How much more a process holds than then; all of it, if it was not there.
    pub fn growth(&self, pid: u32, held: f64) -> f64 {
        let [last, older] = &self.marks;
        if self.marked_s.is_none() {
            return 0.0;
        }
        held - older.get(&pid).or_else(|| last.get(&pid)).copied().unwrap_or(0.0)
    }
}
