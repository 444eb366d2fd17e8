//! The shop: an API with nothing wrong of its own, and its visitors. What breaks is beside or below it.

use std::{
    net::TcpStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use observer_tests::{http, node::Node};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::json;

use crate::{
    stage::Stage,
    timeline::{now_s, rounded},
};

/// Longest start of a program, in a guest without KVM.
pub const START_LIMIT: Duration = Duration::from_secs(120);

/// Requests in flight. Beyond them nobody comes any more.
const MAX_OPEN: u64 = 100;

/// Visitors stay.
const PATIENCE: Duration = Duration::from_secs(600);

/// Between two looks at who is due.
const PACE: Duration = Duration::from_millis(20);

/// The API.
pub struct Shop {
    /// The server.
    pub node: Node,
    /// Where it listens.
    pub port: u16,
}

impl Shop {
    /// Starts it on the stage's first port, with `env` as storefront.js describes it.
    pub fn open(stage: &Stage, env: &[(&str, &str)]) -> Self {
        let port = stage.port(0);
        let own = port.to_string();
        let env: Vec<_> = env.iter().copied().chain([("PORT", own.as_str())]).collect();
        let node = Node::start(include_str!("../load/storefront.js"), &[], &env);
        node.program.wait_line(START_LIMIT, |line| (line == "listening").then_some(()));
        Self { node, port }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.node.program.pid()
    }
}

/// How many visitors come.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// A second, at first.
    pub from: f64,
    /// A second, from the end of `within` on.
    pub to: f64,
    /// How long it takes to get there.
    pub within: Duration,
}

impl Rate {
    /// The same all the time.
    pub fn even(rate: f64) -> Self {
        Self { from: rate, to: rate, within: Duration::from_secs(1) }
    }

    /// Visitors that have come after this time: the area below the rate.
    fn due(&self, after: Duration) -> u64 {
        let (t, within) = (after.as_secs_f64(), self.within.as_secs_f64());
        let ramp = t.min(within);
        let slope = (self.to - self.from) / within;
        (self.from * ramp + slope * ramp * ramp / 2.0 + self.to * (t - ramp)) as u64
    }
}

/// Visitors, each with a request of their own. They come at their rate whatever became of those before.
pub struct Visitors {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    open: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    turned_away: AtomicU64,
    /// When the first that failed was sent.
    first_failed_s: Mutex<Option<f64>>,
}

impl Counts {
    fn failed(&self, started_s: f64) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut first_s = self.first_failed_s.lock().expect("no visitor panics");
        *first_s = Some(first_s.map_or(started_s, |first_s| first_s.min(started_s)));
    }
}

impl Visitors {
    /// Lets them come to this path.
    pub fn start(port: u16, path: &'static str, rate: Rate) -> Self {
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&counts));
        let thread = std::thread::spawn(move || {
            let (start, mut came) = (Instant::now(), 0);
            while !stopped.load(Ordering::Relaxed) {
                while came < rate.due(start.elapsed()) {
                    came += 1;
                    visit(port, path, &counted);
                }
                // sleep: the pace of a load
                std::thread::sleep(PACE);
            }
        });
        Self { stop, thread: Some(thread), counts }
    }

    /// Puts what became of them on the time line; nobody comes any more.
    pub fn end(mut self, stage: &mut Stage) {
        self.stop();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counts { open, answered, failed, turned_away, first_failed_s } = &*self.counts;
        let first_failed_s = first_failed_s.lock().expect("no visitor panics").map(rounded);
        stage.tell(
            "load",
            json!({ "answered": count(answered), "failed": count(failed), "waiting": count(open),
                    "turned_away": count(turned_away), "first_failed_s": first_failed_s }),
        );
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Drop for Visitors {
    fn drop(&mut self) {
        self.stop();
    }
}

fn visit(port: u16, path: &'static str, counts: &Arc<Counts>) {
    if counts.open.fetch_add(1, Ordering::Relaxed) >= MAX_OPEN {
        counts.open.fetch_sub(1, Ordering::Relaxed);
        counts.turned_away.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let counts = Arc::clone(counts);
    std::thread::spawn(move || {
        let started_s = now_s();
        match http::status(port, path, PATIENCE) {
            Ok(200) => _ = counts.answered.fetch_add(1, Ordering::Relaxed),
            _ => counts.failed(started_s),
        }
        counts.open.fetch_sub(1, Ordering::Relaxed);
    });
}

/// Seconds that `GET path` takes; none without an answer within `limit`.
pub fn answer_s(port: u16, path: &str, limit: Duration) -> Option<f64> {
    use std::io::{Read as _, Write as _};
    let start = Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    stream.read_to_string(&mut String::new()).ok()?;
    Some((start.elapsed().as_secs_f64() * 1000.0).round() / 1000.0)
}

/// Keeps this process, and all that it starts from now on, to one CPU: what competes there competes nowhere else.
pub fn stay_on_one_cpu() {
    let allowed = sched_getaffinity(None).expect("own affinity can be read");
    let last = (0..CpuSet::MAX_CPU).rev().find(|cpu| allowed.is_set(*cpu));
    let mut one = CpuSet::new();
    one.set(last.expect("a process may run on some CPU"));
    sched_setaffinity(None, &one).expect("a CPU that is allowed can be chosen");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visitors_are_the_area_below_the_rate() {
        let rate = Rate { from: 2.0, to: 10.0, within: Duration::from_secs(4) };
        let due = |seconds| rate.due(Duration::from_secs(seconds));
        // 2, 4, 6, 8, 10, 10 a second: the mean of each second's ends.
        assert_eq!([0, 1, 2, 4, 6].map(due), [0, 3, 8, 24, 44]);
        assert_eq!(Rate::even(3.0).due(Duration::from_millis(2500)), 7);
    }
}
