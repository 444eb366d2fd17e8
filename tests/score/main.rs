//! The replay test bench (docs/score.md): healthy host-days and faults, made up from a seed or recorded in the laboratory,
//! through our own detectors and the rules of others. `cargo xtask lab score` builds it and runs it.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a task tells what it does")]

mod baseline;
mod cases;
mod cost;
mod goals;
mod judge;
mod ours;
mod play;
mod recording;
mod rule;
mod statistics;
mod sum;
mod table;
mod world;

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::Parser;

use self::goals::Goal;

/// Healthy host-days that are to be played, at least.
const LEAST_DAYS: f64 = 60.0;

/// How early, how often wrong, and whom they blame.
#[derive(Parser)]
#[command(name = "score")]
struct Options {
    /// A sample.
    #[arg(long)]
    quick: bool,
    /// Of all that is made up.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only cases whose name starts so.
    #[arg(long, default_value = "")]
    only: String,
    /// Write the tables to this file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Say of each case what our detectors made of it.
    #[arg(long)]
    verbose: bool,
    /// Only runs of the laboratory: of this machine's target/lab, and those that were kept.
    #[arg(long)]
    recordings: bool,
    /// Fail if a figure is not what it is to be; of runs of the laboratory, only those that were kept are asked.
    #[arg(long, conflicts_with = "only")]
    goals: bool,
    /// Keep a run of the laboratory in tests/recordings, packed.
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

fn main() -> ExitCode {
    match perform(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn perform(options: &Options) -> io::Result<()> {
    if let Some(run) = &options.keep {
        println!("kept as {}", recording::keep(run)?.display());
        return Ok(());
    }
    let start = Instant::now();
    let size = if options.quick { cases::QUICK } else { cases::FULL };
    let cases =
        if options.recordings { Vec::new() } else { cases::all(size, options.seed, &options.only) };
    let cost_ms = if cases.is_empty() { (0.0, 0.0) } else { cost::large_host() };
    let results = play::all(&cases);
    let played = |folder| recording::all(Path::new(folder), &options.only);
    let mut runs = played(recording::KEPT);
    let of_kept = goals::of_runs(&runs);
    if !options.goals {
        runs.extend(played(recording::FRESH));
    }
    if results.is_empty() && runs.is_empty() {
        return Err(io::Error::other(format!("nothing to play starts with {:?}", options.only)));
    }
    if options.verbose {
        results.iter().for_each(|result| println!("{}", table::line(result)));
    }
    let least_days = if options.quick { 0.0 } else { LEAST_DAYS };
    let of_cases =
        if options.recordings { Vec::new() } else { goals::of_cases(&results, least_days) };
    let page = table::page(&results, &runs, &of_cases, options, cost_ms, start.elapsed());
    println!("{page}");
    if let Some(path) = &options.report {
        std::fs::write(path, page)
            .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
    }
    if options.goals { judge(of_cases.iter().chain(&of_kept)) } else { Ok(()) }
}

/// Fails with the goals that are missed, if there are any.
fn judge<'a>(goals: impl Iterator<Item = &'a Goal>) -> io::Result<()> {
    let (met, missed): (Vec<_>, Vec<_>) = goals.partition(|goal| goal.is_met());
    if missed.is_empty() {
        println!("all {} goals are met", met.len());
        return Ok(());
    }
    let shown: Vec<_> = missed.iter().map(|goal| goal.cells().join(", ")).collect();
    Err(io::Error::other(format!("{} goals are missed:\n  {}", missed.len(), shown.join("\n  "))))
}
