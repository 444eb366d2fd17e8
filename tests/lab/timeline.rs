//! The time line: a header, then events, one JSON object a line. The form is in docs/lab.md.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
};

use observer_tests::monotonic_ns;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Version of the form; raised when a field changes its meaning or goes away.
pub const VERSION: u32 = 1;

/// Who saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The ground truth.
    Witness,
    /// The programs and their fault.
    Scenario,
    /// What the agent recorded.
    Agent,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, by CLOCK_MONOTONIC, in seconds.
    pub t_s: f64,
    /// Who saw it.
    pub source: Source,
    /// What it is.
    pub what: String,
    /// Its values, units last in their names.
    #[serde(flatten)]
    pub values: Map<String, Value>,
}

impl Event {
    /// An event with the fields of `values`, which is an object.
    pub fn new(t_s: f64, source: Source, what: &str, values: Value) -> Self {
        let Value::Object(values) = values else { panic!("values are an object: {values}") };
        Self { t_s: rounded(t_s), source, what: what.to_owned(), values }
    }

    /// A number among its values.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.values.get(key)?.as_f64()
    }
}

/// Now by CLOCK_MONOTONIC, in seconds.
pub fn now_s() -> f64 {
    monotonic_ns() as f64 / 1e9
}

/// To milliseconds: the witness sees no finer.
pub fn rounded(t_s: f64) -> f64 {
    (t_s * 1000.0).round() / 1000.0
}

/// A file of events that takes no memory while it is written: its pages are there from the start. On tmpfs they stay.
pub struct Fixed {
    file: File,
    at: u64,
    size: u64,
}

impl Fixed {
    /// Makes it, `size` bytes of NUL.
    pub fn create(path: &Path, size: u64) -> io::Result<Self> {
        let mut file = File::create(path)?;
        let zeros = [0; 4096];
        for _ in 0..size.div_ceil(zeros.len() as u64) {
            file.write_all(&zeros)?;
        }
        Ok(Self { file, at: 0, size })
    }

    /// Adds a line, which ends with a line feed. A full file takes no more, and nobody is told: the end of its lines is
    /// seen in the time line.
    pub fn write(&mut self, line: &str) {
        let end = self.at + line.len() as u64;
        if end <= self.size && self.file.write_all_at(line.as_bytes(), self.at).is_ok() {
            self.at = end;
        }
    }

    /// Adds an event of the witness.
    pub fn event(&mut self, what: &str, values: Value) {
        let event = Event::new(now_s(), Source::Witness, what, values);
        if let Ok(line) = serde_json::to_string(&event) {
            self.write(&(line + "\n"));
        }
    }
}

/// Reads events that another process adds to a file.
pub struct Tail {
    file: File,
    at: u64,
    rest: Vec<u8>,
}

impl Tail {
    /// From the beginning.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, at: 0, rest: Vec::new() })
    }

    /// Events whose lines are complete since the last call.
    pub fn read(&mut self) -> io::Result<Vec<Event>> {
        let mut buffer = [0; 16384];
        loop {
            let count = self.file.read_at(&mut buffer, self.at)?;
            // NUL is what was prepared and not yet written.
            let written = buffer[..count].iter().position(|byte| *byte == 0).unwrap_or(count);
            self.rest.extend_from_slice(&buffer[..written]);
            self.at += written as u64;
            if written < buffer.len() {
                break;
            }
        }
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let lines: Vec<u8> = self.rest.drain(..whole).collect();
        let parse = |line: &[u8]| serde_json::from_slice(line).map_err(io::Error::other);
        lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(parse).collect()
    }
}

/// Writes the time line: events in the order of time.
pub fn write(path: &Path, header: &Value, mut events: Vec<Event>) -> io::Result<()> {
    events.sort_by(|a, b| a.t_s.total_cmp(&b.t_s));
    let mut file = io::BufWriter::new(File::create(path)?);
    writeln!(file, "{header}")?;
    for event in events {
        writeln!(file, "{}", json!(event))?;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_while_they_are_written() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("events");
        let mut fixed = Fixed::create(&path, 8192).unwrap();
        let mut tail = Tail::open(&path).unwrap();
        assert_eq!(tail.read().unwrap(), []);
        fixed.event("shell", json!({"latency_s": 0.5}));
        fixed.write("{\"t_s\":1.5,\"source\":\"witness\",");
        let seen = tail.read().unwrap();
        assert_eq!((seen.len(), seen[0].number("latency_s")), (1, Some(0.5)));
        fixed.write("\"what\":\"http\"}\n");
        let seen = tail.read().unwrap();
        assert_eq!(seen, [Event::new(1.5, Source::Witness, "http", json!({}))]);
        fixed.write(&"x".repeat(8192));
        assert_eq!(tail.read().unwrap(), []);
    }
}
