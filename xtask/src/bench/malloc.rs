//! `bench malloc`: what the probes of a suspect's malloc cost it, and how long the kernel takes to attach and let go of them.

use std::{
    env, fs,
    hint::black_box,
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::table::{Spread, duration, markdown};
use crate::run::BINARY;

/// Pairs of malloc and free at once, and the rest after them: 80,000 a second, well within the budget of hits.
const BATCH: u64 = 800;
const REST: Duration = Duration::from_millis(10);
/// Batches between two lines of the workload.
const BATCHES: u64 = 10;
/// What is asked for at a time.
const BYTES: usize = 64;
/// How long each way is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Until all probes are attached, which is function by function, 50 ms each, or the last is gone from the workload's last word.
const SETTLE: Duration = Duration::from_secs(1);
/// Probes that a pair goes through: at the entry and the end of malloc, and at free.
const HITS: f64 = 3.0;

/// What a round has given, nanoseconds.
struct Round {
    base: f64,
    probed: f64,
    base2: f64,
    attach: f64,
    detach: f64,
}

/// Measures, and prints the table.
pub(super) fn malloc(rounds: usize) -> Result<()> {
    let pairs = Pairs::start()?;
    let mut all = Vec::new();
    for number in 0..rounds {
        println!("round {} of {rounds}", number + 1);
        all.push(round(&pairs)?);
    }
    print!("\n{}", table(&all));
    Ok(())
}

fn round(pairs: &Pairs) -> Result<Round> {
    let base = pairs.look()?;
    let prober = Prober::start(pairs.child.id())?;
    let probed = pairs.look()?;
    let answer = prober.stop()?;
    let why = answer["ended_early"].as_str().unwrap_or_default();
    ensure!(why == "the agent has ended", "the probing was not ended by us but: {why}");
    let base2 = pairs.look()?;
    let time = |name: &str| nanos(&answer[name]).with_context(|| format!("no {name} in {answer}"));
    Ok(Round { base, probed, base2, attach: time("attaching")?, detach: time("letting_go")? })
}

fn table(rounds: &[Round]) -> String {
    let of = |value: fn(&Round) -> f64| rounds.iter().map(value).collect::<Vec<f64>>();
    let base = |round: &Round| f64::midpoint(round.base, round.base2);
    let added: Vec<f64> = rounds.iter().map(|round| round.probed - base(round)).collect();
    let per_hit: Vec<f64> = added.iter().map(|added| added / HITS).collect();
    let row = |what: &str, values: &[f64]| vec![what.to_owned(), spread(values)];
    let rows = [
        row("malloc and free", &of(|round| round.base)),
        row("while it is probed", &of(|round| round.probed)),
        row("the probes add", &added),
        row("a hit, of three", &per_hit),
        row("to attach all seven", &of(|round| round.attach)),
        row("to let go of them", &of(|round| round.detach)),
        vec!["A/A".to_owned(), Spread::factor(&of(|round| round.base / round.base2))],
    ];
    markdown(&["what", "median, quartiles"], &rows)
}

fn spread(values: &[f64]) -> String {
    Spread::of(values).map_or_else(String::new, |of| {
        format!("{} [{}-{}]", duration(of.median), duration(of.low), duration(of.high))
    })
}

/// A `Duration` as serde writes it.
fn nanos(time: &Value) -> Option<f64> {
    Some(time["secs"].as_f64()? * 1e9 + time["nanos"].as_f64()?)
}

/// The workload, running, and what it told last: pairs, and CPU time for them.
struct Pairs {
    child: Child,
    told: Arc<Mutex<Option<(f64, f64)>>>,
}

impl Pairs {
    fn start() -> Result<Self> {
        let this = env::current_exe().context("where this program is")?;
        let mut child =
            Command::new(this).args(["bench", "pairs"]).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("it has an output")?;
        let told = Arc::new(Mutex::new(None));
        let last = Arc::clone(&told);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let number = |text: &str| text.parse().ok();
                let numbers = line.split_once(' ');
                let read = numbers.and_then(|(pairs, ns)| Some((number(pairs)?, number(ns)?)));
                *last.lock().unwrap_or_else(PoisonError::into_inner) = read;
            }
        });
        Ok(Self { child, told })
    }

    /// CPU time of a pair, once what was before has settled.
    fn look(&self) -> Result<f64> {
        thread::sleep(SETTLE);
        let from = self.told()?;
        thread::sleep(LOOK);
        let to = self.told()?;
        ensure!(to.0 > from.0, "the workload stands still");
        Ok((to.1 - from.1) / (to.0 - from.0))
    }

    fn told(&self) -> Result<(f64, f64)> {
        let told = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.context("the workload tells nothing")
    }
}

impl Drop for Pairs {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The agent's child that probes, which ends when its input does.
struct Prober(Child);

impl Prober {
    fn start(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // proc(5): the start is the 22nd field, the name the second; a tick is 10 ms wherever Linux runs today.
        let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let ticks: u64 =
            rest.split(' ').nth(22 - 3).context("the start of the workload")?.parse()?;
        let start_ns = ticks * 10_000_000;
        let mut command = Command::new(BINARY);
        command.args(["probe-malloc", &pid.to_string(), &start_ns.to_string()]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        child.map(Self).with_context(|| format!("cannot start {BINARY}"))
    }

    /// What it tells.
    fn stop(self) -> Result<Value> {
        let output = self.0.wait_with_output()?;
        let answer: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("the child ended with {}", output.status))?;
        ensure!(answer["Ok"].is_object(), "it could not be probed: {answer}");
        Ok(answer["Ok"].clone())
    }
}

/// The workload: takes and frees, and tells how often and for how much CPU time. It tells after a rest: the kernel's figure is
/// as of the last time that it left the CPU.
pub(super) fn pairs() -> Result<()> {
    for line in 1.. {
        for _ in 0..BATCHES {
            for _ in 0..BATCH {
                drop(black_box(Vec::<u8>::with_capacity(black_box(BYTES))));
            }
            thread::sleep(REST);
        }
        let schedstat = fs::read_to_string("/proc/self/schedstat").context("a kernel with it")?;
        let cpu_ns = schedstat.split(' ').next().unwrap_or_default();
        // Whoever reads it may be gone; this is how it ends then.
        writeln!(io::stdout(), "{} {cpu_ns}", line * BATCHES * BATCH)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_probes_add_is_against_both_bases() {
        let round = Round { base: 10.0, probed: 320.0, base2: 30.0, attach: 2e7, detach: 7.5e8 };
        let table = table(&[round]);
        for row in [
            "| the probes add | 300.00 ns [300.00 ns-300.00 ns] |",
            "| a hit, of three | 100.00 ns [100.00 ns-100.00 ns] |",
            "| to let go of them | 750.00 ms [750.00 ms-750.00 ms] |",
            "| A/A | x0.333 [0.333-0.333] |",
        ] {
            assert!(table.contains(row), "{table}");
        }
    }

    #[test]
    fn durations_are_read() {
        let check = |json: &str, expect: Option<f64>| {
            assert_eq!(nanos(&serde_json::from_str(json).expect("JSON")), expect, "{json}");
        };
        check(r#"{"secs": 2, "nanos": 5}"#, Some(2e9 + 5.0));
        check(r#"{"secs": 2}"#, None);
        check("null", None);
    }
}
