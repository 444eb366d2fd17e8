//! An event loop that does not turn: all that it serves waits (incidents I1, I2). The only sign of it while it lasts is the
//! turn that is still open, and how that splits into computing, waiting for a CPU, and being blocked says why.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use super::{
    blame::Blamer,
    percent, seconds,
    turn::{Cause, Tick, cause, is_asleep, loops},
};
use crate::{
    config::{self, Config, Setting},
    detect::{
        Detector, Evidence, Judgement, Kind, Level, Party, Seen, State, evidence,
        judgement::Blamed, key::ByKey, mean::Mean, party, rows::Rows,
    },
    signal::sched::{EventLoop, Thread},
};

/// An event loop does not turn.
pub static KIND: Kind = Kind {
    name: "sched.event_loop",
    signal: "sched",
    help: "an event loop does not turn, and whoever it serves waits",
    reason: "People notice a second (Nielsen, 1993), and load balancers give up after some; ten seconds are a hang. Loops \
             that refuse work when they lag (toobusy-js) do so from 70 ms on, so that and a single turn of a fifth of the \
             threshold are WATCH. A request meets a long turn as often as the loop spends time in them: a quarter is \
             WARN where it was less before. What a turn waits for a CPU is not its fault and does not count, until it has \
             waited for so long that requests fail.",
    raise: Duration::ZERO,
    clear: Duration::from_secs(5),
    hazard: false,
    settings: &[BLOCK],
    detector: |config| Box::new(EventLoops::new(config)),
};

/// How long a turn may take.
pub const BLOCK: Setting = Setting {
    key: "detect.event_loop_block",
    kind: config::Kind::Duration { min_ms: 100, max_ms: 600_000 },
    default: "1s",
    otel: &[],
    help: "turn of a serving event loop that is a WARN; ten times as long is CRITICAL",
};

/// Loops followed; as many as threads can be watched.
const MAX_LOOPS: usize = 4096;
/// Loops told of at once, the worst.
const MAX_TOLD: usize = 32;
/// A loop has served before if it has turned this often.
const MIN_TURNS: u64 = 20;
/// Turns in ten seconds of which a 99th percentile says something.
const MIN_LAG_TURNS: u64 = 50;
/// toobusy-js and fastify refuse work beyond.
const LAG_NS: u64 = 70_000_000;
/// Nobody waits for the turn of a loop that serves no one, such as a worker that takes jobs from a queue.
const IDLE_FACTOR: u64 = 10;
/// An open turn that is so many times as long as it may be, and has waited for a CPU this share of that, is told before it
/// is a hang, if it is known who is to blame.
const STARVED: f64 = 2.5;
const STARVED_SHARE: f64 = 0.6;
/// Observation after which habits count.
const HABIT_NS: u64 = 60_000_000_000;
/// Then the past is forgotten by halves.
const MEMORY_NS: u64 = 3_600_000_000_000;
/// A loop that spends half of half a minute in long turns hardly turns at all.
const HARDLY: f64 = 0.5;
/// Every fourth request meets a long turn: too many, unless it was always so.
const OFTEN: f64 = 0.25;
const LATELY: Duration = Duration::from_secs(15);
/// A thread that spends this share of its time in long turns is no loop that serves.
const HABITUAL: f64 = 0.1;

/// How a loop has been so far.
#[derive(Debug, Clone, Default)]
struct Habit {
    /// At the tick before.
    last: EventLoop,
    observed_ns: u64,
    /// Part of that in long turns, without what they waited for a CPU.
    stuck_ns: u64,
    /// The same share of late.
    lately: Mean,
    longest: Longest,
}

/// Of the longest turn of the last minute.
#[derive(Debug, Clone, Copy, Default)]
struct Longest {
    /// What it waited for a CPU, at most.
    waited_ns: u64,
    /// Whether somebody else was to blame for it.
    excused: bool,
}

struct EventLoops {
    block_ns: u64,
    habits: Rows<Habit>,
    blamer: Blamer,
    /// Where the worst loop of each process is among those of the tick; kept for its memory.
    places: ByKey<u32, usize>,
}

/// What is wrong with a loop.
struct Found<'a> {
    thread: &'a Thread,
    turning: &'a EventLoop,
    level: Level,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    /// A turn is open; `starved` if it would have been in time with a CPU of its own, but waits too long for one.
    Open { starved: bool },
    /// A turn is over that was too long; `new` if it ended since the tick before.
    Over { longest: Longest, new: bool },
    /// It spends this share of its time in long turns.
    Hardly { share: f64 },
    /// Turns are long as a rule.
    Lags,
}

