//! The command line: definitions and parsing only, `main` dispatches.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{config::parse_duration, record};

const EXIT_CODES: &str = "\
Exit codes:
  0  done; for `check`: everything attaches
  1  failed while running; for `check`: degraded
  2  bad command line or configuration; for `check`: cannot run";

/// It did what it was asked.
pub const EXIT_OK: u8 = 0;
/// It failed while running, or `check` found a degraded program.
pub const EXIT_FAILED: u8 = 1;
/// Bad command line or configuration, or `check` found that it cannot run. clap exits with it as well.
pub const EXIT_USAGE: u8 = 2;

/// Tells an API team, minutes ahead and by name, why their host is about to hang.
#[derive(Debug, Parser)]
#[command(name = "observer", version, after_help = EXIT_CODES, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch this host until stopped: print, store and export what is seen
    Run(Run),
    /// Show what the running agent sees, or watch by itself if none runs
    Top(Top),
    /// Say what this kernel and these privileges allow, per program
    Check(Check),
    /// Read a recording: what would have been found in it, as a time line
    Replay(Replay),
    /// Print the effective configuration and where each value came from
    Config(Settings),
}

/// Sources of settings, the same for every command.
#[derive(Debug, Clone, Default, Args)]
pub struct Settings {
    /// Configuration file (default: /etc/observer/observer.toml if it exists)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one setting, over file and environment; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `observer run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Where settings come from.
    #[command(flatten)]
    pub settings: Settings,
    /// Stop after this time, such as 10s or 5m
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub time: Option<Duration>,
    /// Append what would be exported to this file as OTLP JSON, one request a line
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Record every snapshot to this file, or go on recording to it (docs/operating.md)
    #[arg(long, value_name = "FILE")]
    pub record: Option<String>,
    /// Most that the recording may take on disk, such as 256MiB
    #[arg(long, value_name = "SIZE")]
    pub record_max: Option<String>,
}

impl Run {
    /// Settings with the flags that are short for one.
    pub fn settings(&self) -> Settings {
        let mut settings = self.settings.clone();
        for (setting, value) in [(&record::FILE, &self.record), (&record::MAX, &self.record_max)] {
            settings.set.extend(value.as_ref().map(|value| format!("{}={value}", setting.key)));
        }
        settings
    }
}

/// `observer top`.
#[derive(Debug, Args)]
pub struct Top {
    /// Where settings come from.
    #[command(flatten)]
    pub settings: Settings,
    /// Print one snapshot and exit
    #[arg(long)]
    pub once: bool,
    /// With --once: print the snapshot as one JSON document (docs/snapshot-json.md)
    #[arg(long, requires = "once")]
    pub json: bool,
}

/// `observer check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Where settings come from.
    #[command(flatten)]
    pub settings: Settings,
    /// Print the verdicts as JSON
    #[arg(long)]
    pub json: bool,
}

/// `observer replay`.
#[derive(Debug, Args)]
pub struct Replay {
    /// Where settings come from.
    #[command(flatten)]
    pub settings: Settings,
    /// Recording of `observer run --record FILE`; FILE.1 beside it is read first
    pub file: PathBuf,
    /// Findings only, without the recorded events (OOM kills, limits hit, failed processes)
    #[arg(long)]
    pub findings: bool,
    /// One JSON object a line, in the form of the recording's events
    #[arg(long)]
    pub json: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text).map_err(|fault| fault.to_string())?;
    if duration.is_zero() {
        Err("is nothing; write a duration such as \"10s\"".to_owned())
    } else {
        Ok(duration)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn lines() {
        let parse = |line: &str| {
            Cli::try_parse_from(line.split(' ')).map(|cli| format!("{:?}", cli.command))
        };
        let check = |line: &str, expect: &str| match parse(line) {
            Ok(seen) => assert!(seen.contains(expect), "{line}: {seen}"),
            Err(error) => assert!(error.to_string().contains(expect), "{line}: {error}"),
        };
        check("observer run", "time: None, out: None, record: None, record_max: None");
        check("observer run --for 1m30s --out /tmp/x", "time: Some(90s), out: Some(\"/tmp/x\")");
        check(
            "observer run --config a.toml --set a=1 --set b=2",
            "config: Some(\"a.toml\"), set: [\"a=1\", \"b=2\"]",
        );
        check("observer run --for 10", "10 has no unit; write \"10s\"");
        check("observer run --for 0s", "is nothing");
        check("observer top --once --json", "once: true, json: true");
        check("observer top --json", "--once");
        check("observer check --json", "json: true");
        check("observer replay a.rec", "file: \"a.rec\", findings: false, json: false");
        check("observer replay a.rec --findings --json", "findings: true, json: true");
        check("observer replay", "<FILE>");
        check("observer config --set a=1", "set: [\"a=1\"]");
        check("observer confg", "similar subcommand exists: 'config'");
        check("observer", "Usage");
    }

    #[test]
    fn usage_errors_exit_with_the_documented_code() {
        let error = Cli::try_parse_from(["observer", "zebra"]).unwrap_err();
        assert_eq!(error.exit_code(), i32::from(EXIT_USAGE));
    }
}
