//! OTLP JSON lines, as `--out` writes them, read into plain structs. Own code on purpose: it shares nothing with the
//! agent's encoder.

use std::collections::BTreeMap;

use serde_json::Value;

/// Attributes by key.
pub type Attrs = BTreeMap<String, Value>;

/// A span.
#[derive(Debug, Clone)]
pub struct Span {
    /// Its trace.
    pub trace_id: String,
    /// Name.
    pub name: String,
    /// Begin.
    pub start_unix_ns: u64,
    /// End.
    pub end_unix_ns: u64,
    /// Status code: 0 unset, 1 ok, 2 error.
    pub status: u64,
    /// Attributes.
    pub attrs: Attrs,
    /// Attributes of its resource.
    pub resource: Attrs,
}

impl Span {
    /// Its length.
    pub fn duration_ns(&self) -> u64 {
        self.end_unix_ns - self.start_unix_ns
    }
}

/// A log record.
#[derive(Debug, Clone)]
pub struct Log {
    /// Its `event_name`.
    pub event_name: String,
    /// The sentence that a person reads.
    pub body: String,
    /// When.
    pub time_unix_ns: u64,
    /// Attributes.
    pub attrs: Attrs,
    /// Attributes of its resource.
    pub resource: Attrs,
}

/// A metric point.
#[derive(Debug, Clone)]
pub struct Point {
    /// Name of the metric.
    pub metric: String,
    /// Its number; a histogram's sum.
    pub value: f64,
    /// When.
    pub time_unix_ns: u64,
    /// Attributes.
    pub attrs: Attrs,
    /// Attributes of its resource.
    pub resource: Attrs,
}

/// Everything in a file.
#[derive(Debug, Default)]
pub struct Telemetry {
    /// Spans in the order of the file.
    pub spans: Vec<Span>,
    /// Log records in the order of the file.
    pub logs: Vec<Log>,
    /// Metric points in the order of the file.
    pub points: Vec<Point>,
}

impl Telemetry {
    /// Reads whole lines; what follows the last line feed is still being written.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let mut telemetry = Self::default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines().filter(|line| !line.is_empty()) {
            let request: Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            telemetry.request(&request);
        }
        telemetry
    }

    /// Spans of this name.
    pub fn spans_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Span> {
        self.spans.iter().filter(move |span| span.name == name)
    }

    /// Log records of this event name.
    pub fn logs_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Log> {
        self.logs.iter().filter(move |log| log.event_name == name)
    }

    fn request(&mut self, request: &Value) {
        each(request, "resourceSpans", "scopeSpans", "spans", |span, resource| {
            self.spans.push(Span {
                trace_id: text(span, "traceId"),
                name: text(span, "name"),
                start_unix_ns: integer(&span["startTimeUnixNano"]),
                end_unix_ns: integer(&span["endTimeUnixNano"]),
                status: span["status"]["code"].as_u64().unwrap_or(0),
                attrs: attrs(span),
                resource: resource.clone(),
            });
        });
        each(request, "resourceLogs", "scopeLogs", "logRecords", |log, resource| {
            self.logs.push(Log {
                event_name: text(log, "eventName"),
                body: text(&log["body"], "stringValue"),
                time_unix_ns: integer(&log["timeUnixNano"]),
                attrs: attrs(log),
                resource: resource.clone(),
            });
        });
        each(request, "resourceMetrics", "scopeMetrics", "metrics", |metric, resource| {
            let data = ["gauge", "sum", "histogram"].map(|kind| list(&metric[kind]["dataPoints"]));
            for point in data.into_iter().flatten() {
                self.points.push(Point {
                    metric: text(metric, "name"),
                    value: number(point),
                    time_unix_ns: integer(&point["timeUnixNano"]),
                    attrs: attrs(point),
                    resource: resource.clone(),
                });
            }
        });
    }
}

/// Text of an attribute; empty if it is not there.
pub fn str_of<'a>(attrs: &'a Attrs, key: &str) -> &'a str {
    attrs.get(key).and_then(Value::as_str).unwrap_or("")
}

