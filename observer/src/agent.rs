//! READ FIRST: who runs where.
//!
//! - The *sampler* (this file's loop, on a thread of its own) drains the ring and ticks; see `sampler`. It hands a
//!   [`Batch`] to the exporter and to the screen, and leaves a [`Snapshot`] for the control socket. It waits for nobody.
//! - The *IO thread* (the calling one, tokio) exports, serves the control socket and asks child processes for symbols. It
//!   may stall or die; the sampler does not notice.
//! - The *lines*, *files* and *recorder* threads write to the terminal and the disk, *alerts* to the kernel's log and systemd.
//!
//! Everything that can wake the sampler is in [`Wake`].

use std::{
    io::{self, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use crossbeam_queue::ArrayQueue;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::{read, write},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};

use crate::{
    alert::Alerts,
    config::{self, Config},
    control::{Lock, Server, Slot},
    export::{Exporter, Handle, resource::HostResource, settings::METRIC_INTERVAL},
    lines::Lines,
    record::{self, Recorder},
    sampler::{Sampler, now},
    snapshot::Verdict,
    symbolize::{self, Request, Response},
    telemetry::Batch,
};

/// The ring is drained this often; with the ring's size it bounds the rate of records that is not lost.
const DRAIN_EVERY: Duration = Duration::from_millis(250);
/// Everything must be flushed within this time of a signal; the promise to the user is two seconds.
const FLUSH_WITHIN: Duration = Duration::from_millis(1500);
/// What the recorder has must be written within this time of the last tick.
const RECORD_WITHIN: Duration = Duration::from_millis(500);
/// What is to be said of findings must be said within this time of the last tick.
const SAY_WITHIN: Duration = Duration::from_millis(250);
/// A child that names addresses is ended after this time.
const NAMES_WITHIN: Duration = Duration::from_secs(10);

/// Why the sampler woke up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wake {
    /// The next drain is due.
    Drain,
    /// The next tick is due.
    Tick,
    /// The kernel says that tasks are stalled (PSI).
    Pressure,
    /// Somebody wants the agent to end.
    Stop,
}

/// What the sampler shares with the other threads.
struct Shared {
    stop: AtomicBool,
    /// Written to wake the sampler.
    wake: OwnedFd,
    slot: Slot,
    requests: ArrayQueue<Request>,
    answers: ArrayQueue<(Request, Response)>,
    requested: Notify,
    ended: Notify,
}

/// `observer run`.
///
/// # Errors
/// A bad configuration, a second instance, or a folder that may not be written.
pub fn run(config: &Config, time: Option<Duration>, out: Option<PathBuf>) -> Result<()> {
    let lock = Lock::take(&config.run_dir())?;
    let sampler = Sampler::new(config)?;
    let info = sampler.info();
    let host = HostResource {
        name: info.host_name.clone(),
        id: info.host_id.clone(),
        os_version: info.os_version.clone(),
    };
    let (exporter, handle) = Exporter::new(config, &host, out, &config.store_dir())?;
    let recorder = recorder(config, &sampler)?;
    let shared = Arc::new(Shared {
        stop: AtomicBool::new(false),
        wake: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        slot: Slot::default(),
        requests: ArrayQueue::new(1),
        answers: ArrayQueue::new(4),
        requested: Notify::new(),
        ended: Notify::new(),
    });
    let server = Server::bind(&lock, config.text(&config::GROUP))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let lines = Lines::start().context("cannot start the thread that prints")?;
    let stops = {
        let _context = runtime.enter();
        [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?]
    };
    announce(&sampler, config);
    let alerts = Alerts::start(config).context("cannot start the thread that tells findings")?;
    let loop_ = Loop {
        interval: config.duration(&config::INTERVAL),
        metric_interval: config.duration(&METRIC_INTERVAL),
        sampler,
        handle: handle.clone(),
        lines,
        alerts,
        recorder,
        shared: Arc::clone(&shared),
    };
    let sampler = thread::Builder::new().name("sampler".to_owned()).spawn(move || loop_.run())?;
    runtime.block_on(io(&shared, exporter, &handle, server, stops, time))?;
    // A name that is being looked up cannot be interrupted.
    runtime.shutdown_background();
    sampler.join().map_err(|_panic| {
        anyhow::anyhow!("the sampler ended by a panic; this is a bug of observer")
    })
}

/// The recorder, if there is to be one.
fn recorder(config: &Config, sampler: &Sampler) -> Result<Option<Recorder>> {
    let path = config.text(&record::FILE);
    if path.is_empty() {
        return Ok(None);
    }
    let info = sampler.info();
    let header = record::Header {
        format: record::FORMAT.to_owned(),
        version: record::VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        host_name: info.host_name.clone(),
        kernel: info.kernel.clone(),
        boot_id: info.boot_id.clone(),
        start_unix_ns: now().unix_ns,
        interval_ns: config.duration(&config::INTERVAL).as_nanos() as u64,
        programs: sampler.programs(),
    };
    Recorder::start(Path::new(path), config.bytes(&record::MAX), header).map(Some)
}

/// The line that tools wait for, and what the user must know at the start.
fn announce(sampler: &Sampler, config: &Config) {
    let programs = sampler.programs();
    let blind: Vec<_> = programs
        .iter()
        .filter(|row| matches!(row.verdict, Verdict::Degraded | Verdict::Impossible))
        .collect();
    for row in &blind {
        tracing::warn!("{} ({}): {}; {}", row.name, row.hook, row.reason, row.remedy);
    }
    // Nobody may read it: `eprintln!` would panic.
    writeln!(
        io::stderr(),
        "observer: ready, {} of {} probes run; what is seen is kept in {}",
        programs.len() - blind.iter().filter(|row| row.verdict == Verdict::Impossible).count(),
        programs.len(),
        config.store_dir().join("store").display()
    )
    .ok();
}

