//! Proof: what the encoders write is what `opentelemetry-proto` (prost, serde) reads, bit for bit.

use std::{collections::BTreeMap, sync::Arc};

use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
        trace::v1::ExportTraceServiceRequest,
    },
    common::v1::{
        AnyValue, ArrayValue, InstrumentationScope, KeyValue, any_value::Value as ProtoValue,
    },
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    metrics::v1::{
        Gauge, Histogram, HistogramDataPoint, Metric as ProtoMetric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point,
    },
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span as ProtoSpan, Status, span::Link},
};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::{
    export::{generate, json::JsonEncoder, resource::HostResource},
    telemetry::{Event, Metric, MetricKind, Number, Point, Span, SpanContext},
};

fn resources() -> Arc<Resources> {
    let host =
        HostResource { name: "db-1".into(), id: "0123".into(), os_version: "6.18.44".into() };
    let user = [
        ("deployment.environment.name", "prod \"eu\""),
        ("service.name", "watch"),
        ("process.pid", "no"),
    ];
    Arc::new(Resources::new(&host, &user.map(|(key, value)| (key.to_owned(), value.to_owned()))))
}

// The model: the same batch as message structs, put together without any of the encoder's code.

fn kv(key: &str, value: ProtoValue) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), key_strindex: 0 }
}

fn text(key: &str, text: &str) -> KeyValue {
    kv(key, ProtoValue::StringValue(text.to_owned()))
}

fn shared() -> Vec<KeyValue> {
    vec![
        text("host.name", "db-1"),
        text("host.id", "0123"),
        text("os.type", "linux"),
        text("os.version", "6.18.44"),
        text("deployment.environment.name", "prod \"eu\""),
    ]
}

fn model_resource(subject: &Subject) -> Option<Resource> {
    let Subject::Process(p) = subject else {
        let mut attributes = vec![text("service.version", env!("CARGO_PKG_VERSION"))];
        attributes.extend(shared());
        attributes.extend([text("service.name", "watch"), text("process.pid", "no")]);
        return Some(Resource { attributes, ..Resource::default() });
    };
    let mut attributes = Vec::new();
    let mut add = |key: &str, value: &str| {
        if !value.is_empty() {
            attributes.push(text(key, value));
        }
    };
    add("service.name", &p.service_name);
    add("service.instance.id", &format!("db-1-{}-{}", p.pid, p.start_unix_ns / 1_000_000_000));
    add("process.pid", "");
    attributes.push(kv("process.pid", ProtoValue::IntValue(p.pid.into())));
    attributes.push(kv("process.parent_pid", ProtoValue::IntValue(p.parent_pid.into())));
    let created = match p.start_unix_ns {
        0 | 1 => "1970-01-01T00:00:00.000Z",
        _ => "2022-07-01T12:36:40.123Z",
    };
    attributes.push(text("process.creation.time", created));
    let mut add = |key: &str, value: &str| {
        if !value.is_empty() {
            attributes.push(text(key, value));
        }
    };
    add("process.executable.name", &p.name);
    add("process.executable.path", &p.executable);
    add("process.command_line", &p.command_line);
    add("process.owner", &p.user_name);
    attributes.push(kv("process.user.id", ProtoValue::IntValue(p.user_id.into())));
    for (key, value) in [
        ("process.linux.cgroup", &p.cgroup),
        ("container.id", &p.container_id),
        ("observer.unit", &p.unit),
    ] {
        if !value.is_empty() {
            attributes.push(text(key, value));
        }
    }
    if let Some(pm2) = &p.pm2 {
        if !pm2.app.is_empty() {
            attributes.push(text("observer.pm2.app", &pm2.app));
        }
        attributes.push(kv("observer.pm2.worker", ProtoValue::IntValue(pm2.worker.into())));
    }
    attributes.extend(shared());
    Some(Resource { attributes, ..Resource::default() })
}

fn scope() -> Option<InstrumentationScope> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Some(InstrumentationScope {
        name: "observer".into(),
        version,
        ..InstrumentationScope::default()
    })
}

