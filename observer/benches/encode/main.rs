//! Spans per CPU-second of our exporter and of the OpenTelemetry SDK's, on the same spans, into the same sink.
//!
//! `cargo bench -p observer --bench encode [-- ROUNDS]`. The sink is another process, so that only the sender's CPU time
//! counts; it counts every span, and a row whose spans did not all arrive is an error. Rounds are alternated: each runs
//! every path once. Printed is the median over the rounds.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run may stop")]

mod counting;
mod sdk;
mod sink;

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use observer::{
    config::{Config, Sources},
    export::{
        Exporter, INBOX_BATCHES,
        encode::Encoder,
        json::JsonEncoder,
        resource::{HostResource, Resources},
        settings,
    },
    identity::Process,
    telemetry::{Batch, Span, SpanContext, Subject, attr},
};
use rustix::time::{ClockId, clock_gettime};

use self::sink::Sink;

/// Spans in a batch; the SDK's default.
const BATCH: u64 = 512;

/// One way of getting spans out, run for so many batches a round.
struct Path<'a> {
    name: &'static str,
    batches: u64,
    run: Box<dyn FnMut(u64) + 'a>,
    /// Whether the spans reach the sink.
    delivers: bool,
    spans_per_cpu_s: Vec<f64>,
    allocations_per_span: f64,
}

fn path<'a>(
    name: &'static str,
    batches: u64,
    delivers: bool,
    run: impl FnMut(u64) + 'a,
) -> Path<'a> {
    Path {
        name,
        batches,
        run: Box::new(run),
        delivers,
        spans_per_cpu_s: Vec::new(),
        allocations_per_span: 0.0,
    }
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let first = args.next();
    if first.as_deref() == Some(sink::ARGUMENT) {
        return sink::serve();
    }
    let rounds: usize = first.and_then(|rounds| rounds.parse().ok()).unwrap_or(7);
    let sink = Sink::start();
    let address = sink.address;
    let subject = subject();
    let batch = batch(&subject);
    let resources = Arc::new(Resources::new(
        &HostResource { name: "db-1".into(), ..HostResource::default() },
        &[],
    ));
    let bytes = {
        let mut bytes = 0;
        Encoder::new(Arc::clone(&resources)).encode(&batch, |request| bytes += request.bytes.len());
        bytes as f64 / BATCH as f64
    };

    let mut encoder = Encoder::new(Arc::clone(&resources));
    let mut posting = Encoder::new(Arc::clone(&resources));
    let mut building = Encoder::new(Arc::clone(&resources));
    let mut json = JsonEncoder::new(resources);
    let mut connections = [Post::to(address), Post::to(address)];
    let [first, second] = &mut connections;
    let exporter = Running::start(address);
    let (sdk_http, sdk_grpc) = (sdk::Sdk::http(address), sdk::Sdk::grpc(address));
    let mut paths = [
        path("SDK batch exporter, OTLP/gRPC (tonic)", 200, true, |n| sdk_grpc.spans(n)),
        path("SDK batch exporter, OTLP/HTTP", 200, true, |n| sdk_http.spans(n)),
        path("opentelemetry-proto structs, encode only", 400, false, |n| sdk::structs(&batch, n)),
        path("observer, encode only", 8000, false, |n| {
            for _ in 0..n {
                encoder.encode(&batch, |request| {
                    std::hint::black_box(request.bytes);
                });
            }
        }),
        path("observer, encode + POST", 4000, true, |n| {
            for _ in 0..n {
                posting.encode(&batch, |request| first.post(request.bytes));
            }
        }),
        path("observer, build spans + encode + POST", 2000, true, |n| {
            for _ in 0..n {
                building.encode(&self::batch(&subject), |request| second.post(request.bytes));
            }
        }),
        path("observer, OTLP JSON only", 1000, false, |n| {
            for _ in 0..n {
                json.encode(&batch, |line| {
                    std::hint::black_box(line.bytes);
                });
            }
        }),
        path("observer, whole export side (hyper; JSON store too)", 400, true, |n| {
            exporter.spans(&batch, n)
        }),
    ];
    for round in 0..=rounds {
        for path in &mut paths {
            let (before, allocated, cpu) = (sink.count(), counting::allocations(), cpu_s());
            (path.run)(path.batches);
            let (cpu, allocated) = (cpu_s() - cpu, counting::allocations() - allocated);
            let spans = path.batches * BATCH;
            if path.delivers {
                assert_eq!(sink.count() - before, spans, "{}: spans that the sink got", path.name);
            }
            // The first round warms up.
            if round > 0 {
                path.spans_per_cpu_s.push(spans as f64 / cpu);
                path.allocations_per_span = allocated as f64 / spans as f64;
            }
        }
    }
    print(&mut paths, rounds, bytes);
    drop(paths);
    exporter.stop();
}

