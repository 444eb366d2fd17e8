//! From records, watched threads and polled files to threads, loops, stalls.

use std::collections::{BTreeMap, HashMap, VecDeque};

use observer_abi::{
    alloc::{TASK_BLOCKED, TASK_WATCHED, TaskRow},
    histogram::{BUCKETS, upper_bound_ns},
    sched::{LoopGap, Stall, Watch, phase},
};

use super::{
    BUSY, BlockedTask, CpuCgroup, EventLoop, LOOP_GAP, LOOP_OPEN, RUN_DELAY, STALLS, STEAL,
    THROTTLED, Thread, View, disk,
    poller::{Judged, Poller},
    recent::Recent,
    span,
};
use crate::{
    host::{Times, cgroup::Watched},
    signal::{Now, Output, Readings, Who, comm_text, ratio},
    snapshot::MAX_ROWS,
    telemetry::{Attr, Distribution, Metric, Number, Point, Span, Subject, attr},
};

/// Processes that wait in epoll but serve one client each: a long turn is their work, not a stall.
const NOT_LOOPS: &[&str] = &["postgres"];
/// The longest gap is of this time.
const MAX_WINDOW_NS: u64 = 60_000_000_000;
/// Uninterruptible sleep is shown from here on.
const BLOCKED_AFTER_NS: u64 = 1_000_000_000;
/// Those who use the CPU are read from this share of all CPUs on, or this share of its time that a watched thread waits.
const CONSUMERS_BUSY: f64 = 0.6;
/// See [`CONSUMERS_BUSY`].
const CONSUMERS_DELAY: f64 = 0.05;
/// Ticks that a stall waits for the names of its kernel stack.
const NAME_PATIENCE: u32 = 3;
/// Names of kernel functions kept; the same few stacks come again and again.
const MAX_NAMES: usize = 4096;
/// Spans a process may make of waits for a CPU in [`LIMIT_WINDOW_NS`]: on a saturated host every slice makes one. The rest
/// is counted, and its time is in the run delay.
const MAX_RUN_DELAY_SPANS: u32 = 32;
/// See [`MAX_RUN_DELAY_SPANS`].
const LIMIT_WINDOW_NS: u64 = 10_000_000_000;
/// Stalls waiting for names.
const MAX_UNNAMED: usize = 256;

#[derive(Debug, Default, Clone)]
struct Past {
    on_cpu_ns: u64,
    run_delay_ns: u64,
    first_run_delay_ns: Option<u64>,
    gaps: VecDeque<(u64, u64)>,
    /// Time in gaps, and of it waiting for a CPU.
    gap_ns: u64,
    gap_waiting_ns: u64,
    recent: Recent,
    /// What the process's total has of its loop.
    counted: Watch,
    round: u64,
}

/// What the threads of a process have come to, those that are gone included: a counter must not fall.
#[derive(Debug, Default)]
struct Total {
    start_boottime_ns: u64,
    run_delay_ns: u64,
    turns: Distribution,
    round: u64,
}

/// State of the signal.
#[derive(Debug)]
pub struct Sched {
    gap_threshold_ns: u64,
    poller: Poller,
    past: HashMap<u32, Past>,
    blocked: HashMap<u32, (u64, u64)>,
    times: Option<Times>,
    throttled: HashMap<String, (u64, u64)>,
    names: HashMap<u64, String>,
    unnamed: Vec<(Span, Vec<u64>, u32)>,
    /// Addresses on the stacks of blocked tasks.
    blocked_addresses: Vec<u64>,
    totals: BTreeMap<u32, Total>,
    /// Spans of waits for a CPU by process: since when counted, and how many.
    limits: HashMap<u32, (u64, u32)>,
    limited: u64,
    round: u64,
    view: View,
}

impl Sched {
    /// Empty.
    pub fn new(gap_threshold_ns: u64) -> Self {
        Self {
            gap_threshold_ns,
            poller: Poller::default(),
            past: HashMap::new(),
            blocked: HashMap::new(),
            times: None,
            throttled: HashMap::new(),
            names: HashMap::new(),
            unnamed: Vec::new(),
            blocked_addresses: Vec::new(),
            totals: BTreeMap::new(),
            limits: HashMap::new(),
            limited: 0,
            round: 0,
            view: View::default(),
        }
    }

