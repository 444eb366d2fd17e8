//! The recording: what the agent knew at each tick, in a file of JSON lines that can be read back as [`Snapshot`]s.
//!
//! A line is an object with one key, its kind. `header` comes first, and again wherever an agent started or a file was
//! begun; then, for each tick, `event` lines (what is exported as log records), a `spans` line if any ended, and the
//! `snapshot`. The snapshot's form is docs/snapshot-json.md.
//!
//! [`write`] holds the thread that writes, [`read()`] gives back what was written.

mod read;
#[cfg(test)]
mod tests;
mod write;

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

pub use self::{
    read::{ReadError, Recording, read},
    write::Recorder,
};
use crate::{
    config::{Kind, Setting},
    snapshot::{Program, Snapshot},
    telemetry::{self, Batch, Subject, Value},
};

/// What a header calls the format.
pub const FORMAT: &str = "observer-recording";

/// Version of the format; raised when a reader of the one before would misunderstand it.
pub const VERSION: u32 = 1;

/// Where to.
pub const FILE: Setting = Setting {
    key: "record.file",
    kind: Kind::Text,
    default: "",
    otel: &[],
    help: "File to which every snapshot is recorded as a JSON line (--record); empty: none.",
};

/// How much.
pub const MAX: Setting = Setting {
    key: "record.max",
    kind: Kind::Bytes { min: 1 << 20, max: 1 << 40 },
    default: "256MiB",
    otel: &[],
    help: "Most that the recording may take on disk (--record-max): at half of it FILE becomes FILE.1, in place of the one before.",
};

/// Settings of the recording.
pub const SETTINGS: &[Setting] = &[FILE, MAX];

/// One line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// Who recorded.
    Header(Box<Header>),
    /// A log event, of the tick whose snapshot follows.
    Event(Box<Event>),
    /// The spans that ended in the tick whose snapshot follows.
    Spans(Spans),
    /// A tick.
    Snapshot(Arc<Snapshot>),
}

/// Who recorded, and what it could see.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// Version of the agent.
    pub agent_version: String,
    /// Host name.
    pub host_name: String,
    /// Kernel release.
    pub kernel: String,
    /// /proc/sys/kernel/random/boot_id; empty if unreadable.
    pub boot_id: String,
    /// When the agent started.
    pub start_unix_ns: u64,
    /// Time between two snapshots.
    pub interval_ns: u64,
    /// Verdict of each program and file at the start.
    pub programs: Vec<Program>,
}

/// A log event, as it is exported.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When it happened.
    pub time_unix_ns: u64,
    /// Its name, such as `observer.oom.kill`.
    pub name: String,
    /// `INFO`, `WARN` or `ERROR`.
    pub severity: String,
    /// One sentence for a person.
    pub body: String,
    /// Process that it is about; null if it is the host.
    pub pid: Option<u32>,
    /// Attributes by key.
    pub attrs: BTreeMap<String, Json>,
}

/// Spans of one tick by name. All of each span is in the local store and `--out`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spans {
    /// When the tick was.
    pub time_unix_ns: u64,
    /// One sum a name.
    pub names: BTreeMap<String, SpanSum>,
}

/// Spans of one name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanSum {
    /// How many ended.
    pub count: u64,
    /// Of these, with an error.
    pub errors: u64,
    /// Length of the longest.
    pub longest_ns: u64,
}

impl From<&telemetry::Event> for Event {
    fn from(event: &telemetry::Event) -> Self {
        let attrs = event.attrs.iter().map(|attr| (attr.key.to_owned(), json(&attr.value)));
        Self {
            time_unix_ns: event.time_unix_ns,
            name: event.name.to_owned(),
            severity: event.severity.text().to_owned(),
            body: event.body.clone(),
            pid: match &event.subject {
                Subject::Host => None,
                Subject::Process(process) => Some(process.pid),
            },
            attrs: attrs.collect(),
        }
    }
}

impl From<&Batch> for Spans {
    fn from(batch: &Batch) -> Self {
        let mut names: BTreeMap<String, SpanSum> = BTreeMap::new();
        for span in &batch.spans {
            let sum = names.entry(span.name.to_owned()).or_default();
            sum.count += 1;
            sum.errors += u64::from(span.error.is_some());
            let length_ns = span.end_unix_ns.saturating_sub(span.start_unix_ns);
            sum.longest_ns = sum.longest_ns.max(length_ns);
        }
        Self { time_unix_ns: batch.time_unix_ns, names }
    }
}

fn json(value: &Value) -> Json {
    match value {
        Value::Static(text) => Json::from(*text),
        Value::Str(text) => Json::from(&**text),
        Value::Int(number) => Json::from(*number),
        Value::Float(number) => Json::from(*number),
        Value::Bool(truth) => Json::from(*truth),
        Value::List(list) => list.iter().map(|text| Json::from(&**text)).collect(),
    }
}
