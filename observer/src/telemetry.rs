//! What leaves the agent, in OpenTelemetry's terms: spans, log events and metric points, each about a [`Subject`].
//!
//! The signals make these values; `export` turns them into bytes. Nothing here does IO or reads a clock.
//! Times are nanoseconds since the Unix epoch; units stand last in a name.

use std::sync::Arc;

use crate::identity::Process;

/// What an item is about. Becomes its OTLP resource.
#[derive(Debug, Clone)]
pub enum Subject {
    /// The host as a whole.
    Host,
    /// One process, told apart from a later one of the same pid by its start time.
    Process(Arc<Process>),
}

/// Value of an [`Attr`].
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Text known at compile time.
    Static(&'static str),
    /// Text.
    Str(Arc<str>),
    /// Integer.
    Int(i64),
    /// Floating point number.
    Float(f64),
    /// Truth value.
    Bool(bool),
    /// List of texts, such as the frames of a stack.
    List(Arc<[Arc<str>]>),
}

impl From<&'static str> for Value {
    fn from(value: &'static str) -> Self {
        Self::Static(value)
    }
}
impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Str(value.into())
    }
}
impl From<Arc<str>> for Value {
    fn from(value: Arc<str>) -> Self {
        Self::Str(value)
    }
}
impl From<u64> for Value {
    /// OTLP integers are signed: what does not fit saturates.
    fn from(value: u64) -> Self {
        Self::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}
impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Int(i64::from(value))
    }
}
impl From<u16> for Value {
    fn from(value: u16) -> Self {
        Self::Int(i64::from(value))
    }
}
impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}
impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Self::Int(i64::from(value))
    }
}
impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}
impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

/// One attribute. Keys are OpenTelemetry semantic conventions where one exists, `observer.*` where not.
#[derive(Debug, Clone, PartialEq)]
pub struct Attr {
    /// Attribute name.
    pub key: &'static str,
    /// Attribute value.
    pub value: Value,
}

/// Makes an [`Attr`].
pub fn attr(key: &'static str, value: impl Into<Value>) -> Attr {
    Attr { key, value: value.into() }
}

/// Identifies a span within its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanContext {
    /// Trace id, never 0.
    pub trace_id: u128,
    /// Span id, never 0.
    pub span_id: u64,
}

/// Something with a duration that has ended (or, for a long connection, a segment of it). Kind is always INTERNAL:
/// CLIENT or SERVER would draw edges in service graphs that no request made.
#[derive(Debug, Clone)]
pub struct Span {
    /// Low-cardinality name, such as `tcp connection`.
    pub name: &'static str,
    /// Its ids.
    pub context: SpanContext,
    /// Span id of the parent in the same trace.
    pub parent_span_id: Option<u64>,
    /// Spans elsewhere that belong to this one.
    pub links: Vec<SpanContext>,
    /// Begin.
    pub start_unix_ns: u64,
    /// End, never before the begin.
    pub end_unix_ns: u64,
    /// `error.type`; `Some` sets the span's status to Error.
    pub error: Option<&'static str>,
    /// Attributes, without `error.type`.
    pub attrs: Vec<Attr>,
    /// What it is about.
    pub subject: Subject,
}

/// Severity of an [`Event`], numbered as OTLP's SeverityNumber.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Severity {
    /// Worth keeping.
    Info = 9,
    /// Somebody should look soon.
    Warn = 13,
    /// Something has failed.
    Error = 17,
}

impl Severity {
    /// OTLP's SeverityText.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        }
    }
}

/// A point occurrence; an OTLP log record with an `event_name`.
#[derive(Debug, Clone)]
pub struct Event {
    /// Event name without dynamic parts, such as `observer.oom.kill`.
    pub name: &'static str,
    /// Severity.
    pub severity: Severity,
    /// When it happened.
    pub time_unix_ns: u64,
    /// One sentence for a person.
    pub body: String,
    /// Attributes.
    pub attrs: Vec<Attr>,
    /// Span that it belongs to.
    pub context: Option<SpanContext>,
    /// What it is about.
    pub subject: Subject,
}

/// How a metric's numbers are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Last value (OTLP Gauge).
    Gauge,
    /// Cumulative, only grows (OTLP monotonic Sum).
    Counter,
    /// Cumulative, may shrink (OTLP Sum, not monotonic).
    UpDownCounter,
    /// Distribution, cumulative (OTLP Histogram with explicit bounds).
    Histogram,
}

/// Definition of a metric: the one place from which export, docs and `top` know it.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// OpenTelemetry name.
    pub name: &'static str,
    /// UCUM unit, such as `By`, `s`, `{connection}`, `1`.
    pub unit: &'static str,
    /// Kind.
    pub kind: MetricKind,
    /// One sentence for the docs.
    pub help: &'static str,
}

/// A metric's number.
#[derive(Debug, Clone, PartialEq)]
pub enum Number {
    /// Integer.
    Int(i64),
    /// Floating point number.
    Float(f64),
    /// Distribution.
    Histogram(Box<Distribution>),
}

/// Explicit-bucket histogram: `counts.len() == bounds.len() + 1`, as in OTLP.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Distribution {
    /// Upper bounds, ascending, in the metric's unit.
    pub bounds: Vec<f64>,
    /// Count of each bucket; the last one is above all bounds.
    pub counts: Vec<u64>,
    /// Sum of all values.
    pub sum: f64,
    /// Largest value.
    pub max: f64,
}

/// One number of one metric about one subject.
#[derive(Debug, Clone)]
pub struct Point {
    /// What is measured.
    pub metric: &'static Metric,
    /// Attributes that tell the series apart. Never a pid: identity is the subject.
    pub attrs: Vec<Attr>,
    /// Value.
    pub number: Number,
    /// Since when a cumulative number counts.
    pub start_unix_ns: u64,
    /// What it is about.
    pub subject: Subject,
}

/// Everything that one tick hands to the exporter.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// When the points were read.
    pub time_unix_ns: u64,
    /// Spans that ended.
    pub spans: Vec<Span>,
    /// Events that happened.
    pub events: Vec<Event>,
    /// Metric points; empty between two metric intervals.
    pub points: Vec<Point>,
}

impl Batch {
    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty() && self.events.is_empty() && self.points.is_empty()
    }
}
