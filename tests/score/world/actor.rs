//! A process of the model: its memory, its leak, its event loop.

use std::{collections::VecDeque, sync::Arc};

use fastrand::Rng;
use observer::{identity::Process, signal::sched::EventLoop};

use super::{
    chance::{MIB, PAGE, noise},
    heap::Heap,
    people::Who,
};

/// Seconds over which growth is shown.
const GROWTH_S: usize = 10;

/// How a leak goes on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// With the requests, which vary.
    Even,
    /// Twice as fast after so many seconds.
    Doubling(f64),
    /// All at once, every so many seconds.
    Bursts(f64),
}

/// Memory that does not come back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leak {
    /// Bytes a second.
    pub(crate) rate: f64,
    pub(crate) shape: Shape,
    /// Seconds since it began.
    pub(crate) age_s: f64,
}

impl Leak {
    /// A leak that begins now.
    pub(crate) fn new(rate: f64, shape: Shape) -> Self {
        Self { rate, shape, age_s: 0.0 }
    }

    fn step(&mut self, progress: f64, rng: &mut Rng) -> f64 {
        let before = self.age_s;
        self.age_s += progress;
        match self.shape {
            Shape::Even => self.rate * noise(rng, 0.6) * progress,
            Shape::Doubling(every_s) => {
                self.rate * (self.age_s / every_s).min(5.0).exp2() * noise(rng, 0.4) * progress
            }
            Shape::Bursts(every_s) => {
                let bursts = (self.age_s / every_s).floor() - (before / every_s).floor();
                self.rate * every_s * bursts
            }
        }
    }
}

/// Why an event loop does not turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    OnCpu,
    Waiting,
    Blocked,
}

/// A turn of an event loop that is long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    pub(crate) start_s: f64,
    pub(crate) length_s: f64,
    pub(crate) why: Why,
}

/// An event loop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Loop {
    pub(crate) turns: u64,
    pub(crate) gaps: u64,
    /// Time in them.
    gap_s: f64,
    gap_waiting_s: f64,
    /// The longest gap of the last minute, and when it ended.
    pub(crate) longest: (f64, f64),
    pub(crate) block: Option<Block>,
    /// Lengths and ends of the gaps of the last ten seconds.
    recent: VecDeque<(f64, f64)>,
}

/// Gaps of event loops are seen from here on: the agent's default.
const GAP_S: f64 = 0.04;
/// Turns of a healthy loop are shorter than this, 99 of a hundred.
const P99_NS: u64 = 8_388_608;

impl Loop {
    /// A long turn begins; one that was open has ended just before.
    pub(crate) fn begin(&mut self, block: Block) {
        if let Some(before) = self.block.replace(block) {
            let length_s = before.length_s.min(block.start_s - before.start_s);
            self.ended(length_s, block.start_s, before.why);
        }
    }

    fn ended(&mut self, length_s: f64, now_s: f64, why: Why) {
        if length_s < GAP_S {
            return;
        }
        self.gaps += 1;
        self.gap_s += length_s;
        self.gap_waiting_s += if why == Why::Waiting { length_s } else { 0.0 };
        if now_s - self.longest.1 > 60.0 || length_s > self.longest.0 {
            self.longest = (length_s, now_s);
        }
        self.recent.push_back((length_s, now_s));
    }

    /// One second in which it turned so often; what is open at its end, and what the agent would show.
    pub(crate) fn step(&mut self, now_s: f64, turns: u64, row: &mut EventLoop) -> Option<Why> {
        if let Some(block) = self.block
            && now_s - block.start_s >= block.length_s
        {
            self.block = None;
            self.ended(block.length_s, now_s, block.why);
        }
        self.recent.retain(|(_, at)| now_s - at < 10.0);
        let open_s = self.block.map_or(0.0, |block| now_s - block.start_s);
        let why = self.block.filter(|_| open_s >= GAP_S).map(|block| block.why);
        self.turns += if why.is_some() { 1 } else { turns };
        let open_ns = if why.is_some() { (open_s * 1e9) as u64 } else { 0 };
        let recent_turns = turns * 10;
        let longest = self.recent.iter().map(|(length_s, _)| *length_s).fold(0.0, f64::max);
        let many = self.recent.len() as u64 * 100 > recent_turns;
        let fresh = now_s - self.longest.1 <= 60.0;
        *row = EventLoop {
            turns: self.turns,
            gaps: self.gaps,
            gap_ns: (self.gap_s * 1e9) as u64,
            gap_waiting_ns: (self.gap_waiting_s * 1e9) as u64,
            max_ns: if fresh { (self.longest.0 * 1e9) as u64 } else { 0 },
            open_ns,
            open_on_cpu_ns: if why == Some(Why::OnCpu) { open_ns } else { 0 },
            open_waiting_ns: if why == Some(Why::Waiting) { open_ns } else { 0 },
            open_blocked_ns: if why == Some(Why::Blocked) { open_ns } else { 0 },
            recent_turns,
            // To a power of two, as the agent tells it.
            p99_ns: if many { ((longest * 1e9) as u64).next_power_of_two() / 2 } else { P99_NS },
        };
        why
    }
}