/// The IO thread: everything that may wait.
async fn io(
    shared: &Arc<Shared>,
    exporter: Exporter,
    handle: &Handle,
    server: Server,
    [mut terminate, mut interrupt]: [Signal; 2],
    time: Option<Duration>,
) -> Result<()> {
    let names = tokio::spawn(name_addresses(Arc::clone(shared)));
    let slot = shared.slot.clone();
    let serving = tokio::spawn(async move { server.serve(slot).await });
    let exporting = tokio::spawn(exporter.run());
    let timer = async {
        match time {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = timer => {}
        () = shared.ended.notified() => {}
    }
    shared.stop.store(true, Relaxed);
    // A full counter wakes the sampler as well.
    write(&shared.wake, &1_u64.to_ne_bytes()).ok();
    // The sampler's last batch comes first.
    tokio::time::timeout(FLUSH_WITHIN / 2, shared.ended.notified()).await.ok();
    handle.shutdown(FLUSH_WITHIN / 2);
    exporting.await.context("the exporter ended by a panic; this is a bug of observer")?;
    names.abort();
    serving.abort();
    Ok(())
}

/// Asks child processes for symbols, one at a time.
async fn name_addresses(shared: Arc<Shared>) {
    let client = symbolize::Client::new(NAMES_WITHIN);
    loop {
        shared.requested.notified().await;
        while let Some(request) = shared.requests.pop() {
            match client.ask(&request).await {
                Ok(response) => drop(shared.answers.force_push((request, response))),
                Err(error) => tracing::warn!("addresses stay without names: {error}"),
            }
        }
    }
}

/// The sampler's loop.
struct Loop {
    sampler: Sampler,
    handle: Handle,
    lines: Lines,
    alerts: Alerts,
    recorder: Option<Recorder>,
    shared: Arc<Shared>,
    interval: Duration,
    metric_interval: Duration,
}

impl Loop {
    fn run(mut self) {
        let (mut next_tick, mut next_points) = (now().ktime_ns, now().ktime_ns);
        loop {
            let ktime_ns = now().ktime_ns;
            let wake = self.wait(
                Duration::from_nanos(next_tick.saturating_sub(ktime_ns)).min(DRAIN_EVERY),
                next_tick,
            );
            match wake {
                Wake::Drain | Wake::Pressure => self.sampler.drain(),
                Wake::Tick => {
                    let ktime_ns = now().ktime_ns;
                    next_tick = next_tick
                        .max(ktime_ns.saturating_sub(self.interval.as_nanos() as u64))
                        + self.interval.as_nanos() as u64;
                    let points = ktime_ns >= next_points;
                    if points {
                        next_points = ktime_ns + self.metric_interval.as_nanos() as u64;
                    }
                    self.tick(points, false);
                }
                Wake::Stop => {
                    self.tick(true, true);
                    break;
                }
            }
        }
        self.shared.ended.notify_one();
        if self.recorder.as_ref().is_some_and(|recorder| !recorder.finish(RECORD_WITHIN)) {
            tracing::warn!("the disk is slow: the recording lacks the last ticks");
        }
        if !self.alerts.finish(SAY_WITHIN) {
            tracing::warn!("the kernel's log or systemd is slow: not all findings were told there");
        }
    }

    /// Waits for what comes first.
    fn wait(&self, most: Duration, next_tick: u64) -> Wake {
        let mut set = vec![PollFd::from_borrowed_fd(self.shared.wake.as_fd(), PollFlags::IN)];
        self.sampler.triggers().add_to(&mut set);
        let time =
            Timespec { tv_sec: most.as_secs() as i64, tv_nsec: i64::from(most.subsec_nanos()) };
        // An interrupted wait is a short one.
        poll(&mut set, Some(&time)).ok();
        if self.shared.stop.load(Relaxed) {
            return Wake::Stop;
        }
        if set[0].revents().contains(PollFlags::IN) {
            read(&self.shared.wake, &mut [0; 8]).ok();
        }
        let pressure = self.sampler.triggers().note(&set[1..]);
        match now().ktime_ns {
            ktime_ns if ktime_ns >= next_tick => Wake::Tick,
            _ if pressure => Wake::Pressure,
            _ => Wake::Drain,
        }
    }

    fn tick(&mut self, points: bool, ends: bool) {
        while let Some((request, response)) = self.shared.answers.pop() {
            self.sampler.name(&request, response);
        }
        self.sampler.tick(ends);
        let recorder = self.recorder.as_ref();
        let unrecorded = recorder.map(Recorder::losses).unwrap_or_default();
        let losses =
            [self.handle.losses(), vec![self.lines.loss()], self.alerts.losses(), unrecorded]
                .concat();
        let mut snapshot = self.sampler.snapshot(self.handle.status(), losses);
        snapshot.health.programs.extend(self.alerts.program().cloned());
        self.sampler.judge(&mut snapshot, ends);
        let (snapshot, batch) = (Arc::new(snapshot), Arc::new(self.sampler.take_batch(points)));
        self.lines.offer(Arc::clone(&batch));
        self.alerts.offer(&snapshot, &batch);
        self.offer(Arc::clone(&batch));
        if let Some(recorder) = recorder {
            recorder.offer(Arc::clone(&snapshot), batch);
        }
        self.shared.slot.publish(snapshot);
        if let Some(request) = self.sampler.name_request() {
            drop(self.shared.requests.force_push(request));
            self.shared.requested.notify_one();
        }
    }

    fn offer(&self, batch: Arc<Batch>) {
        if !batch.is_empty() {
            self.handle.offer(batch);
        }
    }
}
