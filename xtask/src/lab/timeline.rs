//! Reads a time line (docs/lab.md). It shares nothing with the writer.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// The version of the form that is read here.
const VERSION: u64 = 1;

/// A run, as it was written down.
#[derive(Debug)]
pub(super) struct Timeline {
    /// What was run, and where.
    pub(super) header: Value,
    /// What happened, in the order of time.
    pub(super) events: Vec<Event>,
}

/// One thing that happened.
#[derive(Debug)]
pub(super) struct Event {
    /// When, in seconds of the clock that the header names.
    pub(super) t_s: f64,
    /// Who saw it.
    pub(super) source: String,
    /// What it is.
    pub(super) what: String,
    /// All of it.
    pub(super) values: Value,
}

impl Timeline {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Reads its text; a time line that is not well formed is an error.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let header: Value = serde_json::from_str(lines.next().context("empty")?)?;
        ensure!(header["lab"] == VERSION, "not a time line of version {VERSION}: {header}");
        let events = lines
            .enumerate()
            .map(|(index, line)| event(line).with_context(|| format!("line {}", index + 2)));
        let events: Vec<Event> = events.collect::<Result<_>>()?;
        ensure!(events.is_sorted_by(|a, b| a.t_s <= b.t_s), "events are not in the order of time");
        Ok(Self { header, events })
    }

    /// Events of a source with a name.
    pub(super) fn of<'a>(
        &'a self,
        source: &'a str,
        what: &'a str,
    ) -> impl Iterator<Item = &'a Event> {
        self.events.iter().filter(move |event| event.source == source && event.what == what)
    }
}

impl Event {
    /// A number among its values.
    pub(super) fn number(&self, key: &str) -> Option<f64> {
        self.values[key].as_f64()
    }

    /// A text among its values; empty if there is none.
    pub(super) fn text(&self, key: &str) -> &str {
        self.values[key].as_str().unwrap_or_default()
    }
}

fn event(line: &str) -> Result<Event> {
    let values: Value = serde_json::from_str(line)?;
    let (Some(t_s), Some(source), Some(what)) =
        (values["t_s"].as_f64(), values["source"].as_str(), values["what"].as_str())
    else {
        bail!("an event needs t_s, source and what: {line}");
    };
    Ok(Event { t_s, source: source.to_owned(), what: what.to_owned(), values })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_and_ordered_time_lines_are_read() {
        let check = |text: &str, expected: &str| match Timeline::parse(text) {
            Ok(seen) => assert!(expected.is_empty(), "{text}: {seen:?}"),
            Err(error) => {
                let shown = format!("{error:#}");
                assert!(!expected.is_empty() && shown.contains(expected), "{text}: {shown}");
            }
        };
        let event = |t_s: f64| format!(r#"{{"t_s":{t_s},"source":"witness","what":"vitals"}}"#);
        check("", "empty");
        check("{\"lab\":2}\n", "version 1");
        check("{\"lab\":1}\n", "");
        check(&format!("{{\"lab\":1}}\n{}\n{}\n", event(1.0), event(2.0)), "");
        check(&format!("{{\"lab\":1}}\n{}\n{}\n", event(2.0), event(1.0)), "order");
        check("{\"lab\":1}\n{\"t_s\":1.0}\n", "line 2: an event needs");
    }
}
