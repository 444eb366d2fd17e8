//! Events as log records (opentelemetry/proto/logs/v1/logs.proto).

use super::{WireItems, attrs, traces::ids};
use crate::{
    export::{
        OtlpSignal,
        group::{Items, Place},
        wire::Writer,
    },
    telemetry::{Batch, Event, Subject},
};

/// The events of a batch.
pub(in crate::export) struct Events<'a> {
    pub(in crate::export) events: &'a [Event],
    /// When the agent saw them.
    pub(in crate::export) observed_unix_ns: u64,
}

impl<'a> Events<'a> {
    pub(in crate::export) fn of(batch: &'a Batch) -> Self {
        Self { events: &batch.events, observed_unix_ns: batch.time_unix_ns }
    }
}

impl Items for Events<'_> {
    fn len(&self) -> usize {
        self.events.len()
    }

    fn subject(&self, index: usize) -> &Subject {
        &self.events[index].subject
    }
}

impl WireItems for Events<'_> {
    const SIGNAL: OtlpSignal = OtlpSignal::Logs;

    fn write(&self, writer: &mut Writer, record: &[Place]) {
        for place in record.iter().rev() {
            writer
                .message(2, |w| log_record(w, &self.events[place.index()], self.observed_unix_ns));
        }
    }
}

fn log_record(w: &mut Writer, event: &Event, observed_unix_ns: u64) {
    w.bytes(12, event.name.as_bytes());
    w.fixed64(11, observed_unix_ns);
    if let Some(context) = event.context {
        ids(w, 9, 10, context);
    }
    attrs(w, 6, &event.attrs);
    w.message(5, |w| w.bytes_always(1, event.body.as_bytes()));
    w.bytes(3, event.severity.text().as_bytes());
    w.uint(2, event.severity as u64);
    w.fixed64(1, event.time_unix_ns);
}