fn model_attrs(attrs: &[Attr]) -> Vec<KeyValue> {
    let value = |value: &Value| match value {
        Value::Static(text) => ProtoValue::StringValue((*text).to_owned()),
        Value::Str(text) => ProtoValue::StringValue(text.to_string()),
        Value::Int(n) => ProtoValue::IntValue(*n),
        Value::Float(n) => ProtoValue::DoubleValue(*n),
        Value::Bool(b) => ProtoValue::BoolValue(*b),
        Value::List(texts) => ProtoValue::ArrayValue(ArrayValue {
            values: texts
                .iter()
                .map(|text| AnyValue { value: Some(ProtoValue::StringValue(text.to_string())) })
                .collect(),
        }),
    };
    attrs.iter().map(|attr| kv(attr.key, value(&attr.value))).collect()
}

fn model_ids(context: SpanContext) -> (Vec<u8>, Vec<u8>) {
    (context.trace_id.to_be_bytes().to_vec(), context.span_id.to_be_bytes().to_vec())
}

fn model_span(span: &Span) -> ProtoSpan {
    let (trace_id, span_id) = model_ids(span.context);
    let mut attributes = model_attrs(&span.attrs);
    attributes.extend(span.error.map(|error| text("error.type", error)));
    ProtoSpan {
        trace_id,
        span_id,
        parent_span_id: span.parent_span_id.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default(),
        name: span.name.to_owned(),
        kind: 1,
        start_time_unix_nano: span.start_unix_ns,
        end_time_unix_nano: span.end_unix_ns,
        attributes,
        links: span
            .links
            .iter()
            .map(|link| {
                let (trace_id, span_id) = model_ids(*link);
                Link { trace_id, span_id, ..Link::default() }
            })
            .collect(),
        status: span.error.map(|_| Status { code: 2, message: String::new() }),
        ..ProtoSpan::default()
    }
}

fn model_event(event: &Event, observed: u64) -> LogRecord {
    let (trace_id, span_id) = event.context.map(model_ids).unwrap_or_default();
    let severity = match event.severity {
        crate::telemetry::Severity::Info => (9, "INFO"),
        crate::telemetry::Severity::Warn => (13, "WARN"),
        crate::telemetry::Severity::Error => (17, "ERROR"),
    };
    LogRecord {
        time_unix_nano: event.time_unix_ns,
        observed_time_unix_nano: observed,
        severity_number: severity.0,
        severity_text: severity.1.into(),
        body: Some(AnyValue { value: Some(ProtoValue::StringValue(event.body.clone())) }),
        attributes: model_attrs(&event.attrs),
        trace_id,
        span_id,
        event_name: event.name.to_owned(),
        ..LogRecord::default()
    }
}

fn model_metric(metric: &Metric, points: &[&Point], time: u64) -> ProtoMetric {
    let numbers = |is_gauge: bool| {
        let number = |point: &&Point| NumberDataPoint {
            attributes: model_attrs(&point.attrs),
            start_time_unix_nano: if is_gauge { 0 } else { point.start_unix_ns },
            time_unix_nano: time,
            value: match point.number {
                Number::Int(n) => Some(number_data_point::Value::AsInt(n)),
                Number::Float(n) => Some(number_data_point::Value::AsDouble(n)),
                Number::Histogram(_) => None,
            },
            ..NumberDataPoint::default()
        };
        points.iter().map(number).collect()
    };
    let sum = |is_monotonic| Sum {
        data_points: numbers(false),
        aggregation_temporality: 2,
        is_monotonic,
    };
    let histogram = |point: &&Point| {
        let Number::Histogram(d) = &point.number else { return HistogramDataPoint::default() };
        let count = d.counts.iter().sum();
        HistogramDataPoint {
            attributes: model_attrs(&point.attrs),
            start_time_unix_nano: point.start_unix_ns,
            time_unix_nano: time,
            count,
            sum: Some(d.sum),
            bucket_counts: d.counts.clone(),
            explicit_bounds: d.bounds.clone(),
            max: (count > 0).then_some(d.max),
            ..HistogramDataPoint::default()
        }
    };
    let data = match metric.kind {
        MetricKind::Gauge => Data::Gauge(Gauge { data_points: numbers(true) }),
        MetricKind::Counter => Data::Sum(sum(true)),
        MetricKind::UpDownCounter => Data::Sum(sum(false)),
        MetricKind::Histogram => Data::Histogram(Histogram {
            data_points: points.iter().map(histogram).collect(),
            aggregation_temporality: 2,
        }),
    };
    ProtoMetric {
        name: metric.name.into(),
        description: metric.help.into(),
        unit: metric.unit.into(),
        data: Some(data),
        ..ProtoMetric::default()
    }
}

