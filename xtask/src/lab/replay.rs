//! `cargo xtask lab score`: the replay test bench, built for release. docs/score.md.

use anyhow::Result;
use clap::Subcommand;

use crate::{command::run, setup::Tools};

/// What else the laboratory does.
#[derive(Subcommand)]
pub(crate) enum Replay {
    /// Play healthy host-days and faults before our detectors and the rules of others (docs/score.md).
    Score {
        /// For the bench: `--quick`, `--seed N`, `--only NAME`, `--report FILE`, `--verbose`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

/// Builds the bench and runs it.
pub(super) fn replay(replay: &Replay, tools: &Tools) -> Result<()> {
    let Replay::Score { args } = replay;
    score(tools, args)
}

/// The part of it that every test run has: all of it, with one seed, held to the goals.
///
/// # Errors
/// Names the goals that are missed.
pub(crate) fn goals(tools: &Tools) -> Result<()> {
    score(tools, &["--goals".to_owned()])
}

fn score(tools: &Tools, args: &[String]) -> Result<()> {
    let mut cargo =
        tools.cargo(&["run", "--release", "--package", "observer-tests", "--bin", "score", "--"]);
    run(cargo.args(args))
}
