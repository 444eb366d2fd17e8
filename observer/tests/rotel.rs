//! The exporter against a receiver that others wrote: rotel (otlp over HTTP and gRPC), which prints what it gets.
//!
//! `OBSERVER_TEST_ROTEL` is the path of `rotel-agent` (`pip install rotel==0.0.1a15`, then
//! `lib/python3.11/site-packages/rotel/rotel-agent` of that environment). Without it the tests say that they are skipped.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test: helpers fail it by panicking, skips are printed"
)]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
    time::{Duration, Instant},
};

use observer::{
    config::{Config, Sources},
    export::{Exporter, resource::HostResource, settings},
    identity::Process,
    telemetry::{
        Batch, Distribution, Event, Metric, MetricKind, Number, Point, Severity, Span, SpanContext,
        Subject, attr,
    },
};

const PATIENCE: Duration = Duration::from_secs(20);

static METRICS: [Metric; 3] = [
    Metric {
        name: "process.memory.usage",
        unit: "By",
        kind: MetricKind::UpDownCounter,
        help: "Resident memory.",
    },
    Metric {
        name: "observer.sched.delay",
        unit: "s",
        kind: MetricKind::Histogram,
        help: "Run-queue delay.",
    },
    Metric {
        name: "system.memory.linux.available",
        unit: "By",
        kind: MetricKind::Gauge,
        help: "Headroom.",
    },
];

fn batch() -> Batch {
    let process = Process {
        pid: 4242,
        start_unix_ns: 1_656_679_000_123_000_000,
        name: "node".into(),
        service_name: "checkout".into(),
        ..Process::default()
    };
    let subject = Subject::Process(Arc::new(process));
    let context = SpanContext {
        trace_id: 0x0123_4567_89ab_cdef_0011_2233_4455_6677,
        span_id: 0xfeed_beef_0000_0001,
    };
    let distribution =
        Distribution { bounds: vec![0.001, 0.25], counts: vec![11, 22, 33], sum: 44.5, max: 3.5 };
    let point = |metric, number, subject| Point {
        metric,
        attrs: vec![attr("network.transport", "tcp")],
        number,
        start_unix_ns: 1_656_679_000_000_000_000,
        subject,
    };
    Batch {
        time_unix_ns: 1_656_679_010_000_000_000,
        spans: vec![Span {
            name: "tcp connection",
            context,
            parent_span_id: Some(0xaaaa_bbbb_cccc_dddd),
            links: vec![SpanContext { trace_id: 0x9999, span_id: 0x8888 }],
            start_unix_ns: 1_656_679_001_000_000_000,
            end_unix_ns: 1_656_679_002_000_000_000,
            error: Some("ECONNRESET"),
            attrs: vec![
                attr("network.peer.port", 5432u16),
                attr("network.peer.address", "10.0.0.7"),
            ],
            subject: subject.clone(),
        }],
        events: vec![Event {
            name: "observer.oom.kill",
            severity: Severity::Error,
            time_unix_ns: 1_656_679_003_000_000_000,
            body: "node was killed to free memory".into(),
            attrs: vec![attr("observer.oom.victim.pid", 4242u32)],
            context: Some(context),
            subject: subject.clone(),
        }],
        points: vec![
            point(&METRICS[0], Number::Int(123_456_789), subject.clone()),
            point(&METRICS[1], Number::Histogram(Box::new(distribution)), subject),
            point(&METRICS[2], Number::Int(987_654_321), Subject::Host),
        ],
    }
}

/// A running rotel; killed when dropped.
struct Rotel {
    child: Child,
    output: PathBuf,
}

impl Drop for Rotel {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Rotel {
    fn start(binary: &Path, directory: &Path, grpc: u16, http: u16) -> Self {
        let output = directory.join("rotel.txt");
        let file = File::create(&output).unwrap();
        let child = Command::new(binary)
            .args(["start", "--exporter", "blackhole", "--debug-log-verbosity", "detailed"])
            .args(["--debug-log", "traces", "--debug-log", "metrics", "--debug-log", "logs"])
            .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")])
            .args(["--otlp-http-endpoint", &format!("127.0.0.1:{http}")])
            .arg("--pid-file")
            .arg(directory.join("rotel.pid"))
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let rotel = Self { child, output };
        for port in [grpc, http] {
            until("rotel listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        }
        rotel
    }

    fn printed(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn check(protocol: &str, compression: &str) {
    let Some(binary) = std::env::var_os("OBSERVER_TEST_ROTEL") else {
        println!("SKIPPED rotel: OBSERVER_TEST_ROTEL does not name a rotel-agent");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let (grpc, http) = (free_port(), free_port());
    let rotel = Rotel::start(Path::new(&binary), directory.path(), grpc, http);
    let port = if protocol == "grpc" { grpc } else { http };
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}")),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", compression.to_owned()),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10000".to_owned()),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test%20bench".to_owned()),
    ];
    let env: BTreeMap<_, _> =
        env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let config =
        Config::load(&[settings::SETTINGS], &Sources { env, ..Sources::default() }).unwrap();
    let host = HostResource { name: "db-1".into(), id: "abc".into(), os_version: "6.18".into() };
    let (exporter, handle) = Exporter::new(&config, &host, None, directory.path()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    handle.offer(Arc::new(batch()));
    handle.shutdown(PATIENCE);
    runtime.block_on(exporter.run());
    runtime.shutdown_background();

    let rows: Vec<_> = handle.status().into_iter().filter(|row| row.name == "otlp").collect();
    let told: Vec<_> = rows.iter().map(|row| (row.sent, row.dropped, row.state.as_str())).collect();
    assert_eq!(told, [(1, 0, "open"), (3, 0, "open"), (1, 0, "open")], "{rows:?}");
    for words in [
        // Span: ids, parent, link, name, attributes, status.
        "0123456789abcdef0011223344556677",
        "feedbeef00000001",
        "aaaabbbbccccdddd",
        "8888",
        "tcp connection",
        "network.peer.port",
        "5432",
        "10.0.0.7",
        "ECONNRESET",
        // Resource and scope.
        "checkout",
        "4242",
        "2022-07-01T12:36:40.123Z",
        "test bench",
        "https://opentelemetry.io/schemas/1.44.0",
        "observer",
        // Event.
        "observer.oom.kill",
        "node was killed to free memory",
        "observer.oom.victim.pid",
        // Metrics: sum, histogram, gauge.
        "process.memory.usage",
        "123456789",
        "observer.sched.delay",
        "44.5",
        "0.25",
        "system.memory.linux.available",
        "987654321",
    ] {
        until(&format!("rotel prints {words}, it printed:\n{}", rotel.printed()), || {
            rotel.printed().to_lowercase().contains(&words.to_lowercase())
        });
    }
}

#[test]
fn rotel_understands_what_comes_over_http() {
    check("http/protobuf", "none");
    check("http/protobuf", "gzip");
}

#[test]
fn rotel_understands_what_comes_over_grpc() {
    check("grpc", "none");
    check("grpc", "gzip");
}
