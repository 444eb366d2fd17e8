//! `cargo xtask lab`: real hangs with real programs, and what the agent said before. docs/lab.md.

mod place;
mod replay;
mod report;
mod scenarios;
mod score;
mod timeline;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use self::{place::Place, scenarios::Scenario, score::Score, timeline::Timeline};
use crate::{
    command::{is_root, run},
    run::BINARY,
    setup::{self, Purpose, Tools},
};

/// Results, by scenario and run.
const FOLDER: &str = "target/lab";

/// Longest time between two samples of a witness that is alive on a host that is not stolen from.
const WITNESS_GAP_S: f64 = 2.0;

/// A hang that is made on purpose, with a witness beside the agent.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_precedence_over_arg = true)]
pub(crate) struct Lab {
    #[command(subcommand)]
    replay: Option<replay::Replay>,
    /// Scenario, or `list`.
    scenario: Option<String>,
    /// In a guest with this kernel.
    #[arg(long, value_name = "KERNEL", conflicts_with = "native")]
    vm: Option<String>,
    /// On this host, as far as that harms nobody.
    #[arg(long)]
    native: bool,
    /// The healthy twin only.
    #[arg(long)]
    twin: bool,
    /// How often.
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// Longest time from the fault on; the scenario's if left out.
    #[arg(long)]
    seconds: Option<u32>,
    /// How fast, in the scenario's unit; the scenario's if left out.
    #[arg(long)]
    rate: Option<f64>,
    /// Short runs that show that scenarios work, not that the agent does.
    #[arg(long)]
    smoke: bool,
    /// Every scenario, with its twin.
    #[arg(long, conflicts_with = "scenario")]
    all: bool,
    /// The scenarios that CI runs, with their twins.
    #[arg(long, conflicts_with_all = ["scenario", "all"])]
    ci: bool,
    /// Write the table to this file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// One run and its verdict.
struct Row {
    scenario: Scenario,
    twin: bool,
    place: String,
    result: Outcome,
    wall: Duration,
}

/// What came of a run.
enum Outcome {
    Scored(Score),
    /// The machine does not allow it.
    Skipped(String),
    Failed(String),
}

/// Builds, runs, scores, tells.
pub(crate) fn lab(lab: &Lab) -> Result<()> {
    let tools = setup::ensure(Purpose::Test)?;
    if let Some(replay) = &lab.replay {
        return replay::replay(replay, &tools);
    }
    let all = scenarios::all(&tools)?;
    let chosen: Vec<Scenario> = match lab.scenario.as_deref() {
        Some("list") => {
            all.iter().for_each(show);
            return Ok(());
        }
        Some(name) => all.into_iter().filter(|scenario| scenario.name() == name).collect(),
        None if lab.all => all,
        None if lab.ci => all.into_iter().filter(Scenario::is_in_ci).collect(),
        None => bail!("name a scenario, or say `list`, `--ci` or `--all`"),
    };
    ensure!(!chosen.is_empty(), "no such scenario; `cargo xtask lab list` names them");
    ensure!(
        lab.vm.is_some() || is_root(),
        "the agent loads BPF programs: run as root, or in a guest with --vm"
    );
    let (agent, place) = (agent(&tools)?, Place::of(lab.vm.as_deref())?);
    let mut rows = Vec::new();
    for scenario in &chosen {
        for twin in twins(lab) {
            for number in 1..=lab.runs {
                rows.push(row(lab, scenario, &place, &agent, twin, number));
            }
        }
    }
    let table = report::table(&rows);
    println!("\n{table}");
    if let Some(path) = &lab.report {
        fs::write(path, report::page(&table)).with_context(|| path.display().to_string())?;
    }
    let failed = rows.iter().filter(|row| matches!(row.result, Outcome::Failed(_))).count();
    ensure!(failed == 0, "{failed} of {} runs failed; the table says how", rows.len());
    Ok(())
}

/// Fault and twin, or what was asked for.
fn twins(lab: &Lab) -> Vec<bool> {
    match (lab.twin, lab.all || lab.ci || lab.smoke) {
        (true, _) => vec![true],
        (false, true) => vec![false, true],
        (false, false) => vec![false],
    }
}

fn show(scenario: &Scenario) {
    let (ci, name) = (if scenario.is_in_ci() { "ci" } else { "" }, scenario.name());
    println!("{name:<18} {:<3} {ci:<3} {}", scenario.text("incident"), scenario.text("shows"));
}

/// The agent on trial: `OBSERVER_BIN`, else what the workspace makes.
fn agent(tools: &Tools) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("OBSERVER_BIN") {
        return Ok(path.into());
    }
    run(&mut tools.cargo(&["build", "--release", "--package", "observer"]))?;
    fs::canonicalize(BINARY).context(BINARY)
}

fn row(
    lab: &Lab,
    scenario: &Scenario,
    place: &Place,
    agent: &Path,
    twin: bool,
    number: u32,
) -> Row {
    let kind = if twin { "twin" } else { "fault" };
    let out = Path::new(FOLDER).join(scenario.name()).join(format!("{kind}-{number}"));
    println!("\n== {} {kind} {number}: {}", scenario.name(), scenario.text("shows"));
    let start = Instant::now();
    let result = attempt(lab, scenario, place, agent, twin, &out)
        .unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
    match &result {
        Outcome::Scored(score) => println!("{}", report::sentence(score)),
        Outcome::Skipped(reason) => println!("skipped: {reason}"),
        Outcome::Failed(error) => println!("failed: {error}"),
    }
    Row {
        scenario: scenario.clone(),
        twin,
        place: place.to_string(),
        result,
        wall: start.elapsed(),
    }
}

fn attempt(
    lab: &Lab,
    scenario: &Scenario,
    place: &Place,
    agent: &Path,
    twin: bool,
    out: &Path,
) -> Result<Outcome> {
    if out.exists() {
        fs::remove_dir_all(out).with_context(|| out.display().to_string())?;
    }
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let mut args = vec!["run".to_owned(), scenario.name().to_owned()];
    args.extend(twin.then(|| "--twin".to_owned()));
    args.extend(lab.smoke.then(|| "--smoke".to_owned()));
    args.extend(lab.seconds.map(|seconds| format!("--seconds={seconds}")));
    args.extend(lab.rate.map(|rate| format!("--rate={rate}")));
    if let Some(reason) = place.run(scenario, agent, args, out)? {
        return Ok(Outcome::Skipped(reason));
    }
    let run = Timeline::read(&out.join("timeline.jsonl"))?;
    let score = score::score(&run).context("the time line has no fault_start")?;
    let gap_s = score.witness.longest_gap_s;
    ensure!(score.witness.samples > 0, "the witness saw nothing");
    ensure!(!lab.smoke || gap_s < WITNESS_GAP_S, "the witness saw nothing for {gap_s:.1} s");
    if let Some(failed_s) = score.failed_s.filter(|failed_s| *failed_s < 0.0) {
        bail!("the software failed {:.0} s before the fault", -failed_s);
    }
    Ok(Outcome::Scored(score))
}
