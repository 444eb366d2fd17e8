//! The tasks of this workspace: `cargo xtask run`, `cargo xtask test`, `cargo xtask bench`, `cargo xtask vm`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task tells the developer what it does"
)]

mod bench;
mod command;
mod cross;
mod lab;
mod run;
mod setup;
mod skips;
mod test;
#[cfg(test)]
mod tidy;
mod vm;
mod watch;

use std::process::ExitCode;

use clap::Parser;

/// Builds, runs, tests and measures observer.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Install what is missing, build for release, and run observer on this host.
    Run {
        /// What observer is called with instead of `run`, after `--`.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Install what is missing, and run every test that this machine allows.
    Test,
    /// Make real hangs with real programs, and see what the agent said before (docs/lab.md).
    Lab(lab::Lab),
    /// Install what is missing, build the agent and its kernel tests for aarch64, and run them on these kernels.
    Cross {
        /// Such as arm64:6.12 (`cargo xtask vm list`).
        kernels: Vec<String>,
    },
    /// Measure what the agent costs.
    Bench {
        #[command(subcommand)]
        bench: bench::Bench,
    },
    /// Run a command on other kernels, in virtual machines.
    Vm(Box<vm::Vm>),
}

fn main() -> ExitCode {
    // The chain of causes is for people; a stack trace of this program would bury it.
    match perform(&Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: &Task) -> anyhow::Result<()> {
    std::env::set_current_dir(workspace())?;
    match task {
        Task::Run { args } => run::run(args),
        Task::Test => test::test(),
        Task::Lab(lab) => lab::lab(lab),
        Task::Cross { kernels } => cross::cross(kernels),
        Task::Bench { bench } => bench::bench(bench),
        Task::Vm(vm) => vm::vm(vm),
    }
}

/// Top of the workspace.
fn workspace() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