fn by_subject<T>(
    items: &[T],
    subject: impl Fn(&T) -> &Subject,
) -> Vec<(Option<Resource>, Vec<&T>)> {
    let mut groups = BTreeMap::new();
    for item in items {
        let key = match subject(item) {
            Subject::Host => (0, 0),
            Subject::Process(p) => (p.pid, p.start_unix_ns),
        };
        groups
            .entry(key)
            .or_insert_with(|| (model_resource(subject(item)), Vec::new()))
            .1
            .push(item);
    }
    groups.into_values().collect()
}

const SCHEMA: &str = "https://opentelemetry.io/schemas/1.44.0";

fn model(
    batch: &Batch,
) -> (ExportTraceServiceRequest, ExportMetricsServiceRequest, ExportLogsServiceRequest) {
    let resource_spans =
        by_subject(&batch.spans, |span| &span.subject).into_iter().map(|(resource, spans)| {
            let spans = spans.into_iter().map(model_span).collect();
            let scope_spans = vec![ScopeSpans { scope: scope(), spans, ..ScopeSpans::default() }];
            ResourceSpans { resource, scope_spans, schema_url: SCHEMA.into() }
        });
    let resource_logs =
        by_subject(&batch.events, |event| &event.subject).into_iter().map(|(resource, events)| {
            let log_records =
                events.into_iter().map(|event| model_event(event, batch.time_unix_ns)).collect();
            let scope_logs =
                vec![ScopeLogs { scope: scope(), log_records, ..ScopeLogs::default() }];
            ResourceLogs { resource, scope_logs, schema_url: SCHEMA.into() }
        });
    let resource_metrics =
        by_subject(&batch.points, |point| &point.subject).into_iter().map(|(resource, points)| {
            let mut metrics: BTreeMap<&str, (&Metric, Vec<&Point>)> = BTreeMap::new();
            for point in points {
                metrics
                    .entry(point.metric.name)
                    .or_insert((point.metric, Vec::new()))
                    .1
                    .push(point);
            }
            let metrics = metrics
                .into_values()
                .map(|(metric, points)| model_metric(metric, &points, batch.time_unix_ns))
                .collect();
            let scope_metrics =
                vec![ScopeMetrics { scope: scope(), metrics, ..ScopeMetrics::default() }];
            ResourceMetrics { resource, scope_metrics, schema_url: SCHEMA.into() }
        });
    (
        ExportTraceServiceRequest { resource_spans: resource_spans.collect() },
        ExportMetricsServiceRequest { resource_metrics: resource_metrics.collect() },
        ExportLogsServiceRequest { resource_logs: resource_logs.collect() },
    )
}

fn encoded(batch: &Batch) -> Vec<(OtlpSignal, u64, Vec<u8>)> {
    let mut requests = Vec::new();
    let skipped = Encoder::new(resources()).encode(batch, |request| {
        requests.push((request.signal, request.items, request.bytes.to_vec()))
    });
    assert_eq!(skipped, Skipped::default());
    requests
}

