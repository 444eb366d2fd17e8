//! The records of the three signals as JSON objects.

use super::{JsonItems, Out};
use crate::{
    export::{
        encode::{
            logs::Events,
            metrics::{CUMULATIVE, Points, count, start},
            traces::{KIND_INTERNAL, STATUS_ERROR, Spans},
        },
        group::Place,
    },
    telemetry::{Event, MetricKind, Number, Point, Span, SpanContext},
};

impl JsonItems for Spans<'_> {
    const LISTS: [&'static str; 3] = ["resourceSpans", "scopeSpans", "spans"];

    fn write(&self, out: &mut Out, record: &[Place]) {
        for place in record {
            span(out, &self.0[place.index()]);
        }
    }
}

fn span(out: &mut Out, span: &Span) {
    out.raw("{");
    ids(out, span.context);
    if let Some(parent) = span.parent_span_id {
        out.member_id("parentSpanId", parent.to_be_bytes());
    }
    out.member_text("name", span.name);
    out.member_number("kind", KIND_INTERNAL);
    out.member_int("startTimeUnixNano", span.start_unix_ns);
    out.member_int("endTimeUnixNano", span.end_unix_ns);
    out.attrs(&span.attrs, span.error);
    if !span.links.is_empty() {
        out.list("links", &span.links, |out, link| {
            out.raw("{");
            ids(out, *link);
            out.end_object();
        });
    }
    if span.error.is_some() {
        out.member("status");
        out.raw("{");
        out.member_number("code", STATUS_ERROR);
        out.end_object();
    }
    out.end_object();
}

fn ids(out: &mut Out, context: SpanContext) {
    out.member_id("traceId", context.trace_id.to_be_bytes());
    out.member_id("spanId", context.span_id.to_be_bytes());
}

impl JsonItems for Events<'_> {
    const LISTS: [&'static str; 3] = ["resourceLogs", "scopeLogs", "logRecords"];

    fn write(&self, out: &mut Out, record: &[Place]) {
        for place in record {
            log_record(out, &self.events[place.index()], self.observed_unix_ns);
        }
    }
}

fn log_record(out: &mut Out, event: &Event, observed_unix_ns: u64) {
    out.raw("{");
    out.member_int("timeUnixNano", event.time_unix_ns);
    out.member_int("observedTimeUnixNano", observed_unix_ns);
    out.member_number("severityNumber", event.severity as u64);
    out.member_text("severityText", event.severity.text());
    out.member("body");
    out.raw("{");
    out.member_text("stringValue", &event.body);
    out.end_object();
    out.raw(",");
    out.attrs(&event.attrs, None);
    if let Some(context) = event.context {
        ids(out, context);
    }
    out.member_text("eventName", event.name);
    out.end_object();
}

impl JsonItems for Points<'_> {
    const LISTS: [&'static str; 3] = ["resourceMetrics", "scopeMetrics", "metrics"];

    fn write(&self, out: &mut Out, record: &[Place]) {
        let Some(first) = record.first() else { return };
        let metric = self.points[first.index()].metric;
        out.raw("{");
        out.member_text("name", metric.name);
        out.member_text("description", metric.help);
        out.member_text("unit", metric.unit);
        out.member(match metric.kind {
            MetricKind::Gauge => "gauge",
            MetricKind::Counter | MetricKind::UpDownCounter => "sum",
            MetricKind::Histogram => "histogram",
        });
        out.raw("{");
        out.list("dataPoints", record, |out, place| {
            point(out, &self.points[place.index()], self.time_unix_ns)
        });
        if metric.kind != MetricKind::Gauge {
            out.member_number("aggregationTemporality", CUMULATIVE);
        }
        if metric.kind == MetricKind::Counter {
            out.raw("\"isMonotonic\":true,");
        }
        out.end_object();
        out.raw("}");
    }
}

fn point(out: &mut Out, point: &Point, time_unix_ns: u64) {
    out.raw("{");
    out.attrs(&point.attrs, None);
    if start(point) != 0 {
        out.member_int("startTimeUnixNano", start(point));
    }
    out.member_int("timeUnixNano", time_unix_ns);
    match &point.number {
        Number::Int(number) => out.member_int("asInt", *number),
        Number::Float(number) => out.member_double("asDouble", *number),
        Number::Histogram(distribution) => {
            out.member_int("count", count(distribution));
            out.member_double("sum", distribution.sum);
            out.list("bucketCounts", &distribution.counts, |out, count| out.int(count));
            out.list("explicitBounds", &distribution.bounds, |out, bound| out.double(*bound));
            if count(distribution) > 0 {
                out.member_double("max", distribution.max);
            }
        }
    }
    out.end_object();
}
