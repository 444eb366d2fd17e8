//! The thread that writes local files. It is not the IO thread: a disk may stop answering for good, and then neither the
//! network nor the control socket may stop with it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    thread::{self, Thread},
};

use crossbeam_queue::ArrayQueue;
use tokio::sync::oneshot;

use super::{
    INBOX_BATCHES,
    json::{JsonEncoder, Line},
    resource::Resources,
    status::{Destination, Losses, State},
    store::Store,
    throttle::Throttle,
};
use crate::{line_file::LineFile, telemetry::Batch};

/// The sampler's end of the thread.
#[derive(Debug)]
pub(super) struct Files {
    inbox: ArrayQueue<Arc<Batch>>,
    ending: AtomicBool,
    losses: Arc<Losses>,
}

/// What the thread writes to.
#[derive(Debug)]
pub(super) struct Sinks {
    pub(super) store: (Store, Arc<Destination>),
    pub(super) out: Option<(LineFile, Arc<Destination>)>,
}

impl Files {
    /// Starts the thread. The receiver hears when it has ended.
    pub(super) fn start(
        resources: Arc<Resources>,
        sinks: Sinks,
        losses: Arc<Losses>,
    ) -> io::Result<(Arc<Self>, Thread, oneshot::Receiver<()>)> {
        let inbox = ArrayQueue::new(INBOX_BATCHES);
        let files = Arc::new(Self { inbox, ending: AtomicBool::new(false), losses });
        let (ended, when_ended) = oneshot::channel();
        let shared = Arc::clone(&files);
        let join = thread::Builder::new().name("observer-files".into()).spawn(move || {
            shared.write_all(JsonEncoder::new(resources), sinks);
            ended.send(()).ok();
        })?;
        Ok((files, join.thread().clone(), when_ended))
    }

    /// Hands over a batch; the oldest goes if the thread lags.
    pub(super) fn offer(&self, batch: Arc<Batch>, thread: &Thread) {
        if let Some(oldest) = self.inbox.force_push(batch) {
            self.losses.file_inbox.fetch_add(super::items(&oldest), Relaxed);
        }
        thread.unpark();
    }

    /// Lets the thread end once it has written what it has.
    pub(super) fn end(&self, thread: &Thread) {
        self.ending.store(true, Release);
        thread.unpark();
    }

    fn write_all(&self, mut encoder: JsonEncoder, mut sinks: Sinks) {
        let mut throttle = Throttle::default();
        loop {
            // Read before the queue is: what was offered before the end is written.
            let ending = self.ending.load(Acquire);
            while let Some(batch) = self.inbox.pop() {
                encoder.encode(&batch, |line| sinks.append(line, &self.losses, &mut throttle));
            }
            if ending {
                return;
            }
            thread::park();
        }
    }
}

impl Sinks {
    fn append(&mut self, line: Line<'_>, losses: &Losses, throttle: &mut Throttle) {
        let (store, destination) = &mut self.store;
        let mut rotated = 0;
        let written = store.append(line.bytes, &mut rotated);
        losses.store_rotated_bytes.fetch_add(rotated, Relaxed);
        account(destination, line.items, written, losses, throttle);
        if let Some((out, destination)) = &mut self.out {
            let written = out.append(line.bytes);
            account(destination, line.items, written, losses, throttle);
        }
    }
}

fn account(
    to: &Destination,
    items: u64,
    written: io::Result<()>,
    losses: &Losses,
    throttle: &mut Throttle,
) {
    match written {
        Ok(()) => {
            to.sent.fetch_add(items, Relaxed);
            if to.enter(State::Open, "") && throttle.allows() {
                tracing::info!(path = to.place(), "writing telemetry to the file again");
            }
        }
        Err(error) => {
            to.dropped.fetch_add(items, Relaxed);
            losses.file_write.fetch_add(items, Relaxed);
            if to.enter(State::Backoff, &error.to_string()) && throttle.allows() {
                tracing::warn!(path = to.place(), %error, "cannot write telemetry to the file; trying again with every line");
            }
        }
    }
}
