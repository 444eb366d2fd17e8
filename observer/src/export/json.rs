//! A [`Batch`] as OTLP JSON lines: the OpenTelemetry file exporter's format, one `Export*ServiceRequest` a line
//! (opentelemetry-specification, protocol/file-exporter.md; JSON mapping: opentelemetry-proto, docs/specification.md).
//!
//! Ids are hexadecimal, 64-bit integers are strings, enumerations are numbers. The same order of items as in `encode`.

mod records;

use std::sync::Arc;

use serde::Serialize;

use super::{
    encode::{Skipped, logs::Events, metrics::Points, traces::Spans},
    group::{Items, Order, Place, same_record, same_subject},
    resource::{Known, Resources, SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION, Texts, attributes},
};
use crate::telemetry::{Attr, Batch, Subject, Value};

/// No line is longer, apart from one that holds a single record; so that readers need no more memory than this.
pub const MAX_LINE_BYTES: usize = 1024 * 1024;

/// One line, valid until the next one is written.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// Spans, data points or log records in it.
    pub items: u64,
    /// JSON object and a newline.
    pub bytes: &'a [u8],
}

/// Turns batches into lines.
#[derive(Debug)]
pub struct JsonEncoder {
    resources: Arc<Resources>,
    out: Out,
    order: Order,
}

/// Items that can be written as JSON.
trait JsonItems: Items {
    /// Names of the three nested lists, outermost first.
    const LISTS: [&'static str; 3];
    /// Writes one element of the innermost list.
    fn write(&self, out: &mut Out, record: &[Place]);
}

impl JsonEncoder {
    /// An encoder with these resources.
    pub fn new(resources: Arc<Resources>) -> Self {
        Self { resources, out: Out::default(), order: Order::default() }
    }