impl EventLoops {
    fn new(config: &Config) -> Self {
        let block_ns = config.duration(&BLOCK).as_nanos() as u64;
        Self {
            block_ns,
            habits: Rows::default(),
            blamer: Blamer::default(),
            places: ByKey::default(),
        }
    }

    /// Brings a loop's habits up to date; returns those before this tick, its share of long turns of late and its longest
    /// turn, or `None` if there is no room.
    fn habit(
        &mut self,
        thread: &Thread,
        turning: &EventLoop,
        tick: &Tick<'_>,
    ) -> Option<(Habit, f64, Longest)> {
        let elapsed_ns = tick.seen.elapsed_ns;
        let habit = self.habits.get(u64::from(thread.tid), MAX_LOOPS)?;
        if turning.turns < habit.last.turns {
            *habit = Habit::default();
        }
        let before = habit.clone();
        habit.last.clone_from(turning);
        habit.observed_ns = habit.observed_ns.saturating_add(elapsed_ns);
        let stuck_ns = stuck_ns(&before.last, turning, self.block_ns / 5).min(elapsed_ns);
        habit.stuck_ns = habit.stuck_ns.saturating_add(stuck_ns);
        let share = stuck_ns as f64 / elapsed_ns.max(1) as f64;
        let lately = habit.lately.add(share, elapsed_ns, LATELY);
        if turning.max_ns > before.last.max_ns {
            let ended_ns = turning.gap_waiting_ns.saturating_sub(before.last.gap_waiting_ns);
            let waited_ns = ended_ns.min(turning.max_ns);
            let lags = turning.max_ns >= self.block_ns / 5;
            let excused = lags && tick.excuse(thread.pid, waited_ns, turning.max_ns).is_some();
            habit.longest = Longest { waited_ns, excused };
        } else if turning.max_ns < before.last.max_ns {
            habit.longest = Longest::default();
        }
        if habit.observed_ns >= MEMORY_NS {
            (habit.observed_ns, habit.stuck_ns) = (habit.observed_ns / 2, habit.stuck_ns / 2);
        }
        Some((before, lately, habit.longest))
    }

    /// Judges one loop.
    fn judge<'a>(
        &mut self,
        thread: &'a Thread,
        turning: &'a EventLoop,
        tick: &Tick<'_>,
    ) -> Option<Result<Found<'a>, &'static str>> {
        let (habit, share, longest) = self.habit(thread, turning, tick)?;
        let found = |what, level| Some(Ok(Found { thread, turning, level, what }));
        let serves = || serves(thread, &habit, tick.seen);
        let alone = || tick.is_alone(thread.pid);
        let hardly = share >= HARDLY || share >= OFTEN && habit.is_steady();
        let longer = turning.max_ns > habit.last.max_ns;
        let open = What::Open { starved: false };
        let over = What::Over { longest, new: longer };
        let (what, length_ns, waited_ns) = match turning.open_ns {
            open_ns if open_ns >= self.block_ns => (open, open_ns, turning.open_waiting_ns),
            _ if longer && turning.max_ns >= self.block_ns => {
                (over, turning.max_ns, longest.waited_ns)
            }
            _ if turning.turns < MIN_TURNS => return None,
            _ if hardly && serves() && alone() => {
                return found(What::Hardly { share }, Level::Warn);
            }
            _ if turning.max_ns >= self.block_ns / 5 => return found(over, Level::Watch),
            _ if turning.p99_ns >= LAG_NS && turning.recent_turns >= MIN_LAG_TURNS => {
                return found(What::Lags, Level::Watch);
            }
            _ => return None,
        };
        if turning.turns < MIN_TURNS {
            return Some(Err("it has not turned often enough to be known as a loop that serves"));
        }
        let main = thread.tid == thread.pid && alone();
        let sleeps = matches!(what, What::Open { .. }) && is_asleep(turning, thread, tick);
        if (!main || sleeps) && !habit.is_steady() {
            return found(what, Level::Watch);
        }
        let limit_ns = self.block_ns.saturating_mul(if serves() { 1 } else { IDLE_FACTOR });
        // With a CPU of its own it would have been in time: others tell who has it.
        let in_time = length_ns.saturating_sub(waited_ns) < limit_ns;
        let length_ns = if in_time { length_ns / IDLE_FACTOR } else { length_ns };
        let is_open = matches!(what, What::Open { .. });
        match length_ns {
            _ if length_ns < limit_ns && is_open && is_starved(turning, limit_ns) => {
                found(What::Open { starved: true }, Level::Warn)
            }
            _ if length_ns < limit_ns => found(what, Level::Watch),
            _ if length_ns < limit_ns.saturating_mul(10) || !is_open => found(what, Level::Warn),
            _ => found(what, Level::Critical),
        }
    }
}

