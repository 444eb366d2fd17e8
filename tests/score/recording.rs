//! Runs of the laboratory (docs/lab.md) before the same rules: the agent's recording gives the snapshots, the time line the
//! truth.
//!
//! A run is a folder with `timeline.jsonl` and `agent/recording.jsonl`, as the laboratory leaves it below `target/lab/`, or
//! with `timeline.jsonl.br` and `recording.jsonl.br` (RFC 7932), as `--keep` makes it: without the witness's samples, some
//! 30 KiB.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use brotli::{BrotliCompress, Decompressor, enc::BrotliEncoderParams};
use observer::record;
use serde_json::Value;

use crate::{
    cases::Class,
    judge::Watcher,
    play::{Outcome, watchers},
    world::Truth,
};

/// Kept runs.
pub(crate) const KEPT: &str = "tests/recordings";
/// Runs of this machine.
pub(crate) const FRESH: &str = "target/lab";
/// The two files of a run.
const NAMES: [&str; 2] = ["timeline.jsonl", "recording.jsonl"];
/// What is unpacked at a time; the packer's best; and its widest window, as snapshots of a second are like those of the next.
const BUFFER_BYTES: usize = 1 << 16;
const QUALITY: i32 = 11;
const WINDOW_BITS: i32 = 24;
/// What a time line needs to tell the truth.
const TRUTH: &[&str] = &[
    "culprit",
    "fault_start",
    "first_failed_request",
    "hang_start",
    "oom_kill",
    "stop",
    "stage_ended",
];

/// All runs below a folder, by name. A run that cannot be read is told and left out.
pub(crate) fn all(folder: &Path, only: &str) -> Vec<(String, Outcome)> {
    let mut runs = Vec::new();
    find(folder, &mut runs);
    runs.sort();
    let mut outcomes = Vec::new();
    for run in runs {
        let name = run.strip_prefix(folder).unwrap_or(&run).to_string_lossy().replace('/', " ");
        if !name.starts_with(only) {
            continue;
        }
        match play(&run) {
            Ok(outcome) => outcomes.push((name, outcome)),
            Err(error) => eprintln!("{}: {error}; left out", run.display()),
        }
    }
    outcomes
}

fn find(folder: &Path, runs: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    if text(folder, NAMES[0]).is_ok() {
        runs.push(folder.to_owned());
        return;
    }
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        find(&entry.path(), runs);
    }
}

/// One of the two files, packed or not.
fn text(run: &Path, name: &str) -> io::Result<String> {
    let mut text = String::new();
    let packed = run.join(format!("{name}.br"));
    if packed.exists() {
        Decompressor::new(File::open(packed)?, BUFFER_BYTES).read_to_string(&mut text)?;
    } else {
        let folder = if name == NAMES[1] { run.join("agent") } else { run.to_owned() };
        File::open(folder.join(name))?.read_to_string(&mut text)?;
    }
    Ok(text)
}

/// A time line: its header and its events.
struct Timeline {
    header: Value,
    events: Vec<Value>,
}

impl Timeline {
    fn parse(text: &str) -> io::Result<Self> {
        let mut lines = text.lines().map(serde_json::from_str);
        let header = lines.next().ok_or_else(|| io::Error::other("an empty time line"))??;
        Ok(Self { header, events: lines.collect::<Result<_, _>>()? })
    }

    fn of<'a>(&'a self, what: &'a str) -> impl Iterator<Item = &'a Value> {
        self.events.iter().filter(move |event| event["what"] == what)
    }

    /// When something happened first, in seconds of Unix time.
    fn first(&self, what: &str) -> Option<f64> {
        let offset_s = self.header["unix_minus_monotonic_s"].as_f64()?;
        Some(self.of(what).next()?["t_s"].as_f64()? + offset_s)
    }