    /// Hands each line that `batch` makes to `each`.
    pub fn encode(&mut self, batch: &Batch, mut each: impl FnMut(Line<'_>)) -> Skipped {
        let mut malformed = self.lines(&Spans(&batch.spans), &mut each);
        malformed += self.lines(&Points::of(batch), &mut each);
        malformed += self.lines(&Events::of(batch), &mut each);
        Skipped { oversized: 0, malformed }
    }

    fn lines<T: JsonItems>(&mut self, items: &T, each: &mut impl FnMut(Line<'_>)) -> u64 {
        let (mut left, malformed) = self.order.sort(items);
        let out = &mut self.out;
        while !left.is_empty() {
            out.bytes.clear();
            out.raw("{\"");
            out.raw(T::LISTS[0]);
            out.raw("\":[");
            let all = left.len();
            while !left.is_empty() && (left.len() == all || out.bytes.len() < MAX_LINE_BYTES) {
                let (run, rest) = left.split_at(same_subject(left));
                let done = subject(out, &self.resources, items, run);
                left = &left[done..];
                if done < run.len() || rest.is_empty() {
                    break;
                }
            }
            out.end_list();
            out.raw("}\n");
            each(Line { items: (all - left.len()) as u64, bytes: &out.bytes });
        }
        malformed
    }
}

/// Writes the records of one subject, as many as fit and at least one; returns how many items they had.
fn subject<T: JsonItems>(out: &mut Out, resources: &Resources, items: &T, run: &[Place]) -> usize {
    let Some(last) = run.last() else { return 0 };
    out.raw("{\"resource\":{\"attributes\":[");
    resource(out, resources, items.subject(last.index()));
    out.end_list();
    out.raw("},\"");
    out.raw(T::LISTS[1]);
    out.raw("\":[{\"scope\":{\"name\":");
    out.text(SCOPE_NAME);
    out.raw(",\"version\":");
    out.text(SCOPE_VERSION);
    out.raw("},\"");
    out.raw(T::LISTS[2]);
    out.raw("\":[");
    let mut done = 0;
    while done < run.len() {
        let left = &run[done..];
        let before = out.bytes.len();
        let record = same_record(items, left);
        items.write(out, &left[..record]);
        out.raw(",");
        if done > 0 && out.bytes.len() > MAX_LINE_BYTES {
            out.bytes.truncate(before);
            break;
        }
        done += record;
    }
    out.end_list();
    out.raw("}],\"schemaUrl\":");
    out.text(SCHEMA_URL);
    out.raw("},");
    done
}

fn resource(out: &mut Out, resources: &Resources, subject: &Subject) {
    let Subject::Process(process) = subject else {
        return out.bytes.extend_from_slice(&resources.host.json);
    };
    let texts = Texts::of(process, resources.host_name());
    for (key, value) in attributes(process, &texts) {
        out.key_value(key, |out| match value {
            Known::Text(text) => out.member_text("stringValue", text),
            Known::Int(number) => out.member_int("intValue", number),
        });
    }
    out.bytes.extend_from_slice(&resources.shared.json);
}

/// Text attributes as elements of a list, each followed by a comma.
pub(super) fn texts(attrs: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Out::default();
    for (key, text) in attrs {
        out.key_value(key, |out| out.member_text("stringValue", text));
    }
    out.bytes
}

/// The line being written. Members and elements are each followed by a comma, which the end of the list or object takes
/// back.
#[derive(Debug, Default)]
struct Out {
    bytes: Vec<u8>,
}

impl Out {
    fn raw(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn end_list(&mut self) {
        self.end("]");
    }

    fn end_object(&mut self) {
        self.end("}");
    }

    fn end(&mut self, bracket: &str) {
        if self.bytes.last() == Some(&b',') {
            self.bytes.pop();
        }
        self.raw(bracket);
    }

    fn member(&mut self, key: &str) {
        self.raw("\"");
        self.raw(key);
        self.raw("\":");
    }

    fn list<T>(
        &mut self,
        key: &str,
        items: impl IntoIterator<Item = T>,
        mut each: impl FnMut(&mut Self, T),
    ) {
        self.member(key);
        self.raw("[");
        for item in items {
            each(self, item);
            self.raw(",");
        }
        self.end_list();
        self.raw(",");
    }

    /// A JSON string, escaped.
    fn text(&mut self, text: &str) {
        self.plain(text);
    }

    fn member_text(&mut self, key: &str, text: &str) {
        self.member(key);
        self.text(text);
        self.raw(",");
    }

    /// Anything that serde_json writes in one piece.
    fn plain(&mut self, value: &(impl Serialize + ?Sized)) {
        // Writing to memory does not fail.
        serde_json::to_writer(&mut self.bytes, value).ok();
    }

    /// A 64-bit integer: in quotes.
    fn int(&mut self, number: impl Serialize) {
        self.raw("\"");
        self.plain(&number);
        self.raw("\"");
    }

    fn member_int(&mut self, key: &str, number: impl Serialize) {
        self.member(key);
        self.int(number);
        self.raw(",");
    }

    fn member_number(&mut self, key: &str, number: u64) {
        self.member(key);
        self.plain(&number);
        self.raw(",");
    }

    /// A double: the special ones are strings in protobuf's JSON mapping.
    fn double(&mut self, number: f64) {
        if number.is_finite() {
            self.plain(&number);
        } else if number.is_nan() {
            self.raw("\"NaN\"");
        } else {
            self.raw(if number > 0.0 { "\"Infinity\"" } else { "\"-Infinity\"" });
        }
    }

    fn member_double(&mut self, key: &str, number: f64) {
        self.member(key);
        self.double(number);
        self.raw(",");
    }

    fn member_id<const N: usize>(&mut self, key: &str, id: [u8; N]) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let hex = id.map(|byte| [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        self.member(key);
        self.raw("\"");
        self.bytes.extend_from_slice(hex.as_flattened());
        self.raw("\",");
    }

    fn key_value(&mut self, key: &str, value: impl FnOnce(&mut Self)) {
        self.raw("{");
        self.member_text("key", key);
        self.member("value");
        self.raw("{");
        value(self);
        self.end_object();
        self.raw("},");
    }

    fn attrs(&mut self, attrs: &[Attr], error: Option<&str>) {
        if attrs.is_empty() && error.is_none() {
            return;
        }
        self.raw("\"attributes\":[");
        for attr in attrs {
            self.key_value(attr.key, |out| out.any_value(&attr.value));
        }
        if let Some(error) = error {
            self.key_value("error.type", |out| out.member_text("stringValue", error));
        }
        self.end_list();
        self.raw(",");
    }

    fn any_value(&mut self, value: &Value) {
        match value {
            Value::Static(text) => self.member_text("stringValue", text),
            Value::Str(text) => self.member_text("stringValue", text),
            Value::Bool(truth) => {
                self.member("boolValue");
                self.raw(if *truth { "true," } else { "false," });
            }
            Value::Int(number) => self.member_int("intValue", *number),
            Value::Float(number) => self.member_double("doubleValue", *number),
            Value::List(texts) => {
                self.member("arrayValue");
                self.raw("{");
                self.list("values", texts.iter(), |out, text| {
                    out.raw("{");
                    out.member_text("stringValue", text);
                    out.end_object();
                });
                self.end_object();
                self.raw(",");
            }
        }
    }
}