/// Whether an open turn has waited so long for a CPU that whoever it serves is hurt, though it is not its fault.
fn is_starved(turning: &EventLoop, limit_ns: u64) -> bool {
    turning.open_ns as f64 >= STARVED * limit_ns as f64
        && turning.open_waiting_ns as f64 >= STARVED_SHARE * turning.open_ns as f64
}

/// Time since the tick before in turns of `long_ns` and longer, without what they waited for a CPU.
fn stuck_ns(before: &EventLoop, now: &EventLoop, long_ns: u64) -> u64 {
    let open = |turning: &EventLoop| {
        let is_long = turning.open_ns >= long_ns;
        if is_long { turning.open_ns.saturating_sub(turning.open_waiting_ns) } else { 0 }
    };
    if before.turns == 0 {
        // Nobody knows when its gaps were.
        return open(now);
    }
    // Several may have ended: then their mean decides.
    let gaps = now.gaps.saturating_sub(before.gaps).max(1);
    let ended_ns = now.gap_ns.saturating_sub(before.gap_ns);
    let waited_ns = now.gap_waiting_ns.saturating_sub(before.gap_waiting_ns);
    let are_long = ended_ns >= long_ns.saturating_mul(gaps);
    let ended_ns = if are_long { ended_ns.saturating_sub(waited_ns) } else { 0 };
    ended_ns.saturating_add(open(now)).saturating_sub(open(before))
}

impl Habit {
    /// Whether its turns have been short for long enough to say that a long one is out of the ordinary. Threads of Go's
    /// runtime poll now and then and then do something else, and are told from loops by this alone.
    fn is_steady(&self) -> bool {
        self.observed_ns >= HABIT_NS && (self.stuck_ns as f64) < HABITUAL * self.observed_ns as f64
    }
}

/// Whether somebody waits for this loop's turn: it listens, or PM2's daemon may listen for it, unless it computes all the
/// time. The first process reads its configuration anew now and then, and serves nobody meanwhile.
fn serves(thread: &Thread, habit: &Habit, seen: &Seen<'_>) -> bool {
    let usual = || habit.observed_ns < HABIT_NS || habit.is_steady();
    let instance = || seen.process(thread.pid).and_then(|process| process.pm2.as_ref()?.instance);
    thread.pid != 1 && (thread.listens != Some(false) || usual() && instance().is_some())
}

