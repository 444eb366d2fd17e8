//! CPU time a tick of all detectors, with 2,000 processes and 20,000 connections, on a calm host and on one where everything
//! goes wrong at once. More than the promised 2 ms is an error.
//!
//! `cargo bench -p observer --bench detect [-- TICKS]`.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run may stop")]

mod crowd;

use observer::{
    config::{Config, Sources, all_settings},
    detect::{ALL, Detect, Judgement, Seen},
    signal::Output,
    snapshot::Snapshot,
};
use rustix::time::{ClockId, clock_gettime};

/// What all detectors may take of a tick, on the average.
const PROMISE_NS: u64 = 2_000_000;

/// Ticks before the measured ones, until the windows of the detectors are full.
const WARM_TICKS: usize = 900;

/// CPU time of the ticks, of one detector or of all.
struct Times(Vec<u64>);

impl Times {
    fn mean_ns(&self) -> u64 {
        self.0.iter().sum::<u64>() / self.0.len().max(1) as u64
    }

    fn row(&mut self, name: &str) -> String {
        self.0.sort_unstable();
        let at = |share: f64| self.0[((self.0.len() - 1) as f64 * share) as usize];
        let us = |ns: u64| format!("{:.1}", ns as f64 / 1e3);
        let [mean, median, p99, most] = [self.mean_ns(), at(0.5), at(0.99), at(1.0)].map(us);
        format!("| {name} | {mean} | {median} | {p99} | {most} |")
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let ticks = args.first().and_then(|ticks| ticks.parse().ok()).unwrap_or(600);
    println!("{} processes, {} connections, CPU time a tick\n", crowd::PROCESSES, crowd::SOCKETS);
    let config = Config::load(&all_settings(), &Sources::default()).unwrap();
    let mut worst_ns = 0;
    for (name, trouble) in [("calm", false), ("everything wrong", true)] {
        println!("| {name} | mean us | median us | p99 us | most us |\n|---|---:|---:|---:|---:|");
        worst_ns = worst_ns.max(whole(&config, ticks, trouble));
        each(&config, ticks, trouble);
        println!();
    }
    // An unoptimised build says nothing of the product.
    let kept = worst_ns < PROMISE_NS || cfg!(debug_assertions);
    assert!(kept, "all detectors take {worst_ns} ns a tick, and {PROMISE_NS} are promised");
}

/// The way of the agent: detectors, hysteresis, events, the incident's trace. Returns the mean.
fn whole(config: &Config, ticks: usize, trouble: bool) -> u64 {
    let mut detect = Detect::new(config);
    let mut times = over(ticks, trouble, |host| {
        detect.tick(host, false, &mut Output::default());
    });
    let (raised, now) = (detect.view().raised, detect.view().findings.len());
    println!("{}", times.row(&format!("**all**: {raised} findings raised, {now} at the end")));
    times.mean_ns()
}

/// Each kind by itself.
fn each(config: &Config, ticks: usize, trouble: bool) {
    for kind in ALL {
        let (mut detector, mut found, mut before_ns) = ((kind.detector)(config), Vec::new(), 0);
        let mut times = over(ticks, trouble, |snapshot| {
            let now_ns = snapshot.uptime_ns;
            let elapsed_ns = if before_ns == 0 { 0 } else { now_ns - before_ns };
            detector.look(&Seen { snapshot, now_ns, elapsed_ns }, &mut found);
            std::hint::black_box::<&[Judgement]>(&found);
            found.clear();
            before_ns = now_ns;
        });
        println!("{}", times.row(kind.name));
    }
}

/// Times `look` at a host as it goes on.
fn over(ticks: usize, trouble: bool, mut look: impl FnMut(&Snapshot)) -> Times {
    let mut host = crowd::start();
    let mut times = Vec::with_capacity(ticks);
    for tick in 0..WARM_TICKS + ticks {
        // Trouble begins when the calm is known.
        crowd::next(&mut host, trouble && tick >= WARM_TICKS / 2);
        let start_ns = cpu_ns();
        look(&host);
        if tick >= WARM_TICKS {
            times.push(cpu_ns() - start_ns);
        }
    }
    Times(times)
}

/// CPU time of this thread.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
