//! What is usual of a disk: how long its requests take, and how many there are.

use std::time::Duration;

use crate::{detect::mean::Mean, signal::sched::Disk};

/// Half octaves, from 1 on.
const BUCKETS: usize = 64;
/// The past fades with this constant; only time with requests counts.
const FADES_S: f64 = 3600.0;
/// So much of it must be known.
const MIN_S: f64 = 10.0;
/// A disk that is out of the ordinary teaches so much less: after a day it is what is usual, not after an hour.
const SUSPECT_WEIGHT: f64 = 1.0 / 16.0;
/// What is now is over some seconds.
const NOW: Duration = Duration::from_secs(3);
/// Fewer requests in a second say nothing of the disk.
const MIN_REQUESTS: f64 = 0.2;
/// The load has risen if it is so many times what it is in nine of ten seconds.
const ROSE: f64 = 1.5;

/// How often a value was how large, the older the less.
#[derive(Debug, Clone)]
struct Habit {
    weights: [f64; BUCKETS],
    seconds: f64,
}

impl Default for Habit {
    fn default() -> Self {
        Self { weights: [0.0; BUCKETS], seconds: 0.0 }
    }
}

impl Habit {
    /// What it was for so many seconds.
    fn add(&mut self, value: f64, seconds: f64) {
        let left = (-seconds / FADES_S).exp();
        self.weights.iter_mut().for_each(|weight| *weight *= left);
        self.seconds = self.seconds * left + seconds;
        // A cast of what is no number is 0.
        let bucket = (value.max(1.0).log2() * 2.0) as usize;
        if let Some(weight) = self.weights.get_mut(bucket.min(BUCKETS - 1)) {
            *weight += seconds;
        }
    }

    /// The value below which it lies for this share of the time, if values are even within a bucket; `None` while too little
    /// is known.
    fn quantile(&self, share: f64) -> Option<f64> {
        if self.seconds < MIN_S {
            return None;
        }
        let mut left = self.seconds * share;
        for (bucket, weight) in self.weights.iter().enumerate() {
            if left <= *weight {
                return Some(((bucket as f64 + left / weight.max(1e-9)) / 2.0).exp2());
            }
            left -= weight;
        }
        // Sums are not exact.
        Some((BUCKETS as f64 / 2.0).exp2())
    }
}

/// Reads, or writes.
#[derive(Debug, Clone, Default)]
struct Side {
    /// Microseconds of a request.
    waits: Habit,
    spent: Mean,
    completed: Mean,
}

impl Side {
    fn take(&mut self, requests: f64, wait_ns: u64, elapsed_ns: u64) {
        self.spent.add(requests * wait_ns as f64, elapsed_ns, NOW);
        self.completed.add(requests, elapsed_ns, NOW);
    }

    /// Nanoseconds that a request takes now, and usually.
    fn wait(&self) -> Option<Wait> {
        let completed = self.completed.value();
        let now_ns = if completed >= MIN_REQUESTS { self.spent.value() / completed } else { 0.0 };
        Some(Wait { now_ns, usual_ns: self.waits.quantile(0.5)? * 1e3 })
    }
}

/// How long a request takes, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Wait {
    pub now_ns: f64,
    pub usual_ns: f64,
}

impl Wait {
    /// How many times as long as usual.
    pub fn times(self) -> f64 {
        self.now_ns / self.usual_ns.max(1.0)
    }
}

/// What a disk has to do each second.
#[derive(Debug, Clone, Default)]
struct Load {
    usual: Habit,
    now: Mean,
}

impl Load {
    fn rose(&self) -> bool {
        self.usual.quantile(0.9).is_some_and(|usual| self.now.value() > usual * ROSE)
    }
}

/// A disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Device {
    reads: Side,
    writes: Side,
    requests: Load,
    kilobytes: Load,
    silent_ns: u64,
    /// At which look it was there last.
    pub round: u64,
}

