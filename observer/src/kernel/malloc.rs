//! Probes the allocator of one process, for seconds: see the programs' header (`observer-ebpf/src/malloc/main.rs`).
//!
//! A hit is a trap, of some 0.2 us where the kernel carries out the instruction by itself and ten times that where it does
//! not. So the number of hits is read twenty times a second, also between the probes of one function and those of the next,
//! `free` first, and ends all of it when it is too high. To let go of one takes the kernel about a tenth of a second: this
//! is for a process of its own (prober.rs).

use std::{
    collections::HashMap,
    io,
    num::NonZeroU32,
    path::Path,
    slice,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{self, MapData, PerCpuArray},
    programs::{UProbe, uprobe::UProbeScope},
};
use observer_abi::malloc::{Count, Sample};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use super::{
    allocator::{self, Function},
    load, plan,
    space::Space,
    support::Support,
    tables::Wire,
};
use crate::snapshot::{Program, Verdict};

/// Aligned, because it is parsed as an ELF file in place.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/observer-malloc"));

/// The longest that a process is probed.
pub const MAX_TIME: Duration = Duration::from_secs(10);
/// Hits are counted this often.
const POLL: Duration = Duration::from_millis(50);
/// Hits in a [`POLL`] that end it: 400,000 a second are a tenth of a CPU.
const MAX_HITS: u64 = 20_000;
/// Likewise, if the kernel has to step through an instruction.
const MAX_DEAR_HITS: u64 = 2_000;
/// Stacks that are told, those with the most bytes.
const MAX_STACKS: usize = 5;

/// A program, and the function that it goes on.
type Probe = (&'static str, Function);

/// The probes, in the order in which they are attached: whatever begins a sample has what ends it before it.
const PROBES: &[Probe] = &[
    ("free_enter", Function::Free),
    ("allocated", Function::Malloc),
    ("malloc_enter", Function::Malloc),
    ("allocated", Function::Calloc),
    ("calloc_enter", Function::Calloc),
    ("allocated", Function::Realloc),
    ("realloc_enter", Function::Realloc),
];

/// The programs of [`PROBES`].
const PROGRAMS: [&str; 5] =
    ["free_enter", "allocated", "malloc_enter", "calloc_enter", "realloc_enter"];

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// Why it ended, if not by time; empty else.
    pub ended_early: String,
    /// How long allocations were seen.
    pub time: Duration,
    /// How long the kernel took to attach the probes, and to let go of them.
    pub attaching: Duration,
    /// See `attaching`.
    pub letting_go: Duration,
    /// Calls and returns.
    pub hits: u64,
    /// Allocations sampled.
    pub samples: u64,
    /// Samples that found no room.
    pub lost: u64,
    /// Bytes that were allocated meanwhile and not freed, as far as the samples tell.
    pub outstanding_bytes: u64,
    /// Who asked for most of them.
    pub stacks: Vec<Outstanding>,
}

/// What one stack has allocated and nobody has freed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outstanding {
    /// User addresses, innermost first.
    pub addresses: Vec<u64>,
    /// Bytes that its samples stand for.
    pub bytes: u64,
    /// How many.
    pub samples: u64,
}

/// Row of the probe: whether it could be used.
pub fn row(support: &Support) -> Program {
    let row = Program {
        name: "malloc_probe".to_owned(),
        signal: "alloc".to_owned(),
        hook: "uprobe/malloc of a suspect".to_owned(),
        verdict: Verdict::Standby,
        ..Program::default()
    };
    let refused = |reason: String, remedy: &str| Program {
        verdict: Verdict::Impossible,
        reason: format!("a leak has no stacks of malloc: {reason}"),
        remedy: remedy.to_owned(),
        ..row.clone()
    };
    if support.privileges.is_too_paranoid() {
        return refused(
            "kernel.perf_event_paranoid is above 2".to_owned(),
            "sysctl kernel.perf_event_paranoid=2, or grant CAP_SYS_ADMIN",
        );
    }
    if !Path::new("/sys/bus/event_source/devices/uprobe").exists() {
        return refused(
            "the kernel has no uprobes".to_owned(),
            "use a kernel with CONFIG_UPROBE_EVENTS, and mount sysfs",
        );
    }
    let loaded = load().map(drop);
    // What reading the object took would stay with the agent: some 11 MB.
    super::trim_heap();
    match loaded {
        Ok(()) => row,
        Err(error) => refused(load::brief(&error), plan::remedy(load::errno(&error), support)),
    }
}

/// The object with its programs; nothing is attached.
fn load() -> Result<Ebpf> {
    let mut object = EbpfLoader::new().btf(None).load(OBJECT).context("cannot load its object")?;
    for name in PROGRAMS {
        probe_of(&mut object, name)?.load()?;
    }
    Ok(object)
}

