//! `observer replay FILE`: a recording as a time line of findings, with what the agent recorded beside them.
//!
//! The detectors are those of the live agent and see the same snapshots, so that they find the same. What the recorded agent
//! itself found is left out: it may have been another version, or had other settings.

use std::{
    io::{self, Write},
    path::Path,
};

use anyhow::Result;
use jiff::{Timestamp, tz::TimeZone};

use crate::{
    config::Config,
    detect::{self, CLEARED, Detect, FINDING, View, told},
    record::{self, Event, Header, Line, ReadError},
    signal::Output,
    snapshot::Snapshot,
    telemetry,
    top::format::{count, duration},
};

/// Severities of recorded events that are shown.
const SHOWN: &[&str] = &["WARN", "ERROR"];

/// What is printed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Form {
    /// Findings alone, without recorded events.
    pub findings: bool,
    /// One JSON object a line, in the form of the recording's events.
    pub json: bool,
}

/// Reads a recording from its oldest line to its end, and prints what the detectors find.
///
/// # Errors
/// If it is no recording, cannot be read to its end, or `out` fails. A damaged line is told and left out.
pub fn replay(path: &Path, config: &Config, form: Form, out: &mut dyn Write) -> Result<()> {
    let mut recording = record::read(path)?;
    let mut replay = Replay { out, form, zone: TimeZone::system(), seen: Seen::default() };
    let (mut agent, mut detect) = (None, Detect::new(config));
    for line in recording.by_ref() {
        match line {
            // It stands at the begin of each file.
            Ok(Line::Header(header)) if agent.as_ref() == Some(&*header) => {}
            Ok(Line::Header(header)) => {
                replay.agent(&header)?;
                // Another agent, which knew nothing of what was before.
                (agent, detect) = (Some(*header), Detect::new(config));
            }
            Ok(Line::Event(event)) => replay.recorded(&event)?,
            Ok(Line::Spans(_)) => {}
            Ok(Line::Snapshot(snapshot)) => {
                // The live detectors judge it before it has this part.
                let without = |snapshot| Snapshot { detect: View::default(), ..snapshot };
                let snapshot = without(std::sync::Arc::unwrap_or_clone(snapshot));
                if replay.turn(&snapshot)? == Turn::Back {
                    detect = Detect::new(config);
                }
                let mut found = Output::default();
                detect.tick(&snapshot, false, &mut found);
                replay.seen.add(&snapshot);
                found.batch.events.iter().try_for_each(|event| replay.found(event))?;
            }
            Err(error @ ReadError::Line { .. }) => tracing::warn!("{error}"),
            Err(error) => return Err(error.into()),
        }
    }
    if recording.cut() > 0 {
        tracing::warn!("{} cut short and left out", count(recording.cut(), "line", "lines"));
    }
    Ok(replay.end(detect.view())?)
}

/// How much of a recording there was.
#[derive(Debug, Default)]
struct Seen {
    snapshots: u64,
    /// Time from each snapshot to the next.
    span_ns: u64,
    last_uptime_ns: u64,
}

impl Seen {
    fn add(&mut self, snapshot: &Snapshot) {
        if self.snapshots > 0 {
            self.span_ns += snapshot.uptime_ns.saturating_sub(self.last_uptime_ns);
        }
        self.snapshots += 1;
        self.last_uptime_ns = snapshot.uptime_ns;
    }
}

/// How the time of a snapshot follows on that before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// As it should.
    On,
    /// It is of an earlier time: of another boot, or of another recording that was put behind this one.
    Back,
}

/// A pause between two snapshots that is worth a line.
const PAUSE_NS: u64 = 60_000_000_000;

/// Prints.
struct Replay<'a> {
    out: &'a mut dyn Write,
    form: Form,
    zone: TimeZone,
    seen: Seen,
}

