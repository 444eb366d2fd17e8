//! `cargo xtask cross`: the agent and its kernel tests for aarch64, as programs that need no library, and on its kernels.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    command::{line, output, run},
    setup::{self, CROSS_TARGET, Purpose, Tools},
    skips::{self, Skip},
    vm::{Guest, Job},
};

/// Where a guest has the agent and the tests.
const OBSERVER: &str = "/bin/observer";
const TESTS: &str = "/bin/kernel-tests";

/// End of the reason of every skip in a guest without servers, runtimes and a compiler.
const NO_PROGRAM: &str = " is not installed";

/// Room for the programs with what debuggers need, and for what the tests start.
const MEMORY_BYTES: u64 = 2 << 30;

/// The tests take one to two minutes on an idle host.
const TIME_LIMIT: Duration = Duration::from_secs(900);

/// Programs for another architecture.
struct Programs {
    /// The product.
    observer: PathBuf,
    /// The kernel tests.
    tests: PathBuf,
    /// What the tests start; they know it by this path.
    load: PathBuf,
}

/// Builds, says where the programs are, and tries them on these kernels.
pub(crate) fn cross(kernels: &[String]) -> Result<()> {
    let tools = setup::ensure(Purpose::Cross)?;
    let programs = build(&tools)?;
    for program in [&programs.observer, &programs.tests, &programs.load] {
        println!("{}", program.display());
    }
    kernels.iter().try_for_each(|kernel| {
        try_on(kernel, &programs).with_context(|| format!("{kernel} has failed"))
    })
}

/// All that the agent can see must be visible, and each test pass or miss a program.
fn try_on(kernel: &str, programs: &Programs) -> Result<()> {
    let guest = Guest {
        mem_bytes: MEMORY_BYTES,
        cpus: 2,
        time_limit: TIME_LIMIT,
        ..Guest::new(kernel.parse()?)
    };
    let script = format!(
        "{OBSERVER} check && OBSERVER_BIN={OBSERVER} exec {TESTS} --nocapture --test-threads=1"
    );
    let place = |program: &Path, guest: &str| (program.to_owned(), guest.to_owned());
    let outcome = guest.run(&Job {
        command: ["/bin/sh", "-c", &script].map(str::to_owned).to_vec(),
        files: vec![
            place(&programs.observer, OBSERVER),
            place(&programs.tests, TESTS),
            place(&programs.load, &programs.load.to_string_lossy()),
        ],
        ..Job::default()
    })?;
    println!(
        "{}: {}, {:.1} s, {:.1} s of CPU",
        outcome.release,
        outcome.ended,
        outcome.wall.as_secs_f64(),
        outcome.cpu.as_secs_f64()
    );
    ensure!(outcome.status == Some(0), "status {:?}: {}", outcome.status, outcome.log.display());
    let unexpected = unexpected(&fs::read_to_string(&outcome.log)?);
    ensure!(unexpected.is_empty(), "skipped for another reason than a program: {unexpected:?}");
    Ok(())
}

/// Skips for which it is no excuse that the guest has only the agent.
fn unexpected(log: &str) -> Vec<Skip> {
    let skips = log.lines().filter_map(skips::parse);
    skips.filter(|skip| !skip.reason.ends_with(NO_PROGRAM)).collect()
}

/// Builds.
fn build(tools: &Tools) -> Result<Programs> {
    let target = ["--target", CROSS_TARGET];
    run(tools.cargo(&["build", "--release", "--package", "observer"]).args(target))?;
    let folder = std::fs::canonicalize("target")?.join(CROSS_TARGET);
    let mut tests = tools.cargo(&["test", "--no-run", "--package", "observer-tests"]);
    tests.args(["--test", "kernel", "--message-format", "json"]).args(target);
    println!("$ {}", line(&tests));
    Ok(Programs {
        observer: folder.join("release/observer"),
        tests: executable(&output(&mut tests)?, "kernel")?,
        load: folder.join("debug/load"),
    })
}

/// Where cargo has put a test binary, from what it says in JSON.
pub(crate) fn executable(messages: &str, name: &str) -> Result<PathBuf> {
    let path = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == name)
            .then(|| message["executable"].as_str().map(PathBuf::from))?
    };
    messages.lines().find_map(path).with_context(|| format!("cargo built no test `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_programs_are_an_excuse() {
        let log =
            "test a ... SKIPPED a: node is not installed\nok\nSKIPPED b: kernel without BTF\n";
        let names: Vec<_> = unexpected(log).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["b: kernel without BTF"]);
    }

    #[test]
    fn the_test_binary_is_found() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"load"},"executable":"/target/load"}
{"reason":"compiler-artifact","target":{"name":"kernel"},"executable":"/target/kernel-1"}
{"reason":"build-finished","success":true}"#;
        let found = |name| executable(messages, name).ok();
        assert_eq!(found("kernel"), Some(PathBuf::from("/target/kernel-1")));
        assert_eq!(found("agent"), None);
    }
}