    /// What the snapshot shows.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Whether it matters who uses the CPU: it is short for somebody, or for the host.
    pub fn wants_consumers(&self) -> bool {
        let waits = |thread: &Thread| thread.run_delay_ratio >= CONSUMERS_DELAY;
        self.view.busy_ratio >= CONSUMERS_BUSY || self.view.threads.iter().any(waits)
    }

    /// Whether it matters who has disks read and write: one of them is slow.
    pub fn wants_senders(&self) -> bool {
        disk::want_senders(&self.view.disks)
    }

    /// Whether the probe on system calls should be attached.
    pub fn wants_epoll_probe(&self) -> bool {
        self.poller.wants_probe()
    }

    /// Long turns that turned out to be busy polling.
    pub fn dismissed(&self) -> u64 {
        self.poller.dismissed()
    }

    /// A turn of a watched thread was long.
    pub fn gap(&mut self, record: LoopGap, now: Now, who: &mut dyn Who, out: &mut Output) {
        let name = comm_text(&record.header.comm);
        // Before its first turn a thread starts up; that is no stall of a loop.
        let starts = record.turns == 0 && record.partial != 0;
        if starts || !is_loop(&name, record.turns.saturating_add(1), record.sleeps) {
            return;
        }
        if let Some(judged) = self.poller.judge(record, now) {
            self.tell(&judged, now, who, out);
        }
    }

    fn tell(&mut self, judged: &Judged, now: Now, who: &mut dyn Who, out: &mut Output) {
        self.view.stalls += 1;
        let gap = &judged.gap;
        let past = self.past.entry(gap.header.tid).or_default();
        past.gap_ns = past.gap_ns.saturating_add(gap.duration_ns);
        past.gap_waiting_ns = past.gap_waiting_ns.saturating_add(gap.waiting_ns);
        past.gaps.push_back((gap.header.ktime_ns, gap.duration_ns));
        if past.gaps.len() > 64 {
            past.gaps.pop_front();
        }
        out.span(span::gap(judged, now, who));
    }

    /// A watched thread was off its CPU for long.
    pub fn stall(&mut self, record: &Stall, now: Now, who: &mut dyn Who, out: &mut Output) {
        // An interruptible sleep is a stall only within the turn of a loop; a pool's idle thread sleeps all day.
        let name = comm_text(&record.header.comm);
        if record.phase == phase::SLEEPING && !is_loop(&name, record.turns, 0) {
            return;
        }
        self.view.stalls += 1;
        if record.phase == phase::RUNNING && self.is_over_limit(record.header.tgid, now) {
            self.limited += 1;
            return;
        }
        let mut span = span::stall(record, now, who);
        let addresses =
            if record.phase == phase::RUNNING { Vec::new() } else { span::frames(&record.stack) };
        if self.are_named(&addresses) || self.unnamed.len() >= MAX_UNNAMED {
            span::add_stack(&mut span, self.named(&addresses));
            out.span(span);
        } else {
            self.unnamed.push((span, addresses, 0));
        }
    }

    fn is_over_limit(&mut self, tgid: u32, now: Now) -> bool {
        let (since, count) = self.limits.entry(tgid).or_insert((now.ktime_ns, 0));
        if now.since(*since) >= LIMIT_WINDOW_NS {
            (*since, *count) = (now.ktime_ns, 0);
        }
        *count = count.saturating_add(1);
        *count > MAX_RUN_DELAY_SPANS
    }

    /// Stalls that made no span because their process had made enough.
    pub fn limited(&self) -> u64 {
        self.limited
    }

    /// Kernel addresses that need a name.
    pub fn unnamed(&self) -> Vec<u64> {
        let mut waiting: Vec<u64> =
            self.unnamed.iter().flat_map(|(_, addresses, _)| addresses.iter().copied()).collect();
        waiting.extend(&self.blocked_addresses);
        waiting.sort_unstable();
        waiting.dedup();
        waiting.retain(|address| !self.names.contains_key(address));
        waiting
    }

    /// Takes the name of a kernel address.
    pub fn name(&mut self, address: u64, name: String) {
        if self.names.len() < MAX_NAMES {
            self.names.insert(address, name);
        }
    }