    fn truth(&self, start_s: f64) -> Truth {
        let second = |what| Some((self.first(what)? - start_s).max(0.0) as u64);
        let ends = ["first_failed_request", "hang_start", "oom_kill"];
        let onset_s = second("fault_start").filter(|_| self.header["twin"] != true);
        let ended = |at: &u64| onset_s.is_some_and(|onset_s| *at >= onset_s);
        Truth {
            onset_s,
            end_s: ends.iter().filter_map(|what| second(what)).filter(ended).min(),
            // Whatever names the culprit is right: what the fault is about is not on the time line.
            family: None,
            culprits: self.listed("pids").filter_map(Value::as_u64).map(|pid| pid as u32).collect(),
            names: self.listed("names").filter_map(Value::as_str).map(str::to_owned).collect(),
            nobody: false,
        }
    }

    fn listed<'a>(&'a self, key: &'static str) -> impl Iterator<Item = &'a Value> {
        self.of("culprit").filter_map(move |event| event[key].as_array()).flatten()
    }
}

fn play(run: &Path) -> io::Result<Outcome> {
    let timeline = Timeline::parse(&text(run, NAMES[0])?)?;
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(text(run, NAMES[1])?.as_bytes())?;
    let mut recording = record::read(file.path()).map_err(io::Error::other)?;
    let snapshots: Vec<_> =
        recording.snapshots().collect::<Result<_, _>>().map_err(io::Error::other)?;
    let first = snapshots.first().ok_or_else(|| io::Error::other("no snapshot"))?;
    let (start_s, total) = (first.time_unix_ns as f64 / 1e9, first.oom.memory_total_bytes as f64);
    let truth = timeline.truth(start_s);
    let over = ["stop", "stage_ended"].iter().filter_map(|what| timeline.first(what));
    let over_s = over.fold(f64::INFINITY, f64::min);
    let mut watchers = watchers();
    let mut now_s = 0;
    for snapshot in &snapshots {
        let at_s = snapshot.time_unix_ns as f64 / 1e9;
        // From here on programs are ended on purpose.
        if at_s >= over_s {
            break;
        }
        now_s = (at_s - start_s).max(0.0) as u64;
        watchers.iter_mut().for_each(|watcher| watcher.tick(now_s, snapshot, &truth));
    }
    Ok(Outcome {
        name: "recording",
        class: if truth.onset_s.is_some() { Class::Broken } else { Class::Healthy },
        squeezed: false,
        seed: 0,
        rate: timeline.header["rate"].as_f64().unwrap_or(0.0),
        total_bytes: total,
        healthy_s: truth.onset_s.unwrap_or(now_s),
        truth,
        verdicts: watchers.into_iter().map(Watcher::into_verdict).collect(),
    })
}

/// Keeps a run for those who have no laboratory: its snapshots, and the truth of its time line.
pub(crate) fn keep(run: &Path) -> io::Result<PathBuf> {
    let timeline = Timeline::parse(&text(run, NAMES[0])?)?;
    let name: Vec<String> =
        run.iter().rev().take(2).map(|part| part.to_string_lossy().into_owned()).collect();
    let folder = Path::new(KEPT).join(name.into_iter().rev().collect::<Vec<_>>().join("-"));
    fs::create_dir_all(&folder)?;
    let mut kept = format!("{}\n", timeline.header);
    for event in
        timeline.events.iter().filter(|event| TRUTH.iter().any(|what| event["what"] == *what))
    {
        kept += &format!("{event}\n");
    }
    pack(&folder.join(format!("{}.br", NAMES[0])), &kept)?;
    pack(&folder.join(format!("{}.br", NAMES[1])), &text(run, NAMES[1])?)?;
    Ok(folder)
}

fn pack(path: &Path, text: &str) -> io::Result<()> {
    let params = BrotliEncoderParams { quality: QUALITY, lgwin: WINDOW_BITS, ..Default::default() };
    BrotliCompress(&mut text.as_bytes(), &mut File::create(path)?, &params).map(drop)
}
