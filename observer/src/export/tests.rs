//! The whole export side over real sockets, against a receiver that misbehaves.

mod server;
mod tls;

use std::{
    collections::HashSet,
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::collector::{
    logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
    trace::v1::ExportTraceServiceRequest,
};
use proptest::{prelude::Strategy as _, strategy::ValueTree as _, test_runner::TestRunner};
use prost::Message as _;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

use self::server::{Got, Reply, Server};
use super::{
    options::{Protocol, Target, TlsFiles},
    wire::Writer,
    *,
};

/// Longest wait for something that happens by itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pauses short enough for tests.
const FAST: Pace =
    Pace { first: Duration::from_millis(2), longest: Duration::from_millis(20), refusals: 3 };

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "waited in vain until {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// A running exporter.
struct Running {
    handle: Handle,
    task: JoinHandle<()>,
    directory: TempDir,
}

struct Setup {
    base: String,
    protocol: Protocol,
    signals: Vec<OtlpSignal>,
    gzip: bool,
    timeout: Duration,
    headers: Vec<(&'static str, &'static str)>,
    tls: TlsFiles,
}

impl Setup {
    fn new(server: &Server, protocol: Protocol) -> Self {
        Self::at(format!("http://{}", server.address), protocol)
    }

    fn at(base: String, protocol: Protocol) -> Self {
        Self {
            base,
            protocol,
            signals: vec![OtlpSignal::Traces],
            gzip: false,
            timeout: PATIENCE,
            headers: Vec::new(),
            tls: TlsFiles::default(),
        }
    }

    fn start(self) -> Running {
        let directory = tempfile::tempdir().unwrap();
        let target = |signal: &OtlpSignal| Target {
            signal: *signal,
            protocol: self.protocol,
            uri: match self.protocol {
                Protocol::Http => format!("{}{}", self.base, signal.http_path()),
                Protocol::Grpc => format!("{}{}", self.base, signal.grpc_path()),
            }
            .parse()
            .unwrap(),
            headers: self
                .headers
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect(),
            gzip: self.gzip,
            timeout: self.timeout,
            tls: self.tls.clone(),
        };
        let options = Options {
            targets: self.signals.iter().map(target).collect(),
            attributes: Vec::new(),
            queue_bytes: 8 * 1024 * 1024,
            store_bytes: 16 * 1024 * 1024,
            warnings: Vec::new(),
        };
        let host = HostResource { name: "db-1".into(), ..HostResource::default() };
        let out = Some(directory.path().join("out.jsonl"));
        let (exporter, handle) =
            Exporter::with_options(options, &host, out, directory.path(), FAST).unwrap();
        Running { handle, task: tokio::spawn(exporter.run()), directory }
    }
}

impl Running {
    fn row(&self) -> snapshot::Exporter {
        self.handle.status().into_iter().find(|row| row.name == "otlp").unwrap()
    }

    fn loss(&self, stage: &str) -> u64 {
        self.handle.losses().into_iter().find(|loss| loss.stage == stage).unwrap().count
    }

    fn out(&self) -> PathBuf {
        self.directory.path().join("out.jsonl")
    }

    async fn delivered(&self, items: u64) {
        until("everything is delivered", || self.row().sent >= items).await;
    }
}

fn ids(got: &[Got]) -> Vec<u64> {
    let mut ids = Vec::new();
    for got in got {
        let request = ExportTraceServiceRequest::decode(&got.body[..]).unwrap();
        for span in
            request.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans)
        {
            ids.push(u64::from_be_bytes(span.span_id.as_slice().try_into().unwrap()));
        }
    }
    ids.sort_unstable();
    ids
}

fn any_batch() -> Batch {
    let mut runner = TestRunner::deterministic();
    loop {
        let batch = generate::batch().new_tree(&mut runner).unwrap().current();
        if !batch.spans.is_empty() && !batch.events.is_empty() && !batch.points.is_empty() {
            return batch;
        }
    }
}

