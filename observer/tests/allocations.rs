//! Proof that encoding allocates nothing per item once its buffers have grown: a counting allocator, alone in its process.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::Arc,
};

use observer::{
    export::{
        encode::Encoder,
        json::JsonEncoder,
        resource::{HostResource, Resources},
    },
    identity::{Pm2, Process},
    telemetry::{
        Batch, Distribution, Event, Metric, MetricKind, Number, Point, Severity, Span, SpanContext,
        Subject, attr,
    },
};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[expect(
    unsafe_code,
    reason = "GlobalAlloc is an unsafe trait; this one only counts and passes on to the system's"
)]
// SAFETY: every call goes to System unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are System's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are System's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations(run: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    run();
    ALLOCATIONS.get() - before
}

static METRICS: [Metric; 2] = [
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
];

/// `n` of everything, about a hundred processes in no order.
fn batch(n: u64) -> Batch {
    let process = |pid| {
        Subject::Process(Arc::new(Process {
            pid,
            start_unix_ns: 1_656_679_000_000_000_000 + u64::from(pid),
            name: "node".into(),
            command_line: "node server.js --port 3000".into(),
            pm2: Some(Pm2 {
                app: "api".into(),
                worker: pid,
                home: "/root/.pm2".into(),
                ..Pm2::default()
            }),
            service_name: "api".into(),
            ..Process::default()
        }))
    };
    let subjects: Vec<_> = (1..=100).map(process).chain([Subject::Host]).collect();
    let subject = |n: u64| subjects[(n * 37) as usize % subjects.len()].clone();
    let attrs = || {
        vec![
            attr("network.peer.address", "10.0.0.7".to_owned()),
            attr("network.peer.port", 5432u16),
            attr("observer.tcp.open", true),
            attr("observer.tcp.share", 0.25),
        ]
    };
    let context = |n| SpanContext { trace_id: u128::from(n) + 1, span_id: n + 1 };
    let distribution =
        || Distribution { bounds: vec![0.1, 1.0], counts: vec![1, 2, 3], sum: 4.5, max: 2.0 };
    Batch {
        time_unix_ns: 1_656_679_000_000_000_000,
        spans: (0..n)
            .map(|n| Span {
                name: "tcp connection",
                context: context(n),
                parent_span_id: None,
                links: vec![context(n + 1)],
                start_unix_ns: n,
                end_unix_ns: n + 1,
                error: Some("ECONNRESET"),
                attrs: attrs(),
                subject: subject(n),
            })
            .collect(),
        events: (0..n)
            .map(|n| Event {
                name: "observer.memory.step",
                severity: Severity::Warn,
                time_unix_ns: n,
                body: "grew by 64 MiB \"at once\"".into(),
                attrs: attrs(),
                context: Some(context(n)),
                subject: subject(n),
            })
            .collect(),
        points: (0..n)
            .map(|n| Point {
                metric: &METRICS[n as usize % 2],
                attrs: attrs(),
                number: if n % 2 == 0 {
                    Number::Int(7)
                } else {
                    Number::Histogram(Box::new(distribution()))
                },
                start_unix_ns: n,
                subject: subject(n),
            })
            .collect(),
    }
}

#[test]
fn nothing_is_allocated_per_item() {
    let resources = Arc::new(Resources::new(
        &HostResource { name: "db-1".into(), ..HostResource::default() },
        &[],
    ));
    let mut encoder = Encoder::new(Arc::clone(&resources));
    let mut json = JsonEncoder::new(resources);
    let (large, small) = (batch(4096), batch(512));
    let mut items = 0;
    assert!(allocations(|| drop(std::hint::black_box(vec![1u8]))) > 0, "the counter counts");
    // The first batch grows the buffers.
    encoder.encode(&large, |request| items += request.items);
    json.encode(&large, |line| items += line.items);
    for batch in [&small, &large] {
        let wire = allocations(|| {
            encoder.encode(batch, |request| items += request.items);
        });
        let lines = allocations(|| {
            json.encode(batch, |line| items += line.items);
        });
        assert_eq!((wire, lines), (0, 0), "allocations for {} spans", batch.spans.len());
    }
    assert_eq!(items, 2 * 3 * (4096 + 512 + 4096));
}
