//! `cargo xtask vm matrix`: the agent and its kernel tests on every kernel line, against what is known of each.

mod account;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use self::account::Account;
use super::{Disk, Guest, Job, Outcome, fetch::Unavailable, kernels::MATRIX, stripped};
use crate::{
    command::{line, output, run},
    cross::executable,
    run::BINARY,
    setup::{self, Purpose, Tools},
    skips::Skip,
    watch::{SECOND_TRIES, Seen},
};

/// Folder with a list a kernel: what runs, what is not there, which tests pass and which are skipped.
const LISTS: &str = "tests/matrix";

/// Folder for what the guests leave.
const RUNS: &str = "target/vm/matrix";

/// What the tests start, as cargo leaves it.
const LOAD: &str = "target/debug/load";

/// Where a guest has the agent, and the tests.
const OBSERVER: &str = "/usr/bin/observer";
const TESTS: &str = "/job/kernel-tests";

/// The OTLP receiver on the disk of a guest.
const ROTEL: &str = "/usr/local/bin/rotel-agent";

/// Ten thousand processes fit, and a JVM.
const MEMORY_BYTES: u64 = 2 << 30;

/// An instruction takes 1 ns: half the pace of a small cloud machine, and never less because this host is busy.
const SHIFT: u8 = 0;

/// How many times as far off times may be there as on real hardware (5 ms): what Node itself does in the turn that a block
/// of its event loop makes longer took up to 5.6 ms.
const SLACK: u32 = 2;

/// The host's time for one guest. With all tests it takes some ten minutes on a busy host.
const TIME_LIMIT: Duration = Duration::from_secs(2400);

/// Kernels on which tests run in the short form: the one that lacks most, and the one that changed last.
const SHORT_KERNELS: &[&str] = &["5.10", "newest"];

/// The tests of the short form: each rung of the ladder, the ledger, event loops, the OOM kill.
const SHORT_TESTS: &[&str] = &[
    "ladder::",
    "proc::",
    "tcp::redis_connections_give_one_span_each",
    "tcp::connections_older_than_the_agent_are_in_the_ledger",
    "sched::a_block_on_a_lock_is_found",
    "sched::a_gap_is_seen_while_it_is_open",
    "oom::a_cgroup_oom_kill_names_victim_sizes_and_trigger",
];

/// Arguments of `cargo xtask vm matrix`.
#[derive(Args, Default)]
pub(crate) struct Matrix {
    /// Kernels, as `cargo xtask vm` takes them; all lines if left out.
    kernels: Vec<String>,
    /// Tests whose names start so; none runs for `-`, all if left out.
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true)]
    only: Vec<String>,
    /// The short form that `cargo xtask test` runs: on the oldest and the newest kernel the tests that tell most.
    #[arg(long, conflicts_with = "only")]
    short: bool,
    /// Write down what is seen, instead of comparing with it. A test that fails is never written down; what is known of those
    /// that do not run stays.
    #[arg(long)]
    bless: bool,
    /// Guests that run side by side.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

/// What is tried in every guest.
struct Trial<'a> {
    programs: Programs,
    args: &'a Matrix,
}

/// Programs of this host, which run in a guest as they are but for what only a debugger needs.
struct Programs {
    observer: PathBuf,
    tests: PathBuf,
    /// What the tests start.
    load: PathBuf,
    /// The path by which they know it.
    load_place: PathBuf,
}

/// What came of one kernel.
enum Verdict {
    /// As it is known to be.
    Known(Box<Outcome>, Account),
    /// Otherwise, or not at all.
    Wrong(String),
    /// It cannot be had here.
    Skipped(String),
}

/// Builds, tries each kernel, shows the table, and gives the kernels that were skipped and the tests that passed late.
///
/// # Errors
/// Where a kernel does not do what its list says. One that cannot be fetched is named, and is no error.
pub(crate) fn matrix(args: &Matrix) -> Result<Seen> {
    let tools = setup::ensure(Purpose::Test)?;
    let trial = Trial { programs: build(&tools)?, args };
    let names: Vec<String> = match args.kernels.as_slice() {
        [] => MATRIX.iter().map(|name| (*name).to_owned()).collect(),
        names => names.to_vec(),
    };
    let start = Instant::now();
    let rows = side_by_side(&names, args.jobs, |name| trial.run(name));
    print!("\n{}", table(&rows));
    println!("{:.0} s for {} kernels", start.elapsed().as_secs_f64(), rows.len());
    let wrong: Vec<_> =
        rows.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Wrong(_))).collect();
    ensure!(wrong.is_empty(), "{} kernels are not as {LISTS} says", wrong.len());
    Ok(Seen {
        skips: rows.iter().filter_map(skip).collect(),
        second_tries: rows.iter().flat_map(second_tries).collect(),
    })
}

