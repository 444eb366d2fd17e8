//! One run: witness, agent and stage, each a process; then what they wrote as one time line.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use clap::Args;
use observer_tests::{agent, cgroup::Cgroup, free_port, program::signal_pid};
use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{Signal, WaitOptions, set_child_subreaper, waitpid},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    agent_events, delivery,
    judge::Judge,
    network,
    scenario::{self, Native, Scenario},
    stage::{AGENT_READY, COLLECTED, COLLECTOR_PORT},
    timeline::{self, Event, Source, Tail, now_s},
};

/// `lab run`.
#[derive(Args)]
pub struct Options {
    /// Name of the scenario.
    pub scenario: String,
    /// Do the same with healthy software.
    #[arg(long)]
    twin: bool,
    /// Short, to show that the scenario works.
    #[arg(long)]
    smoke: bool,
    /// Folder of the results.
    #[arg(long)]
    out: PathBuf,
    /// Longest time from the fault on; the scenario's if left out.
    #[arg(long)]
    seconds: Option<u32>,
    /// How fast, in the scenario's unit; the scenario's if left out.
    #[arg(long)]
    rate: Option<f64>,
    /// End soon after the first failure: the hang itself is not watched.
    #[arg(long)]
    brief: bool,
    /// Put the scenario into a memory control group of so many MiB.
    #[arg(long)]
    memory_mib: Option<u64>,
    /// Run without the agent.
    #[arg(long)]
    no_agent: bool,
}

/// How a run ended.
pub enum Ended {
    /// With a time line.
    Done,
    /// This machine lacks something.
    Skipped(String),
}

/// Longest time to set the scene; software emulation needs most of it.
const SETUP_LIMIT: Duration = Duration::from_secs(240);
/// Longest time until the agent's probes are attached.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// A hang is watched for so long.
const HANG_S: f64 = 45.0;
/// In a brief run, and what comes after the first request that failed: some faults fail the very next one, and who it was may be
/// told a few seconds later.
const BRIEF_S: f64 = 12.0;
/// What comes after an OOM kill is watched for so long.
const AFTER_KILL_S: f64 = 10.0;
/// Time that the host has to recover once the programs are gone.
const RECOVERY: Duration = Duration::from_secs(15);
/// Time that the stage has to end its programs, some of which wait for each other.
const STAGE_LIMIT: Duration = Duration::from_secs(10);
/// Time that the agent has to end by itself.
const STOP_LIMIT: Duration = Duration::from_secs(20);
const SMOKE_SECONDS: u32 = 8;
/// What the agent had to export, in its state directory.
const MADE: &str = "out.jsonl";
/// What is younger than this at the end may not have been exported yet: metrics go every ten seconds at most.
const ON_ITS_WAY_S: f64 = 15.0;
const PORTS: usize = 4;
/// Between two looks at what was written.
const LOOK: Duration = Duration::from_millis(250);

/// Runs a scenario to its end and writes the time line.
pub fn run(options: &Options) -> Result<Ended, String> {
    let scenario = scenario::find(&options.scenario)?;
    if let Some(reason) = scenario.lacking() {
        return Ok(Ended::Skipped(reason));
    }
    if scenario.needs.native == Native::OwnNetwork {
        network::isolate()?;
    }
    fs::create_dir_all(&options.out).map_err(|error| named(&options.out, &error))?;
    // Whoever watches a hang must not be part of it. The witness says how far this went for itself.
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).ok();
    fs::write("/proc/self/oom_score_adj", "-1000").ok();
    let pid = rustix::process::getpid();
    set_child_subreaper(Some(pid)).map_err(|error| format!("child subreaper: {error}"))?;

    let mut run = Run::new(options, scenario)?;
    let outcome = run.perform();
    run.end_all();
    outcome?;
    run.write(options)?;
    Ok(Ended::Done)
}

struct Run<'a> {
    options: &'a Options,
    scenario: &'static Scenario,
    /// Where nothing waits for a disk.
    scratch: TempDir,
    group: Option<Cgroup>,
    ports: Vec<u16>,
    witnesses: Vec<Child>,
    agent: Option<Child>,
    stage: Option<Child>,
    tails: Vec<Tail>,
    events: Vec<Event>,
    judge: Judge,
}