fn probe_of<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut UProbe> {
    Ok(object.program_mut(name).context("no such program")?.try_into()?)
}

/// Probes the process with this pid and start for so long, or until there are too many calls, it is gone, or nobody holds the
/// other end of our standard input. Nothing is attached any more when this returns.
///
/// # Errors
/// If its allocator is not found, or the kernel refuses; in a sentence for a person.
pub fn probe(pid: u32, start_boottime_ns: u64, longest: Duration) -> Result<Probed> {
    let target = NonZeroU32::new(pid).context("no process has the pid 0")?;
    let space = Space::open(pid, start_boottime_ns)?;
    let allocator = allocator::find(pid, &space.maps()?)?;
    let mut object = load()?;
    let mut tables = Tables::take(&mut object)?;
    let is_dear = allocator.functions.iter().any(|(_, entry)| !entry.is_emulated);
    let mut meter = Meter::new(if is_dear { MAX_DEAR_HITS } else { MAX_HITS });
    let began = Instant::now();
    let mut probed = Probed::default();
    let (mut links, mut waiting) = (Vec::new(), PROBES.iter());
    while probed.ended_early.is_empty() && began.elapsed() < longest {
        let attaching = Instant::now();
        for (name, function) in next_function(&mut waiting) {
            let entry = allocator.functions.iter().find(|(of, _)| of == function);
            let Some((_, entry)) = entry else { continue };
            let link = probe_of(&mut object, name)?
                .attach(entry.offset, &allocator.file, UProbeScope::OneProcess(target))
                .with_context(|| format!("cannot probe {}", allocator.file.display()))?;
            links.push((*name, link));
        }
        probed.attaching += attaching.elapsed();
        let is_wanted = rest();
        probed.ended_early = match space.end() {
            Some(end) => end.to_owned(),
            None if !is_wanted => "the agent has ended".to_owned(),
            None => meter.is_over(tables.count(Count::Hits)),
        };
    }
    // Before anything is let go of: what is freed afterwards would not be seen.
    let samples = tables.samples();
    probed.time = began.elapsed();
    let letting_go = Instant::now();
    // The busiest first: each takes the kernel a while, though the breakpoint is gone at once.
    for (name, link) in links {
        probe_of(&mut object, name)?.detach(link)?;
    }
    probed.letting_go = letting_go.elapsed();
    probed.hits = tables.count(Count::Hits);
    probed.samples = tables.count(Count::Samples);
    probed.lost = tables.count(Count::Lost);
    // Where the addresses mean something else by now, nobody is to be blamed for what is there.
    match space.end() {
        Some(end) => probed.ended_early = end.to_owned(),
        None => (probed.outstanding_bytes, probed.stacks) = told(samples),
    }
    Ok(probed)
}

/// Lets the probes work for a while; false if nobody holds the other end of standard input.
fn rest() -> bool {
    let stdin = io::stdin();
    let mut set = [PollFd::new(&stdin, PollFlags::IN)];
    let time = Timespec { tv_sec: 0, tv_nsec: POLL.subsec_nanos().into() };
    // An interrupted wait is a short one.
    poll(&mut set, Some(&time)).ok();
    set[0].revents().is_empty()
}

/// The next probes to be attached, those of one function: who calls it too often is known before there are more.
fn next_function<'a>(waiting: &mut slice::Iter<'a, Probe>) -> &'a [Probe] {
    let rest = waiting.as_slice();
    let same = rest.iter().take_while(|probe| probe.1 == rest[0].1).count();
    *waiting = rest[same..].iter();
    &rest[..same]
}

/// What is held: bytes, and who asked for most of them.
fn told(samples: Vec<Sample>) -> (u64, Vec<Outstanding>) {
    let mut stacks: HashMap<Vec<u64>, Outstanding> = HashMap::new();
    let mut outstanding_bytes = 0_u64;
    for sample in samples {
        outstanding_bytes = outstanding_bytes.saturating_add(sample.bytes);
        let addresses = stack(&sample);
        let of = stacks.entry(addresses).or_default();
        of.bytes = of.bytes.saturating_add(sample.bytes);
        of.samples += 1;
    }
    let mut stacks: Vec<Outstanding> =
        stacks.into_iter().map(|(addresses, of)| Outstanding { addresses, ..of }).collect();
    // By address too, so that the same samples tell the same.
    stacks.sort_unstable_by(|a, b| (b.bytes, &a.addresses).cmp(&(a.bytes, &b.addresses)));
    stacks.truncate(MAX_STACKS);
    (outstanding_bytes, stacks)
}

