//! The stage: programs of a scenario and what is done to them. A process of its own, which the kernel may kill and which
//! may wait for memory; what it has to say goes to a file at once.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Args;
use serde_json::{Value, json};

use crate::{
    scenario,
    timeline::{Event, Source, now_s},
};

/// What the stage is told by `lab run`.
#[derive(Args)]
pub struct Options {
    /// Name of the scenario.
    pub scenario: String,
    /// Whether to do the same with healthy software.
    #[arg(long)]
    pub twin: bool,
    /// Whether it is to be short.
    #[arg(long)]
    pub smoke: bool,
    /// How fast, in the scenario's unit.
    #[arg(long)]
    pub rate: f64,
    /// Where events go.
    #[arg(long)]
    pub events: PathBuf,
    /// Ports that nobody else uses.
    #[arg(long, value_delimiter = ',')]
    pub ports: Vec<u16>,
}

/// Healthy time before the fault: an agent has seen the host before it breaks.
const SETTLE: Duration = Duration::from_secs(10);
const SMOKE_SETTLE: Duration = Duration::from_secs(3);

/// Among the run's ports.
pub const COLLECTOR_PORT: usize = 3;

/// Is there once the agent is ready, beside the file of events.
pub const AGENT_READY: &str = "agent_ready";

/// What a collector took, beside the file of events.
pub const COLLECTED: &str = "collected.jsonl";

/// What a scenario has to work with.
pub struct Stage {
    options: Options,
    events: File,
    over: Arc<AtomicBool>,
}

/// Performs a scenario.
pub fn perform(options: &Options) {
    let scenario = scenario::find(&options.scenario).unwrap_or_else(|error| panic!("{error}"));
    let events = OpenOptions::new().append(true).create(true).open(&options.events);
    let events = events.unwrap_or_else(|error| panic!("{}: {error}", options.events.display()));
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    std::thread::spawn(move || {
        // `lab run` closes our input when it has seen enough.
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        told.store(true, Ordering::Relaxed);
    });
    let Options { scenario: name, events: path, ports, .. } = options;
    let options =
        Options { scenario: name.clone(), events: path.clone(), ports: ports.clone(), ..*options };
    let mut stage = Stage { options, events, over };
    let body = if stage.options.twin { scenario.twin } else { scenario.fault };
    body(&mut stage);
    stage.tell("ended", json!({}));
}

impl Stage {
    /// How fast, in the scenario's unit.
    pub fn rate(&self) -> f64 {
        self.options.rate
    }

    /// Whether the run is only to show that the scenario works.
    pub fn is_smoke(&self) -> bool {
        self.options.smoke
    }

    /// One of the run's four ports. The agent takes connections to all but the first for those of databases.
    pub fn port(&self, index: usize) -> u16 {
        self.options.ports[index]
    }

    /// Where the agent exports to, in a scenario that says that it does.
    pub fn collector_port(&self) -> u16 {
        self.options.ports[COLLECTOR_PORT]
    }

    /// Keeps what a collector took, one OTLP request a line, for [`crate::delivery`].
    pub fn collected(&self, lines: &[String]) {
        let text: String = lines.iter().flat_map(|line| [line, "\n"]).collect();
        let path = self.options.events.with_file_name(COLLECTED);
        std::fs::write(path, text).expect("the scratch folder takes files");
    }

    /// Puts an event on the time line.
    pub fn tell(&mut self, what: &str, values: Value) {
        let event = Event::new(now_s(), Source::Scenario, what, values);
        let line = format!("{}\n", json!(event));
        self.events.write_all(line.as_bytes()).expect("the file of events can be written");
    }

    /// Has the witness ask this URL from now on: `GET http://127.0.0.1:port/path`.
    pub fn health(&mut self, port: u16, path: &str) {
        self.tell("health", json!({ "port": port, "path": path }));
    }

    /// Says who a correct warning names: these processes, or any of these names (command, PM2 app, unit, container).
    pub fn culprit(&mut self, names: &[&str], pids: &[u32]) {
        self.tell("culprit", json!({ "names": names, "pids": pids }));
    }

    /// Says that the scene is set, in a scenario whose agent starts only then, and waits for the agent.
    pub fn scene_is_set(&mut self) {
        self.tell("set", json!({}));
        let ready = self.options.events.with_file_name(AGENT_READY);
        while !ready.exists() && self.pause(Duration::from_millis(100)) {}
    }

    /// Waits some healthy time and marks the instant of the fault; call it right before. A twin marks it too.
    pub fn begin(&mut self) {
        self.pause(if self.is_smoke() { SMOKE_SETTLE } else { SETTLE });
        self.tell("fault_start", json!({}));
    }

    /// Whether the run has seen enough.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Waits, but not beyond the end of the run; `false` once that has come.
    pub fn pause(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        while !self.is_over() {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return true };
            // sleep: the pace of a scenario
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
        false
    }

    /// Waits for the end of the run.
    pub fn wait(&self) {
        while self.pause(Duration::from_secs(1)) {}
    }

    /// Calls `act` with 0, 1, 2... so that it has been called `rate` times a second, until the run is over.
    pub fn at_rate(&self, rate: f64, mut act: impl FnMut(u64)) {
        let start = Instant::now();
        for index in 0.. {
            let due = Duration::from_secs_f64(index as f64 / rate);
            if !self.pause(due.saturating_sub(start.elapsed())) {
                return;
            }
            act(index);
        }
    }
}