    /// Sends stalls whose stacks have names, and those that have waited long enough.
    fn flush_named(&mut self, all: bool, out: &mut Output) {
        for (mut span, addresses, waited) in std::mem::take(&mut self.unnamed) {
            if self.are_named(&addresses) || all || waited >= NAME_PATIENCE {
                span::add_stack(&mut span, self.named(&addresses));
                out.span(span);
            } else {
                self.unnamed.push((span, addresses, waited + 1));
            }
        }
    }

    fn are_named(&self, addresses: &[u64]) -> bool {
        addresses.iter().all(|address| self.names.contains_key(address))
    }

    fn named(&self, addresses: &[u64]) -> Vec<String> {
        let name = |address: &u64| {
            self.names.get(address).cloned().unwrap_or_else(|| format!("{address:#x}"))
        };
        addresses.iter().map(name).collect()
    }

    /// Folds one tick; `ends` if it is the last.
    pub fn tick(
        &mut self,
        readings: &Readings<'_>,
        ends: bool,
        who: &mut dyn Who,
        out: &mut Output,
    ) {
        self.round += 1;
        self.threads(readings);
        let unclear = self
            .view
            .threads
            .iter()
            .any(|thread| thread.event_loop.as_ref().is_some_and(|l| l.open_ns > 0));
        let mut clear = self.poller.tick(readings.now, readings.watches, unclear);
        if ends {
            clear.extend(self.poller.take_pending());
        }
        for judged in &clear {
            self.tell(judged, readings.now, who, out);
        }
        self.flush_named(ends, out);
        self.blocked(readings);
        self.cpu(readings.times);
        self.view.consumers = readings.consumers.to_vec();
        self.view.uninterruptible = disk::uninterruptible(readings.tasks);
        self.view.disks = readings.disks.to_vec();
        self.view.senders = readings.senders.to_vec();
        self.cgroups(readings.cgroups, readings.elapsed_ns);
    }

    fn threads(&mut self, readings: &Readings<'_>) {
        let watches: HashMap<u32, &Watch> =
            readings.watches.iter().map(|(tid, watch)| (*tid, watch)).collect();
        let mut threads = Vec::with_capacity(watches.len());
        for row in readings.tasks.iter().filter(|row| row.flags & TASK_WATCHED != 0) {
            let Some(watch) = watches.get(&row.tid) else { continue };
            threads.push(self.thread(row, watch, readings));
        }
        let round = self.round;
        self.limits.retain(|_, (since, _)| readings.now.since(*since) < LIMIT_WINDOW_NS);
        self.past.retain(|_, past| past.round + 60 >= round);
        self.totals.retain(|_, total| total.round + 60 >= round);
        threads.sort_by(|a, b| rank(b).partial_cmp(&rank(a)).unwrap_or(std::cmp::Ordering::Equal));
        self.view.watched = threads.len() as u64;
        threads.truncate(MAX_ROWS);
        self.view.threads = threads;
    }

    fn thread(&mut self, row: &TaskRow, watch: &Watch, readings: &Readings<'_>) -> Thread {
        let name = comm_text(&row.comm);
        let past = self.past.entry(row.tid).or_default();
        let known = past.round + 1 == self.round && past.round > 0;
        let delta = |now: u64, before: u64| if known { now.saturating_sub(before) } else { 0 };
        let on_cpu_ns = delta(row.on_cpu_ns, past.on_cpu_ns);
        let run_delay_ns = delta(row.run_delay_ns, past.run_delay_ns);
        let total = self.totals.entry(row.tgid).or_default();
        if total.start_boottime_ns != row.start_boottime_ns {
            *total = Total { start_boottime_ns: row.start_boottime_ns, ..Total::default() };
        }
        total.round = self.round;
        total.run_delay_ns = total.run_delay_ns.saturating_add(run_delay_ns);
        let first = *past.first_run_delay_ns.get_or_insert(row.run_delay_ns);
        (past.on_cpu_ns, past.run_delay_ns, past.round) =
            (row.on_cpu_ns, row.run_delay_ns, self.round);
        while past.gaps.front().is_some_and(|(at, _)| readings.now.since(*at) > MAX_WINDOW_NS) {
            past.gaps.pop_front();
        }
        let max_ns = past.gaps.iter().map(|(_, gap)| *gap).max().unwrap_or(0);
        let is_loop = is_loop(&name, watch.turns, watch.sleeps);
        if is_loop {
            add_turns(&mut total.turns, watch, &std::mem::replace(&mut past.counted, *watch));
        }
        let (recent_turns, p99_ns) = past.recent.turns(watch, readings.now.ktime_ns);
        let (gap_ns, gap_waiting_ns) = (past.gap_ns, past.gap_waiting_ns);
        let event_loop = is_loop.then(|| EventLoop {
            turns: watch.turns,
            gaps: watch.gaps,
            gap_ns,
            gap_waiting_ns,
            max_ns,
            recent_turns,
            p99_ns,
            ..self.open(row, watch, readings)
        });
        Thread {
            pid: row.tgid,
            tid: row.tid,
            name,
            listens: readings.listeners.map(|pids| pids.contains(&row.tgid)),
            on_cpu_ratio: ratio(on_cpu_ns, readings.elapsed_ns),
            run_delay_ratio: ratio(run_delay_ns, readings.elapsed_ns),
            run_delay_ns: row.run_delay_ns.saturating_sub(first),
            event_loop,
        }
    }