/// The function's address, its caller, and what frame pointers tell of the rest: their walk begins with the caller, where the
/// kernel knows that the function has no frame yet, or with the caller's caller.
fn stack(sample: &Sample) -> Vec<u64> {
    let mut addresses: Vec<u64> =
        sample.frames.iter().copied().take_while(|address| *address != 0).collect();
    if sample.caller != 0 && addresses.get(1) != Some(&sample.caller) {
        addresses.insert(addresses.len().min(1), sample.caller);
    }
    addresses
}

/// How fast hits come.
struct Meter {
    most: u64,
    at: Instant,
    hits: u64,
}

impl Meter {
    fn new(most: u64) -> Self {
        Self { most, at: Instant::now(), hits: 0 }
    }

    /// Why it is to end: more hits since the last look than may be; empty if not. What is too short says nothing.
    fn is_over(&mut self, hits: u64) -> String {
        self.is_over_after(self.at.elapsed(), hits)
    }

    fn is_over_after(&mut self, time: Duration, hits: u64) -> String {
        if time < POLL / 5 {
            return String::new();
        }
        let rate = hits.saturating_sub(self.hits) as f64 / time.as_secs_f64();
        (self.at, self.hits) = (Instant::now(), hits);
        if rate <= self.most as f64 / POLL.as_secs_f64() {
            return String::new();
        }
        format!(
            "too many calls: {rate:.0} hits a second, and {} in {} ms are the budget",
            self.most,
            POLL.as_millis()
        )
    }
}

/// Its maps.
struct Tables {
    samples: maps::HashMap<MapData, u64, Wire<Sample>>,
    counts: PerCpuArray<MapData, u64>,
}

impl Tables {
    fn take(object: &mut Ebpf) -> Result<Self> {
        let mut map = |name| object.take_map(name).context("its object lacks a map");
        Ok(Self { samples: map("SAMPLES")?.try_into()?, counts: map("COUNTS_MAP")?.try_into()? })
    }

    fn count(&mut self, count: Count) -> u64 {
        // An index within bounds cannot fail.
        self.counts.get(&(count as u32), 0).map_or(0, |values| values.iter().sum())
    }

    fn samples(&self) -> Vec<Sample> {
        self.samples.iter().filter_map(|entry| entry.ok().map(|(_, Wire(sample))| sample)).collect()
    }
}

#[cfg(test)]
mod tests {
    use observer_abi::malloc::FRAMES;

    use super::*;

    fn sample(bytes: u64, caller: u64, stack: &[u64]) -> Sample {
        let mut frames = [0; FRAMES];
        frames[..stack.len()].copy_from_slice(stack);
        Sample { bytes, caller, frames }
    }

    #[test]
    fn the_caller_is_on_the_stack_once() {
        #[track_caller]
        fn check(caller: u64, frames: &[u64], expect: &[u64]) {
            assert_eq!(stack(&sample(1, caller, frames)), expect);
        }
        check(7, &[1, 8, 9], &[1, 7, 8, 9]);
        check(8, &[1, 8, 9], &[1, 8, 9]);
        check(0, &[1, 8], &[1, 8]);
        check(7, &[1], &[1, 7]);
        check(7, &[], &[7]);
        check(0, &[], &[]);
    }

    #[test]
    fn stacks_are_told_by_bytes() {
        let mut samples = vec![sample(10, 2, &[1]), sample(30, 3, &[1]), sample(25, 2, &[1])];
        samples.extend((0..9).map(|caller| sample(1, 100 + caller, &[1])));
        let (outstanding_bytes, stacks) = told(samples);
        assert_eq!(outstanding_bytes, 74);
        let bytes: Vec<_> = stacks.iter().map(|of| (of.bytes, of.samples)).collect();
        assert_eq!(bytes, [(35, 2), (30, 1), (1, 1), (1, 1), (1, 1)]);
        assert_eq!(stacks[0].addresses, [1, 2]);
        assert_eq!(told(Vec::new()), (0, Vec::new()));
        assert_eq!(told(vec![sample(u64::MAX, 1, &[1]); 2]).0, u64::MAX);
    }

    #[test]
    fn one_function_after_the_other() {
        let mut waiting = PROBES.iter();
        let counts: Vec<usize> = (0..5).map(|_| next_function(&mut waiting).len()).collect();
        assert_eq!(counts, [1, 2, 2, 2, 0]);
    }

    #[test]
    fn a_storm_ends_it() {
        #[track_caller]
        fn check(millis: u64, hits: u64, expect: bool) {
            let mut meter = Meter::new(MAX_HITS);
            let over = meter.is_over_after(Duration::from_millis(millis), hits);
            assert_eq!(!over.is_empty(), expect, "{hits} in {millis} ms: {over}");
        }
        check(50, 20_000, false);
        check(50, 20_001, true);
        check(500, 20_001, false);
        check(5, 1_000_000, false);
        check(0, u64::MAX, false);
    }
}