impl<'a> Run<'a> {
    fn new(options: &'a Options, scenario: &'static Scenario) -> Result<Self, String> {
        let memory = Path::new("/dev/shm");
        let room = if memory.is_dir() { memory } else { &std::env::temp_dir() };
        let group = options.memory_mib.map(|mib| {
            Cgroup::with_memory_limit(scenario.name, mib << 20).ok_or("no memory controller here")
        });
        Ok(Self {
            options,
            scenario,
            scratch: TempDir::new_in(room).map_err(|error| named(room, &error))?,
            group: group.transpose()?,
            ports: (0..PORTS).map(|_| free_port()).collect(),
            witnesses: Vec::new(),
            agent: None,
            stage: None,
            tails: Vec::new(),
            events: Vec::new(),
            judge: Judge::default(),
        })
    }

    fn perform(&mut self) -> Result<(), String> {
        self.witness("vitals", &[])?;
        self.witness("shell", &[])?;
        if self.scenario.is_set_before() {
            self.start_stage()?;
            self.wait_for("set")?;
            self.start_agent()?;
        } else {
            self.start_agent()?;
            self.start_stage()?;
        }
        let fault_s = self.wait_for("fault_start")?;
        let seconds = self.options.seconds.unwrap_or(match self.options.smoke {
            true => SMOKE_SECONDS,
            false => self.scenario.seconds,
        });
        while !self.has_ended()? && !self.has_seen_enough(fault_s + f64::from(seconds)) {
            self.look()?;
        }
        self.tell("stop", json!({}));
        self.judge.see(&Event::new(now_s(), Source::Scenario, "stop", json!({})));
        self.end_stage();
        let recovered = Instant::now() + RECOVERY;
        let enough = Instant::now() + Duration::from_secs(2);
        while Instant::now() < enough || (self.judge.is_waiting() && Instant::now() < recovered) {
            self.look()?;
        }
        Ok(())
    }

    /// Starts a kind of probe, in a real-time class where that is allowed. The shell stands for an ordinary user; the
    /// requests for clients elsewhere, who have a CPU of their own.
    fn witness(&mut self, probe: &str, args: &[&str]) -> Result<(), String> {
        let file = self.scratch.path().join(format!("{probe}.jsonl"));
        let real_time = ["chrt", "-f", "50"];
        let mut words: Vec<&str> = Vec::new();
        let allowed = || Command::new("chrt").args(["-f", "50", "true"]).output();
        if probe != "shell" && allowed().is_ok_and(|done| done.status.success()) {
            words.extend(real_time);
        }
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let own = own.to_string_lossy().into_owned();
        words.extend([own.as_str(), "witness", probe]);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("--out").arg(&file).args(args).stdin(Stdio::null());
        if let (Some(group), true) = (&self.group, probe != "http") {
            command.arg("--cgroup").arg(group.dir());
        }
        self.witnesses.push(started(&mut command)?);
        let end = Instant::now() + Duration::from_secs(10);
        while !file.exists() && Instant::now() < end {
            pause();
        }
        self.tails.push(Tail::open(&file).map_err(|error| named(&file, &error))?);
        Ok(())
    }

    /// Starts the agent, if it is to run, and tells the stage when it is ready.
    fn start_agent(&mut self) -> Result<(), String> {
        if !self.options.no_agent {
            self.run_agent()?;
        }
        let ready = self.scratch.path().join(AGENT_READY);
        File::create(&ready).map(drop).map_err(|error| named(&ready, &error))
    }

    fn run_agent(&mut self) -> Result<(), String> {
        let binary = agent::find_binary()?;
        let state = self.options.out.join("agent");
        fs::create_dir_all(&state).map_err(|error| named(&state, &error))?;
        let state = state.canonicalize().map_err(|error| named(&state, &error))?;
        let log = self.options.out.join("agent.log");
        let mut command = ordinary(None, &binary);
        agent::prepare(&mut command, &state);
        command.arg("run").arg("--record").arg(state.join("recording.jsonl"));
        let ports: Vec<_> = self.ports[1..].iter().map(u16::to_string).collect();
        command.env("OBSERVER_TCP_PORTS", ports.join(","));
        if self.scenario.exports() {
            let endpoint = format!("http://127.0.0.1:{}", self.ports[COLLECTOR_PORT]);
            command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
            command.env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
            command.arg("--out").arg(state.join(MADE));
        }
        let file = File::create(&log).map_err(|error| named(&log, &error))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        self.agent = Some(started(&mut command)?);
        let end = Instant::now() + READY_LIMIT;
        let mut told = String::new();
        while Instant::now() < end {
            told = fs::read_to_string(&log).unwrap_or_default();
            if told.contains("observer: ready") {
                self.tell("agent_ready", json!({}));
                return Ok(());
            }
            pause();
        }
        Err(format!("the agent did not get ready within {READY_LIMIT:?}:\n{told}"))
    }

