//! From a tick's [`Batch`] to its destinations.
//!
//! The sampler offers each batch through a [`Handle`], which never waits. From there it goes two ways: a thread of its own
//! writes it to local files as OTLP JSON (`files`); the IO thread encodes it into protobuf requests (`encode`), queues
//! these per signal (`queue`) and delivers them (`send`) where an endpoint is configured. Every place where something can
//! be lost counts what it loses (`status`).

mod answer;
pub mod encode;
mod files;
#[cfg(test)]
mod generate;
mod group;
mod grpc;
mod http;
pub mod json;
mod options;
mod queue;
pub mod resource;
mod send;
pub mod settings;
mod split;
mod status;
mod store;
#[cfg(test)]
mod tests;
mod throttle;
mod tls;
pub mod wire;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::Thread,
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use tokio::{
    sync::{Notify, oneshot, watch},
    task::JoinSet,
    time::{Instant, timeout_at},
};

use self::{
    encode::Encoder,
    files::{Files, Sinks},
    http::Http,
    options::Options,
    queue::{Queue, Request},
    resource::{HostResource, Resources},
    send::{Gzip, Pace, Sender},
    status::{Destination, Losses},
    store::Store,
};
use crate::{
    config::{Config, ConfigError, Fault, Problem},
    line_file::LineFile,
    snapshot,
    telemetry::Batch,
};

/// Batches that wait for the IO thread, and as many for the thread of the files. One comes a second.
pub const INBOX_BATCHES: usize = 16;

/// One of OTLP's three kinds of telemetry; each has its own service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpSignal {
    /// Spans.
    Traces,
    /// Metric points.
    Metrics,
    /// Log records.
    Logs,
}

impl OtlpSignal {
    /// Path of the service in OTLP/HTTP.
    const fn http_path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Metrics => "/v1/metrics",
            Self::Logs => "/v1/logs",
        }
    }

    /// Path of the call in OTLP/gRPC.
    const fn grpc_path(self) -> &'static str {
        match self {
            Self::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
            Self::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        }
    }
}

/// Checks the section `export` without touching the host: gives what is ignored.
///
/// # Errors
/// Settings that cannot be used, such as an endpoint that is no URL.
pub fn check(config: &Config) -> Result<Vec<Problem>, ConfigError> {
    Options::new(config).map(|options| options.warnings)
}

/// A file that TLS needs is the configuration's fault, also when it was there a minute ago.
fn unusable_files(error: &anyhow::Error) -> ConfigError {
    let place = "export.certificate, export.client_certificate, export.client_key".to_owned();
    let fault = Fault::new(format!("{error:#}"), "name PEM files that the agent may read");
    Problem { place, fault }.into()
}

/// Spans, events and points of a batch.
fn items(batch: &Batch) -> u64 {
    (batch.spans.len() + batch.events.len() + batch.points.len()) as u64
}

/// The sampler's end: gives batches, reads states and counts, and never waits for anything.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inbox: ArrayQueue<Arc<Batch>>,
    /// Whether anything is sent at all.
    is_sending: bool,
    arrived: Notify,
    files: Arc<Files>,
    files_thread: Thread,
    destinations: Vec<Arc<Destination>>,
    losses: Arc<Losses>,
    /// When the exporter has to have ended; `None` while it runs.
    end: watch::Sender<Option<Instant>>,
}

impl Handle {
    /// Hands over a batch. If the receiving threads lag, the oldest batch goes and is counted.
    pub fn offer(&self, batch: Arc<Batch>) {
        if batch.is_empty() {
            return;
        }
        let shared = &self.shared;
        shared.files.offer(Arc::clone(&batch), &shared.files_thread);
        if shared.is_sending {
            if let Some(oldest) = shared.inbox.force_push(batch) {
                shared.losses.inbox.fetch_add(items(&oldest), Relaxed);
            }
            shared.arrived.notify_one();
        }
    }

    /// One row a destination.
    pub fn status(&self) -> Vec<snapshot::Exporter> {
        self.shared.destinations.iter().map(|destination| destination.row()).collect()
    }

    /// One row a place where something can be lost.
    pub fn losses(&self) -> Vec<snapshot::Loss> {
        self.shared.losses.rows()
    }

    /// Makes [`Exporter::run`] deliver what it has and return, within this time whatever happens.
    pub fn shutdown(&self, within: Duration) {
        self.shared.end.send_replace(Some(Instant::now() + within));
    }
}

/// The IO thread's end.
pub struct Exporter {
    handle: Handle,
    encoder: Encoder,
    senders: Vec<Sender<Http>>,
    queues: Vec<(OtlpSignal, Arc<Queue>, Arc<Destination>)>,
    files_ended: oneshot::Receiver<()>,
    end: watch::Receiver<Option<Instant>>,
    senders_end: watch::Sender<bool>,
}