impl Replay<'_> {
    fn agent(&mut self, header: &Header) -> io::Result<()> {
        if self.form.json {
            return Ok(());
        }
        let Header { agent_version, host_name, kernel, .. } = header;
        let time = self.time(header.start_unix_ns);
        writeln!(self.out, "{time} observer {agent_version} starts on {host_name}, kernel {kernel}")
    }

    /// Says where the recording has a gap, or goes back.
    fn turn(&mut self, snapshot: &Snapshot) -> io::Result<Turn> {
        let last_ns = self.seen.last_uptime_ns;
        let turn = if snapshot.uptime_ns < last_ns { Turn::Back } else { Turn::On };
        let pause_ns = snapshot.uptime_ns.saturating_sub(last_ns);
        if self.seen.snapshots == 0 || self.form.json || turn == Turn::On && pause_ns < PAUSE_NS {
            return Ok(turn);
        }
        let time = self.time(snapshot.time_unix_ns);
        match turn {
            Turn::On => {
                writeln!(self.out, "{time} nothing was recorded for {}", duration(pause_ns))?
            }
            Turn::Back => writeln!(
                self.out,
                "{time} the time since boot goes back by {}: another boot; what was found before is left",
                duration(last_ns - snapshot.uptime_ns)
            )?,
        }
        Ok(turn)
    }

    fn recorded(&mut self, event: &Event) -> io::Result<()> {
        let own = [FINDING, CLEARED].contains(&event.name.as_str());
        if self.form.findings || own || !SHOWN.contains(&event.severity.as_str()) {
            return Ok(());
        }
        if self.form.json {
            return self.json(event);
        }
        let time = self.time(event.time_unix_ns);
        writeln!(self.out, "{time} {} [{}]", clean(&event.body), event.name)
    }

    fn found(&mut self, event: &telemetry::Event) -> io::Result<()> {
        if self.form.json {
            return self.json(&event.into());
        }
        let Some(told) = told(event) else { return Ok(()) };
        let time = self.time(event.time_unix_ns);
        writeln!(self.out, "{time} {}", clean(&told.sentence))?;
        if told.state == "cleared" || told.advice.is_empty() {
            return Ok(());
        }
        writeln!(self.out, "{:1$}do: {2}", "", time.len() + 1, clean(told.advice))
    }

    fn json(&mut self, event: &Event) -> io::Result<()> {
        serde_json::to_writer(&mut *self.out, event)?;
        writeln!(self.out)
    }

    fn end(&mut self, view: &detect::View) -> io::Result<()> {
        if self.form.json {
            return self.out.flush();
        }
        let Seen { snapshots, span_ns, .. } = self.seen;
        writeln!(
            self.out,
            "{} over {}; {} since the agent's last start, {} at the end",
            count(snapshots, "snapshot", "snapshots"),
            duration(span_ns),
            count(view.raised, "finding", "findings"),
            view.findings.len()
        )?;
        self.out.flush()
    }

    fn time(&self, unix_ns: u64) -> String {
        let Ok(at) = Timestamp::from_nanosecond(i128::from(unix_ns)) else {
            return unix_ns.to_string();
        };
        at.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
    }
}