/// The part of it that every test run has.
///
/// # Errors
/// As [`matrix`].
pub(crate) fn short_matrix() -> Result<Seen> {
    matrix(&Matrix { short: true, jobs: 2, ..Matrix::default() })
}

/// A kernel that was skipped, as tests are.
fn skip((name, verdict): &(String, Verdict)) -> Option<Skip> {
    let Verdict::Skipped(reason) = verdict else { return None };
    Some(Skip { test: format!("matrix::{name}"), reason: reason.clone() })
}

/// Tests of a kernel that passed at their second try, with its name.
fn second_tries((name, verdict): &(String, Verdict)) -> Vec<String> {
    let Verdict::Known(_, account) = verdict else { return Vec::new() };
    account.late().map(|test| format!("matrix::{name}: {test}")).collect()
}

fn build(tools: &Tools) -> Result<Programs> {
    run(&mut tools.cargo(&["build", "--release", "--package", "observer"]))?;
    let args = ["test", "--no-run", "--package", "observer-tests", "--test", "kernel"];
    let mut tests = tools.cargo(&args);
    tests.args(["--message-format", "json"]);
    println!("$ {}", line(&tests));
    let tests = executable(&output(&mut tests)?, "kernel")?;
    fs::create_dir_all(RUNS)?;
    let small = |program: &Path| stripped(program, Path::new(RUNS));
    Ok(Programs {
        observer: small(Path::new(BINARY))?,
        tests: small(&tests)?,
        load: small(Path::new(LOAD))?,
        load_place: fs::canonicalize(LOAD)?,
    })
}

