//! Metric points (opentelemetry/proto/metrics/v1/metrics.proto), cumulative.

use std::cmp::Ordering;

use super::{WireItems, attrs};
use crate::{
    export::{
        OtlpSignal,
        group::{Items, Place},
        wire::Writer,
    },
    telemetry::{Batch, Distribution, MetricKind, Number, Point, Subject},
};

/// `AGGREGATION_TEMPORALITY_CUMULATIVE`.
pub(in crate::export) const CUMULATIVE: u64 = 2;

/// The points of a batch.
pub(in crate::export) struct Points<'a> {
    pub(in crate::export) points: &'a [Point],
    /// When they were read.
    pub(in crate::export) time_unix_ns: u64,
}

impl<'a> Points<'a> {
    pub(in crate::export) fn of(batch: &'a Batch) -> Self {
        Self { points: &batch.points, time_unix_ns: batch.time_unix_ns }
    }
}

impl Items for Points<'_> {
    fn len(&self) -> usize {
        self.points.len()
    }

    fn subject(&self, index: usize) -> &Subject {
        &self.points[index].subject
    }

    fn is_valid(&self, index: usize) -> bool {
        let point = &self.points[index];
        match (&point.number, point.metric.kind) {
            (Number::Histogram(d), MetricKind::Histogram) => d.counts.len() == d.bounds.len() + 1,
            (Number::Histogram(_), _) | (_, MetricKind::Histogram) => false,
            _ => true,
        }
    }

    fn order(&self, a: usize, b: usize) -> Ordering {
        self.points[a].metric.name.cmp(self.points[b].metric.name)
    }

    fn share_record(&self, a: usize, b: usize) -> bool {
        self.points[a].metric.name == self.points[b].metric.name
    }
}

impl WireItems for Points<'_> {
    const SIGNAL: OtlpSignal = OtlpSignal::Metrics;

    fn write(&self, writer: &mut Writer, record: &[Place]) {
        let Some(first) = record.first() else { return };
        let metric = self.points[first.index()].metric;
        writer.message(2, |w| {
            let (field, is_sum) = match metric.kind {
                MetricKind::Gauge => (5, false),
                MetricKind::Counter | MetricKind::UpDownCounter => (7, true),
                MetricKind::Histogram => (9, false),
            };
            w.message(field, |w| {
                w.uint(3, u64::from(metric.kind == MetricKind::Counter));
                w.uint(
                    2,
                    if is_sum || metric.kind == MetricKind::Histogram { CUMULATIVE } else { 0 },
                );
                for place in record.iter().rev() {
                    w.message(1, |w| point(w, &self.points[place.index()], self.time_unix_ns));
                }
            });
            w.bytes(3, metric.unit.as_bytes());
            w.bytes(2, metric.help.as_bytes());
            w.bytes(1, metric.name.as_bytes());
        });
    }
}

/// Start of a point's series: a gauge has none.
pub(in crate::export) fn start(point: &Point) -> u64 {
    if point.metric.kind == MetricKind::Gauge { 0 } else { point.start_unix_ns }
}

/// Fields of a `NumberDataPoint` or `HistogramDataPoint`.
fn point(w: &mut Writer, point: &Point, time_unix_ns: u64) {
    match &point.number {
        Number::Int(number) => {
            attrs(w, 7, &point.attrs);
            w.fixed64_always(6, *number as u64);
        }
        Number::Float(number) => {
            attrs(w, 7, &point.attrs);
            w.fixed64_always(4, number.to_bits());
        }
        Number::Histogram(distribution) => {
            let count = count(distribution);
            if count > 0 {
                w.fixed64_always(12, distribution.max.to_bits());
            }
            attrs(w, 9, &point.attrs);
            w.packed(7, distribution.bounds.iter().map(|bound| bound.to_bits()));
            w.packed(6, distribution.counts.iter().copied());
            w.fixed64_always(5, distribution.sum.to_bits());
            w.fixed64(4, count);
        }
    }
    w.fixed64(3, time_unix_ns);
    w.fixed64(2, start(point));
}

/// Values in all buckets.
pub(in crate::export) fn count(distribution: &Distribution) -> u64 {
    distribution.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
}
