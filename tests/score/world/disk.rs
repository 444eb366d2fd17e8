//! A disk of the model: what it has to do, how late it answers, and who waits for it.
//!
//! # Assumptions
//! A request alone takes the disk's own time. What streams (backups, upgrades, logs) takes a share of its bytes a second,
//! what services commit and what is read back a share of its requests a second, and the rest of them wait as in a queue with
//! one server: 1 / (1 - use). A stream that is faster than the disk keeps a few of its own requests ahead of everybody's. A
//! service waits for as long as its commits take, one after the other; sampled once a second, as the agent does.

use fastrand::Rng;
use observer::signal::sched::{Disk, Sender, Uninterruptible};

use super::{World, chance::noise};

/// Requests that a stream keeps in the queue, of so many bytes.
const AHEAD: f64 = 4.0;
const STREAM_BYTES: f64 = 256.0 * 1024.0;
/// Bytes of a commit.
const COMMIT_BYTES: f64 = 8192.0;
/// Use is never quite all: then nobody would ever be answered.
const MOST: f64 = 0.97;

/// The disk.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    /// Seconds of a request alone.
    pub(crate) alone_s: f64,
    bytes_per_s: f64,
    requests_per_s: f64,
    /// Factor on its times: 1 is well.
    pub(crate) slow: f64,
    /// A process that streams more than usual, bytes a second, and its requests ahead of others.
    stream: Option<(u32, f64, f64)>,
    /// Commits of each service in a second.
    pub(crate) commits: f64,
    rng: Rng,
}

impl Device {
    /// One of four kinds: NVMe, EBS gp3, EBS gp2, a spinning one.
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let kinds =
            [(2e-4, 1e9, 5e4), (8e-4, 1.25e8, 3e3), (1.5e-3, 1.6e8, 1e3), (8e-3, 1.5e8, 150.0)];
        let (alone_s, bytes_per_s, requests_per_s) = kinds[rng.usize(..kinds.len())];
        let commits = 0.2 * 20_f64.powf(rng.f64());
        Self { alone_s, bytes_per_s, requests_per_s, slow: 1.0, stream: None, commits, rng }
    }

    /// Bytes a second that a process streams, beyond the usual.
    pub(super) fn streamed(&self) -> f64 {
        self.stream.map_or(0.0, |(_, bytes, _)| bytes.min(self.bytes_per_s))
    }

    /// A process streams so many times what the disk takes, and others wait so long for it.
    pub(crate) fn hog(&mut self, pid: u32, rate: f64, waits_s: f64) {
        let ahead = waits_s * self.bytes_per_s / STREAM_BYTES;
        self.stream = Some((pid, rate * self.bytes_per_s, ahead));
    }
}

impl World {
    /// One second of it; the share of it in which some task waited.
    pub(super) fn show_disk(&mut self) -> f64 {
        let device = &mut self.device;
        let progress = self.memory.as_ref().map_or(1.0, |memory| memory.progress);
        let stream = device.stream.map_or(0.0, |(_, bytes, _)| bytes);
        let streams = (self.demand.cold_per_s + self.machine.cold_per_s) * progress + stream;
        let refaults = self.memory.as_ref().map_or(0.0, |memory| memory.refault_per_s) / 4.0;
        let services: Vec<u32> = self
            .actors
            .iter()
            .filter(|actor| actor.event_loop.is_some())
            .map(|actor| actor.pid)
            .collect();
        let commits = device.commits * services.len() as f64 * self.work;
        let wanted = streams / device.bytes_per_s + (commits + refaults) / device.requests_per_s;
        let used = wanted * device.slow;
        let queue = 1.0 / (1.0 - used.min(MOST));
        let ahead = device.stream.map_or(AHEAD, |(.., ahead)| ahead);
        let behind = if used > 1.0 { ahead * STREAM_BYTES / device.bytes_per_s } else { 0.0 };
        // The queue is as long as there are tasks to wait in it.
        let queue = queue.min(2.0 + services.len() as f64);
        let wait_s = (device.alone_s * queue + behind) * device.slow * noise(&mut device.rng, 0.3);
        let done = 1.0 / used.max(1.0);
        let share = (device.commits * wait_s).min(1.0);
        let wait_ns = (wait_s * 1e9) as u64;
        let streamed = streams * done;
        let rng = &mut device.rng;
        let view = &mut self.snapshot.sched;
        view.uninterruptible.clear();
        view.uninterruptible.extend(
            services.iter().filter(|_| rng.f64() < share).map(|pid| Uninterruptible {
                pid: *pid,
                name: "node".to_owned(),
                tasks: 1,
            }),
        );
        view.disks.resize_with(1, || Disk { name: "nvme0n1".to_owned(), ..Disk::default() });
        let committed = (commits * done).min(services.len() as f64 / wait_s);
        for disk in &mut view.disks {
            (disk.wait_ns, disk.read_wait_ns, disk.write_wait_ns) = (wait_ns, wait_ns, wait_ns);
            disk.reads_per_second = refaults * done + streamed / 2.0 / STREAM_BYTES;
            disk.writes_per_second = committed + streamed / 2.0 / STREAM_BYTES;
            disk.read_bytes_per_second = refaults * done * 4096.0 + streamed / 2.0;
            disk.written_bytes_per_second = committed * COMMIT_BYTES + streamed / 2.0;
            disk.busy_ratio = used.min(1.0);
        }
        view.senders.clear();
        if let Some((pid, bytes, _)) = self.device.stream {
            let written_bytes_per_second = bytes * done;
            view.senders.push(Sender { pid, written_bytes_per_second, ..Sender::default() });
        }
        let streams = if used > 1.0 { 1.0 } else { (used * 0.5).min(1.0) };
        1.0 - (1.0 - share).powi(services.len().min(64) as i32) * (1.0 - streams)
    }
}
