//! What is played: healthy host-days that look like trouble, and troubles, each from a seed.

pub(crate) mod base;
mod connections;
mod healthy;
mod leaks;
mod stalls;

use fastrand::Rng;

use crate::world::{
    World,
    chance::{GIB, between, log_between, pick},
};

/// What is asked of the rules in a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Class {
    /// To be silent.
    Healthy,
    /// The same, though memory is nearly full and stays so: beyond the list of issue and protocol, and counted apart.
    Packed,
    /// To warn before the end: memory that runs out at up to 5 MB/s on 4 GB, or as fast for its size.
    SlowLeak,
    /// The same, faster.
    FastLeak,
    /// All at once.
    Spike,
    /// To warn before the end: other things that run out, and pile up.
    PileUp,
    /// To say soon what is broken already.
    Broken,
}

/// One kind of case.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) class: Class,
    /// Sets up the host; for a fault also `truth.onset_s` and what begins then. Gets the seconds that it has.
    pub(crate) build: fn(&mut World, u64),
}

/// One run of a case.
pub(crate) struct Case {
    pub(crate) kind: &'static Kind,
    pub(crate) class: Class,
    pub(crate) seed: u64,
    /// The longest that it takes.
    pub(crate) seconds: u64,
    /// Whether no more than a quarter of memory is left at the healthy peak.
    pub(crate) squeezed: bool,
    /// Megabytes a second on 4 GB, for leaks.
    pub(crate) rate: f64,
}

/// How much is played.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Runs of each healthy look-alike, half of them squeezed.
    pub(crate) healthy: u64,
    /// Seconds of each.
    pub(crate) healthy_s: u64,
    /// Runs of each leak.
    pub(crate) leaks: u64,
    /// Runs of each other fault.
    pub(crate) others: u64,
}

/// Sixty host-days and more, and some seven hundred faults.
pub(crate) const FULL: Size = Size { healthy: 4, healthy_s: 86_400, leaks: 36, others: 16 };
/// A sample.
pub(crate) const QUICK: Size = Size { healthy: 2, healthy_s: 4 * 3600, leaks: 6, others: 4 };

/// RAM of the hosts, in GiB; the small ones more often.
const RAM_GIB: &[f64] =
    &[1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 4.0, 8.0, 8.0, 16.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// Healthy seconds before a fault.
const PRELUDE_S: std::ops::Range<u64> = 1200..3000;
/// Longest run of a leak after its onset.
const LEAK_S: u64 = 10 * 3600;
/// Longest run of another fault after its onset.
const FAULT_S: u64 = 900;

/// Spreads seeds that are small numbers over all bits: seeds 1 and 2 are to have no run in common.
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// All cases whose name starts so.
pub(crate) fn all(size: Size, seed: u64, only: &str) -> Vec<Case> {
    let kinds = [healthy::ALL, leaks::ALL, connections::ALL, stalls::ALL];
    let mut cases = Vec::new();
    for kind in kinds.into_iter().flatten().filter(|kind| kind.name.starts_with(only)) {
        let (runs, seconds) = match kind.class {
            Class::Healthy | Class::Packed => (size.healthy, size.healthy_s),
            Class::SlowLeak | Class::FastLeak => (size.leaks, LEAK_S + PRELUDE_S.end),
            Class::Spike | Class::PileUp | Class::Broken => (size.others, FAULT_S + PRELUDE_S.end),
        };
        for run in 0..runs {
            let name = kind.name.bytes().fold(0, |sum: u64, b| sum.wrapping_mul(31) + u64::from(b));
            let seed = Rng::with_seed(seed.wrapping_mul(ODD) ^ name.rotate_left(20) ^ run).u64(..);
            // The rates are spread evenly by magnitude, each a little off its place.
            let rng = &mut Rng::with_seed(seed ^ 1);
            let place = (run as f64 + rng.f64()) / runs as f64;
            let rate = 0.1 * 600_f64.powf(place);
            let class = match kind.class {
                Class::SlowLeak if rate > 5.0 => Class::FastLeak,
                class => class,
            };
            cases.push(Case { kind, class, seed, seconds, squeezed: run % 2 == 1, rate });
        }
    }
    // The longest first, so that no thread is left with one at the end.
    cases.sort_by_key(|case| {
        std::cmp::Reverse(if case.class <= Class::Packed { case.seconds } else { 4000 })
    });
    cases
}

impl Case {
    /// The host at its first second.
    pub(crate) fn world(&self) -> World {
        let rng = &mut Rng::with_seed(self.seed ^ 2);
        let nominal = pick(rng, RAM_GIB) * GIB;
        let used = match self.class {
            Class::Packed => between(rng, 0.86, 0.91),
            _ if self.squeezed => 0.75,
            _ => between(rng, 0.40, 0.65),
        };
        let swap = [0.0, 0.0, 0.0, log_between(rng, 0.1, 0.5)][rng.usize(..4)];
        let build = || {
            let mut world = World::new(Rng::with_seed(self.seed), nominal);
            world.rate = self.rate;
            (self.kind.build)(&mut world, self.seconds);
            world
        };
        // A rehearsal says how much the healthy host wants at most, and so how much RAM it has.
        let mut rehearsal = build();
        let mut peak: f64 = 0.0;
        for _ in 0..rehearsal.truth.onset_s.unwrap_or(self.seconds) {
            rehearsal.live();
            peak = peak.max(rehearsal.wanted());
        }
        let mut world = build();
        world.fit(peak, used);
        world.machine.swap_total = world.machine.total * swap;
        world
    }
}
