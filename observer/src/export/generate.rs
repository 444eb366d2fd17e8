//! Batches for tests: any (by proptest) and plain ones.

use std::sync::Arc;

use proptest::{option, prelude::*};

use crate::{
    identity::{Pm2, Process},
    telemetry::{
        Attr, Batch, Distribution, Event, Metric, MetricKind, Number, Point, Severity, Span,
        SpanContext, Subject, Value,
    },
};

pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: "process.memory.usage",
        unit: "By",
        kind: MetricKind::UpDownCounter,
        help: "Resident memory.",
    },
    Metric {
        name: "system.memory.linux.available",
        unit: "By",
        kind: MetricKind::Gauge,
        help: "Headroom.",
    },
    Metric {
        name: "observer.tcp.retransmits",
        unit: "{segment}",
        kind: MetricKind::Counter,
        help: "",
    },
    Metric {
        name: "observer.sched.delay",
        unit: "s",
        kind: MetricKind::Histogram,
        help: "Run-queue delay.",
    },
];

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[a-z./ -]{1,12}", ".{0,20}", "\\PC{0,6}[\"\\\\\n\t]\\PC{0,6}"]
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), Just(-0.0), Just(f64::MAX), Just(1e-300), -1e9..1e9]
}

fn int() -> impl Strategy<Value = i64> {
    prop_oneof![Just(0), Just(-1), Just(i64::MIN), Just(i64::MAX), 0..1000i64, any::<i64>()]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        prop::sample::select(vec!["", "tcp", "ipv4"]).prop_map(Value::Static),
        text().prop_map(Value::from),
        int().prop_map(Value::Int),
        number().prop_map(Value::Float),
        any::<bool>().prop_map(Value::Bool),
        prop::collection::vec(text(), 0..4).prop_map(|texts| Value::List(
            texts.into_iter().map(Arc::from).collect::<Vec<_>>().into()
        )),
    ]
}

fn attrs() -> impl Strategy<Value = Vec<Attr>> {
    let key =
        prop::sample::select(vec!["process.pid", "network.peer.port", "observer.stall.stack", "k"]);
    prop::collection::vec((key, value()).prop_map(|(key, value)| Attr { key, value }), 0..5)
}

prop_compose! {
    fn process()(
        pid in 1..4u32,
        start in prop::sample::select(vec![0, 1, 1_656_679_000_123_456_789]),
        texts in prop::collection::vec(text(), 9),
        pm2 in any::<bool>(),
        parent_pid in 0..2u32,
    ) -> Process {
        let text = |n: usize| texts[n].clone();
        Process {
            pid,
            start_unix_ns: start,
            parent_pid,
            name: text(0),
            executable: text(1),
            command_line: text(2),
            user_id: parent_pid * 1000,
            user_name: text(3),
            cgroup: text(4),
            unit: text(5),
            container_id: text(6),
            pm2: pm2.then(|| Pm2 { app: text(7), worker: 3, ..Pm2::default() }),
            service_name: text(8),
            ..Process::default()
        }
    }
}

fn context() -> impl Strategy<Value = SpanContext> {
    (1..=u128::MAX, 1..=u64::MAX).prop_map(|(trace_id, span_id)| SpanContext { trace_id, span_id })
}

prop_compose! {
    fn span(subject: impl Strategy<Value = Subject> + 'static)(
        name in prop::sample::select(vec!["tcp connection", "sched.stall"]),
        context in context(),
        parent_span_id in option::of(1..=u64::MAX),
        links in prop::collection::vec(context(), 0..3),
        times in any::<(u64, u64)>(),
        error in option::of(prop::sample::select(vec!["ECONNRESET", "timeout"])),
        attrs in attrs(),
        subject in subject,
    ) -> Span {
        let (start_unix_ns, end_unix_ns) = (times.0.min(times.1), times.0.max(times.1));
        Span { name, context, parent_span_id, links, start_unix_ns, end_unix_ns, error, attrs, subject }
    }
}

prop_compose! {
    fn event(subject: impl Strategy<Value = Subject> + 'static)(
        name in prop::sample::select(vec!["observer.oom.kill", "observer.memory.step"]),
        severity in prop::sample::select(vec![Severity::Info, Severity::Warn, Severity::Error]),
        time_unix_ns in any::<u64>(),
        body in text(),
        attrs in attrs(),
        context in option::of(context()),
        subject in subject,
    ) -> Event {
        Event { name, severity, time_unix_ns, body, attrs, context, subject }
    }
}

prop_compose! {
    fn point(subject: impl Strategy<Value = Subject> + 'static)(
        metric in prop::sample::select(METRICS.iter().collect::<Vec<_>>()),
        attrs in attrs(),
        plain in prop_oneof![int().prop_map(Number::Int), number().prop_map(Number::Float)],
        bounds in prop::collection::vec(number(), 0..5),
        counts in prop::collection::vec(0..1000u64, 6),
        sum in number(),
        max in number(),
        start_unix_ns in prop_oneof![Just(0), any::<u64>()],
        subject in subject,
    ) -> Point {
        let number = if metric.kind == MetricKind::Histogram {
            let counts = counts[..=bounds.len()].to_vec();
            Number::Histogram(Box::new(Distribution { bounds, counts, sum, max }))
        } else {
            plain
        };
        Point { metric, attrs, number, start_unix_ns, subject }
    }
}

/// Any batch that the signals could make, about a few processes and the host.
pub(super) fn batch() -> impl Strategy<Value = Batch> {
    let subjects =
        prop::collection::vec(process().prop_map(|p| Subject::Process(Arc::new(p))), 1..4);
    subjects.prop_flat_map(|mut subjects| {
        subjects.push(Subject::Host);
        // One identity, one description.
        let identity = |subject: &Subject| match subject {
            Subject::Host => (0, 0),
            Subject::Process(p) => (p.pid, p.start_unix_ns),
        };
        subjects.sort_by_key(identity);
        subjects.dedup_by_key(|subject| identity(subject));
        let subject = prop::sample::select(subjects);
        (
            any::<u64>(),
            prop::collection::vec(span(subject.clone()), 0..12),
            prop::collection::vec(event(subject.clone()), 0..6),
            prop::collection::vec(point(subject), 0..12),
        )
            .prop_map(|(time_unix_ns, spans, events, points)| Batch {
                time_unix_ns,
                spans,
                events,
                points,
            })
    })
}

/// `spans` spans of one process, told apart by their span ids from `first_id` on.
pub(super) fn spans(first_id: u64, spans: u64) -> Batch {
    let process =
        Process { pid: 42, name: "api".into(), service_name: "api".into(), ..Process::default() };
    let subject = Subject::Process(Arc::new(process));
    let span = |id| Span {
        name: "tcp connection",
        context: SpanContext { trace_id: 7, span_id: id },
        parent_span_id: None,
        links: Vec::new(),
        start_unix_ns: 1,
        end_unix_ns: 2,
        error: None,
        attrs: vec![crate::telemetry::attr("process.pid", 42i64)],
        subject: subject.clone(),
    };
    Batch {
        time_unix_ns: 3,
        spans: (first_id..first_id + spans).map(span).collect(),
        ..Batch::default()
    }
}