impl Exporter {
    /// Prepares everything that the configuration asks for, and starts the thread that writes the local store (under
    /// `state_dir`) and `out`. Fails only for what is wrong with the configuration.
    pub fn new(
        config: &Config,
        host: &HostResource,
        out: Option<PathBuf>,
        state_dir: &Path,
    ) -> anyhow::Result<(Self, Handle)> {
        Self::with_options(Options::new(config)?, host, out, state_dir, Pace::default())
    }

    fn with_options(
        options: Options,
        host: &HostResource,
        out: Option<PathBuf>,
        state_dir: &Path,
        pace: Pace,
    ) -> anyhow::Result<(Self, Handle)> {
        let resources = Arc::new(Resources::new(host, &options.attributes));
        let losses = Arc::new(Losses::default());
        let mut destinations = Vec::new();
        let mut destination = |name, to: String| {
            let destination = Arc::new(Destination::new(name, to));
            destinations.push(Arc::clone(&destination));
            destination
        };

        let store = Store::new(state_dir.join("store"), options.store_bytes);
        let store_row = destination("store", store.directory().display().to_string());
        let out = match out {
            None => None,
            Some(path) => {
                let mut lines = LineFile::new(path.clone(), 0o644);
                lines
                    .open()
                    .with_context(|| format!("cannot write to {} (--out)", path.display()))?;
                Some((lines, destination("out", path.display().to_string())))
            }
        };

        let (senders_end, ending) = watch::channel(false);
        let (mut senders, mut queues) = (Vec::new(), Vec::new());
        for target in options.targets {
            let destination = destination("otlp", target.shown());
            let queue = Arc::new(Queue::new(options.queue_bytes));
            queues.push((target.signal, Arc::clone(&queue), Arc::clone(&destination)));
            senders.push(Sender {
                signal: target.signal,
                compression: if target.gzip { Gzip::Tried } else { Gzip::Off },
                transport: Http::new(Arc::new(target)).map_err(|error| unusable_files(&error))?,
                queue,
                destination,
                losses: Arc::clone(&losses),
                pace,
                ending: ending.clone(),
            });
        }

        let sinks = Sinks { store: (store, store_row), out };
        let (files, files_thread, files_ended) =
            Files::start(Arc::clone(&resources), sinks, Arc::clone(&losses))
                .context("cannot start the thread that writes files")?;
        let (end_sender, end) = watch::channel(None);
        let handle = Handle {
            shared: Arc::new(Shared {
                inbox: ArrayQueue::new(INBOX_BATCHES),
                is_sending: !senders.is_empty(),
                arrived: Notify::new(),
                files,
                files_thread,
                destinations,
                losses,
                end: end_sender,
            }),
        };
        let encoder = Encoder::new(resources);
        Ok((
            Self {
                handle: handle.clone(),
                encoder,
                senders,
                queues,
                files_ended,
                end,
                senders_end,
            },
            handle,
        ))
    }

    /// Delivers until [`Handle::shutdown`]. Run it on a tokio runtime with IO and time; give that runtime up with
    /// `shutdown_background`, as a name that is being looked up cannot be interrupted.
    pub async fn run(mut self) {
        let shared = Arc::clone(&self.handle.shared);
        let mut senders: JoinSet<()> = self.senders.drain(..).map(Sender::run).collect();
        let deadline = loop {
            self.encode();
            tokio::select! {
                () = shared.arrived.notified() => {}
                _ = self.end.changed() => {}
            }
            if let Some(deadline) = *self.end.borrow() {
                break deadline;
            }
        };
        self.encode();
        shared.files.end(&shared.files_thread);
        self.senders_end.send_replace(true);
        let all_done = async {
            while senders.join_next().await.is_some() {}
            // An error: the thread is gone, there is nothing to wait for.
            self.files_ended.await.ok();
        };
        if timeout_at(deadline, all_done).await.is_err() {
            tracing::warn!("not everything could be written and delivered in time");
        }
        senders.abort_all();
        let left: u64 = self.queues.iter().map(|(_, _, destination)| destination.give_up()).sum();
        shared.losses.exit.fetch_add(left, Relaxed);
    }

    /// Turns every batch that has come into requests for the senders.
    fn encode(&mut self) {
        while let Some(batch) = self.handle.shared.inbox.pop() {
            let losses = &self.handle.shared.losses;
            let skipped = self.encoder.encode(&batch, |request| {
                let Some((_, queue, destination)) =
                    self.queues.iter().find(|queue| queue.0 == request.signal)
                else {
                    return;
                };
                let bytes = Bytes::copy_from_slice(request.bytes);
                destination.offered.fetch_add(request.items, Relaxed);
                let dropped = queue.push(Request { bytes, items: request.items, refusals: 0 });
                losses.queue.fetch_add(dropped, Relaxed);
                destination.dropped.fetch_add(dropped, Relaxed);
                destination.queued.store(queue.len() as u64, Relaxed);
            });
            losses.unencodable.fetch_add(skipped.oversized + skipped.malformed, Relaxed);
        }
    }
}
