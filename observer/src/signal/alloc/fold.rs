//! From rows of the task iterator and sampled faults to memory, growth and stacks of each process.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use observer_abi::{
    Counter,
    alloc::{Exit, TASK_KERNEL, TASK_LEADER, TaskRow, has_failed},
};

use super::{
    AllocationStack, CREATED, EXITED, Limits, MAX_FAILURES, MEMORY_ANON, MEMORY_GROWTH,
    MEMORY_SWAP, MEMORY_USAGE, ProcessMemory, SHORT_LIVED, View, exit,
    malloc::{self, Told},
};
use crate::{
    kernel::malloc::Probed,
    signal::{Now, Output, Readings, Who, comm_text, per_second},
    snapshot::MAX_ROWS,
    telemetry::{Attr, Event, Metric, Number, Point, Severity, Subject, attr},
};

/// Processes whose stacks are kept at once, and stacks of each.
pub const MAX_GROWERS: usize = 16;
/// Stacks kept of one process.
pub const MAX_STACKS: usize = 32;
/// Stacks shown of one process.
const SHOWN_STACKS: usize = 3;
/// Samples needed before a stack is shown: fewer say nothing.
const MIN_SAMPLES: u64 = 8;
/// A growing process is told again after this time.
const GROWTH_REPEAT_NS: u64 = 60_000_000_000;
/// Readings kept of a process, of which growth is the slope. With shorter intervals not every reading is kept.
const MAX_READINGS: usize = 16;

/// Identity of a process within the fold.
type Key = (u32, u64);

/// User addresses of a stack, innermost first, and its leaf return.
pub type Addresses = (Vec<u64>, u64);

/// Sampled faults of one stack.
#[derive(Debug, Clone, Default)]
pub struct Stack {
    /// User addresses, innermost first.
    pub addresses: Vec<u64>,
    /// Return address of a leaf function without a frame, if it was in one; see the ABI.
    pub leaf_return: u64,
    /// Samples.
    pub samples: u64,
    /// Function names, once known.
    pub frames: Vec<String>,
}

#[derive(Debug, Default)]
struct History {
    /// (time, anon + shmem + swap), the oldest first.
    readings: VecDeque<(u64, u64)>,
    /// The last reading, also if it was not kept.
    bytes: Option<u64>,
    growth_bytes_per_second: f64,
    stacks: Vec<Stack>,
    malloc: Option<Told>,
    told_ktime_ns: u64,
    seen: u64,
}

/// State of the signal.
#[derive(Debug)]
pub struct Alloc {
    limits: Limits,
    histories: HashMap<Key, History>,
    round: u64,
    view: View,
}

impl Alloc {
    /// Empty.
    pub fn new(limits: Limits) -> Self {
        Self { limits, histories: HashMap::new(), round: 0, view: View::default() }
    }

    /// What the snapshot shows.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// A process has exited that is watched, or one that failed.
    pub fn exit(&mut self, record: &Exit, now: Now, who: &mut dyn Who, out: &mut Output) {
        let name = comm_text(&record.header.comm);
        let start = (record.start_boottime_ns != 0).then_some(record.start_boottime_ns);
        let process = who.process(record.header.tgid, start, &name);
        if has_failed(record.exit_code) {
            let failure = exit::failure(record, &process, now, who);
            self.view.failures.insert(0, failure);
            self.view.failures.truncate(MAX_FAILURES);
        }
        if record.watched != 0 || exit::is_service(record, &process, who) {
            out.event(exit::event(record, process, now));
        }
    }

    /// Folds one tick.
    pub fn tick(&mut self, readings: &Readings<'_>, who: &mut dyn Who, out: &mut Output) {
        self.round += 1;
        let mut processes = Vec::with_capacity(readings.tasks.len());
        for row in readings
            .tasks
            .iter()
            .filter(|row| row.flags & TASK_LEADER != 0 && row.flags & TASK_KERNEL == 0)
        {
            processes.push(self.process(row, readings, who, out));
        }
        let round = self.round;
        self.histories.retain(|_, history| history.seen == round);
        processes.sort_unstable_by_key(|process| std::cmp::Reverse(process.rss_bytes));
        let counters = &readings.counters;
        self.view = View {
            process_count: processes.len() as u64,
            forks: counters.get(Counter::Forks),
            execs: counters.get(Counter::Execs),
            exits: counters.get(Counter::Exits),
            short_lived: counters.get(Counter::ShortLived),
            fault_samples: counters.get(Counter::FaultSamples),
            processes,
            failures: std::mem::take(&mut self.view.failures),
        };
        self.view.processes.truncate(MAX_ROWS);
    }

