//! `cargo xtask bench`: what the agent costs, beside others, in one run. The method is in docs/measurements.md.

mod agent;
mod bpf;
mod cgroup;
mod instructions;
mod malloc;
mod servers;
mod slow;
mod stats;
mod subject;
mod table;
mod workload;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

pub(crate) use self::{instructions::budgets, table::markdown};
use self::{subject::Subject, workload::Workload};
use crate::{
    command::{is_root, run},
    run::BINARY,
    setup::{self, Purpose, Tools},
};

/// What to measure.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// CPU time per operation of workloads, with and without probes.
    Slow(Choice),
    /// Nanoseconds an event of each BPF program.
    Stats(Choice),
    /// CPU, resident memory and map memory of the idle agent.
    Agent {
        /// How long to look.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// What to look at: observer, runqlat, tcplife.
        #[arg(long, value_delimiter = ',', default_values = ["observer", "runqlat", "tcplife"])]
        only: Vec<Subject>,
    },
    /// Instructions an event of each hot BPF program, against budgets; in a guest, so it needs no root.
    Instructions {
        /// Kernel of the guest, as `cargo xtask vm` has them.
        #[arg(long, default_value = instructions::BUDGET_KERNEL)]
        kernel: String,
        /// Boots; their figures differ by what is not repeatable.
        #[arg(long, default_value_t = 1)]
        boots: usize,
    },
    /// CPU time a tick of the detectors, with 2,000 processes and 20,000 connections; fails beyond 2 ms, and needs no root.
    Detect,
    /// What the probes of a malloc cost whoever calls it, and how long they take to attach and to let go of.
    Malloc {
        /// Rounds.
        #[arg(long, default_value_t = 9)]
        rounds: usize,
    },
    /// The workload of `malloc`, which starts it.
    #[command(hide = true)]
    Pairs,
    /// The workload of short TCP connections; the other commands start it.
    #[command(hide = true)]
    Connect {
        /// How many.
        count: u32,
    },
}

/// Which part of the measurement to do.
#[derive(Args)]
pub(crate) struct Choice {
    /// Rounds; a verdict needs 9.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Workloads: pipe, hackbench, redis, pgbench, tcp. All, if left out.
    #[arg(long, value_delimiter = ',')]
    workload: Vec<Workload>,
    /// What to compare: observer, runqlat, tcplife. All, if left out.
    #[arg(long, value_delimiter = ',', default_values = ["observer", "runqlat", "tcplife"])]
    only: Vec<Subject>,
}

impl Choice {
    fn workloads(&self, all: &[Workload]) -> Vec<Workload> {
        if self.workload.is_empty() { all.to_vec() } else { self.workload.clone() }
    }
}

/// Makes ready, measures, prints tables.
pub(crate) fn bench(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Connect { count } => workload::connect(*count),
        Bench::Pairs => malloc::pairs(),
        Bench::Instructions { kernel, boots } => instructions::instructions(kernel, *boots),
        Bench::Detect => {
            let tools = setup::ensure(Purpose::Run)?;
            run(&mut tools.cargo(&["bench", "--package", "observer", "--bench", "detect"]))
        }
        _ if !is_root() => bail!(
            "a benchmark loads BPF programs and makes a cgroup, so it must run as root:\n\n    \
             sudo env PATH=\"$PATH\" HOME=\"$HOME\" cargo xtask bench ...\n"
        ),
        Bench::Slow(choice) => {
            prepare(&choice.only)?;
            slow::slow(choice)
        }
        Bench::Stats(choice) => {
            prepare(&choice.only)?;
            stats::stats(choice)
        }
        Bench::Malloc { rounds } => {
            build(&setup::ensure(Purpose::Run)?)?;
            malloc::malloc(*rounds)
        }
        Bench::Agent { seconds, only } => {
            prepare(only)?;
            agent::agent(*seconds, only)
        }
    }
}

fn prepare(subjects: &[Subject]) -> Result<()> {
    let tools = setup::ensure(Purpose::Bench)?;
    if subjects.contains(&Subject::Observer) { build(&tools) } else { Ok(()) }
}

fn build(tools: &Tools) -> Result<()> {
    run(&mut tools.cargo(&["build", "--release", "--package", "observer"]))?;
    println!("measuring {BINARY}");
    Ok(())
}

/// Looks until there is something to see.
fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return Ok(seen);
        }
        if start.elapsed() > limit {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
}