#[tokio::test]
async fn three_signals_arrive_over_both_transports_with_and_without_gzip() {
    let batch = any_batch();
    for (protocol, gzip) in
        [Protocol::Http, Protocol::Grpc].into_iter().flat_map(|p| [(p, false), (p, true)])
    {
        let server = Server::failing(Vec::new()).await;
        let mut setup = Setup::new(&server, protocol);
        setup.signals = vec![OtlpSignal::Traces, OtlpSignal::Metrics, OtlpSignal::Logs];
        setup.gzip = gzip;
        setup.headers = vec![("authorization", "Bearer s3cret")];
        let running = setup.start();
        running.handle.offer(Arc::new(batch.clone()));
        until("three requests have come", || server.taken().len() == 3).await;
        let mut spans = 0;
        for got in server.taken() {
            assert_eq!(got.gzip, gzip);
            assert_eq!(got.headers["authorization"], "Bearer s3cret");
            assert_eq!(got.headers["user-agent"], concat!("observer/", env!("CARGO_PKG_VERSION")));
            match got.path.as_str() {
                "/v1/traces" | "/opentelemetry.proto.collector.trace.v1.TraceService/Export" => {
                    spans += ids(&[got]).len();
                }
                "/v1/metrics"
                | "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export" => {
                    assert!(
                        !ExportMetricsServiceRequest::decode(got.body)
                            .unwrap()
                            .resource_metrics
                            .is_empty()
                    );
                }
                "/v1/logs" | "/opentelemetry.proto.collector.logs.v1.LogsService/Export" => {
                    assert!(
                        !ExportLogsServiceRequest::decode(got.body)
                            .unwrap()
                            .resource_logs
                            .is_empty()
                    );
                }
                path => panic!("a request to {path}"),
            }
        }
        assert_eq!(spans, batch.spans.len());
        let want = items(&batch);
        until("all is counted", || {
            running
                .handle
                .status()
                .iter()
                .filter(|row| row.name == "otlp")
                .map(|row| row.sent)
                .sum::<u64>()
                == want
        })
        .await;
    }
}

/// After these answers everything arrives exactly once; meanwhile the reason is shown.
async fn check_recovers(protocol: Protocol, faults: Vec<Reply>, reason: &str) {
    let what = format!("{faults:?}").chars().take(200).collect::<String>();
    // The last fault stays until it has been seen.
    let lasting = faults.last().cloned();
    let (tell, told) = watch::channel(false);
    let mut first = faults.into_iter();
    let server = Server::start(move |_| match first.next() {
        Some(fault) => fault,
        None if *told.borrow() => Reply::Ok,
        None => lasting.clone().unwrap_or(Reply::Ok),
    })
    .await;
    let mut setup = Setup::new(&server, protocol);
    setup.timeout = Duration::from_millis(250);
    let running = setup.start();
    running.handle.offer(Arc::new(generate::spans(1, 4)));
    until(&format!("{what} is shown as {reason}"), || {
        let row = running.row();
        row.state != "open" && row.reason.contains(reason)
    })
    .await;
    running.handle.offer(Arc::new(generate::spans(5, 4)));
    tell.send_replace(true);
    running.delivered(8).await;
    assert_eq!(ids(&server.taken()), (1..=8).collect::<Vec<_>>(), "{what}");
    let row = running.row();
    assert_eq!(
        (row.sent, row.dropped, row.state.as_str(), row.reason.as_str()),
        (8, 0, "open", ""),
        "{what}"
    );
}

fn http(status: u16) -> Vec<Reply> {
    vec![Reply::Http(status, &[], Vec::new()); 2]
}

#[tokio::test]
async fn http_refusals_are_survived() {
    use Protocol::Http;
    check_recovers(Http, http(401), "HTTP 401 Unauthorized").await;
    check_recovers(Http, http(403), "HTTP 403").await;
    check_recovers(Http, http(404), "HTTP 404").await;
    check_recovers(Http, http(405), "HTTP 405").await;
    check_recovers(Http, http(500), "HTTP 500").await;
    check_recovers(Http, http(502), "HTTP 502").await;
    check_recovers(Http, http(503), "HTTP 503").await;
    check_recovers(Http, http(504), "HTTP 504").await;
    for value in ["0", "soon", "Fri, 01 Jul 2022 12:00:00 GMT", "\u{7f}"] {
        let headers: &'static [_] = Box::leak(Box::new([("retry-after", value)]));
        if value.bytes().all(|byte| byte != 0x7f) {
            check_recovers(Http, vec![Reply::Http(429, headers, Vec::new())], "HTTP 429").await;
        }
    }
    let redirect = Reply::Http(307, &[("location", "http://elsewhere.invalid/")], Vec::new());
    check_recovers(Http, vec![redirect], "redirects are not followed").await;
    let html = Reply::Http(200, &[("content-type", "text/html")], b"<html>log in</html>".into());
    check_recovers(Http, vec![html], "it answers with text/html").await;
    let nonsense =
        Reply::Http(200, &[("content-type", "application/x-protobuf")], b"\xff\xff\xff".into());
    check_recovers(Http, vec![nonsense], "a body that is not OTLP").await;
}

#[tokio::test]
async fn silence_is_survived() {
    for protocol in [Protocol::Http, Protocol::Grpc] {
        check_recovers(protocol, vec![Reply::Hang], "no answer within").await;
        check_recovers(protocol, vec![Reply::Trickle], "no answer within").await;
    }
}