    fn process(
        &mut self,
        row: &TaskRow,
        readings: &Readings<'_>,
        who: &mut dyn Who,
        out: &mut Output,
    ) -> ProcessMemory {
        let bytes =
            |pages: i64| u64::try_from(pages).unwrap_or(0).saturating_mul(readings.page_bytes);
        let mut memory = ProcessMemory {
            pid: row.tgid,
            name: comm_text(&row.comm),
            anon_bytes: bytes(row.anon_pages),
            file_bytes: bytes(row.file_pages),
            shmem_bytes: bytes(row.shmem_pages),
            swap_bytes: bytes(row.swap_pages),
            page_table_bytes: row.page_table_bytes,
            ..ProcessMemory::default()
        };
        memory.rss_bytes =
            memory.anon_bytes.saturating_add(memory.file_bytes).saturating_add(memory.shmem_bytes);
        let history = self.histories.entry((row.tgid, row.start_boottime_ns)).or_default();
        history.seen = self.round;
        let held =
            memory.anon_bytes.saturating_add(memory.shmem_bytes).saturating_add(memory.swap_bytes);
        if history.bytes.is_none() && held >= self.limits.step_bytes && began_empty(row, readings) {
            history.bytes = Some(0);
        }
        let step = history.add(readings.now.ktime_ns, held, self.limits.window.as_nanos() as u64);
        memory.growth_bytes_per_second = history.growth_bytes_per_second;
        if history.growth_bytes_per_second < self.limits.growth_bytes_per_second / 2.0 {
            history.stacks.clear();
        }
        memory.stacks = history.shown();
        memory.malloc = history.malloc.as_ref().map(Told::shown);
        let is_due = history.malloc.as_mut().is_some_and(|told| told.is_due(readings.now));
        let probe = memory.malloc.as_ref().filter(|_| is_due);
        let grows = history.grows(&self.limits, readings.now);
        if grows {
            history.told_ktime_ns = readings.now.ktime_ns;
        }
        if grows || step >= self.limits.step_bytes || probe.is_some() {
            let process = who.process(row.tgid, Some(row.start_boottime_ns), &memory.name);
            let subject = Subject::Process(process);
            if grows {
                out.event(growth_event(&memory, readings.now, subject.clone()));
            }
            if step >= self.limits.step_bytes {
                out.event(step_event(&memory, step, readings.now, subject.clone()));
            }
            if let Some(probe) = probe {
                let (body, attrs) = malloc::words(&memory, probe);
                out.event(event("observer.memory.malloc", body, attrs, readings.now, subject));
            }
        }
        memory
    }

    /// A process's memory at the last tick.
    pub fn process_memory(&self, pid: u32) -> Option<&ProcessMemory> {
        self.view.processes.iter().find(|process| process.pid == pid)
    }

    /// Processes whose stacks are wanted: they grow.
    pub fn growers(&self) -> Vec<u32> {
        let mut growers: Vec<_> = self
            .view
            .processes
            .iter()
            .filter(|p| p.growth_bytes_per_second >= self.limits.growth_bytes_per_second)
            .collect();
        growers.sort_unstable_by(|a, b| {
            b.growth_bytes_per_second.total_cmp(&a.growth_bytes_per_second)
        });
        growers.iter().take(MAX_GROWERS).map(|process| process.pid).collect()
    }

    /// Adds sampled faults of a growing process.
    pub fn add_stack(&mut self, pid: u32, addresses: Vec<u64>, leaf_return: u64, samples: u64) {
        let Some(history) = self.history_of(pid) else { return };
        let mut stacks = history.stacks.iter_mut();
        match stacks.find(|stack| stack.addresses == addresses) {
            Some(known) => known.samples = known.samples.saturating_add(samples),
            None => {
                history.stacks.push(Stack { addresses, leaf_return, samples, frames: Vec::new() })
            }
        }
        history.stacks.sort_unstable_by_key(|stack| std::cmp::Reverse(stack.samples));
        history.stacks.truncate(MAX_STACKS);
    }