    /// The turn that is not over, if it is over the threshold and known to be one.
    fn open(&mut self, row: &TaskRow, watch: &Watch, readings: &Readings<'_>) -> EventLoop {
        if watch.turn_ktime_ns == 0 || watch.phase == phase::POLLING {
            return EventLoop::default();
        }
        let open_ns = readings.now.since(watch.turn_ktime_ns);
        if open_ns < self.gap_threshold_ns || !self.poller.is_open(row.tid, open_ns, readings.now) {
            return EventLoop::default();
        }
        // While it runs, the kernel brings these up to date with each timer tick only: 4 ms at 250 Hz.
        let on_cpu_ns = row.on_cpu_ns.saturating_sub(watch.turn_on_cpu_ns).min(open_ns);
        let waiting_ns =
            row.run_delay_ns.saturating_sub(watch.turn_run_delay_ns).min(open_ns - on_cpu_ns);
        EventLoop {
            open_ns,
            open_on_cpu_ns: on_cpu_ns,
            open_waiting_ns: waiting_ns,
            open_blocked_ns: open_ns - on_cpu_ns - waiting_ns,
            ..EventLoop::default()
        }
    }

    fn blocked(&mut self, readings: &Readings<'_>) {
        let mut blocked = HashMap::new();
        self.view.blocked.clear();
        self.blocked_addresses.clear();
        for row in readings.tasks.iter().filter(|row| row.flags & TASK_BLOCKED != 0) {
            let switches = row.voluntary_switches;
            let same = self.blocked.get(&row.tid).filter(|(_, before)| *before == switches);
            let since = same.map_or(readings.now.ktime_ns, |(since, _)| *since);
            blocked.insert(row.tid, (since, switches));
            let blocked_ns = readings.now.since(since);
            if blocked_ns >= BLOCKED_AFTER_NS && self.view.blocked.len() < MAX_ROWS {
                let frames = span::frames(&row.stack);
                self.blocked_addresses.extend(&frames);
                self.view.blocked.push(BlockedTask {
                    pid: row.tgid,
                    tid: row.tid,
                    name: comm_text(&row.comm),
                    blocked_ns,
                    stack: self.named(&frames),
                });
            }
        }
        self.blocked = blocked;
    }

    fn cpu(&mut self, times: Times) {
        if times.total_ticks == 0 {
            // It could not be read.
            return;
        }
        let before = self.times.replace(times).unwrap_or(times);
        let total = times.total_ticks.saturating_sub(before.total_ticks);
        self.view.busy_ratio = ratio(times.busy_ticks.saturating_sub(before.busy_ticks), total);
        self.view.steal_ratio = ratio(times.steal_ticks.saturating_sub(before.steal_ticks), total);
    }