#[tokio::test]
async fn grpc_refusals_are_survived() {
    let check = |code, message, details, reason: &'static str| {
        check_recovers(Protocol::Grpc, vec![Reply::Grpc(code, message, details)], reason)
    };
    check(16, "token%20expired", None, "gRPC UNAUTHENTICATED: token expired").await;
    check(7, "", None, "gRPC PERMISSION_DENIED").await;
    check(12, "", None, "gRPC UNIMPLEMENTED").await;
    check(14, "", None, "gRPC UNAVAILABLE").await;
    check(8, "quota", None, "gRPC RESOURCE_EXHAUSTED: quota").await;
    let mut status = Writer::default();
    status.message(3, |w| {
        w.message(2, |w| w.message(1, |w| w.uint(2, 5_000_000)));
        w.bytes(1, b"type.googleapis.com/google.rpc.RetryInfo");
    });
    check(8, "quota", Some(status.written().to_vec()), "gRPC RESOURCE_EXHAUSTED: quota").await;
    check_recovers(Protocol::Grpc, vec![Reply::GrpcCut], "no grpc-status").await;
    check_recovers(Protocol::Grpc, http(502), "HTTP 502").await;
    let html = Reply::Http(200, &[("content-type", "text/html")], b"<html>".into());
    check_recovers(Protocol::Grpc, vec![html], "it answers with text/html").await;
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_waited_for() {
    for protocol in [Protocol::Http, Protocol::Grpc] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let running = Setup::at(format!("http://{address}"), protocol).start();
        running.handle.offer(Arc::new(generate::spans(1, 3)));
        // Accepted and closed without a word, then refused.
        server::slam(&listener).await;
        until("the lost connection is shown", || running.row().state == "backoff").await;
        drop(listener);
        until("the refused connection is shown", || running.row().reason.contains("refused")).await;
        let server = Server::on(TcpListener::bind(address).await.unwrap(), None, |_| Reply::Ok);
        running.delivered(3).await;
        assert_eq!(ids(&server.taken()), [1, 2, 3]);
    }
}

#[tokio::test]
async fn an_answer_beyond_the_bound_counts_as_refusal_and_does_not_block() {
    for protocol in [Protocol::Http, Protocol::Grpc] {
        let server = Server::failing(vec![Reply::Huge(5 * 1024 * 1024)]).await;
        let running = Setup::new(&server, protocol).start();
        running.handle.offer(Arc::new(generate::spans(1, 1)));
        until("it is counted", || running.loss("export.refused") == 1).await;
        running.handle.offer(Arc::new(generate::spans(2, 1)));
        running.delivered(1).await;
        assert_eq!(ids(&server.taken()), [2]);
    }
}

#[tokio::test]
async fn requests_that_are_too_large_are_split() {
    for (protocol, reply) in [
        (Protocol::Http, Reply::Http(413, &[], Vec::new())),
        (Protocol::Grpc, Reply::Grpc(8, "grpc: received message larger than max (5 vs. 4)", None)),
    ] {
        let server =
            Server::start(move |got| if got.body.len() > 2000 { reply.clone() } else { Reply::Ok })
                .await;
        let running = Setup::new(&server, protocol).start();
        running.handle.offer(Arc::new(generate::spans(1, 200)));
        running.delivered(200).await;
        assert_eq!(ids(&server.taken()), (1..=200).collect::<Vec<_>>());
        assert!(server.taken().len() > 8);
    }
}

