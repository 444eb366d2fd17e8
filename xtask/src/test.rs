//! `cargo xtask test`: everything that this machine allows, and the names of what it does not.

use std::{
    env, fs,
    io::Write as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    bench,
    command::{command, find, is_root, output, run, succeeds},
    lab,
    run::BINARY,
    setup::{self, Purpose, Tools},
    skips::{Lack, Skip, unexpected},
    vm,
    watch::{Seen, watch, watch_timed},
};

/// Skips that are in order, by what a machine lacks.
const EXPECTED_SKIPS: &str = "tests/expected-skips.txt";

/// Version of Rust whose lints must all pass. A newer one may know more: these are shown, but do not fail.
const LINT_VERSION: &str = concat!("rustc ", env!("CARGO_PKG_RUST_VERSION"));

/// A stage that gives what it skipped, and what passed late.
type Stage = fn() -> Result<Seen>;

/// Those in virtual machines.
const IN_GUESTS: [(&str, Stage); 3] = [
    ("other kernels", vm::short_matrix),
    ("budgets", || bench::budgets().map(Seen::of_skips)),
    ("laboratory", || lab::smoke().map(Seen::of_skips)),
];

/// Runs all stages; stops at the first that fails.
pub(crate) fn test() -> Result<()> {
    let mut report = Report::default();
    let result = stages(&mut report);
    report.print();
    result
}

fn stages(report: &mut Report) -> Result<()> {
    let tools = report.stage("setup", |_| setup::ensure(Purpose::Test))?;
    report.stage("format", |_| run(&mut tools.cargo(&["fmt", "--all", "--check"])))?;
    report.stage("lints", |_| run(&mut lints(&tools)))?;
    report.stage("product", |_| {
        run(&mut tools.cargo(&["build", "--release", "--package", "observer"]))
    })?;
    report.stage("unit and tidy", |seen| {
        let args = ["test", "--workspace", "--exclude", "observer-tests"];
        let mut unit = tools.cargo(&args);
        name_receiver(&mut unit, &tools)?;
        watch(unit.args(["--", "--show-output"]), seen, print_line)
    })?;
    report.stage("agent", |seen| {
        let args = [
            "test",
            "--package",
            "observer-tests",
            "--lib",
            "--bin",
            "lab",
            "--bin",
            "score",
            "--test",
            "agent",
            "--",
            "--nocapture",
        ];
        watch(&mut product_test(&tools, &args)?, seen, print_line)
    })?;
    report.stage("kernel", |seen| {
        let args = ["test", "--package", "observer-tests", "--test", "kernel"];
        let mut kernel = product_test(&tools, &args)?;
        if sudo_is_silent() {
            kernel.arg("--config").arg(runner_with_sudo());
        }
        watch_timed(kernel.args(["--", "--nocapture", "--test-threads=1"]), seen, print_line)
    })?;
    report.stage("early warning", |_| lab::goals(&tools))?;
    for (name, body) in IN_GUESTS {
        report.stage(name, |seen| {
            let came = body()?;
            came.skips.iter().for_each(|skip| println!("SKIPPED {skip}"));
            seen.skips.extend(came.skips);
            seen.second_tries.extend(came.second_tries);
            Ok(())
        })?;
    }
    judge(&report.seen.skips)
}

fn lints(tools: &Tools) -> Command {
    let mut clippy = tools.cargo(&["clippy", "--workspace", "--all-targets", "--"]);
    let version = output(&mut command(&["rustc", "--version"])).unwrap_or_default();
    if version.starts_with(LINT_VERSION) {
        clippy.args(["-D", "warnings"]);
    }
    clippy
}

/// Tests that start the product itself.
fn product_test(tools: &Tools, args: &[&str]) -> Result<Command> {
    let mut cargo = tools.cargo(args);
    cargo.env("OBSERVER_BIN", fs::canonicalize(BINARY).context(BINARY)?);
    name_receiver(&mut cargo, tools)?;
    Ok(cargo)
}

/// Tells tests where the receiver of others is.
fn name_receiver(tests: &mut Command, tools: &Tools) -> Result<()> {
    if let Some(rotel) = &tools.rotel {
        tests.env("OBSERVER_TEST_ROTEL", fs::canonicalize(rotel)?);
    }
    Ok(())
}

