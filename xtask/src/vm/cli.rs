//! `cargo xtask vm` as one types it.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand};

use super::{
    Disk, Guest, Job, Outcome,
    arch::Arch,
    console::Ended,
    disk, fetch,
    kernels::{self, Name},
    matrix,
};
use crate::setup::{self, Purpose};

/// Lines of the console that are shown of a run that ended badly.
const LAST_WORDS: usize = 30;

/// Arguments of `cargo xtask vm`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Vm {
    #[command(subcommand)]
    task: Option<Task>,
    #[command(flatten)]
    run: Run,
}

/// What else there is to do.
#[derive(Subcommand)]
enum Task {
    /// Show what the names of kernels mean, here and in the package suites.
    List {
        /// Look up again what each name means.
        #[arg(long)]
        update: bool,
    },
    /// Try the agent and its kernel tests on every kernel line, against what is known of each.
    Matrix(matrix::Matrix),
    /// Make the disk of `--disk` from this host's packages, and say where it is.
    Disk,
}

/// A command, and the guests that run it.
#[derive(Args)]
struct Run {
    /// Kernels: `newest`, a line such as 6.12, or a full version; with `arm64:` before it for aarch64.
    #[arg(required = true)]
    kernels: Vec<String>,
    /// Memory, in bytes or with K, M or G.
    #[arg(long, default_value = "512M", value_parser = size)]
    mem: u64,
    /// CPUs.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// A root on disk with servers and runtimes; with a number, that many operations a second.
    #[arg(long, value_name = "IOPS", num_args = 0..=1, require_equals = true)]
    disk: Option<Option<u32>>,
    /// Time is counted in instructions of 2^SHIFT ns, the same in each run.
    #[arg(long, value_name = "SHIFT", num_args = 0..=1, require_equals = true, default_missing_value = "2")]
    icount: Option<u8>,
    /// More arguments of the kernel.
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    append: String,
    /// The command runs in a guest of the guest, which sees stolen time as on KVM. Needs --disk.
    #[arg(long, requires = "disk")]
    nested: bool,
    /// Seconds of the host until the guest is ended.
    #[arg(long, default_value_t = 120)]
    time_limit: u64,
    /// A file of the host, and its absolute path in the guest.
    #[arg(long, value_name = "HOST:GUEST", value_parser = file)]
    file: Vec<(PathBuf, String)>,
    /// Folder for what the command leaves in /out.
    #[arg(long)]
    out: Option<PathBuf>,
    /// The command that runs in the guest, after `--`.
    #[arg(last = true)]
    command: Vec<String>,
}

/// Does what the arguments say.
pub(crate) fn vm(args: &Vm) -> Result<()> {
    match &args.task {
        Some(Task::List { update }) => list(*update),
        Some(Task::Matrix(args)) => matrix::matrix(args).map(drop),
        Some(Task::Disk) => {
            println!("{}", disk::root_image()?.display());
            Ok(())
        }
        None => run(&args.run),
    }
}

/// Runs the command on each kernel.
fn run(args: &Run) -> Result<()> {
    // The disk is made of what the tests need on this host.
    setup::ensure(if args.disk.is_some() { Purpose::Test } else { Purpose::Vm })?;
    ensure!(!args.command.is_empty(), "what is to run in the guest stands after `--`");
    let names: Vec<Name> = args.kernels.iter().map(|text| text.parse()).collect::<Result<_>>()?;
    if names.iter().any(|name| name.arch != Arch::X86_64) {
        setup::ensure(Purpose::Cross)?;
    }
    let mut failed = Vec::new();
    for (kernel, text) in names.into_iter().zip(&args.kernels) {
        let guest = Guest {
            mem_bytes: args.mem,
            cpus: args.cpus,
            icount: args.icount,
            disk: args.disk.map(|iops| Disk { iops }),
            append: args.append.clone(),
            nested: args.nested,
            time_limit: Duration::from_secs(args.time_limit),
            ..Guest::new(kernel)
        };
        let out = match (&args.out, args.kernels.len()) {
            (Some(out), 1) => Some(out.clone()),
            (Some(out), _) => Some(out.join(text)),
            (None, _) => None,
        };
        let job =
            Job { command: args.command.clone(), files: args.file.clone(), env: Vec::new(), out };
        let outcome = guest.run(&job)?;
        println!("{}", summary(&outcome));
        if outcome.status != Some(0) {
            failed.push(outcome.release);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed on {}", failed.join(", ")) }
}

/// What came of a run, and where to look; after a bad end also the last words of the kernel.
fn summary(outcome: &Outcome) -> String {
    let status = outcome.status.map_or_else(|| "none".to_owned(), |status| status.to_string());
    let mut text = format!(
        "{}: {}, status {status}, {:.1} s, {:.1} s of CPU",
        outcome.release,
        outcome.ended,
        outcome.wall.as_secs_f64(),
        outcome.cpu.as_secs_f64(),
    );
    if outcome.attempts > 1 {
        text += ", at the second attempt";
    }
    if outcome.ended != Ended::Finished {
        let console = fs::read_to_string(&outcome.console).unwrap_or_default();
        let lines: Vec<_> = console.lines().collect();
        text += &format!("\n{}", lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n"));
        text +=
            &format!("\nconsole: {}\njob: {}", outcome.console.display(), outcome.log.display());
    }
    text + &format!("\nfiles: {}", outcome.out.display())
}

/// Shows what each name of the matrix means, here and in the suites.
fn list(update: bool) -> Result<()> {
    if update {
        fetch::forget()?;
    }
    let cache = fetch::cache()?;
    println!("{:<10} {:<34} offered", "name", "in the cache");
    let mut lists: Vec<(Arch, Vec<String>)> = Vec::new();
    for text in kernels::MATRIX.iter().chain(kernels::FOREIGN) {
        let name: Name = text.parse()?;
        if lists.last().is_none_or(|(arch, _)| *arch != name.arch) {
            lists.push((name.arch, fetch::offered(name.arch)?));
        }
        let offered = lists.last().map(|(_, offered)| offered.as_slice()).unwrap_or_default();
        let here =
            fetch::cached(&cache, &name).map_or_else(|| "-".to_owned(), |kernel| kernel.release);
        let there = name.release(offered).unwrap_or_else(|| "none".to_owned());
        println!("{text:<10} {here:<34} {there}");
    }
    Ok(())
}

/// Bytes, with K, M or G for powers of 1024.
fn size(text: &str) -> Result<u64> {
    let (number, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = number.parse().with_context(|| format!("`{text}` is no size"))?;
    number.checked_mul(1 << shift).with_context(|| format!("`{text}` is too much"))
}

fn file(text: &str) -> Result<(PathBuf, String)> {
    match text.split_once(':') {
        Some((host, guest)) if guest.starts_with('/') => Ok((host.into(), guest.to_owned())),
        _ => {
            bail!("`{text}` is not a path of the host, a colon, and an absolute path of the guest")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(size("512M").expect("a size"), 512 << 20);
        assert_eq!(size("1G").expect("a size"), 1 << 30);
        assert_eq!(size("4096").expect("a size"), 4096);
        for text in ["", "M", "1T", "99999999999G"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn files_have_two_paths() {
        let (host, guest) = file("target/a:/usr/bin/a").expect("a file");
        assert_eq!((host, guest.as_str()), (PathBuf::from("target/a"), "/usr/bin/a"));
        assert!(file("target/a:usr").is_err());
    }
}