/// Does the work of each name, a few at a time, and gives the results in the order of the names.
fn side_by_side<T: Send>(
    names: &[String],
    jobs: usize,
    work: impl Fn(&str) -> T + Sync,
) -> Vec<(String, T)> {
    let (left, done) = (Mutex::new(names.iter().enumerate()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, names.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let next = left.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((index, name)) = next else { break };
                    let result = work(name);
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.push((index, name.clone(), result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, ..)| *index);
    done.into_iter().map(|(_, name, result)| (name, result)).collect()
}

impl Trial<'_> {
    fn run(&self, name: &str) -> Verdict {
        let verdict = self.try_on(name).unwrap_or_else(|error| {
            if error.is::<Unavailable>() {
                Verdict::Skipped(format!("{error:#}"))
            } else {
                Verdict::Wrong(format!("{error:#}"))
            }
        });
        match &verdict {
            Verdict::Known(outcome, account) => println!(
                "{name}: {}, {:.0} s, {:.0} s of CPU",
                account.sums(),
                outcome.wall.as_secs_f64(),
                outcome.cpu.as_secs_f64()
            ),
            Verdict::Wrong(why) => println!("{name}: WRONG: {why}"),
            Verdict::Skipped(why) => println!("SKIPPED {name}: {why}"),
        }
        verdict
    }

    /// Starts of the names of the tests that run on a kernel; all if empty, and none if `None`.
    fn tests_on(&self, name: &str) -> Option<Vec<&str>> {
        match self.args.only.as_slice() {
            _ if self.args.short => SHORT_KERNELS.contains(&name).then(|| SHORT_TESTS.to_vec()),
            [none] if none == "-" => None,
            only => Some(only.iter().map(String::as_str).collect()),
        }
    }

    fn try_on(&self, name: &str) -> Result<Verdict> {
        let wanted = self.tests_on(name);
        let (outcome, mut account) = self.boot(name, name, wanted.as_deref())?;
        let failed = account.failed();
        if (1..=SECOND_TRIES).contains(&failed.len()) {
            println!(
                "{name}: {} failed: {}; once more, alone",
                failed.join(", "),
                outcome.out.display()
            );
            let alone: Vec<_> =
                ["--exact"].into_iter().chain(failed.iter().map(String::as_str)).collect();
            account.try_again(self.boot(name, &format!("{name}-again"), Some(&alone))?.1);
        }
        let all = wanted.is_some_and(|tests| tests.is_empty());
        let list = Path::new(LISTS).join(format!("{name}.txt"));
        if self.args.bless {
            fs::create_dir_all(LISTS)?;
            let known = fs::read_to_string(&list).unwrap_or_default();
            fs::write(&list, account.written(&known, all))?;
        }
        let failed = account.failed();
        ensure!(failed.is_empty(), "{} failed: {}", failed.join(", "), outcome.out.display());
        let known = fs::read_to_string(&list)
            .with_context(|| format!("{} (--bless writes it)", list.display()))?;
        let differences = account.differences(&known, all);
        if !differences.is_empty() {
            bail!("{} says otherwise:\n  {}", list.display(), differences.join("\n  "));
        }
        Ok(Verdict::Known(Box::new(outcome), account))
    }

    /// Boots a kernel, runs the tests with these arguments, and reads what came of them. What the guest leaves is in `folder`.
    fn boot(&self, name: &str, folder: &str, tests: Option<&[&str]>) -> Result<(Outcome, Account)> {
        let guest = Guest {
            mem_bytes: MEMORY_BYTES,
            cpus: 2,
            icount: Some(SHIFT),
            disk: Some(Disk { iops: None }),
            time_limit: TIME_LIMIT,
            show: false,
            ..Guest::new(name.parse()?)
        };
        let outcome = guest.run(&self.job(&Path::new(RUNS).join(folder), tests))?;
        ensure!(outcome.status.is_some(), "{}: {}", outcome.ended, outcome.console.display());
        let check = fs::read_to_string(outcome.out.join("check.json"))?;
        // What a run before left there says nothing of this one.
        let came = match tests {
            Some(_) => fs::read_to_string(outcome.out.join("tests.txt"))?,
            None => String::new(),
        };
        let ended = came.contains("\ntest result: ") || tests.is_none();
        ensure!(ended, "the tests did not come to their end: {}", outcome.out.display());
        let account = Account::read(&check, &came)?;
        Ok((outcome, account))
    }

    fn job(&self, out: &Path, tests: Option<&[&str]>) -> Job {
        let place = |program: &Path, guest: &str| (program.to_owned(), guest.to_owned());
        let programs = &self.programs;
        let temporary = programs.load_place.with_file_name("../tmp");
        let mut script = format!("{OBSERVER} check --json >/out/check.json");
        if let Some(tests) = tests {
            let filters = tests.join(" ");
            script += &format!(
                "; mkdir -p {} && OBSERVER_BIN={OBSERVER} OBSERVER_TEST_SLACK={SLACK} \
                 OBSERVER_TEST_ROTEL={ROTEL} {TESTS} --nocapture --test-threads=1 {filters} 2>&1 | tee /out/tests.txt; \
                 cp /tmp/observer-test-* /out/ 2>/dev/null; true",
                temporary.display()
            );
        }
        Job {
            command: ["/bin/sh", "-c", &script].map(str::to_owned).to_vec(),
            files: vec![
                place(&programs.observer, OBSERVER),
                place(&programs.tests, TESTS),
                place(&programs.load, &programs.load_place.to_string_lossy()),
            ],
            out: Some(out.to_owned()),
            ..Job::default()
        }
    }
}

/// A row a kernel.
fn table(rows: &[(String, Verdict)]) -> String {
    let row = |(name, verdict): &(String, Verdict)| match verdict {
        Verdict::Known(outcome, account) => format!(
            "{name:<8} {:<30} {:<60} {:>5.0} s\n",
            outcome.release,
            account.sums(),
            outcome.wall.as_secs_f64()
        ),
        Verdict::Wrong(why) => {
            format!("{name:<8} WRONG: {}\n", why.lines().next().unwrap_or_default())
        }
        Verdict::Skipped(why) => format!("{name:<8} skipped: {why}\n"),
    };
    rows.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_names() {
        let names: Vec<_> = (0..7).map(|n: u32| n.to_string()).collect();
        for jobs in [0, 1, 3, 20] {
            let rows = side_by_side(&names, jobs, str::to_owned);
            assert!(rows.iter().all(|(name, result)| name == result), "{rows:?}");
            assert_eq!(rows.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), names);
        }
    }
}