/// A process.
#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) pid: u32,
    pub(crate) identity: Arc<Process>,
    pub(crate) heap: Heap,
    pub(crate) leak: Option<Leak>,
    pub(crate) leaked: f64,
    /// Anonymous memory that it shows but shares with its parent since the fork.
    pub(crate) shared: f64,
    pub(crate) file: f64,
    pub(crate) shmem: f64,
    /// Share of its own heap that is not in use, and could be swapped out.
    pub(crate) idle: f64,
    pub(crate) swap: f64,
    /// Cores that it uses on average.
    pub(crate) cpu: f64,
    /// Threads that are watched; 0 if it has no connections.
    pub(crate) threads: u32,
    pub(crate) event_loop: Option<Loop>,
    /// How far it gets, besides what the host's memory allows: 0 is stopped.
    pub(crate) vigour: f64,
    pub(crate) run_delay_ns: u64,
    /// Whether it is of the real-time class.
    pub(crate) real_time: bool,
    own: f64,
    history: [f64; GROWTH_S],
    age: usize,
}

impl Actor {
    /// A process without connections.
    pub(crate) fn new(who: &Who, pid: u32, start_unix_ns: u64, heap: Heap) -> Self {
        Self {
            pid,
            identity: Arc::new(who.born(pid, 1, start_unix_ns)),
            heap,
            leak: None,
            leaked: 0.0,
            shared: 0.0,
            file: 12.0 * MIB,
            shmem: 0.0,
            idle: 0.3,
            swap: 0.0,
            cpu: 0.02,
            threads: 0,
            event_loop: None,
            vigour: 1.0,
            run_delay_ns: 0,
            real_time: false,
            own: 0.0,
            history: [0.0; GROWTH_S],
            age: 0,
        }
    }

    /// One second of its memory.
    pub(crate) fn step(&mut self, day_s: f64, progress: f64, rng: &mut Rng) {
        let progress = progress * self.vigour;
        self.own = self.heap.step(day_s, progress, rng);
        if let Some(leak) = &mut self.leak {
            self.leaked += leak.step(progress, rng);
        }
        self.history[self.age % GROWTH_S] = self.private() + self.shared + self.shmem;
        self.age += 1;
    }

    /// Anonymous memory of its own, swapped or not.
    pub(crate) fn private(&self) -> f64 {
        self.own + self.leaked
    }

    /// What of it may be swapped out: leaked memory is never used again.
    pub(crate) fn idle_bytes(&self) -> f64 {
        self.own * self.idle + self.leaked * 0.95
    }

    /// Resident anonymous memory as it is shown.
    pub(crate) fn anon(&self) -> f64 {
        (self.private() + self.shared - self.swap).max(0.0)
    }

    /// Everything that is resident.
    pub(crate) fn rss(&self) -> f64 {
        self.anon() + self.file + self.shmem
    }

    /// Its page tables.
    pub(crate) fn page_tables(&self) -> f64 {
        200.0 * 1024.0 + self.rss() / PAGE * 8.0
    }

    /// Growth over the last ten seconds, in bytes a second; young processes show none.
    pub(crate) fn growth(&self) -> f64 {
        if self.age < 2 {
            return 0.0;
        }
        let span = self.age.min(GROWTH_S);
        let newest = self.history[(self.age - 1) % GROWTH_S];
        let oldest = self.history[(self.age - span) % GROWTH_S];
        (newest - oldest) / (span - 1) as f64
    }
}