    /// Takes what a probing of a process's allocator has told, or why it could not. It takes the place of the one before. Of a
    /// process that is gone by now it is told at once, as its row is gone as well.
    pub fn add_probed(
        &mut self,
        key: Key,
        probed: Result<Probed, String>,
        now: Now,
        who: &mut dyn Who,
        out: &mut Output,
    ) {
        let told = Told::new(probed, now);
        if let Some(history) = self.histories.get_mut(&key) {
            history.malloc = Some(told);
            return;
        }
        let process = who.process(key.0, Some(key.1), "");
        let name = process.name.clone();
        let memory = ProcessMemory { pid: key.0, name, ..ProcessMemory::default() };
        let (body, attrs) = malloc::words(&memory, &told.shown());
        out.event(event("observer.memory.malloc", body, attrs, now, Subject::Process(process)));
    }

    /// Stacks to be given names, with their leaf returns: of each growing process those that would be shown.
    pub fn unnamed(&self) -> Vec<(u32, Vec<Addresses>)> {
        let stacks = |history: &History| -> Vec<_> {
            let shown = history.stacks.iter().take(SHOWN_STACKS);
            let asked = history.malloc.iter().flat_map(|told| told.stacks.iter().map(|(of, _)| of));
            let unnamed = shown.chain(asked).filter(|stack| stack.frames.is_empty());
            unnamed.map(|stack| (stack.addresses.clone(), stack.leaf_return)).collect()
        };
        let all = self.histories.iter().map(|((pid, _), history)| (*pid, stacks(history)));
        all.filter(|(_, stacks)| !stacks.is_empty()).collect()
    }

    /// Takes the names of a stack.
    pub fn name_stack(&mut self, pid: u32, addresses: &[u64], frames: Vec<String>) {
        let Some(history) = self.history_of(pid) else { return };
        let asked = history.malloc.iter_mut().flat_map(|told| told.stacks.iter_mut());
        let all = history.stacks.iter_mut().chain(asked.map(|(stack, _)| stack));
        for stack in all.filter(|stack| stack.addresses == addresses) {
            stack.frames.clone_from(&frames);
        }
    }

    fn history_of(&mut self, pid: u32) -> Option<&mut History> {
        self.histories.iter_mut().find(|((owner, _), _)| *owner == pid).map(|(_, history)| history)
    }

    /// Metric points of the present view.
    pub fn points(&self, start_unix_ns: u64, who: &mut dyn Who, out: &mut Output) {
        for (metric, value) in [
            (&CREATED, self.view.forks),
            (&EXITED, self.view.exits),
            (&SHORT_LIVED, self.view.short_lived),
        ] {
            out.point(point(metric, int(value), start_unix_ns, Subject::Host));
        }
        let limit = self.limits.growth_bytes_per_second;
        let exported = self.view.processes.iter().enumerate();
        for (_, process) in exported
            .filter(|(rank, p)| *rank < self.limits.exported || p.growth_bytes_per_second >= limit)
        {
            let subject = Subject::Process(who.process(process.pid, None, &process.name));
            let numbers = [
                (&MEMORY_USAGE, int(process.rss_bytes)),
                (&MEMORY_ANON, int(process.anon_bytes)),
                (&MEMORY_SWAP, int(process.swap_bytes)),
                (&MEMORY_GROWTH, Number::Float(process.growth_bytes_per_second)),
            ];
            for (metric, number) in numbers {
                out.point(point(metric, number, start_unix_ns, subject.clone()));
            }
        }
    }
}

/// Whether a process seen for the first time was born since the last tick with no memory of its own: it has run exec. One that
/// has only forked holds its parent's pages, and has its name.
fn began_empty(row: &TaskRow, readings: &Readings<'_>) -> bool {
    let age_ns = readings.boottime_ns.saturating_sub(row.start_boottime_ns);
    let parent = || readings.tasks.iter().find(|other| other.tid == row.parent_tgid);
    age_ns <= readings.elapsed_ns && parent().is_some_and(|parent| parent.comm != row.comm)
}

fn int(value: u64) -> Number {
    Number::Int(i64::try_from(value).unwrap_or(i64::MAX))
}

fn point(metric: &'static Metric, number: Number, start_unix_ns: u64, subject: Subject) -> Point {
    Point { metric, attrs: Vec::new(), number, start_unix_ns, subject }
}