/// A process may give itself a name that commands the terminal.
fn clean(text: &str) -> String {
    text.replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;
    use crate::{
        config::all_settings,
        record::{FORMAT, VERSION},
        snapshot::{Exporter, Health},
    };

    const SECOND: u64 = 1_000_000_000;

    fn header(start_s: u64) -> Line {
        Line::Header(Box::new(Header {
            format: FORMAT.into(),
            version: VERSION,
            agent_version: "9".into(),
            host_name: "api".into(),
            kernel: "6".into(),
            start_unix_ns: start_s * SECOND,
            ..Header::default()
        }))
    }

    /// What an agent whose collector is in this state would have seen.
    fn snapshot(second: u64, state: &str) -> Line {
        let exporter =
            Exporter { destination: "c:4317".into(), state: state.into(), ..Exporter::default() };
        let mut snapshot = Snapshot {
            time_unix_ns: second * SECOND,
            uptime_ns: second * SECOND,
            health: Health { exporters: vec![exporter], ..Health::default() },
            ..Snapshot::default()
        };
        // Of the agent that recorded; the replay makes its own.
        snapshot.detect.raised = 77;
        Line::Snapshot(snapshot.into())
    }

    fn event(second: u64, name: &str, severity: &str) -> Line {
        Line::Event(Box::new(Event {
            time_unix_ns: second * SECOND,
            name: name.into(),
            severity: severity.into(),
            body: format!("body of {name}"),
            ..Event::default()
        }))
    }

    /// A collector refuses from second 10 to 30.
    fn lines(from_s: u64) -> Vec<Line> {
        let state = |second| if (10..30).contains(&second) { "held" } else { "open" };
        (from_s..=60).map(|second| snapshot(second, state(second))).collect()
    }

    fn write(lines: &[Line]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("observer.rec");
        let text = lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n");
        fs::write(&path, text.collect::<String>()).unwrap();
        (directory, path)
    }

    fn run(lines: &[Line], form: Form) -> Vec<String> {
        let (_directory, path) = write(lines);
        let config = Config::default_for_tests(&all_settings());
        let mut out = Vec::new();
        replay(&path, &config, form, &mut out).unwrap();
        String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
    }

    /// Each expected text is in the line of its place, and there are no more lines.
    #[track_caller]
    fn check(lines: &[Line], form: Form, expect: &[&str]) {
        let seen = run(lines, form);
        let fits = |(seen, expect): (&String, &&str)| seen.contains(expect);
        let all = seen.len() == expect.len() && seen.iter().zip(expect).all(fits);
        assert!(all, "{seen:#?}\nis not\n{expect:#?}");
    }

    #[test]
    fn a_recording_becomes_a_time_line() {
        let events = [
            event(5, "observer.oom.kill", "ERROR"),
            event(6, "observer.memory.step", "INFO"),
            event(7, FINDING, "ERROR"),
        ];
        let recording: Vec<_> = [header(0)].into_iter().chain(events).chain(lines(1)).collect();
        let raised = "12 WARN agent.uplink: c:4317 does not take";
        let expect = [
            "observer 9 starts on api, kernel 6",
            ":05 body of observer.oom.kill [observer.oom.kill]",
            raised,
            "   do: mend the collector",
            ":40 cleared agent.uplink: c:4317",
            "60 snapshots over 59s; 1 finding since the agent's last start, 0 at the end",
        ];
        check(&recording, Form::default(), &expect);
        let only = Form { findings: true, json: false };
        check(&recording, only, &[&expect[..1], &expect[2..]].concat());
        let json = Form { findings: false, json: true };
        let kinds = ["\"observer.oom.kill\"", "\"raised\"", "\"cleared\""];
        check(&recording, json, &kinds);
        check(&recording, Form { findings: true, json: true }, &kinds[1..]);
        let first = &run(&recording, Form { findings: true, json: true })[0];
        let event: Event = serde_json::from_str(first).unwrap();
        assert_eq!((event.time_unix_ns, event.severity.as_str()), (12 * SECOND, "WARN"));
    }

    #[test]
    fn another_agent_begins_anew_and_another_file_does_not() {
        let cut = |with: Line| {
            let mut recording = vec![header(0)];
            recording.extend(lines(1).into_iter().take(15));
            recording.push(with);
            recording.extend(lines(16));
            run(&recording, Form { findings: true, json: true }).len()
        };
        assert_eq!(cut(header(0)), 2, "raised and cleared");
        assert_eq!(cut(header(15)), 3, "raised, raised by the second agent, and cleared");
    }

    #[test]
    fn a_recording_that_goes_back_or_has_a_gap_says_so() {
        let findings = Form { findings: true, json: false };
        let twice: Vec<_> = [header(0)].into_iter().chain(lines(1)).chain(lines(1)).collect();
        let raised = "12 WARN agent.uplink";
        let cleared = "40 cleared agent.uplink";
        let back = "the time since boot goes back by 59s";
        let expect = [
            "starts",
            raised,
            "do:",
            cleared,
            back,
            raised,
            "do:",
            cleared,
            "120 snapshots over 1m58s",
        ];
        check(&twice, findings, &expect);
        // It was held when the recording broke off, and hours later it still was: it counts from then on.
        let state = |second| if second == 11 || second > 11_000 { "held" } else { "open" };
        let gap = (1..=11).chain(11_001..=11_004).map(|second| snapshot(second, state(second)));
        let gap: Vec<_> = [header(0)].into_iter().chain(gap).collect();
        let raised = ":23 WARN agent.uplink";
        check(
            &gap,
            findings,
            &["starts", "nothing was recorded for 3h03m", raised, "do:", "15 snapshots"],
        );
    }

    #[test]
    fn a_damaged_line_costs_itself_and_what_is_no_recording_is_refused() {
        let (_directory, path) = write(&[&[header(0)], lines(1).as_slice()].concat());
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replacen("{\"snapshot\"", "{\"snapshit\"", 1)).unwrap();
        let config = Config::default_for_tests(&all_settings());
        let mut out = Vec::new();
        replay(&path, &config, Form::default(), &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("59 snapshots over 58s; 1 finding"));
        fs::write(&path, "hello\n").unwrap();
        let error = replay(&path, &config, Form::default(), &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("--record FILE"), "{error}");
    }
}
