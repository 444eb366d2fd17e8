//! `cargo xtask lab`: real hangs with real programs, and what the agent said before. docs/lab.md.

mod place;
mod replay;
mod report;
mod retold;
mod runs;
mod scenarios;
mod score;
mod sums;
mod timeline;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

pub(crate) use self::replay::goals;
use self::{
    place::Place,
    runs::{Outcome, Row},
    scenarios::Scenario,
};
use crate::{
    command::{is_root, run},
    run::BINARY,
    setup::{self, Purpose, Tools},
    skips::Skip,
};

/// Kernel of the guests of the short runs.
const SMOKE_KERNEL: &str = "6.12";

/// A hang that is made on purpose, with a witness beside the agent.
#[derive(Args, Default)]
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
    /// End each run soon after the first failure: enough for leads, a third of the time.
    #[arg(long)]
    brief: bool,
    /// Run nothing: judge the runs of these scenarios that are in target/lab.
    #[arg(long)]
    recorded: bool,
    /// Judge recorded runs by what this agent finds in their recordings, not by what that of their day found.
    #[arg(long, requires = "recorded")]
    replayed: bool,
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

/// The short runs that every test run has, and what of them was skipped.
///
/// # Errors
/// Where a scenario or its witness does not work.
pub(crate) fn smoke() -> Result<Vec<Skip>> {
    let vm = Some(SMOKE_KERNEL.to_owned());
    let rows = rows(&Lab { vm, ci: true, smoke: true, runs: 1, ..Lab::default() })?;
    Ok(rows.iter().filter_map(skip).collect())
}

fn skip(row: &Row) -> Option<Skip> {
    let Outcome::Skipped(reason) = &row.result else { return None };
    let kind = if row.twin { "-twin" } else { "" };
    Some(Skip { test: format!("lab::{}{kind}", row.scenario.name()), reason: reason.clone() })
}

/// Builds, runs, scores, tells.
pub(crate) fn lab(lab: &Lab) -> Result<()> {
    match &lab.replay {
        Some(replay) => replay::replay(replay, &setup::ensure(Purpose::Test)?),
        None => rows(lab).map(drop),
    }
}

fn rows(lab: &Lab) -> Result<Vec<Row>> {
    let tools = setup::ensure(Purpose::Test)?;
    let all = scenarios::all(&tools)?;
    let chosen: Vec<Scenario> = match lab.scenario.as_deref() {
        Some("list") => {
            all.iter().for_each(show);
            return Ok(Vec::new());
        }
        Some(name) => all.into_iter().filter(|scenario| scenario.name() == name).collect(),
        None if lab.all => all,
        None if lab.ci => all.into_iter().filter(Scenario::is_in_ci).collect(),
        None => bail!("name a scenario, or say `list`, `--ci` or `--all`"),
    };
    ensure!(!chosen.is_empty(), "no such scenario; `cargo xtask lab list` names them");
    ensure!(
        lab.vm.is_some() || lab.recorded || is_root(),
        "the agent loads BPF programs: run as root, or in a guest with --vm"
    );
    let rows = if lab.recorded {
        let agent = if lab.replayed { Some(agent(&tools)?) } else { None };
        let recorded = |scenario| runs::recorded(scenario, agent.as_deref());
        chosen.iter().map(recorded).collect::<Result<Vec<_>>>()?.concat()
    } else {
        let (agent, place) = (agent(&tools)?, Place::of(lab.vm.as_deref())?);
        let run = |scenario, twin| runs::run(lab, scenario, &place, &agent, twin);
        let both = |scenario| twins(lab).into_iter().map(move |twin| (scenario, twin));
        let each = |(scenario, twin)| (0..lab.runs).map(move |_| run(scenario, twin));
        chosen.iter().flat_map(both).flat_map(each).collect()
    };
    let table = report::table(&rows);
    println!("\n{table}");
    if let Some(path) = &lab.report {
        fs::write(path, report::page(&table)).with_context(|| path.display().to_string())?;
    }
    let failed = rows.iter().filter(|row| matches!(row.result, Outcome::Failed(_))).count();
    ensure!(failed == 0, "{failed} of {} runs failed; the table says how", rows.len());
    Ok(rows)
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