fn lines(batch: &Batch) -> Vec<(u64, String)> {
    let mut lines = Vec::new();
    let skipped = JsonEncoder::new(resources()).encode(batch, |line| {
        lines.push((line.items, String::from_utf8(line.bytes.to_vec()).unwrap()));
    });
    assert_eq!(skipped, Skipped::default());
    lines
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn wire_bytes_and_json_lines_say_what_opentelemetry_proto_says(batch in generate::batch()) {
        let (traces, metrics, logs) = model(&batch);
        let requests = encoded(&batch);
        let lines = lines(&batch);
        prop_assert_eq!(requests.len(), lines.len());
        let mut want: Vec<(OtlpSignal, usize, Vec<u8>)> = Vec::new();
        for (signal, items, bytes) in [
            (OtlpSignal::Traces, batch.spans.len(), traces.encode_to_vec()),
            (OtlpSignal::Metrics, batch.points.len(), metrics.encode_to_vec()),
            (OtlpSignal::Logs, batch.events.len(), logs.encode_to_vec()),
        ] {
            if items > 0 {
                want.push((signal, items, bytes));
            }
        }
        prop_assert_eq!(requests.len(), want.len());
        for (((signal, items, bytes), (line_items, line)), want) in requests.iter().zip(&lines).zip(&want) {
            prop_assert_eq!((signal, *items as usize, *line_items as usize), (&want.0, want.1, want.1));
            prop_assert!(line.ends_with('\n') && line.matches('\n').count() == 1);
            match signal {
                OtlpSignal::Traces => {
                    prop_assert_eq!(&ExportTraceServiceRequest::decode(&bytes[..]).unwrap(), &traces);
                    prop_assert_eq!(&serde_json::from_str::<ExportTraceServiceRequest>(line).unwrap(), &traces);
                }
                OtlpSignal::Metrics => {
                    prop_assert_eq!(&ExportMetricsServiceRequest::decode(&bytes[..]).unwrap(), &metrics);
                    prop_assert_eq!(&serde_json::from_str::<ExportMetricsServiceRequest>(line).unwrap(), &metrics);
                }
                OtlpSignal::Logs => {
                    prop_assert_eq!(&ExportLogsServiceRequest::decode(&bytes[..]).unwrap(), &logs);
                    prop_assert_eq!(&serde_json::from_str::<ExportLogsServiceRequest>(line).unwrap(), &logs);
                }
            }
            prop_assert_eq!(bytes, &want.2, "bytes differ from prost's");
        }
    }
}

#[test]
fn a_large_batch_becomes_requests_and_lines_below_their_limits() {
    let batch = generate::spans(1, 60_000);
    let requests = encoded(&batch);
    assert!(requests.len() > 1);
    let mut ids: Vec<u64> = Vec::new();
    for (_, items, bytes) in &requests {
        assert!(bytes.len() <= MAX_REQUEST_BYTES, "{}", bytes.len());
        let request = ExportTraceServiceRequest::decode(&bytes[..]).unwrap();
        let spans: Vec<_> = request
            .resource_spans
            .iter()
            .flat_map(|r| &r.scope_spans)
            .flat_map(|s| &s.spans)
            .collect();
        assert_eq!(spans.len() as u64, *items);
        ids.extend(
            spans
                .iter()
                .map(|span| u64::from_be_bytes(span.span_id.as_slice().try_into().unwrap())),
        );
    }
    ids.sort_unstable();
    assert_eq!(ids, (1..=60_000).collect::<Vec<_>>());

    let lines = lines(&batch);
    assert_eq!(lines.iter().map(|(items, _)| items).sum::<u64>(), 60_000);
    for (items, line) in &lines {
        assert!(line.len() < crate::export::json::MAX_LINE_BYTES + 2048, "{}", line.len());
        let request: ExportTraceServiceRequest = serde_json::from_str(line).unwrap();
        assert_eq!(request.resource_spans[0].scope_spans[0].spans.len() as u64, *items);
    }
}

#[test]
fn what_cannot_be_encoded_is_counted_and_does_not_stop_the_rest() {
    let mut batch = generate::spans(1, 3);
    batch.spans[1]
        .attrs
        .push(crate::telemetry::attr("observer.stall.stack", "x".repeat(MAX_REQUEST_BYTES)));
    let wrong = [Number::Int(1), Number::Histogram(Box::default())];
    let metric = &generate::METRICS[3];
    batch.points = wrong
        .into_iter()
        .map(|number| Point {
            metric,
            attrs: Vec::new(),
            number,
            start_unix_ns: 0,
            subject: Subject::Host,
        })
        .collect();
    let mut items = 0;
    let skipped = Encoder::new(resources()).encode(&batch, |request| items += request.items);
    assert_eq!((items, skipped), (2, Skipped { oversized: 1, malformed: 2 }));
}

#[test]
fn doubles_that_json_has_no_number_for_are_words() {
    let mut batch = generate::spans(1, 1);
    batch.spans[0].attrs = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY]
        .map(|n| crate::telemetry::attr("k", n))
        .to_vec();
    let (_, line) = &lines(&batch)[0];
    for word in ["NaN", "Infinity", "-Infinity"] {
        assert!(line.contains(&format!("{{\"doubleValue\":\"{word}\"}}")), "{line}");
    }
}
