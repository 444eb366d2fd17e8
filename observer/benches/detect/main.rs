//! CPU time a tick of all detectors, with 2,000 processes and 20,000 connections, on a calm host and on one where everything
//! goes wrong at once. More than the promised 2 ms is an error. Each kind is timed by itself, too, in the same ticks; what
//! several kinds share is paid by the first of them.
//!
//! `cargo bench -p observer --bench detect [-- TICKS]`.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run may stop")]

mod crowd;

use observer::{
    config::{Config, Sources, all_settings},
    detect::{ALL, Detect, Judgement, Seen},
    signal::Output,
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
        worst_ns = worst_ns.max(run(&config, ticks, trouble));
        println!();
    }
    // An unoptimised build says nothing of the product.
    let kept = worst_ns < PROMISE_NS || cfg!(debug_assertions);
    assert!(kept, "all detectors take {worst_ns} ns a tick, and {PROMISE_NS} are promised");
}

/// One host: the way of the agent (detectors, hysteresis, events, the incident's trace), and each kind by itself. Returns
/// the mean of the former.
fn run(config: &Config, ticks: usize, trouble: bool) -> u64 {
    let mut crowd = crowd::start();
    let mut detect = Detect::new(config);
    let mut whole = Times(Vec::with_capacity(ticks));
    let mut each: Vec<_> =
        ALL.iter().map(|kind| (kind.name, (kind.detector)(config), Times(Vec::new()))).collect();
    for tick in 0..WARM_TICKS + ticks {
        // Trouble begins when the calm is known.
        crowd.next(trouble && tick >= WARM_TICKS / 2);
        let snapshot = &crowd.host;
        let warm = tick >= WARM_TICKS;
        whole.time(warm, || detect.tick(snapshot, false, &mut Output::default()));
        let elapsed_ns = if tick == 0 { 0 } else { 1_000_000_000 };
        let seen = Seen { snapshot, now_ns: snapshot.uptime_ns, elapsed_ns };
        for (_, detector, times) in &mut each {
            let mut found = Vec::new();
            times.time(warm, || {
                detector.look(&seen, &mut found);
                std::hint::black_box::<&[Judgement]>(&found);
                found.clear();
            });
        }
    }
    let (raised, now) = (detect.view().raised, detect.view().findings.len());
    println!("{}", whole.row(&format!("**all**: {raised} findings raised, {now} at the end")));
    each.iter_mut().for_each(|(name, _, times)| println!("{}", times.row(name)));
    whole.mean_ns()
}

impl Times {
    fn time(&mut self, counts: bool, look: impl FnOnce()) {
        let start_ns = cpu_ns();
        look();
        if counts {
            self.0.push(cpu_ns() - start_ns);
        }
    }
}

/// CPU time of this thread.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
