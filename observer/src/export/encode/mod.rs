//! A [`Batch`] as OTLP protobuf requests (opentelemetry-proto v1.11), written straight into one reused buffer.
//!
//! No message structs are built and nothing is allocated per item. All three kinds of request nest alike: request (1:
//! resources) > resource (1: resource, 2: scopes, 3: schema_url) > scope (1: scope, 2: records). The writer runs
//! backwards (see [`super::wire`]), hence every function here writes its last field first.

pub(super) mod logs;
pub(super) mod metrics;
#[cfg(test)]
mod tests;
pub(super) mod traces;

use std::sync::Arc;

use super::{
    OtlpSignal,
    group::{Items, Order, Place, same_record, same_subject},
    resource::{Known, Resources, SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION, Texts, attributes},
    wire::{MAX_VARINT, ONE_BYTE, Writer, bytes_tag, varint_of, varint_tag},
};
use crate::telemetry::{Attr, Batch, Subject, Value};

/// No request is larger: many servers refuse gRPC messages above 4 MiB (grpc.io, default of
/// `max_receive_message_length`).
pub const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024 - 1;
/// Records stop here, so that the resource of the last subject (below 512 KiB, see `resource`) still fits.
const MAX_RECORD_BYTES: usize = MAX_REQUEST_BYTES - 512 * 1024;

/// One encoded request, valid until the next one is written.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Which of the three services it is for.
    pub signal: OtlpSignal,
    /// Spans, data points or log records in it.
    pub items: u64,
    /// `Export*ServiceRequest`.
    pub bytes: &'a [u8],
}

/// Items that no request could take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Larger than a request may be.
    pub oversized: u64,
    /// Points whose number does not go with their metric's kind.
    pub malformed: u64,
}

/// Turns batches into requests.
#[derive(Debug)]
pub struct Encoder {
    resources: Arc<Resources>,
    writer: Writer,
    order: Order,
}

/// Items that can be written as protobuf.
trait WireItems: Items {
    const SIGNAL: OtlpSignal;
    /// Writes one record (field 2 of the scope).
    fn write(&self, writer: &mut Writer, record: &[Place]);
}

impl Encoder {
    /// An encoder with these resources.
    pub fn new(resources: Arc<Resources>) -> Self {
        Self { resources, writer: Writer::default(), order: Order::default() }
    }