impl History {
    /// Adds a reading; returns how much more it is than the one before.
    fn add(&mut self, ktime_ns: u64, bytes: u64, window_ns: u64) -> u64 {
        let step = self.bytes.replace(bytes).map_or(0, |before| bytes.saturating_sub(before));
        let since =
            |reading: Option<&(u64, u64)>| reading.map(|(at, _)| ktime_ns.saturating_sub(*at));
        // The oldest reading is the last one that is a window old, whatever the interval between two ticks.
        while since(self.readings.get(1)).is_some_and(|age_ns| age_ns >= window_ns) {
            self.readings.pop_front();
        }
        self.growth_bytes_per_second = self.readings.front().map_or(0.0, |(from, before)| {
            per_second(bytes as f64 - *before as f64, ktime_ns.saturating_sub(*from))
        });
        let spacing_ns = window_ns / (MAX_READINGS as u64 - 2);
        if since(self.readings.back()).is_none_or(|age_ns| age_ns >= spacing_ns) {
            self.readings.push_back((ktime_ns, bytes));
        }
        step
    }

    /// Whether it is time to tell that the process grows: over most of the window, and not told lately.
    fn grows(&self, limits: &Limits, now: Now) -> bool {
        let observed_ns = self.readings.front().map_or(0, |(from, _)| now.since(*from));
        self.growth_bytes_per_second >= limits.growth_bytes_per_second
            && observed_ns >= limits.window.as_nanos() as u64 * 8 / 10
            && (self.told_ktime_ns == 0 || now.since(self.told_ktime_ns) >= GROWTH_REPEAT_NS)
    }

    fn shown(&self) -> Vec<AllocationStack> {
        let all: u64 = self.stacks.iter().fold(0, |all, stack| all.saturating_add(stack.samples));
        if all < MIN_SAMPLES {
            return Vec::new();
        }
        let shown = |stack: &Stack| AllocationStack {
            frames: stack.shown_frames(),
            share: stack.samples as f64 / all as f64,
            samples: stack.samples,
        };
        self.stacks.iter().take(SHOWN_STACKS).map(shown).collect()
    }
}

impl Stack {
    /// Names of its functions, or its addresses.
    pub(super) fn shown_frames(&self) -> Vec<String> {
        if self.frames.is_empty() {
            return self.addresses.iter().map(|address| format!("{address:#x}")).collect();
        }
        self.frames.clone()
    }
}

fn growth_event(memory: &ProcessMemory, now: Now, subject: Subject) -> Event {
    let mut attrs = memory_attrs(memory);
    attrs.push(attr("observer.memory.growth_bytes_per_second", memory.growth_bytes_per_second));
    let mut body = format!(
        "{} ({}) grows by {:.1} MiB/s, holds {} MiB",
        memory.name,
        memory.pid,
        memory.growth_bytes_per_second / 1048576.0,
        memory.rss_bytes >> 20
    );
    if let Some(top) = memory.stacks.first() {
        let frames: Vec<Arc<str>> = top.frames.iter().map(|frame| frame.as_str().into()).collect();
        body.push_str(&format!(", {:.0} % from {}", top.share * 100.0, origin(&top.frames)));
        attrs.push(Attr {
            key: "observer.memory.stack",
            value: crate::telemetry::Value::List(frames.into()),
        });
        attrs.push(attr("observer.memory.stack_share", top.share));
    }
    event("observer.memory.growth", body, attrs, now, subject)
}

/// The innermost function that is not the C library's: memset(3) touches pages for somebody.
fn origin(frames: &[String]) -> &str {
    let own = frames.iter().find(|frame| !frame.starts_with("libc") && !frame.starts_with("ld-"));
    own.or(frames.first()).map_or("?", String::as_str)
}

fn step_event(memory: &ProcessMemory, step_bytes: u64, now: Now, subject: Subject) -> Event {
    let mut attrs = memory_attrs(memory);
    attrs.push(attr("observer.memory.step_bytes", step_bytes));
    let body = format!("{} ({}) took {} MiB at once", memory.name, memory.pid, step_bytes >> 20);
    event("observer.memory.step", body, attrs, now, subject)
}

fn memory_attrs(memory: &ProcessMemory) -> Vec<Attr> {
    vec![attr("process.pid", memory.pid), attr("observer.memory.rss_bytes", memory.rss_bytes)]
}

fn event(name: &'static str, body: String, attrs: Vec<Attr>, now: Now, subject: Subject) -> Event {
    Event {
        name,
        severity: Severity::Info,
        time_unix_ns: now.unix_ns,
        body,
        attrs,
        context: None,
        subject,
    }
}