    fn cgroups(&mut self, watched: &[Watched], elapsed_ns: u64) {
        self.view.throttled.clear();
        for group in watched {
            let Some(throttling) = group.throttling else { continue };
            let now = (throttling.periods, throttling.throttled_periods);
            let before = self.throttled.insert(group.path.clone(), now).unwrap_or(now);
            let periods = now.0.saturating_sub(before.0);
            if throttling.throttled_periods == 0 || elapsed_ns == 0 {
                continue;
            }
            self.view.throttled.push(CpuCgroup {
                path: group.path.clone(),
                throttled_periods: throttling.throttled_periods,
                throttled_ns: throttling.throttled_ns,
                throttled_ratio: ratio(now.1.saturating_sub(before.1), periods),
            });
        }
        self.throttled.retain(|path, _| watched.iter().any(|group| group.path == *path));
    }

    /// Metric points of the present view.
    pub fn points(
        &self,
        start_unix_ns: u64,
        boot_unix_ns: u64,
        who: &mut dyn Who,
        out: &mut Output,
    ) {
        let mut add =
            |metric: &'static Metric, number: Number, attrs: Vec<Attr>, subject: &Subject| {
                // The kernel counts throttled time since boot.
                let start_unix_ns =
                    if metric.name == THROTTLED.name { boot_unix_ns } else { start_unix_ns };
                out.point(Point { metric, attrs, number, start_unix_ns, subject: subject.clone() });
            };
        let host = Subject::Host;
        add(
            &STALLS,
            Number::Int(i64::try_from(self.view.stalls).unwrap_or(i64::MAX)),
            Vec::new(),
            &host,
        );
        add(&STEAL, Number::Float(self.view.steal_ratio), Vec::new(), &host);
        add(&BUSY, Number::Float(self.view.busy_ratio), Vec::new(), &host);
        for group in &self.view.throttled {
            let attrs = vec![attr("process.linux.cgroup", group.path.clone())];
            add(&THROTTLED, Number::Float(group.throttled_ns as f64 / 1e9), attrs, &host);
        }
        let mut processes: BTreeMap<u32, (&str, Option<u64>)> = BTreeMap::new();
        for thread in &self.view.threads {
            let (_, open) = processes.entry(thread.pid).or_insert((&thread.name, None));
            if let Some(event_loop) = &thread.event_loop {
                *open = Some(open.unwrap_or(0).max(event_loop.open_ns));
            }
        }
        for (pid, (name, open_ns)) in processes {
            let Some(total) = self.totals.get(&pid) else { continue };
            let subject = Subject::Process(who.process(pid, None, name));
            add(&RUN_DELAY, Number::Float(total.run_delay_ns as f64 / 1e9), Vec::new(), &subject);
            if let Some(open_ns) = open_ns {
                add(&LOOP_OPEN, Number::Float(open_ns as f64 / 1e9), Vec::new(), &subject);
            }
            if !total.turns.counts.is_empty() {
                let turns = Number::Histogram(Box::new(total.turns.clone()));
                add(&LOOP_GAP, turns, Vec::new(), &subject);
            }
        }
    }
}

/// A thread turns an event loop if it sleeps in epoll at least as often as one time in five.
fn is_loop(name: &str, turns: u64, sleeps: u64) -> bool {
    turns > 0 && turns.saturating_mul(4) >= sleeps && !NOT_LOOPS.contains(&name)
}

fn rank(thread: &Thread) -> (u64, f64) {
    (thread.event_loop.as_ref().map_or(0, |event_loop| event_loop.open_ns), thread.run_delay_ratio)
}

/// Adds the turns since `before`, an earlier state of the same thread; all of them if it was watched anew since.
fn add_turns(sum: &mut Distribution, watch: &Watch, before: &Watch) {
    let anew = watch.turns < before.turns || watch.total_ns < before.total_ns;
    let before = if anew { Watch::default() } else { *before };
    if sum.counts.is_empty() {
        sum.bounds =
            (0..BUCKETS).filter_map(upper_bound_ns).map(|bound| bound as f64 / 1e9).collect();
        sum.counts = vec![0; BUCKETS];
    }
    for ((count, now), then) in sum.counts.iter_mut().zip(watch.histogram).zip(before.histogram) {
        *count += u64::from(now.saturating_sub(then));
    }
    sum.sum += (watch.total_ns - before.total_ns) as f64 / 1e9;
    sum.max = sum.max.max(watch.max_ns as f64 / 1e9);
}