    fn start_stage(&mut self) -> Result<(), String> {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let events = self.scratch.path().join("stage.jsonl");
        let log = self.options.out.join("stage.log");
        File::create(&events).map_err(|error| named(&events, &error))?;
        let mut command = ordinary(self.group.as_ref(), &own);
        command.args(["stage", self.scenario.name, "--events"]).arg(&events);
        command.arg("--rate").arg(self.rate().to_string());
        let ports: Vec<_> = self.ports.iter().map(u16::to_string).collect();
        command.arg("--ports").arg(ports.join(","));
        for (wanted, flag) in [(self.options.twin, "--twin"), (self.options.smoke, "--smoke")] {
            command.args(wanted.then_some(flag));
        }
        let file = File::create(&log).map_err(|error| named(&log, &error))?;
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(file);
        self.stage = Some(started(&mut command)?);
        self.tails.push(Tail::open(&events).map_err(|error| named(&events, &error))?);
        Ok(())
    }

    /// Waits until the stage says so; when it did.
    fn wait_for(&mut self, what: &str) -> Result<f64, String> {
        let end = Instant::now() + SETUP_LIMIT;
        while Instant::now() < end {
            self.look()?;
            if let Some(event) = self.events.iter().find(|event| event.what == what) {
                return Ok(event.t_s);
            }
            if self.has_ended()? {
                let log = self.stage_log();
                return Err(format!("the stage ended before event {what}:\n{log}"));
            }
        }
        Err(format!("no event {what} within {SETUP_LIMIT:?}:\n{}", self.stage_log()))
    }

    /// Takes what was written, and starts the HTTP probe when the stage asks for it.
    fn look(&mut self) -> Result<(), String> {
        pause();
        let mut health = None;
        for tail in &mut self.tails {
            for event in tail.read().map_err(|error| format!("events: {error}"))? {
                self.judge.see(&event);
                if event.what == "health" {
                    health = Some(event.values.clone());
                }
                self.events.push(event);
            }
        }
        match health {
            Some(url) => {
                let path = url["path"].as_str().unwrap_or("/").to_owned();
                self.witness("http", &["--port", &url["port"].to_string(), "--path", &path])
            }
            None => Ok(()),
        }
    }

    fn has_ended(&mut self) -> Result<bool, String> {
        let Some(stage) = &mut self.stage else { return Ok(true) };
        Ok(stage.try_wait().map_err(|error| error.to_string())?.is_some())
    }

    fn has_seen_enough(&self, limit_s: f64) -> bool {
        let now_s = now_s();
        let past =
            |since: Option<f64>, length_s: f64| since.is_some_and(|at| now_s > at + length_s);
        now_s > limit_s
            || past(self.judge.first_oom_kill(), AFTER_KILL_S)
            || past(self.judge.hang_since(now_s), if self.options.brief { BRIEF_S } else { HANG_S })
            || self.options.brief && past(self.judge.first_failed(), BRIEF_S)
    }

    /// Asks the stage to end, and ends what is left of it.
    fn end_stage(&mut self) {
        let Some(mut stage) = self.stage.take() else { return };
        drop(stage.stdin.take());
        let end = Instant::now() + STAGE_LIMIT;
        while Instant::now() < end && matches!(stage.try_wait(), Ok(None)) {
            pause();
        }
        let code = match stage.try_wait() {
            Ok(Some(status)) => status.to_string(),
            _ => "ended by force".to_owned(),
        };
        stage.kill().ok();
        stage.wait().ok();
        self.tell("stage_ended", json!({ "how": code }));
        self.end_orphans();
    }

    /// Ends what the stage has left: its programs are our children now.
    fn end_orphans(&mut self) {
        let ours: Vec<u32> = self.witnesses.iter().chain(&self.agent).map(Child::id).collect();
        let orphans = || {
            let text = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
            let pids = text.split_whitespace().filter_map(|word| word.parse::<u32>().ok());
            pids.filter(|pid| !ours.contains(pid)).collect::<Vec<_>>()
        };
        let end = Instant::now() + RECOVERY;
        while Instant::now() < end {
            let left = orphans();
            if left.is_empty() {
                return;
            }
            for pid in left {
                signal_pid(pid, Signal::KILL);
                let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
                waitpid(pid, WaitOptions::NOHANG).ok();
            }
            pause();
        }
    }

