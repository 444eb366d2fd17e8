//! The `observer` command: parses, dispatches, prints the error chain.

use std::{
    ffi::OsStr,
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::Result;
use clap::Parser as _;
use observer::{
    agent, check,
    cli::{self, Cli, Command},
    config::{self, Config, ConfigError, Sources},
    control::{self, ControlError, SOCKET_NAME},
    export,
    kernel::prober,
    replay,
    sampler::Sampler,
    signal::tcp,
    symbolize,
    top::{self, Source},
};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;

/// Messages that wait for standard error. The queue's memory is taken at once.
const MAX_LOG_LINES: usize = 1024;

/// Writes what the log's queue holds when it is dropped.
static LOG: Mutex<Option<WorkerGuard>> = Mutex::new(None);

fn main() -> ExitCode {
    // Not in the help: the agent calls itself for what is better done in a process of its own.
    let word = std::env::args_os().nth(1);
    let child = match word.as_deref().and_then(OsStr::to_str) {
        Some("symbolize") => Some(symbolize::child_main()),
        Some(prober::WORD) => Some(prober::child_main()),
        _ => None,
    };
    if let Some(done) = child {
        return exit(done.map(|()| cli::EXIT_OK));
    }
    exit(dispatch(Cli::parse().command))
}

fn exit(result: Result<u8>) -> ExitCode {
    drop(LOG.lock().unwrap_or_else(PoisonError::into_inner).take());
    match result {
        Ok(code) => ExitCode::from(code),
        // Who reads has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::from(cli::EXIT_OK),
        Err(error) => {
            // Nobody may read any more: `eprintln!` would panic.
            writeln!(io::stderr(), "observer: {error:#}").ok();
            let usage = error.downcast_ref::<ConfigError>().is_some();
            ExitCode::from(if usage { cli::EXIT_USAGE } else { cli::EXIT_FAILED })
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn dispatch(command: Command) -> Result<u8> {
    match command {
        Command::Run(run) => {
            let config = load(&run.settings())?;
            agent::run(&config, run.time, run.out)?;
        }
        Command::Top(command) => {
            let config = load(&command.settings)?;
            let source = source(&config, command.once)?;
            if command.once {
                top::once(source, command.json, &mut io::stdout().lock())?;
            } else {
                top::run(source)?;
            }
        }
        Command::Check(command) => {
            let config = load(&command.settings)?;
            let mut sampler = Sampler::new(&config)?;
            let (programs, probes) = (sampler.programs(), sampler.has_probes());
            let hazards = check::audit(&mut sampler, &config);
            check::print(
                &programs,
                probes,
                sampler.support(),
                hazards.as_deref(),
                command.json,
                &mut io::stdout().lock(),
            )?;
            return Ok(check::exit_code(&programs, probes));
        }
        Command::Replay(command) => {
            let config = load(&command.settings)?;
            let form = replay::Form { findings: command.findings, json: command.json };
            replay::replay(&command.file, &config, form, &mut io::stdout().lock())?;
        }
        Command::Config(settings) => {
            io::stdout().lock().write_all(load(&settings)?.to_toml().as_bytes())?
        }
    }
    Ok(cli::EXIT_OK)
}

fn load(settings: &cli::Settings) -> Result<Config> {
    let sources = Sources::of_process(settings.config.as_deref(), &settings.set)?;
    let config = Config::load(&config::all_settings(), &sources)?;
    let ignored = export::check(&config)?;
    tcp::Limits::new(&config)?;
    start_log(config.text(&config::LOG_LEVEL).parse().unwrap_or(LevelFilter::INFO));
    for warning in config.warnings().iter().chain(&ignored) {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

/// Messages go to standard error through a bounded queue and a thread, so that a stopped terminal stops nothing else; what
/// finds the queue full is lost.
fn start_log(level: LevelFilter) {
    let queue = NonBlockingBuilder::default().buffered_lines_limit(MAX_LOG_LINES);
    let (writer, guard) = queue.finish(io::stderr());
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_writer(writer)
        .with_max_level(level)
        .with_ansi(colours)
        .with_target(false)
        .init();
    *LOG.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
}

/// The running agent, or, if none runs, probes of this process.
fn source(config: &Config, once: bool) -> Result<Source> {
    let connect = if once { control::connect_once } else { control::connect };
    match connect(&config.run_dir().join(SOCKET_NAME)) {
        Ok(client) => Ok(Source::Agent(client)),
        Err(ControlError::NotRunning { .. }) => {
            let mut sampler = Sampler::new(config)?;
            let interval = config.duration(&config::INTERVAL);
            let mut first = true;
            Ok(Source::Own(Box::new(move || {
                if !std::mem::take(&mut first) {
                    thread::sleep(interval);
                }
                sampler.tick(false);
                let mut snapshot = sampler.snapshot(Vec::new(), Vec::new());
                sampler.judge(&mut snapshot, false);
                drop(sampler.take_batch(false));
                Ok(Arc::new(snapshot))
            })))
        }
        Err(error) => Err(error.into()),
    }
}
