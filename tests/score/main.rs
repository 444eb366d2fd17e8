//! The replay test bench (docs/score.md): healthy host-days and faults, made up from a seed or recorded in the laboratory,
//! through our own detectors and the rules of others. `cargo xtask lab score` builds it and runs it.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a task tells what it does")]

mod baseline;
mod cases;
mod judge;
mod ours;
mod play;
mod rule;
mod statistics;
mod sum;
mod table;
mod world;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use clap::Parser;

/// How early, how often wrong, and whom they blame.
#[derive(Parser)]
#[command(name = "score")]
struct Options {
    /// A sample, for CI.
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
}

fn main() -> ExitCode {
    let options = Options::parse();
    let start = Instant::now();
    let size = if options.quick { cases::QUICK } else { cases::FULL };
    let cases = cases::all(size, options.seed, &options.only);
    if cases.is_empty() {
        eprintln!("error: no case starts with {:?}", options.only);
        return ExitCode::FAILURE;
    }
    let results = play::all(&cases);
    if options.verbose {
        results.iter().for_each(|result| println!("{}", table::line(result)));
    }
    let page = table::page(&results, &options, start.elapsed());
    println!("{page}");
    if let Some(path) = &options.report
        && let Err(error) = std::fs::write(path, page)
    {
        eprintln!("error: {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