fn print_line(line: &str) {
    println!("{line}");
}

/// Whether `sudo` is needed, and works without asking.
fn sudo_is_silent() -> bool {
    !is_root() && find("sudo").is_some() && succeeds(&mut command(&["sudo", "-n", "true"]))
}

/// Setting of cargo that starts a test binary as root.
fn runner_with_sudo() -> String {
    let kept = "--preserve-env=PATH,OBSERVER_BIN,OBSERVER_TEST_ROTEL,RUST_BACKTRACE";
    format!(r#"target."cfg(unix)".runner = ["sudo", "-n", "{kept}"]"#)
}

/// Fails on a skip that this machine does not explain.
fn judge(skips: &[Skip]) -> Result<()> {
    let list = fs::read_to_string(EXPECTED_SKIPS)
        .with_context(|| format!("cannot read {EXPECTED_SKIPS}"))?;
    let unexpected = unexpected(skips, &list, &lacks());
    if unexpected.is_empty() {
        return Ok(());
    }
    let shown: Vec<_> = unexpected.iter().map(|skip| format!("  {skip}")).collect();
    bail!(
        "{} skipped here that {EXPECTED_SKIPS} does not expect of this machine:\n{}\n\
         Mend the reason given, or add a line there (what is lacking, then the test).",
        unexpected.len(),
        shown.join("\n")
    )
}

/// CAP_SYS_ADMIN, CAP_PERFMON and CAP_BPF (include/uapi/linux/capability.h), which a container's root may lack.
const BPF_CAPABILITIES: u64 = 1 << 21 | 1 << 38 | 1 << 39;

fn lacks() -> Vec<Lack> {
    let with_sudo = sudo_is_silent();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capable = with_sudo || capabilities(&status) & BPF_CAPABILITIES == BPF_CAPABILITIES;
    let root = is_root() || with_sudo;
    let bpf = capable && Path::new("/sys/kernel/btf/vmlinux").exists();
    [(root, Lack::Root), (bpf, Lack::Bpf), (vm::has_archive(), Lack::Archive)]
        .into_iter()
        .filter_map(|(there, lack)| (!there).then_some(lack))
        .collect()
}

/// Effective capabilities in `/proc/PID/status`.
fn capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

/// What each stage took, and what is known of its tests.
#[derive(Default)]
struct Report {
    stages: Vec<(&'static str, Duration, bool)>,
    seen: Seen,
}

impl Report {
    fn stage<T>(
        &mut self,
        name: &'static str,
        body: impl FnOnce(&mut Seen) -> Result<T>,
    ) -> Result<T> {
        println!("\n== {name}");
        let start = Instant::now();
        let result = body(&mut self.seen);
        self.stages.push((name, start.elapsed(), result.is_ok()));
        result.with_context(|| format!("stage `{name}` failed"))
    }

    fn print(&self) {
        println!("\n== summary");
        for (name, took, passed) in &self.stages {
            let verdict = if *passed { "passed" } else { "FAILED" };
            println!("{name:<14} {verdict} {:>7.1} s", took.as_secs_f64());
        }
        let total: Duration = self.stages.iter().map(|(_, took, _)| *took).sum();
        println!("{:<14}        {:>7.1} s", "total", total.as_secs_f64());
        for skip in &self.seen.skips {
            println!("skipped {skip}");
        }
        for test in &self.seen.second_tries {
            println!("passed at the second try only: {test}");
        }
        // Whoever waits for the summary reads a pipe.
        if let Err(error) = std::io::stdout().flush() {
            println!("cannot write the summary: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read() {
        assert_eq!(capabilities("CapPrm:\t0\nCapEff:\t000001ffffffffff\n"), (1 << 41) - 1);
        assert_eq!(capabilities("nonsense"), 0);
    }

    #[test]
    fn a_failing_stage_is_named() {
        let mut report = Report::default();
        let error = report
            .stage("kernel", |seen| watch(&mut command(&["sh", "-c", "exit 3"]), seen, |_| {}))
            .expect_err("fails");
        let shown = format!("{error:#}");
        assert!(
            shown.contains("stage `kernel` failed") && shown.contains("exit status: 3"),
            "{shown}"
        );
        assert!(!report.stages[0].2);
    }
}
