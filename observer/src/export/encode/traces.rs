//! Spans (opentelemetry/proto/trace/v1/trace.proto).

use super::{WireItems, attrs, key_text};
use crate::{
    export::{
        OtlpSignal,
        group::{Items, Place},
        wire::{Writer, bytes_tag, fixed64_tag},
    },
    telemetry::{Span, SpanContext, Subject},
};

/// `SPAN_KIND_INTERNAL`.
pub(in crate::export) const KIND_INTERNAL: u64 = 1;
/// `STATUS_CODE_ERROR`.
pub(in crate::export) const STATUS_ERROR: u64 = 2;

/// The spans of a batch.
pub(in crate::export) struct Spans<'a>(pub(in crate::export) &'a [Span]);

impl Items for Spans<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn subject(&self, index: usize) -> &Subject {
        &self.0[index].subject
    }
}

impl WireItems for Spans<'_> {
    const SIGNAL: OtlpSignal = OtlpSignal::Traces;

    fn write(&self, writer: &mut Writer, record: &[Place]) {
        for place in record.iter().rev() {
            writer.message(2, |w| span(w, &self.0[place.index()]));
        }
    }
}

#[inline]
fn span(w: &mut Writer, span: &Span) {
    if span.error.is_some() {
        w.message(15, |w| w.uint(3, STATUS_ERROR));
    }
    for link in span.links.iter().rev() {
        w.message(13, |w| ids(w, 1, 2, *link));
    }
    if let Some(error) = span.error {
        key_text(w, 9, "error.type", error);
    }
    attrs(w, 9, &span.attrs);
    if span.start_unix_ns == 0 || span.end_unix_ns == 0 {
        w.fixed64(8, span.end_unix_ns);
        w.fixed64(7, span.start_unix_ns);
    } else {
        // The same in one piece.
        let mut times = [0; 18];
        times[0] = fixed64_tag(7);
        times[1..9].copy_from_slice(&span.start_unix_ns.to_le_bytes());
        times[9] = fixed64_tag(8);
        times[10..].copy_from_slice(&span.end_unix_ns.to_le_bytes());
        w.raw(&times);
    }
    w.uint(6, KIND_INTERNAL);
    w.bytes(5, span.name.as_bytes());
    if let Some(parent) = span.parent_span_id {
        w.bytes(4, &parent.to_be_bytes());
    }
    ids(w, 1, 2, span.context);
}

/// Trace and span id, which are never 0 and always of the same length.
#[inline]
pub(super) fn ids(w: &mut Writer, trace: u8, span: u8, context: SpanContext) {
    let mut ids = [0; 28];
    ids[..2].copy_from_slice(&[bytes_tag(trace), 16]);
    ids[2..18].copy_from_slice(&context.trace_id.to_be_bytes());
    ids[18..20].copy_from_slice(&[bytes_tag(span), 8]);
    ids[20..].copy_from_slice(&context.span_id.to_be_bytes());
    w.raw(&ids);
}
