//! What is seen, one readable line each, for the screen of `observer run`.

use std::{
    io::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, Thread},
};

use crossbeam_queue::ArrayQueue;
use jiff::{Timestamp, tz::TimeZone};

use crate::{
    detect,
    snapshot::Loss,
    telemetry::{Attr, Batch, Event, Span, Subject, Value},
};

/// Batches that wait for a slow terminal; the oldest goes first and is counted.
const MAX_WAITING: usize = 16;
/// Lines a batch; what is beyond is told as a number.
const MAX_LINES: usize = 40;

/// Writes lines on its own thread, so that a stopped terminal stops nothing else.
#[derive(Debug, Clone)]
pub struct Lines {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Debug)]
struct Shared {
    waiting: ArrayQueue<Arc<Batch>>,
    /// Nobody reads any more.
    closed: AtomicBool,
    /// Lines that were not shown because the terminal was too slow.
    lost: AtomicU64,
}

impl Lines {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared {
            waiting: ArrayQueue::new(MAX_WAITING),
            closed: AtomicBool::new(false),
            lost: AtomicU64::new(0),
        });
        let of_thread = Arc::clone(&shared);
        let handle = thread::Builder::new().name("lines".to_owned()).spawn(move || {
            loop {
                while let Some(batch) = of_thread.waiting.pop() {
                    // What is seen is still stored and exported.
                    if write(&batch).is_err() {
                        of_thread.closed.store(true, Relaxed);
                        return;
                    }
                }
                thread::park();
            }
        })?;
        Ok(Self { shared, thread: handle.thread().clone() })
    }

    /// Shows a batch.
    pub fn offer(&self, batch: Arc<Batch>) {
        if lines(&batch) == 0 || self.shared.closed.load(Relaxed) {
            return;
        }
        if let Some(oldest) = self.shared.waiting.force_push(batch) {
            self.shared.lost.fetch_add(lines(&oldest), Relaxed);
        }
        self.thread.unpark();
    }

    /// Lines that a slow terminal did not take.
    pub fn loss(&self) -> Loss {
        Loss { stage: "screen.lines".to_owned(), count: self.shared.lost.load(Relaxed) }
    }
}

fn lines(batch: &Batch) -> u64 {
    (batch.spans.len() + batch.events.len()) as u64
}

fn write(batch: &Batch) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let spans = batch.spans.iter().map(span);
    let lines = batch.events.iter().map(event).chain(spans);
    let total = batch.events.len() + batch.spans.len();
    for line in lines.take(MAX_LINES) {
        writeln!(out, "{line}")?;
    }
    if total > MAX_LINES {
        writeln!(out, "         ... and {} more in this second", total - MAX_LINES)?;
    }
    out.flush()
}

/// `12:00:01 tcp connection  node 4711  0.120 s  peer=10.0.0.1:5432 ...`
pub fn span(span: &Span) -> String {
    let seconds = span.end_unix_ns.saturating_sub(span.start_unix_ns) as f64 / 1e9;
    let error = span.error.map(|error| format!(" {error}")).unwrap_or_default();
    format!(
        "{} {:<17} {:<22} {seconds:.3} s{error}{}",
        time(span.end_unix_ns),
        span.name,
        subject(&span.subject),
        attrs(&span.attrs)
    )
}

/// `12:00:01 WARN observer.memory.step  ...`; of a finding the level, the kind and the sentence, and what to do.
pub fn event(event: &Event) -> String {
    if let Some(told) = detect::told(event) {
        let advice = match told.advice {
            "" => String::new(),
            _ if told.state == "cleared" => String::new(),
            advice => format!("; do: {advice}"),
        };
        return format!("{} {}{advice}", time(event.time_unix_ns), told.sentence);
    }
    format!(
        "{} {:<5} {} [{}]",
        time(event.time_unix_ns),
        event.severity.text(),
        event.body,
        event.name
    )
}

fn time(unix_ns: u64) -> String {
    let at = i128::from(unix_ns);
    Timestamp::from_nanosecond(at).map_or_else(
        |_beyond| unix_ns.to_string(),
        |stamp| stamp.to_zoned(TimeZone::system()).strftime("%H:%M:%S").to_string(),
    )
}

fn subject(subject: &Subject) -> String {
    match subject {
        Subject::Host => "host".to_owned(),
        Subject::Process(process) => format!("{} {}", process.name, process.pid),
    }
}

fn attrs(attrs: &[Attr]) -> String {
    const HIDDEN: &[&str] = &["process.pid", "network.transport", "network.type", "thread.name"];
    let shown = attrs.iter().filter(|attr| !HIDDEN.contains(&attr.key));
    shown.map(|attr| format!("  {}={}", short(attr.key), value(attr.key, &attr.value))).collect()
}

/// The last two words of a key say enough on a line.
fn short(key: &str) -> &str {
    let mut dots = key.rmatch_indices('.').map(|(at, _)| at + 1);
    dots.nth(1).or_else(|| dots.next()).map_or(key, |at| &key[at..])
}

fn value(key: &str, value: &Value) -> String {
    match value {
        Value::Static(text) => (*text).to_owned(),
        Value::Str(text) => text.to_string(),
        Value::Int(number) if key.ends_with("_ns") => format!("{:.1}ms", *number as f64 / 1e6),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => format!("{number:.2}"),
        Value::Bool(truth) => truth.to_string(),
        Value::List(list) => list.iter().map(|text| &**text).collect::<Vec<_>>().join("<"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{Severity, SpanContext, attr};

    #[test]
    fn a_span_is_one_line() {
        let line = span(&Span {
            name: "tcp connection",
            context: SpanContext { trace_id: 1, span_id: 1 },
            parent_span_id: None,
            links: Vec::new(),
            start_unix_ns: 1_000_000_000,
            end_unix_ns: 1_500_000_000,
            error: Some("ECONNRESET"),
            attrs: vec![
                attr("network.peer.port", 5432_u16),
                attr("observer.tcp.srtt_ns", 1_500_000_u64),
            ],
            subject: Subject::Host,
        });
        assert!(line.contains("tcp connection"), "{line}");
        assert!(line.contains("0.500 s ECONNRESET  peer.port=5432  tcp.srtt_ns=1.5ms"), "{line}");
    }

    #[test]
    fn a_finding_says_its_level_once() {
        let finding = |name, state: &'static str, body: &str| {
            let attrs = [
                attr("observer.finding.level", "WARN"),
                attr("observer.finding.state", state),
                attr("observer.finding.kind", "a.b"),
                attr("observer.finding.advice", "go"),
            ];
            event(&Event {
                name,
                severity: Severity::Warn,
                time_unix_ns: 0,
                body: body.to_owned(),
                attrs: attrs.into(),
                context: None,
                subject: Subject::Host,
            })
        };
        let line = finding(detect::FINDING, "raised", "WARN: it grows: fast");
        assert!(line.ends_with(":00 WARN a.b: it grows: fast; do: go"), "{line}");
        let line = finding(detect::CLEARED, "cleared", "cleared: it grows");
        assert!(line.ends_with(":00 cleared a.b: it grows"), "{line}");
    }

    #[test]
    fn an_event_is_its_sentence() {
        let line = event(&Event {
            name: "observer.oom.kill",
            severity: Severity::Error,
            time_unix_ns: 0,
            body: "node (7) was killed".to_owned(),
            attrs: Vec::new(),
            context: None,
            subject: Subject::Host,
        });
        assert!(line.ends_with("ERROR node (7) was killed [observer.oom.kill]"), "{line}");
    }
}