fn print(paths: &mut [Path<'_>], rounds: usize, bytes: f64) {
    println!(
        "{BATCH} spans a batch, 8 attributes a span, {bytes:.0} bytes a span, {rounds} alternated rounds, medians"
    );
    println!(
        "{:54} {:>12} {:>9} {:>12} {:>9}",
        "path", "spans/CPU-s", "us/span", "allocs/span", "x SDK HTTP"
    );
    let medians: Vec<f64> =
        paths.iter_mut().map(|path| median(&mut path.spans_per_cpu_s)).collect();
    for (path, median) in paths.iter().zip(&medians) {
        println!(
            "{:54} {:>11.0}k {:>9.3} {:>12.2} {:>9.1}",
            path.name,
            median / 1e3,
            1e6 / median,
            path.allocations_per_span,
            median / medians[1]
        );
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// CPU time of this process so far, all threads.
fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn subject() -> Subject {
    let process = Process {
        pid: 4242,
        name: "node".into(),
        service_name: "checkout".into(),
        ..Process::default()
    };
    Subject::Process(Arc::new(process))
}

fn batch(subject: &Subject) -> Batch {
    let span = |n: u64| Span {
        name: "tcp connection",
        context: SpanContext { trace_id: u128::from(n) + 1, span_id: n + 1 },
        parent_span_id: None,
        links: Vec::new(),
        start_unix_ns: 1_656_679_000_000_000_000 + n,
        end_unix_ns: 1_656_679_001_000_000_000 + n,
        error: None,
        attrs: vec![
            attr("network.peer.address", "10.0.0.7"),
            attr("network.peer.port", 5432u16),
            attr("network.transport", "tcp"),
            attr("network.type", "ipv4"),
            attr("db.system.name", "postgresql"),
            attr("observer.tcp.sent_bytes", 123_456u64),
            attr("observer.tcp.received_bytes", 7_654_321u64),
            attr("observer.tcp.srtt_ns", 250_000u64),
        ],
        subject: subject.clone(),
    };
    Batch { time_unix_ns: 1, spans: (0..BATCH).map(span).collect(), ..Batch::default() }
}

/// The least that a POST can cost: one connection, one write, one read.
struct Post {
    stream: TcpStream,
    request: Vec<u8>,
    answer: [u8; 1024],
}

impl Post {
    fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, request: Vec::new(), answer: [0; 1024] }
    }

    fn post(&mut self, body: &[u8]) {
        self.request.clear();
        let head =
            "POST /v1/traces HTTP/1.1\r\nhost: sink\r\ncontent-type: application/x-protobuf\r\n";
        write!(self.request, "{head}content-length: {}\r\n\r\n", body.len()).unwrap();
        self.request.extend_from_slice(body);
        self.stream.write_all(&self.request).unwrap();
        let read = self.stream.read(&mut self.answer).unwrap();
        assert!(self.answer[..read].starts_with(b"HTTP/1.1 200"));
    }
}

/// The product's exporter on its own thread, as in the agent.
struct Running {
    handle: observer::export::Handle,
    thread: std::thread::JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Running {
    fn start(address: SocketAddr) -> Self {
        let env = BTreeMap::from([(
            "OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(),
            format!("http://{address}"),
        )]);
        let config =
            Config::load(&[settings::SETTINGS], &Sources { env, ..Sources::default() }).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let (exporter, handle) =
            Exporter::new(&config, &HostResource::default(), None, directory.path()).unwrap();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(exporter.run());
        });
        Self { handle, thread, _directory: directory }
    }

    /// Offers as the sampler does, a few batches at a time so that none is lost.
    fn spans(&self, batch: &Batch, batches: u64) {
        let sent =
            |name| self.handle.status().into_iter().find(|row| row.name == name).unwrap().sent;
        let (otlp, store) = (sent("otlp"), sent("store"));
        let batch = Arc::new(batch.clone());
        for n in 1..=batches {
            self.handle.offer(Arc::clone(&batch));
            if n % (INBOX_BATCHES as u64 / 2) == 0 || n == batches {
                while sent("otlp") < otlp + n * BATCH || sent("store") < store + n * BATCH {
                    std::thread::sleep(Duration::from_micros(500));
                }
            }
        }
    }

    fn stop(self) {
        self.handle.shutdown(Duration::from_secs(2));
        self.thread.join().unwrap();
    }
}
