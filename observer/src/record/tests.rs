//! What is recorded is read back: whole, cut anywhere, rolled, on a full disk, from another program.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;

use super::{FORMAT, Header, Line, Recorder, VERSION, read, write::Rolling, write::older};
use crate::{
    line_file::LineFile,
    snapshot::Snapshot,
    telemetry::{Batch, Event, Severity, Span, SpanContext, Subject, attr},
    top::sample,
};

const FINISH: Duration = Duration::from_secs(10);

fn header() -> Header {
    Header {
        format: FORMAT.into(),
        version: VERSION,
        agent_version: "0.1.0".into(),
        boot_id: "b".into(),
        start_unix_ns: 1,
        ..Header::default()
    }
}

fn at(time_unix_ns: u64) -> Arc<Snapshot> {
    Arc::new(Snapshot { time_unix_ns, ..Snapshot::default() })
}

fn json(snapshot: &Snapshot) -> String {
    serde_json::to_string(snapshot).unwrap()
}

/// Records these snapshots to the end.
fn record(path: &Path, max_bytes: u64, snapshots: &[Arc<Snapshot>]) -> Recorder {
    let recorder = Recorder::start(path, max_bytes, header()).unwrap();
    for snapshot in snapshots {
        recorder.offer(Arc::clone(snapshot), Arc::default());
    }
    assert!(recorder.finish(FINISH));
    recorder
}

/// Times of the snapshots that can be read, and how many lines were cut.
fn times(path: &Path) -> (Vec<u64>, u64) {
    let mut recording = read(path).unwrap();
    let times = recording.snapshots().map(|snapshot| snapshot.unwrap().time_unix_ns).collect();
    (times, recording.cut())
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("observer.rec");
    (directory, path)
}

#[test]
fn what_was_recorded_is_read_back() {
    let (_directory, path) = place();
    let snapshot = Arc::new(sample::snapshot());
    let event = Event {
        name: "observer.oom.kill",
        severity: Severity::Error,
        time_unix_ns: 7,
        body: "node (7) was killed".into(),
        attrs: vec![attr("process.pid", 7_u32)],
        context: None,
        subject: Subject::Host,
    };
    let span = |error, end_unix_ns| Span {
        name: "stall",
        context: SpanContext { trace_id: 1, span_id: 1 },
        parent_span_id: None,
        links: Vec::new(),
        start_unix_ns: 5,
        end_unix_ns,
        error,
        attrs: Vec::new(),
        subject: Subject::Host,
    };
    let spans = vec![span(None, 15), span(Some("ETIMEDOUT"), 9)];
    let batch = Batch { events: vec![event], spans, ..Batch::default() };
    let recorder = Recorder::start(&path, 1 << 20, header()).unwrap();
    recorder.offer(Arc::clone(&snapshot), Arc::new(batch));
    assert!(recorder.finish(FINISH));
    let lines: Vec<Line> = read(&path).unwrap().map(Result::unwrap).collect();
    let [Line::Header(first), Line::Event(event), Line::Spans(spans), Line::Snapshot(last)] =
        lines.as_slice()
    else {
        panic!("{lines:?}")
    };
    assert_eq!(**first, header());
    assert_eq!((event.name.as_str(), event.severity.as_str()), ("observer.oom.kill", "ERROR"));
    assert_eq!((event.pid, &event.attrs["process.pid"]), (None, &7.into()));
    let stall = &spans.names["stall"];
    assert_eq!((stall.count, stall.errors, stall.longest_ns), (2, 1, 10));
    assert_eq!(json(last), json(&snapshot));
    assert!(recorder.losses().iter().all(|loss| loss.count == 0));
}

#[test]
fn cut_at_any_byte_it_loses_its_last_line_at_most() {
    let (_directory, path) = place();
    record(&path, 1 << 20, &[at(1), at(2), Arc::new(sample::snapshot()), at(4)]);
    let whole = fs::read(&path).unwrap();
    for cut in 0..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let ends: Vec<usize> =
            (0..whole.len()).filter(|at| whole[*at] == b'\n' && *at <= cut).collect();
        let Ok(mut recording) = read(&path) else {
            assert!(ends.is_empty(), "cut at {cut}");
            continue;
        };
        let lines = recording.by_ref().map(Result::unwrap).count();
        let torn = !ends.contains(&cut) && !ends.contains(&cut.wrapping_sub(1));
        assert_eq!((lines, recording.cut()), (ends.len(), u64::from(torn)), "cut at {cut}");
    }
}