    fn end_all(&mut self) {
        self.end_stage();
        if let Some(mut agent) = self.agent.take() {
            signal_pid(agent.id(), Signal::TERM);
            let end = Instant::now() + STOP_LIMIT;
            while Instant::now() < end && matches!(agent.try_wait(), Ok(None)) {
                pause();
            }
            let how = match agent.try_wait() {
                Ok(Some(status)) => status.to_string(),
                _ => "did not end by itself".to_owned(),
            };
            agent.kill().ok();
            agent.wait().ok();
            self.tell("agent_ended", json!({ "how": how }));
        }
        for witness in &mut self.witnesses {
            witness.kill().ok();
            witness.wait().ok();
        }
    }

    fn tell(&mut self, what: &str, values: Value) {
        self.events.push(Event::new(now_s(), Source::Scenario, what, values));
    }

    fn rate(&self) -> f64 {
        self.options.rate.unwrap_or(self.scenario.rate)
    }

    fn stage_log(&self) -> String {
        fs::read_to_string(self.options.out.join("stage.log")).unwrap_or_default()
    }

    fn write(mut self, options: &Options) -> Result<(), String> {
        let clock =
            (observer_tests::unix_ns() as f64 - observer_tests::monotonic_ns() as f64) / 1e9;
        let recording = options.out.join("agent").join("recording.jsonl");
        if recording.exists() {
            let fault = self.events.iter().find(|event| event.what == "fault_start");
            let fault_s = fault.map_or(0.0, |event| event.t_s);
            let told = agent_events::read(&recording, clock, fault_s);
            self.events.extend(told.map_err(|error| error.to_string())?);
        }
        let collected = fs::read_to_string(self.scratch.path().join(COLLECTED)).ok();
        let stop = self.events.iter().find(|event| event.what == "stop").map(|event| event.t_s);
        if let (Some(collected), Some(stop_s)) = (collected, stop) {
            let made = fs::read_to_string(options.out.join("agent").join(MADE)).unwrap_or_default();
            let until_unix_ns = ((stop_s - ON_ITS_WAY_S + clock) * 1e9) as u64;
            self.tell("delivered", delivery::compare(&made, &collected, until_unix_ns));
        }
        let last_s = self.events.iter().filter(|event| event.source == Source::Witness);
        let last_s = last_s.map(|event| event.t_s).fold(0.0, f64::max);
        self.events.extend(std::mem::take(&mut self.judge).finish(last_s));
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let header = json!({
            "lab": timeline::VERSION,
            "scenario": self.scenario.name,
            "incident": self.scenario.incident,
            "twin": options.twin,
            "smoke": options.smoke,
            "rate": self.rate(),
            "rate_unit": self.scenario.rate_unit,
            "kernel": read("/proc/sys/kernel/osrelease"),
            "memory_bytes": observer_tests::procfs::host_memory().0,
            "limit_bytes": options.memory_mib.map(|mib| mib << 20),
            "cpus": std::thread::available_parallelism().map_or(1, usize::from),
            "agent": !options.no_agent,
            "clock": "CLOCK_MONOTONIC",
            "unix_minus_monotonic_s": clock,
        });
        let path = options.out.join("timeline.jsonl");
        timeline::write(&path, &header, self.events).map_err(|error| named(&path, &error))
    }
}

/// What stands before an ordinary program: the kernel may kill it, and it counts for the control group.
const ORDINARY: &str = r#"echo 0 >/proc/self/oom_score_adj
test -z "$0" || echo $$ >"$0/cgroup.procs"
exec "$@""#;

fn ordinary(group: Option<&Cgroup>, program: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", ORDINARY]).arg(group.map_or(Path::new(""), Cgroup::dir)).arg(program);
    command
}

fn started(command: &mut Command) -> Result<Child, String> {
    command.spawn().map_err(|error| format!("cannot start {command:?}: {error}"))
}

fn named(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

fn pause() {
    // sleep: the pace of a wait with an end
    std::thread::sleep(LOOK);
}