    /// Hands each request that `batch` makes to `each`: at most one per signal, unless they would be too large.
    pub fn encode(&mut self, batch: &Batch, mut each: impl FnMut(Request<'_>)) -> Skipped {
        let mut skipped = Skipped::default();
        self.requests(&traces::Spans(&batch.spans), &mut skipped, &mut each);
        self.requests(&metrics::Points::of(batch), &mut skipped, &mut each);
        self.requests(&logs::Events::of(batch), &mut skipped, &mut each);
        skipped
    }

    fn requests<T: WireItems>(
        &mut self,
        items: &T,
        skipped: &mut Skipped,
        each: &mut impl FnMut(Request<'_>),
    ) {
        let (mut left, malformed) = self.order.sort(items);
        skipped.malformed += malformed;
        while !left.is_empty() {
            self.writer.clear();
            let mut written = 0;
            while !left.is_empty() {
                let one = same_subject(left.iter().rev());
                let mut run = &left[left.len() - one..];
                let taken = write_subject(&mut self.writer, &self.resources, items, &mut run);
                left = &left[..left.len() - one + run.len()];
                written += taken;
                if !run.is_empty() {
                    break;
                }
            }
            if written > 0 {
                each(Request { signal: T::SIGNAL, items: written, bytes: self.writer.written() });
            } else {
                let run = &left[left.len() - same_subject(left.iter().rev())..];
                let record = same_record(items, run.iter().rev());
                skipped.oversized += record as u64;
                left = &left[..left.len() - record];
            }
        }
    }
}

/// Writes the records of one subject from the last to the first, as many as fit; `run` keeps the others. Returns how many
/// items went in.
fn write_subject<T: WireItems>(
    writer: &mut Writer,
    resources: &Resources,
    items: &T,
    run: &mut &[Place],
) -> u64 {
    let Some(last) = run.last() else { return 0 };
    let subject = items.subject(last.index());
    let outside = writer.len();
    writer.bytes(3, SCHEMA_URL.as_bytes());
    let scope = writer.len();
    let mut written = 0;
    while !run.is_empty() {
        let before = writer.len();
        let (rest, record) = run.split_at(run.len() - same_record(items, run.iter().rev()));
        items.write(writer, record);
        if writer.len() > MAX_RECORD_BYTES {
            writer.rewind(before);
            break;
        }
        written += record.len() as u64;
        *run = rest;
    }
    if written == 0 {
        writer.rewind(outside);
        return 0;
    }
    writer.message(1, |w| {
        w.bytes(2, SCOPE_VERSION.as_bytes());
        w.bytes(1, SCOPE_NAME.as_bytes());
    });
    writer.close(2, scope);
    writer.message(1, |w| resource(w, resources, subject));
    writer.close(1, outside);
    written
}

fn resource(w: &mut Writer, resources: &Resources, subject: &Subject) {
    match subject {
        Subject::Host => w.raw(&resources.host.wire),
        Subject::Process(process) => {
            w.raw(&resources.shared.wire);
            let texts = Texts::of(process, resources.host_name());
            for (key, value) in attributes(process, &texts).rev() {
                match value {
                    Known::Text(text) => key_text(w, 1, key, text),
                    Known::Int(number) => key_int(w, 1, key, number),
                }
            }
        }
    }
}

/// Text attributes as fields of a `Resource`.
pub(super) fn texts(attrs: &[(&str, &str)]) -> Vec<u8> {
    let mut w = Writer::default();
    for (key, text) in attrs.iter().rev() {
        key_text(&mut w, 1, key, text);
    }
    w.written().to_vec()
}

/// `KeyValue` with a text. They are most of what is written, and nearly all short: then every length is one byte, and the
/// whole stands in one piece.
#[inline]
fn key_text(w: &mut Writer, field: u8, key: &str, text: &str) {
    let value = 2 + text.len();
    let all = 2 + key.len() + 2 + value;
    if all >= ONE_BYTE {
        return key_value(w, u64::from(field), key, |w| w.bytes_always(1, text.as_bytes()));
    }
    let (head, rest) = w.front(2 + all).split_at_mut(4);
    head.copy_from_slice(&[bytes_tag(field), all as u8, bytes_tag(1), key.len() as u8]);
    let (to, rest) = rest.split_at_mut(key.len());
    to.copy_from_slice(key.as_bytes());
    let (head, to) = rest.split_at_mut(4);
    head.copy_from_slice(&[bytes_tag(2), value as u8, bytes_tag(1), text.len() as u8]);
    to.copy_from_slice(text.as_bytes());
}

/// `KeyValue` with an integer, in one piece like [`key_text`].
#[inline]
fn key_int(w: &mut Writer, field: u8, key: &str, number: i64) {
    let mut varint = [0; MAX_VARINT];
    let varint = varint_of(number as u64, &mut varint);
    let value = 1 + varint.len();
    let all = 2 + key.len() + 2 + value;
    if all >= ONE_BYTE {
        return key_value(w, u64::from(field), key, |w| w.uint_always(3, number as u64));
    }
    let (head, rest) = w.front(2 + all).split_at_mut(4);
    head.copy_from_slice(&[bytes_tag(field), all as u8, bytes_tag(1), key.len() as u8]);
    let (to, rest) = rest.split_at_mut(key.len());
    to.copy_from_slice(key.as_bytes());
    let (head, to) = rest.split_at_mut(3);
    head.copy_from_slice(&[bytes_tag(2), value as u8, varint_tag(3)]);
    to.copy_from_slice(varint);
}

/// `KeyValue`.
#[inline]
fn key_value(w: &mut Writer, field: u64, key: &str, value: impl FnOnce(&mut Writer)) {
    let since = w.len();
    w.message(2, value);
    w.bytes(1, key.as_bytes());
    w.close(field, since);
}

#[inline]
fn attrs(w: &mut Writer, field: u8, attrs: &[Attr]) {
    for attr in attrs.iter().rev() {
        match &attr.value {
            Value::Static(text) => key_text(w, field, attr.key, text),
            Value::Str(text) => key_text(w, field, attr.key, text),
            Value::Int(number) => key_int(w, field, attr.key, *number),
            value => key_value(w, u64::from(field), attr.key, |w| any_value(w, value)),
        }
    }
}

/// Fields of an `AnyValue`.
#[inline]
fn any_value(w: &mut Writer, value: &Value) {
    match value {
        Value::Static(text) => w.bytes_always(1, text.as_bytes()),
        Value::Str(text) => w.bytes_always(1, text.as_bytes()),
        Value::Bool(truth) => w.uint_always(2, u64::from(*truth)),
        Value::Int(number) => w.uint_always(3, *number as u64),
        Value::Float(number) => w.fixed64_always(4, number.to_bits()),
        Value::List(texts) => w.message(5, |w| {
            for text in texts.iter().rev() {
                w.message(1, |w| w.bytes_always(1, text.as_bytes()));
            }
        }),
    }
}
