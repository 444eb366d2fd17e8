//! The OpenTelemetry SDK doing the same, as well as it can: its batch processor, flushed after each batch (its queue would
//! drop spans under a tight loop), over tonic, and over HTTP with the cheapest client that its interface allows.

use std::{
    net::SocketAddr,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use observer::telemetry::{Batch, Value};
use opentelemetry::{
    KeyValue,
    trace::{Span as _, SpanBuilder, SpanKind, Tracer as _, TracerProvider as _},
};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue as ProtoKeyValue, any_value},
    resource::v1::Resource as ProtoResource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider},
};
use prost::Message as _;

use crate::{BATCH, Post};

pub(crate) struct Sdk {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Sdk {
    pub(crate) fn http(address: SocketAddr) -> Self {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client(Mutex::new(Post::to(address))))
            .with_endpoint(format!("http://{address}/v1/traces"))
            .build()
            .unwrap();
        Self::with(exporter)
    }

    pub(crate) fn grpc(address: SocketAddr) -> Self {
        // Tonic's connection lives on a thread of its own until the benchmark ends.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let inside = runtime.enter();
        let endpoint = format!("http://{address}");
        let exporter =
            SpanExporter::builder().with_tonic().with_endpoint(endpoint).build().unwrap();
        drop(inside);
        std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        Self::with(exporter)
    }

    fn with(exporter: SpanExporter) -> Self {
        let batch = BatchConfigBuilder::default()
            .with_max_queue_size(2 * BATCH as usize)
            .with_max_export_batch_size(BATCH as usize)
            .with_scheduled_delay(Duration::from_secs(3600))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_resource(Resource::builder().with_service_name("checkout").build())
            .with_span_processor(
                BatchSpanProcessor::builder(exporter).with_batch_config(batch).build(),
            )
            .build();
        let tracer = provider.tracer("observer");
        Self { provider, tracer }
    }

    pub(crate) fn spans(&self, batches: u64) {
        let time = SystemTime::now();
        for _ in 0..batches {
            for _ in 0..BATCH {
                let attributes = vec![
                    KeyValue::new("network.peer.address", "10.0.0.7"),
                    KeyValue::new("network.peer.port", 5432),
                    KeyValue::new("network.transport", "tcp"),
                    KeyValue::new("network.type", "ipv4"),
                    KeyValue::new("db.system.name", "postgresql"),
                    KeyValue::new("observer.tcp.sent_bytes", 123_456),
                    KeyValue::new("observer.tcp.received_bytes", 7_654_321),
                    KeyValue::new("observer.tcp.srtt_ns", 250_000),
                ];
                let builder = SpanBuilder::from_name("tcp connection")
                    .with_kind(SpanKind::Internal)
                    .with_start_time(time)
                    .with_attributes(attributes);
                let mut span = self.tracer.build(builder);
                span.end_with_timestamp(time + Duration::from_secs(1));
            }
            self.provider.force_flush().unwrap();
        }
    }
}

#[derive(Debug)]
struct Client(Mutex<Post>);

impl std::fmt::Debug for Post {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Post")
    }
}

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        self.0.lock().unwrap().post(request.body());
        Ok(Response::new(Bytes::new()))
    }
}

/// The same batch as message structs, encoded by prost.
pub(crate) fn structs(batch: &Batch, batches: u64) {
    let text = |text: &str| any_value::Value::StringValue(text.to_owned());
    let kv = |key: &str, value| ProtoKeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..ProtoKeyValue::default()
    };
    let value = |value: &Value| match value {
        Value::Int(number) => any_value::Value::IntValue(*number),
        Value::Static(words) => text(words),
        _ => text(""),
    };
    for _ in 0..batches {
        let spans = batch.spans.iter().map(|span| Span {
            trace_id: span.context.trace_id.to_be_bytes().to_vec(),
            span_id: span.context.span_id.to_be_bytes().to_vec(),
            name: span.name.to_owned(),
            kind: 1,
            start_time_unix_nano: span.start_unix_ns,
            end_time_unix_nano: span.end_unix_ns,
            attributes: span.attrs.iter().map(|attr| kv(attr.key, value(&attr.value))).collect(),
            ..Span::default()
        });
        let resource = ProtoResource {
            attributes: vec![kv("service.name", text("checkout"))],
            ..ProtoResource::default()
        };
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(resource),
                scope_spans: vec![ScopeSpans { spans: spans.collect(), ..ScopeSpans::default() }],
                schema_url: String::new(),
            }],
        };
        std::hint::black_box(request.encode_to_vec());
    }
}
