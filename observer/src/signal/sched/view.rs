//! What the snapshot holds of `sched`; field names and units are those of docs/snapshot-json.md.

use serde::{Deserialize, Serialize};

/// What `top` and the JSON snapshot show of stalls.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct View {
    /// Watched threads, those with an open gap first, then by run-queue delay; bounded by
    /// [`crate::snapshot::MAX_ROWS`].
    pub threads: Vec<Thread>,
    /// Threads watched.
    pub watched: u64,
    /// Tasks of the host in uninterruptible sleep for more than a second.
    pub blocked: Vec<BlockedTask>,
    /// Processes with tasks that were in uninterruptible sleep when it was looked, those with most of them first.
    #[serde(default)]
    pub uninterruptible: Vec<Uninterruptible>,
    /// Disks with requests, those that answer worst first.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Processes that read from and write to disks most, while one of those is slow; else empty.
    #[serde(default)]
    pub senders: Vec<Sender>,
    /// CPU cgroups with a quota that throttled.
    pub throttled: Vec<CpuCgroup>,
    /// Processes that use the CPU most, while threads wait for one or the host is busy; else empty.
    #[serde(default)]
    pub consumers: Vec<Consumer>,
    /// Share of the last second that the hypervisor took, over all CPUs, 0 to 1.
    pub steal_ratio: f64,
    /// Share of the last second that all CPUs were busy, 0 to 1.
    pub busy_ratio: f64,
    /// Stalls seen since the agent started.
    pub stalls: u64,
}

/// One watched thread.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Thread {
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Thread name.
    pub name: String,
    /// Whether its process holds a listening TCP socket; null if not known.
    #[serde(default)]
    pub listens: Option<bool>,
    /// Share of the last second on a CPU, 0 to 1.
    pub on_cpu_ratio: f64,
    /// Share of the last second runnable but waiting for a CPU, 0 to 1.
    pub run_delay_ratio: f64,
    /// Run-queue delay since the agent started to watch it.
    pub run_delay_ns: u64,
    /// Set if the thread turns an event loop on epoll.
    pub event_loop: Option<EventLoop>,
}

/// Gaps of an event loop: from its wake-up to its next wait in epoll.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct EventLoop {
    /// Turns since the agent started to watch it.
    pub turns: u64,
    /// Gaps over the threshold.
    pub gaps: u64,
    /// Time in gaps that are over, since the agent started to watch it.
    #[serde(default)]
    pub gap_ns: u64,
    /// Part of it waiting for a CPU.
    #[serde(default)]
    pub gap_waiting_ns: u64,
    /// The longest gap of the last minute.
    pub max_ns: u64,
    /// Turns of the last five to ten seconds.
    #[serde(default)]
    pub recent_turns: u64,
    /// One in a hundred of them took at least this long, to a power of two.
    #[serde(default)]
    pub p99_ns: u64,
    /// Length so far of the gap that is still open; 0 while the loop waits for events.
    pub open_ns: u64,
    /// Part of the open gap on a CPU.
    pub open_on_cpu_ns: u64,
    /// Part of the open gap waiting for a CPU.
    pub open_waiting_ns: u64,
    /// Part of the open gap blocked (I/O, lock, page fault, sleep).
    pub open_blocked_ns: u64,
}

/// A task in uninterruptible sleep.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct BlockedTask {
    /// Process id.
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// Thread name.
    pub name: String,
    /// For how long at least.
    pub blocked_ns: u64,
    /// Kernel functions, innermost first.
    pub stack: Vec<String>,
}

/// A CPU cgroup with a quota.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CpuCgroup {
    /// Path below the hierarchy's root.
    pub path: String,
    /// Periods that were throttled since boot.
    pub throttled_periods: u64,
    /// Time throttled since boot.
    pub throttled_ns: u64,
    /// Share of the last second's periods that were throttled, 0 to 1.
    pub throttled_ratio: f64,
}

/// A process that uses the CPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Consumer {
    /// Process id.
    pub pid: u32,
    /// Command name.
    pub name: String,
    /// CPUs that its threads use.
    pub cpu_ratio: f64,
    /// CPUs that children of it used that it has waited for, without what was seen of them while they lived.
    pub children_cpu_ratio: f64,
    /// Scheduling policy of its first thread: `other`, `fifo`, `rr`, `batch`, `idle` or `deadline`.
    pub policy: String,
    /// Real-time priority; 0 if it has none.
    pub rt_priority: u32,
    /// Nice value.
    pub nice: i32,
}

/// A process with tasks that were in uninterruptible sleep when it was looked. Seen once a second, who is there often waits
/// often.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Uninterruptible {
    /// Process id.
    pub pid: u32,
    /// Name of one of the threads.
    pub name: String,
    /// How many of its threads.
    pub tasks: u64,
}

/// A disk with requests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Disk {
    /// Its name, as `nvme0n1` or `dm-0`.
    pub name: String,
    /// Disks that it stands on, if it is one of the device mapper or of md.
    pub below: Vec<String>,
    /// Whether the device mapper holds its requests back.
    pub suspended: bool,
    /// Requests that it has not answered.
    pub in_flight: u64,
    /// For how long it has answered none, although it has some.
    pub silent_ns: u64,
    /// Mean time of the requests that it answered since the last reading, in the queue and in the disk.
    pub wait_ns: u64,
    /// The same of reads.
    pub read_wait_ns: u64,
    /// The same of writes and flushes.
    pub write_wait_ns: u64,
    /// Reads that it answered, per second.
    pub reads_per_second: f64,
    /// Writes and flushes that it answered, per second.
    pub writes_per_second: f64,
    /// Bytes read, per second.
    pub read_bytes_per_second: f64,
    /// Bytes written, per second.
    pub written_bytes_per_second: f64,
    /// Share of that time in which it had requests, 0 to 1.
    pub busy_ratio: f64,
}

/// A process that has disks read and write. Of files, written is what it changed in the page cache, at that time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sender {
    /// Process id.
    pub pid: u32,
    /// Command name.
    pub name: String,
    /// Bytes that it had read from disks, per second; with those of children that it has waited for, without what was seen
    /// of them while they lived.
    pub read_bytes_per_second: f64,
    /// Bytes that it had written, likewise.
    pub written_bytes_per_second: f64,
}
