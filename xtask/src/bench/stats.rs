//! `bench stats`: nanoseconds an event of each BPF program, net of what an empty one shows.

use std::collections::BTreeMap;

use anyhow::Result;

use super::{
    Choice,
    bpf::{self, Statistics},
    cgroup::Cgroup,
    servers::remove,
    subject::{Subject, state_folder},
    table::{Spread, markdown},
    workload::Workload,
};

/// Workloads that make the events of the scheduler and of TCP.
const WORKLOADS: &[Workload] = &[Workload::Pipe, Workload::Hackbench, Workload::Tcp];

/// Fewer runs than this in a round say nothing.
const MIN_RUNS: u64 = 1_000;

/// Which program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Program {
    hook: String,
    owner: Subject,
    name: String,
    kind: String,
}

/// What a program did in one round.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Round {
    ns: f64,
    runs: u64,
}

type Rounds = BTreeMap<Program, Vec<Round>>;

/// Measures, and prints the tables.
pub(super) fn stats(choice: &Choice) -> Result<()> {
    let workloads = choice.workloads(WORKLOADS);
    let subjects = [&[Subject::Empty], &choice.only[..]].concat();
    let cgroup = Cgroup::new()?;
    let servers: Vec<_> =
        workloads.iter().map(|workload| workload.server(&cgroup)).collect::<Result<_>>()?;
    let statistics = Statistics::on()?;
    let mut rounds = Rounds::new();
    for round in 0..choice.rounds {
        for subject in &subjects {
            println!("round {} of {}: {}", round + 1, choice.rounds, subject.name());
            measure(*subject, &workloads, &cgroup, &mut rounds)?;
        }
    }
    drop(statistics);
    drop(servers);
    remove(&state_folder());
    print!("\n{}", programs(&rounds));
    print!("\n{}", hooks(&rounds));
    Ok(())
}

fn measure(
    subject: Subject,
    workloads: &[Workload],
    cgroup: &Cgroup,
    rounds: &mut Rounds,
) -> Result<()> {
    let Some(running) = subject.start()? else {
        return Ok(());
    };
    let before = bpf::counted()?;
    for workload in workloads {
        workload.run(cgroup)?;
    }
    let after = bpf::counted()?;
    for (id, hook) in bpf::held_by(running.pid()) {
        let (Some(before), Some(after)) = (before.get(&id), after.get(&id)) else { continue };
        let runs = after.runs - before.runs;
        if runs >= MIN_RUNS {
            let program = Program {
                hook,
                owner: subject,
                name: after.name.clone(),
                kind: after.kind.clone(),
            };
            let ns = (after.run_ns - before.run_ns) as f64 / runs as f64;
            rounds.entry(program).or_default().push(Round { ns, runs });
        }
    }
    Ok(())
}

fn median_ns(rounds: &[Round]) -> f64 {
    let ns: Vec<_> = rounds.iter().map(|round| round.ns).collect();
    Spread::of(&ns).map_or(0.0, |spread| spread.median)
}

/// What the statistics themselves show for an empty program.
fn floor(rounds: &Rounds) -> Option<f64> {
    let (_, empty) = rounds.iter().find(|(program, _)| program.owner == Subject::Empty)?;
    Some(median_ns(empty))
}

fn net(ns: f64, programs: usize, floor: Option<f64>) -> String {
    floor.map_or_else(|| "-".to_owned(), |floor| format!("{:.1}", ns - programs as f64 * floor))
}

/// A row for each program.
fn programs(rounds: &Rounds) -> String {
    let floor = floor(rounds);
    let row = |(program, rounds): (&Program, &Vec<Round>)| {
        let ns = median_ns(rounds);
        let runs: u64 = rounds.iter().map(|round| round.runs).sum();
        vec![
            program.hook.clone(),
            program.owner.name().to_owned(),
            program.name.clone(),
            program.kind.clone(),
            runs.to_string(),
            format!("{ns:.1}"),
            net(ns, 1, floor),
        ]
    };
    let heading = ["hook", "owner", "program", "type", "runs", "ns a run", "net"];
    markdown(&heading, &rounds.iter().map(row).collect::<Vec<_>>())
}

/// A row for each owner on each hook that others are on as well: all its programs there together.
fn hooks(rounds: &Rounds) -> String {
    let floor = floor(rounds);
    let mut by_hook: BTreeMap<&str, BTreeMap<Subject, (f64, usize)>> = BTreeMap::new();
    for (program, rounds) in rounds.iter().filter(|(program, _)| !program.hook.is_empty()) {
        let sum = by_hook.entry(&program.hook).or_default().entry(program.owner).or_default();
        *sum = (sum.0 + median_ns(rounds), sum.1 + 1);
    }
    let mut rows = Vec::new();
    for (hook, owners) in by_hook {
        let peer =
            [Subject::Runqlat, Subject::Tcplife].into_iter().find(|peer| owners.contains_key(peer));
        let net_of = |owner: Subject| Some(owners[&owner].0 - owners[&owner].1 as f64 * floor?);
        for (owner, (ns, programs)) in &owners {
            let ratio = peer.and_then(|peer| Some(net_of(*owner)? / net_of(peer)?));
            rows.push(vec![
                hook.to_owned(),
                owner.name().to_owned(),
                programs.to_string(),
                format!("{ns:.1}"),
                net(*ns, *programs, floor),
                ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
            ]);
        }
    }
    let heading =
        ["hook", "owner", "programs", "ns an event", "net", "net / runqlat's or tcplife's"];
    markdown(&heading, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(owner: Subject, name: &str) -> Program {
        let (hook, kind) = ("sched_switch".to_owned(), "tracing".to_owned());
        Program { hook, owner, name: name.to_owned(), kind }
    }

    fn check(rounds: &Rounds, expected: &[&str]) {
        let tables = programs(rounds) + &hooks(rounds);
        for row in expected {
            assert!(tables.contains(row), "{row} in\n{tables}");
        }
    }

    #[test]
    fn programs_on_a_hook_are_summed_and_compared() {
        let round = |ns| vec![Round { ns, runs: 2_000 }];
        let mut rounds = Rounds::from([
            (program(Subject::Observer, "a"), round(80.0)),
            (program(Subject::Observer, "b"), round(70.0)),
            (program(Subject::Runqlat, "sched_switch"), round(460.0)),
        ]);
        check(&rounds, &["| sched_switch | observer | 2 | 150.0 | - | - |"]);
        rounds.insert(program(Subject::Empty, "f"), round(60.0));
        check(
            &rounds,
            &[
                "| sched_switch | observer | a | tracing | 2000 | 80.0 | 20.0 |",
                "| sched_switch | observer | 2 | 150.0 | 30.0 | 0.07 |",
                "| sched_switch | runqlat | 1 | 460.0 | 400.0 | 1.00 |",
            ],
        );
    }
}
