//! One run: in its place, judged by its time line, and kept.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    Lab,
    place::Place,
    report, retold,
    scenarios::Scenario,
    score::{self, Score},
    timeline::Timeline,
};
use crate::vm::Unavailable;

/// Results, by scenario and run.
const FOLDER: &str = "target/lab";

/// Start of the names of folders of short runs, each of which takes the place of the one before.
const SMOKE: &str = "smoke-";

/// What the host knows, in the folder of a run.
const HOST: &str = "host.json";

/// Longest time between two samples of a witness that is alive on a host that is not stolen from.
const WITNESS_GAP_S: f64 = 2.0;

/// One run and its verdict.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) scenario: Scenario,
    pub(super) twin: bool,
    /// Where, and how long it took there.
    pub(super) host: Host,
    pub(super) result: Outcome,
}

/// What the host knows of a run; beside its time line.
#[derive(Clone, Default)]
pub(super) struct Host {
    pub(super) place: String,
    pub(super) wall_s: f64,
}

impl Host {
    fn json(&self) -> Value {
        json!({ "place": self.place, "wall_s": self.wall_s })
    }

    fn read(path: &Path) -> Option<Self> {
        let json: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        Some(Self { place: json["place"].as_str()?.to_owned(), wall_s: json["wall_s"].as_f64()? })
    }
}

/// What came of a run.
#[derive(Clone)]
pub(super) enum Outcome {
    Scored(Box<Score>),
    /// The machine does not allow it.
    Skipped(String),
    Failed(String),
}

/// Runs a scenario once and judges it.
pub(super) fn run(lab: &Lab, scenario: &Scenario, place: &Place, agent: &Path, twin: bool) -> Row {
    let out = folder(scenario, twin, lab.smoke);
    println!("\n== {}: {}", out.display(), scenario.text("shows"));
    let start = Instant::now();
    let result = attempt(lab, scenario, place, agent, twin, &out);
    let host = Host { place: place.to_string(), wall_s: start.elapsed().as_secs_f64() };
    let result = result.and_then(|skipped| {
        fs::write(out.join(HOST), host.json().to_string())?;
        skipped.map_or_else(|| judge(&out, lab.smoke, None), |why| Ok(Outcome::Skipped(why)))
    });
    let result = result.unwrap_or_else(|error| match error.is::<Unavailable>() {
        true => Outcome::Skipped(format!("{error:#}")),
        false => Outcome::Failed(format!("{error:#}")),
    });
    match &result {
        Outcome::Scored(score) => println!("{}", report::sentence(score)),
        Outcome::Skipped(reason) => println!("skipped: {reason}"),
        Outcome::Failed(error) => println!("failed: {error}"),
    }
    Row { scenario: scenario.clone(), twin, host, result }
}

/// Folder for a run: runs are kept, but for short ones.
fn folder(scenario: &Scenario, twin: bool, smoke: bool) -> PathBuf {
    let kind = if twin { "twin" } else { "fault" };
    let folder = Path::new(FOLDER).join(scenario.name());
    if smoke {
        return folder.join(format!("{SMOKE}{kind}"));
    }
    let free =
        (1..).map(|number| folder.join(format!("{kind}-{number}"))).find(|out| !out.exists());
    free.unwrap_or(folder)
}

/// Judges all runs of a scenario that were kept: by the findings of their day, or by those of an agent of today.
///
/// # Errors
/// Where their folder cannot be read.
pub(super) fn recorded(scenario: &Scenario, today: Option<&Path>) -> Result<Vec<Row>> {
    let folder = Path::new(FOLDER).join(scenario.name());
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).into_iter().flatten() {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| !name.starts_with(SMOKE));
    names.sort();
    let row = |name: &String| {
        let (out, twin) = (folder.join(name), name.starts_with("twin"));
        let host = Host::read(&out.join(HOST)).unwrap_or_default();
        let result =
            judge(&out, false, today).unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        Row { scenario: scenario.clone(), twin, host, result }
    };
    Ok(names.iter().map(row).collect())
}

/// Runs it; gives why it was skipped, if it was.
fn attempt(
    lab: &Lab,
    scenario: &Scenario,
    place: &Place,
    agent: &Path,
    twin: bool,
    out: &Path,
) -> Result<Option<String>> {
    if out.exists() {
        fs::remove_dir_all(out).with_context(|| out.display().to_string())?;
    }
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let mut args = vec!["run".to_owned(), scenario.name().to_owned()];
    args.extend(twin.then(|| "--twin".to_owned()));
    args.extend(lab.smoke.then(|| "--smoke".to_owned()));
    args.extend(lab.brief.then(|| "--brief".to_owned()));
    args.extend(lab.seconds.map(|seconds| format!("--seconds={seconds}")));
    args.extend(lab.rate.map(|rate| format!("--rate={rate}")));
    place.run(scenario, agent, args, out)
}

/// Judges what a run has left.
fn judge(out: &Path, smoke: bool, today: Option<&Path>) -> Result<Outcome> {
    let mut run = Timeline::read(&out.join("timeline.jsonl"))?;
    if let Some(agent) = today {
        retold::retell(&mut run, out, agent)?;
    }
    let score = score::score(&run).context("the time line has no fault_start")?;
    let gap_s = score.witness.longest_gap_s;
    ensure!(score.witness.samples > 0, "the witness saw nothing");
    ensure!(!smoke || gap_s < WITNESS_GAP_S, "the witness saw nothing for {gap_s:.1} s");
    if let Some(failed_s) = score.failed_s.filter(|failed_s| *failed_s < 0.0) {
        bail!("the software failed {:.0} s before the fault", -failed_s);
    }
    Ok(Outcome::Scored(Box::new(score)))
}