/// Integer of an attribute; panics with all attributes if it is not there.
#[track_caller]
pub fn int_of(attrs: &Attrs, key: &str) -> i64 {
    let value = attrs.get(key).and_then(Value::as_i64);
    value.unwrap_or_else(|| panic!("no integer {key} in {attrs:?}"))
}

/// Whether an attribute is `true`.
pub fn is_true(attrs: &Attrs, key: &str) -> bool {
    attrs.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn each(
    request: &Value,
    top: &str,
    middle: &str,
    leaf: &str,
    mut push: impl FnMut(&Value, &Attrs),
) {
    for group in list(&request[top]) {
        let resource = attrs(&group["resource"]);
        for scope in list(&group[middle]) {
            list(&scope[leaf]).iter().for_each(|item| push(item, &resource));
        }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or("").to_owned()
}

/// 64-bit integers are strings in JSON (protobuf's JSON mapping); readers accept numbers too.
fn integer(value: &Value) -> u64 {
    let parsed = value.as_str().and_then(|text| text.parse().ok());
    parsed.or_else(|| value.as_u64()).unwrap_or(0)
}

fn number(point: &Value) -> f64 {
    let whole = point["asInt"].as_str().and_then(|text| text.parse().ok());
    let sum = || point["asDouble"].as_f64().or_else(|| point["sum"].as_f64());
    whole.or_else(|| point["asInt"].as_f64()).or_else(sum).unwrap_or(f64::NAN)
}

fn attrs(owner: &Value) -> Attrs {
    let pair = |attr: &Value| (text(attr, "key"), any(&attr["value"]));
    list(&owner["attributes"]).iter().map(pair).collect()
}

fn any(value: &Value) -> Value {
    let Some((kind, inner)) = value.as_object().and_then(|object| object.iter().next()) else {
        return Value::Null;
    };
    match (kind.as_str(), inner) {
        ("intValue", Value::String(text)) => text.parse::<i64>().map_or(Value::Null, Value::from),
        ("arrayValue", array) => list(&array["values"]).iter().map(any).collect(),
        _ => inner.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_three_signals_and_leaves_the_line_being_written() {
        let attribute = r#"[{"key":"process.pid","value":{"intValue":"7"}},{"key":"l","value":{"arrayValue":{"values":[{"stringValue":"a"}]}}}]"#;
        let resource = format!(r#"{{"attributes":{attribute}}}"#);
        let span = format!(
            r#"{{"name":"s","startTimeUnixNano":"1000","endTimeUnixNano":"3000","attributes":{attribute},"status":{{"code":2}}}}"#
        );
        let log = format!(r#"{{"eventName":"e","timeUnixNano":"5","attributes":{attribute}}}"#);
        let metric = r#"{"name":"m","gauge":{"dataPoints":[{"asInt":"3","timeUnixNano":"9"},{"asDouble":1.5}]}}"#;
        let text = format!(
            "{{\"resourceSpans\":[{{\"resource\":{resource},\"scopeSpans\":[{{\"spans\":[{span}]}}]}}]}}\n\
             {{\"resourceLogs\":[{{\"resource\":{resource},\"scopeLogs\":[{{\"logRecords\":[{log}]}}]}}]}}\n\
             {{\"resourceMetrics\":[{{\"scopeMetrics\":[{{\"metrics\":[{metric}]}}]}}]}}\n{{\"resour"
        );
        let telemetry = Telemetry::parse(&text);
        let span = telemetry.spans_named("s").next().unwrap();
        assert_eq!((span.duration_ns(), span.status), (2000, 2));
        assert_eq!(
            (int_of(&span.attrs, "process.pid"), int_of(&span.resource, "process.pid")),
            (7, 7)
        );
        assert_eq!(span.attrs["l"], serde_json::json!(["a"]));
        assert_eq!(telemetry.logs_named("e").map(|log| log.time_unix_ns).collect::<Vec<_>>(), [5]);
        assert_eq!(
            telemetry.points.iter().map(|point| point.value).collect::<Vec<_>>(),
            [3.0, 1.5]
        );
    }
}
