//! The hang laboratory, as it runs in a guest or in a control group: real programs, a fault, and a witness that the agent
//! cannot influence. `cargo xtask lab` builds it, starts it and scores it; docs/lab.md has the form of the time line.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a task tells what it does")]

mod agent_events;
mod delivery;
mod judge;
mod network;
mod run;
mod scenario;
mod stage;
mod timeline;
mod witness;

use std::process::ExitCode;

use clap::Parser;

/// A fault with real programs, seen by a witness and by the agent.
#[derive(Parser)]
#[command(name = "lab")]
enum Task {
    /// Print the scenarios.
    List {
        /// As JSON, for `cargo xtask lab`.
        #[arg(long)]
        json: bool,
    },
    /// Run one scenario and write `timeline.jsonl`.
    Run(run::Options),
    /// The ground truth, a process of its own for each kind of probe.
    #[command(subcommand)]
    Witness(witness::Probe),
    /// The programs of a scenario and its fault, in a process that the kernel may kill like any other.
    #[command(hide = true)]
    Stage(stage::Options),
    /// A load in a process of its own.
    #[command(hide = true, subcommand)]
    Load(scenario::load::Load),
}

/// Exit status of a run that this machine does not allow.
const EXIT_SKIPPED: u8 = 3;

fn main() -> ExitCode {
    match Task::parse() {
        Task::List { json } => scenario::list(json),
        Task::Run(options) => match run::run(&options) {
            Ok(run::Ended::Done) => {}
            Ok(run::Ended::Skipped(reason)) => {
                println!("SKIPPED {}: {reason}", options.scenario);
                return ExitCode::from(EXIT_SKIPPED);
            }
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::FAILURE;
            }
        },
        Task::Witness(probe) => witness::run(&probe),
        Task::Stage(options) => stage::perform(&options),
        Task::Load(load) => {
            if let Err(error) = scenario::load::run(&load) {
                eprintln!("error: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
