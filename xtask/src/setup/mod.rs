//! Installs what a task needs and this machine lacks: facts, then a pure plan, then its steps.

mod facts;
mod items;
mod plan;

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use self::{
    facts::PYTHON,
    items::{BPF_LLVM, DEFAULT_TOOLCHAIN, ROTEL_VERSION},
    plan::{Choice, Step},
};
pub(crate) use self::{
    facts::{first_match, python_version, rotel_agent},
    items::{CROSS_TARGET, NODE_POSTGRES_VERSION, PM2_VERSION, Purpose},
};
use crate::command::{command, is_root, output, run};

/// Names the toolchain of the BPF half for `observer/build.rs`.
const TOOLCHAIN_VARIABLE: &str = "BPF_TOOLCHAIN";

/// Virtual environment of the OTLP receiver of the tests.
const ROTEL_FOLDER: &str = "target/rotel";

/// Installs packages without letting their daemons start.
const INSTALL_SCRIPT: &str = include_str!("install.sh");

/// What the later commands of a task need to know.
pub(crate) struct Tools {
    toolchain: String,
    /// The OTLP receiver of the tests, if it could be installed.
    pub(crate) rotel: Option<PathBuf>,
}

impl Tools {
    /// A cargo command with the environment that the build needs.
    pub(crate) fn cargo(&self, args: &[&str]) -> Command {
        let mut cargo = Command::new("cargo");
        cargo.args(args);
        // Not for the default: a build with the variable and one without would not share their results.
        if self.toolchain != DEFAULT_TOOLCHAIN {
            cargo.env(TOOLCHAIN_VARIABLE, &self.toolchain);
        }
        cargo
    }
}

/// Installs what is missing for the purpose, or says exactly what to type where it may not.
pub(crate) fn ensure(purpose: Purpose) -> Result<Tools> {
    let facts = facts::read(purpose);
    for item in &facts.missing {
        println!("missing: {} ({})", item.name, item.why);
    }
    for step in plan::plan(&facts)? {
        perform(&step)?;
    }
    Ok(Tools { toolchain: facts.toolchain, rotel: facts::rotel_agent() })
}

fn perform(step: &Step) -> Result<()> {
    match step {
        Step::Packages(choices) => install_packages(choices),
        Step::Run(words) => run(&mut command(words)),
        Step::RunWithLlvm(words) => run(command(words).env("PATH", path_with_llvm()?)),
        Step::Rotel => {
            // Not the end: tests that need it are skipped by name, and the task fails on the unexpected skip.
            if let Err(error) = install_rotel() {
                println!("warning: no OTLP receiver for the tests: {error:#}");
            }
            Ok(())
        }
    }
}

fn install_packages(choices: &[Choice]) -> Result<()> {
    run(&mut as_root(&["apt-get", "update"]))?;
    let packages = plan::resolve(choices, is_available)?;
    // Two items may name the same package.
    let packages: BTreeSet<_> = packages.iter().map(String::as_str).collect();
    println!("installing {}", Vec::from_iter(packages.iter().copied()).join(" "));
    let mut words = vec!["sh", "-c", INSTALL_SCRIPT, "install.sh"];
    words.extend(&packages);
    let status = as_root(&words).status().context("cannot start the installation")?;
    anyhow::ensure!(status.success(), "apt-get install failed: {status}; its messages are above");
    Ok(())
}

fn is_available(package: &str) -> bool {
    let policy = output(command(&["apt-cache", "policy", package]).env("LC_ALL", "C"));
    policy.is_ok_and(|text| text.contains("Candidate:") && !text.contains("Candidate: (none)"))
}

/// A command that runs as root; the plan has made sure that there is `sudo` if it is needed.
pub(crate) fn as_root(words: &[&str]) -> Command {
    if is_root() { command(words) } else { command(&[&["sudo"], words].concat()) }
}

fn path_with_llvm() -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let llvm = PathBuf::from(format!("/usr/lib/llvm-{BPF_LLVM}/bin"));
    env::join_paths([llvm].into_iter().chain(env::split_paths(&path))).context("PATH is malformed")
}

fn install_rotel() -> Result<()> {
    if Path::new(ROTEL_FOLDER).exists() {
        // It is there but does not work: made for another Python, or left half done.
        fs::remove_dir_all(ROTEL_FOLDER).context(ROTEL_FOLDER)?;
    }
    run(&mut command(&[PYTHON, "-m", "venv", ROTEL_FOLDER]))?;
    let package = format!("rotel=={ROTEL_VERSION}");
    run(&mut command(&[&format!("{ROTEL_FOLDER}/bin/pip"), "install", "--quiet", &package]))?;
    facts::rotel_agent().map(drop).context("rotel is installed, but its agent does not start")
}