#[tokio::test]
async fn a_record_that_is_refused_goes_alone() {
    for (protocol, reply) in [
        (
            Protocol::Http,
            Reply::Http(400, &[("content-type", "text/plain")], b"no errors please".to_vec()),
        ),
        (Protocol::Grpc, Reply::Grpc(3, "no errors please", None)),
    ] {
        let server = Server::start(move |got| {
            if got.body.windows(7).any(|window| window == b"timeout") {
                reply.clone()
            } else {
                Reply::Ok
            }
        })
        .await;
        let running = Setup::new(&server, protocol).start();
        let mut batch = generate::spans(1, 20);
        batch.spans[6].error = Some("timeout");
        running.handle.offer(Arc::new(batch));
        running.delivered(19).await;
        until("it is counted", || running.loss("export.refused") == 1).await;
        assert_eq!(ids(&server.taken()), (1..=20).filter(|id| *id != 7).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn compression_is_given_up_where_it_is_refused() {
    for (protocol, reply) in [
        (Protocol::Http, Reply::Http(400, &[], Vec::new())),
        (Protocol::Http, Reply::Http(415, &[], Vec::new())),
        (Protocol::Grpc, Reply::Grpc(12, "grpc: Decompressor is not installed", None)),
    ] {
        let server =
            Server::start(move |got| if got.gzip { reply.clone() } else { Reply::Ok }).await;
        let mut setup = Setup::new(&server, protocol);
        setup.gzip = true;
        let running = setup.start();
        running.handle.offer(Arc::new(generate::spans(1, 2)));
        running.delivered(2).await;
        running.handle.offer(Arc::new(generate::spans(3, 2)));
        running.delivered(4).await;
        assert_eq!(
            server.got().iter().map(|got| got.gzip).collect::<Vec<_>>(),
            [true, false, false]
        );
        assert_eq!(ids(&server.taken()), [1, 2, 3, 4]);
    }
}

#[tokio::test]
async fn partial_success_is_counted() {
    let mut message = Writer::default();
    message.message(1, |w| {
        w.bytes(2, b"too old");
        w.uint(1, 2);
    });
    let reply =
        Reply::Http(200, &[("content-type", "application/x-protobuf")], message.written().to_vec());
    let server = Server::failing(vec![reply]).await;
    let running = Setup::new(&server, Protocol::Http).start();
    running.handle.offer(Arc::new(generate::spans(1, 5)));
    running.delivered(3).await;
    assert_eq!((running.row().dropped, running.loss("export.rejected")), (2, 2));
    assert_eq!(server.got().len(), 1);
}

#[tokio::test]
async fn a_server_that_repeats_the_credential_does_not_get_it_into_the_status() {
    let reply = Reply::Http(
        401,
        &[("content-type", "text/plain")],
        b"bad Authorization: Bearer s3cret-token".to_vec(),
    );
    let server = Server::start(move |_| reply.clone()).await;
    let mut setup = Setup::new(&server, Protocol::Http);
    setup.headers = vec![("authorization", "Bearer s3cret-token")];
    let running = setup.start();
    running.handle.offer(Arc::new(generate::spans(1, 1)));
    until("it is held", || running.row().state == "held").await;
    assert_eq!(running.row().reason, "HTTP 401 Unauthorized: bad Authorization: ***");
}

#[tokio::test]
async fn shutdown_keeps_its_deadline_although_the_endpoint_hangs_and_the_file_is_whole() {
    let server = Server::start(|_| Reply::Hang).await;
    let running = Setup::new(&server, Protocol::Grpc).start();
    for n in 0..5 {
        running.handle.offer(Arc::new(generate::spans(n * 10 + 1, 10)));
    }
    until("the request is there", || !server.got().is_empty()).await;
    let began = Instant::now();
    running.handle.offer(Arc::new(generate::spans(51, 10)));
    running.handle.shutdown(Duration::from_millis(100));
    let out = running.out();
    let (handle, task) = (running.handle.clone(), running.task);
    task.await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    let rows = handle.status();
    let otlp = rows.iter().find(|row| row.name == "otlp").unwrap();
    assert_eq!((otlp.sent, otlp.dropped, otlp.queued), (0, 60, 0));
    assert_eq!(handle.losses().iter().find(|loss| loss.stage == "export.exit").unwrap().count, 60);
    let mut ids = HashSet::new();
    for line in fs::read_to_string(out).unwrap().lines() {
        let request: ExportTraceServiceRequest = serde_json::from_str(line).unwrap();
        for span in &request.resource_spans[0].scope_spans[0].spans {
            ids.insert(span.span_id.clone());
        }
    }
    assert_eq!(ids.len(), 60);
}

#[tokio::test]
async fn shutdown_delivers_what_was_offered_just_before() {
    let server = Server::failing(Vec::new()).await;
    let running = Setup::new(&server, Protocol::Http).start();
    running.handle.offer(Arc::new(generate::spans(1, 7)));
    running.handle.shutdown(PATIENCE);
    running.task.await.unwrap();
    assert_eq!(ids(&server.taken()).len(), 7);
}

#[tokio::test]
async fn a_sampler_that_outruns_the_io_thread_loses_the_oldest_batches_counted() {
    let server = Server::failing(Vec::new()).await;
    let running = Setup::new(&server, Protocol::Http).start();
    // One thread: the exporter does not run before this test waits.
    for n in 0..INBOX_BATCHES as u64 + 3 {
        running.handle.offer(Arc::new(generate::spans(n * 2 + 1, 2)));
    }
    assert_eq!(running.loss("export.inbox"), 6);
    running.delivered(2 * INBOX_BATCHES as u64).await;
    assert_eq!(ids(&server.taken()), (7..7 + 2 * INBOX_BATCHES as u64).collect::<Vec<_>>());
}