#[test]
fn the_next_agent_goes_on_behind_a_torn_line() {
    for torn in [b"{\"snapsho".as_slice(), b"\0\0\0\0"] {
        let (_directory, path) = place();
        record(&path, 1 << 20, &[at(1)]);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(torn);
        fs::write(&path, bytes).unwrap();
        record(&path, 1 << 20, &[at(2)]);
        assert_eq!(times(&path), (vec![1, 2], 1));
        let headers =
            read(&path).unwrap().filter(|line| matches!(line, Ok(Line::Header(_)))).count();
        assert_eq!(headers, 2);
    }
}

#[test]
fn a_torn_header_is_no_obstacle() {
    let (_directory, path) = place();
    for torn in ["{\"hea", "{\"header\":{\"format\":\"observer-recording\",\"vers"] {
        fs::write(&path, torn).unwrap();
        record(&path, 1 << 20, &[at(3)]);
        assert_eq!(times(&path), (vec![3], 1));
    }
}

#[test]
fn a_full_recording_keeps_its_newest_half_and_says_what_went() {
    let (_directory, path) = place();
    let line = json(&at(1)).len() as u64;
    let max_bytes = 20 * line;
    let mut lost = 0;
    for round in 0..10 {
        let snapshots: Vec<_> = (1..=10).map(|n| at(round * 10 + n)).collect();
        let recorder = record(&path, max_bytes, &snapshots);
        lost += recorder.losses().iter().map(|loss| loss.count).sum::<u64>();
        let bytes =
            [path.clone(), older(&path)].map(|path| fs::metadata(path).map_or(0, |m| m.len()));
        assert!(bytes.iter().sum::<u64>() <= max_bytes, "{bytes:?}");
    }
    let (times, cut) = times(&path);
    let first = times[0];
    assert_eq!((times, cut), ((first..=100).collect(), 0));
    assert!((50..=95).contains(&first), "{first}");
    assert!(lost > 80 * line, "{lost}");
}

#[test]
fn a_full_disk_costs_lines_that_are_counted() {
    let full = Rolling::for_tests(LineFile::new("/dev/full".into(), 0o600));
    let recorder = Recorder::spawn(full).unwrap();
    recorder.offer(at(1), Arc::default());
    recorder.offer(at(2), Arc::default());
    assert!(recorder.finish(FINISH));
    let counts: Vec<_> =
        recorder.losses().into_iter().map(|loss| (loss.stage, loss.count)).collect();
    assert_eq!(counts[1], ("record.write".into(), 2));
}

#[test]
fn what_is_no_recording_is_refused_and_left_alone() {
    let (directory, path) = place();
    for (text, why) in [
        ("", "no whole line"),
        ("{\"resourceSpans\":[]}\n", "no header"),
        ("hello\n", "no header"),
        ("{\"header\":{\"format\":\"x\"", "no whole line"),
    ] {
        fs::write(&path, text).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("observer.rec: ") && error.contains(why), "{error}");
        assert!(error.contains("--record FILE"), "{error}");
        if !text.is_empty() {
            let error = format!("{:#}", Recorder::start(&path, 1 << 20, header()).unwrap_err());
            assert!(error.contains("no recording") && error.contains("name another"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
    let error = format!("{:#}", Recorder::start(directory.path(), 1 << 20, header()).unwrap_err());
    assert!(error.contains("no regular file"), "{error}");
    let error = read(&directory.path().join("none")).unwrap_err().to_string();
    assert!(error.contains("No such file") && error.contains("--record"), "{error}");
}

#[test]
fn a_later_format_is_told_from_a_damaged_line() {
    let (_directory, path) = place();
    let later = Header { version: VERSION + 1, agent_version: "9.9".into(), ..header() };
    drop(Recorder::start(&path, 1 << 20, later).unwrap());
    let error = read(&path).unwrap_err().to_string();
    assert!(error.contains(":1: format 2, made by observer 9.9"), "{error}");
    fs::remove_file(&path).unwrap();
    record(&path, 1 << 20, &[at(1), at(2)]);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("{\"snapshot\"", "{\"snapshit\"", 1)).unwrap();
    let lines: Vec<_> = read(&path).unwrap().collect();
    let error = lines[1].as_ref().unwrap_err().to_string();
    assert!(error.contains(":2: ") && error.contains("snapshit"), "{error}");
    assert!(matches!(&lines[2], Ok(Line::Snapshot(snapshot)) if snapshot.time_unix_ns == 2));
}

proptest! {
    #[test]
    fn never_panics_and_always_ends(bytes in proptest::collection::vec(any::<u8>(), 0..300), whole in any::<bool>()) {
        let (_directory, path) = place();
        if whole {
            record(&path, 1 << 20, &[at(1)]);
        }
        let mut text = fs::read(&path).unwrap_or_default();
        text.extend(bytes);
        fs::write(&path, text).unwrap();
        if let Ok(mut recording) = read(&path) {
            prop_assert!(recording.by_ref().count() <= 303);
        }
    }
}