impl Device {
    /// What it did since the look before.
    pub fn take(&mut self, disk: &Disk, elapsed_ns: u64) {
        self.reads.take(disk.reads_per_second, disk.read_wait_ns, elapsed_ns);
        self.writes.take(disk.writes_per_second, disk.write_wait_ns, elapsed_ns);
        self.requests.now.add(requests(disk), elapsed_ns, NOW);
        self.kilobytes.now.add(kilobytes(disk), elapsed_ns, NOW);
        self.silent_ns = disk.silent_ns;
    }

    /// Learns from that; a disk that is `suspect` teaches little.
    pub fn learn(&mut self, disk: &Disk, suspect: bool, elapsed_ns: u64) {
        let weight = if suspect { SUSPECT_WEIGHT } else { 1.0 };
        let seconds = elapsed_ns as f64 / 1e9 * weight;
        let micros = |wait_ns: u64| wait_ns as f64 / 1e3;
        if disk.reads_per_second > 0.0 {
            self.reads.waits.add(micros(disk.read_wait_ns), seconds);
        }
        if disk.writes_per_second > 0.0 {
            self.writes.waits.add(micros(disk.write_wait_ns), seconds);
        }
        if requests(disk) > 0.0 {
            self.requests.usual.add(requests(disk), seconds);
            self.kilobytes.usual.add(kilobytes(disk), seconds);
        }
    }

    /// How long a request takes of the kind that takes longest beyond its habit; `None` while too little is known.
    pub fn wait(&self) -> Option<Wait> {
        let sides = [self.reads.wait(), self.writes.wait()];
        let sides = sides.into_iter().flatten();
        let worst = sides.max_by(|a, b| a.times().total_cmp(&b.times()))?;
        // What it has not answered takes at least as long as it has answered none.
        Some(Wait { now_ns: worst.now_ns.max(self.silent_ns as f64), ..worst })
    }

    /// Whether it has more to do than usual.
    pub fn load_rose(&self) -> bool {
        self.requests.rose() || self.kilobytes.rose()
    }

    /// Requests that it answers in a second, and usually answers at most in nine of ten seconds.
    pub fn requests(&self) -> (f64, f64) {
        (self.requests.now.value(), self.requests.usual.quantile(0.9).unwrap_or(0.0))
    }
}

fn requests(disk: &Disk) -> f64 {
    disk.reads_per_second + disk.writes_per_second
}

fn kilobytes(disk: &Disk) -> f64 {
    (disk.read_bytes_per_second + disk.written_bytes_per_second) / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quantiles_of_what_was_seen() {
        #[track_caller]
        fn check(values: &[(f64, u32)], share: f64, expect: Option<f64>) {
            let mut habit = Habit::default();
            for (value, seconds) in values {
                (0..*seconds).for_each(|_| habit.add(*value, 1.0));
            }
            let found = habit.quantile(share).map(|value| value.round());
            assert_eq!(found, expect, "{values:?}");
        }
        check(&[(100.0, 9)], 0.5, None);
        // A bucket is from 91 to 128, one from 8192 to 11585.
        check(&[(100.0, 11)], 0.5, Some(108.0));
        check(&[(100.0, 60), (9000.0, 40)], 0.3, Some(108.0));
        check(&[(100.0, 60), (9000.0, 40)], 0.8, Some(9756.0));
        check(&[(0.0, 20)], 0.5, Some(1.0));
        // What was hours ago has faded.
        check(&[(9000.0, 3600), (100.0, 3600)], 0.5, Some(115.0));
        check(&[(f64::NAN, 20)], 0.5, Some(1.0));
        check(&[(f64::INFINITY, 20)], 0.5, Some(3611622603.0));
    }

    proptest::proptest! {
        #[test]
        fn a_quantile_is_near_what_it_covers(values in proptest::collection::vec(1.0..1e9_f64, 20..200)) {
            let mut habit = Habit::default();
            values.iter().for_each(|value| habit.add(*value, 1.0));
            let (half, most) = (habit.quantile(0.5).unwrap_or(0.0), habit.quantile(0.999).unwrap_or(0.0));
            let highest = values.iter().copied().fold(0.0, f64::max);
            proptest::prop_assert!(half <= most && most <= highest * 1.42 && most >= highest * 0.7);
        }
    }
}