impl Found<'_> {
    fn rank(&self) -> (Level, u64, u64) {
        (self.level, self.turning.open_ns, self.turning.max_ns)
    }

    fn judgement(&self, tick: &Tick<'_>) -> Judgement {
        let Self { thread, turning, level, what } = self;
        let own = party::process(tick.seen.snapshot, thread.pid, &thread.name, 1.0);
        let (cause, culprit) = self.cause(&own, tick);
        // What nobody is to blame for is told by others, when it has lasted.
        let named = culprit.is_some() && !cause.is_stolen();
        let level = match what {
            What::Open { starved: true } if !named => Level::Watch,
            _ => *level,
        };
        let mut evidence = numbers(turning);
        if cause.is_paging() {
            evidence.extend(tick.blamer.numbers(tick.seen));
        }
        let advice = match what {
            What::Over { .. } if cause == Cause::Computes => {
                "see the span event_loop.stall for what it did meanwhile"
            }
            What::Lags => {
                "it has more to do than one thread can: add workers, or make its requests cheaper"
            }
            What::Open { .. } | What::Over { .. } | What::Hardly { .. } => cause.advice(),
        };
        Judgement {
            subject: format!("{} {}", thread.name, thread.pid),
            state: State::Firing(level),
            culprit,
            message: self.message(&own.title, &cause),
            victims: vec![own],
            evidence,
            advice: advice.to_owned(),
            ..Judgement::default()
        }
    }

    /// Why, and who is to blame for it. Nobody is named again for a turn that somebody else was named for when it ended.
    fn cause(&self, own: &Party, tick: &Tick<'_>) -> (Cause, Option<Party>) {
        let Self { thread, turning, what, .. } = self;
        let mine = || (Cause::Computes, Some(own.clone()));
        match what {
            What::Open { .. } => {
                let cause = cause(turning, thread, tick);
                let culprit = cause.culprit(own, tick);
                (cause, culprit)
            }
            What::Over { longest, new: true } => {
                let excuse = tick.excuse(thread.pid, longest.waited_ns, turning.max_ns);
                excuse.map_or_else(mine, |cause| {
                    let culprit = cause.culprit(own, tick);
                    (cause, culprit)
                })
            }
            What::Over { longest, new: false } if longest.excused => (Cause::Past, None),
            What::Hardly { share } if tick.blamer.is_paging(thread.pid, *share, tick.seen) => {
                (Cause::Paging, Some(tick.blamer.memory(thread.pid, tick.seen)))
            }
            What::Over { .. } | What::Hardly { .. } | What::Lags => mine(),
        }
    }

    fn message(&self, title: &str, cause: &Cause) -> String {
        let turning = self.turning;
        let longest = seconds(turning.max_ns);
        let why = cause.aside();
        match self.what {
            What::Open { .. } => format!(
                "the event loop of {title} has not turned for {:.1} s: {} (computed {:.1} s, waited for a CPU {:.1} s, was \
                 blocked {:.1} s)",
                seconds(turning.open_ns),
                cause.text(),
                seconds(turning.open_on_cpu_ns),
                seconds(turning.open_waiting_ns),
                seconds(turning.open_blocked_ns),
            ),
            What::Over { longest: Longest { waited_ns, .. }, .. }
                if waited_ns >= turning.max_ns / 2 =>
            {
                format!(
                    "the event loop of {title} did not turn for {longest:.2} s within the last minute, and waited for a CPU \
                 {:.2} s{why}",
                    seconds(waited_ns)
                )
            }
            What::Over { .. } => format!(
                "the event loop of {title} did not turn for {longest:.2} s within the last minute{why}"
            ),
            What::Hardly { share } => format!(
                "the event loop of {title} spends {} % of its time in long turns; the longest of the last minute took \
                 {longest:.2} s{why}",
                percent(share),
            ),
            What::Lags => format!(
                "the event loop of {title} lags: one of a hundred turns takes {:.2} s, the longest of the last minute took \
                 {longest:.2} s",
                seconds(turning.p99_ns),
            ),
        }
    }
}

fn numbers(turning: &EventLoop) -> Vec<Evidence> {
    [
        ("open_gap", turning.open_ns),
        ("open_gap_on_cpu", turning.open_on_cpu_ns),
        ("open_gap_waiting", turning.open_waiting_ns),
        ("open_gap_blocked", turning.open_blocked_ns),
        ("longest_turn_of_minute", turning.max_ns),
        ("turn_p99", turning.p99_ns),
    ]
    .into_iter()
    .filter(|(_, ns)| *ns > 0)
    .map(|(name, ns)| evidence(name, seconds(ns), "s", "tp_btf/sched_switch"))
    .collect()
}

impl Detector for EventLoops {
    fn hear(&mut self, memory: &[Blamed]) {
        self.blamer.hear(memory);
    }

    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let mut blamer = std::mem::take(&mut self.blamer);
        blamer.follow(seen);
        let tick = Tick::new(seen, &blamer);
        // The worst loop of a process speaks for it.
        let mut worst: Vec<Found<'_>> = Vec::new();
        let mut places = std::mem::take(&mut self.places);
        let mut new: BTreeMap<u32, (&str, &'static str)> = BTreeMap::new();
        for (thread, turning) in loops(seen) {
            match self.judge(thread, turning, &tick) {
                None => {}
                Some(Err(reason)) => _ = new.insert(thread.pid, (&thread.name, reason)),
                Some(Ok(one)) => {
                    let place = *places.entry(thread.pid).or_insert(worst.len());
                    match worst.get_mut(place) {
                        None => worst.push(one),
                        Some(known) if known.rank() < one.rank() => *known = one,
                        Some(_) => {}
                    }
                }
            }
        }
        let undecided = new.into_iter().filter(|(pid, _)| !places.contains_key(pid));
        found.extend(undecided.take(MAX_TOLD).map(|(pid, (name, reason))| Judgement {
            subject: format!("{name} {pid}"),
            state: State::Undecided(reason.into()),
            ..Judgement::default()
        }));
        let order = |one: &Found<'_>| (Reverse(one.rank()), one.thread.pid);
        if worst.len() > MAX_TOLD {
            worst.select_nth_unstable_by_key(MAX_TOLD, order);
            worst.truncate(MAX_TOLD);
        }
        worst.sort_by_key(order);
        found.extend(worst.iter().map(|one| one.judgement(&tick)));
        self.habits.end();
        places.clear();
        (self.blamer, self.places) = (blamer, places);
    }
}
