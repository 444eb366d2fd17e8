//! The agent as users start it: the real binary, its own state directory, ended by SIGTERM.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use observer::snapshot::Snapshot;
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use tempfile::TempDir;

use crate::{POLL, otlp::Telemetry, program::Program, seconds, user_ids};

/// Longest time from the start to all probes attached.
const READY_TIMEOUT: Duration = seconds(30);

/// Rest between two looks at snapshots, of which there is one a second.
const SNAPSHOT_POLL: Duration = Duration::from_millis(250);

/// Promised time from SIGTERM to the end.
const STOP_TIMEOUT: Duration = seconds(2);

/// The binary: `OBSERVER_BIN`, else that of the target directory this test was built into, release first.
pub fn find_binary() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("OBSERVER_BIN") {
        return Ok(path.into());
    }
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    let target = test.ancestors().nth(3).ok_or("the test is not in a target directory")?;
    let found = ["release", "debug"].map(|profile| target.join(profile).join("observer"));
    let missing = || format!("no observer in {}: run `cargo build`", target.display());
    found.into_iter().find(|path| path.is_file()).ok_or_else(missing)
}

/// A command of the binary, free of the settings of whoever runs the tests.
pub fn command<S: AsRef<OsStr>>(state: &Path, args: &[S]) -> Command {
    let mut command = Command::new(binary());
    prepare(&mut command, state);
    command.args(args);
    command
}

/// The binary, which must be there.
pub fn binary() -> PathBuf {
    find_binary().unwrap_or_else(|error| panic!("{error}"))
}

/// Gives a command the state directory and takes the settings of whoever runs the tests away from it.
pub fn prepare(command: &mut Command, state: &Path) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("OBSERVER_") || text.starts_with("OTEL_") {
            command.env_remove(&name);
        }
    }
    command.env_remove("NOTIFY_SOCKET").env("OBSERVER_STATE_DIR", state).current_dir(state);
}

/// Runs the binary to its end.
pub fn output(state: &Path, args: &[&str]) -> Output {
    command(state, args).output().expect("the binary can be started")
}

/// A running agent.
pub struct Agent {
    program: Program,
    state: TempDir,
}

impl Agent {
    /// Starts `observer run` with these environment variables and waits until its probes are attached.
    #[track_caller]
    pub fn start(env: &[(&str, &str)]) -> Self {
        Self::ready(Self::spawn(env))
    }

    /// Starts it through another program, such as `unshare`, whose last arguments are the binary and its own.
    #[track_caller]
    pub fn start_through(launcher: &[&str], env: &[(&str, &str)]) -> Self {
        let state = TempDir::new().expect("a temporary directory");
        Self::ready(Self::spawn_through(launcher, &binary(), state, env))
    }

    /// Likewise, with this copy of the binary and this state directory.
    #[track_caller]
    pub fn start_copy(
        launcher: &[&str],
        copy: &Path,
        state: TempDir,
        env: &[(&str, &str)],
    ) -> Self {
        Self::ready(Self::spawn_through(launcher, copy, state, env))
    }

    /// Starts a copy as the user `nobody` with these capabilities (setpriv(1)).
    #[track_caller]
    pub fn start_as_nobody(capabilities: &str, env: &[(&str, &str)]) -> Self {
        let (user, group) = user_ids("nobody").expect("there is a user nobody");
        // The directory of the build may be closed to others.
        let [state, copy] = [(); 2].map(|()| TempDir::new().expect("a temporary directory"));
        for folder in [&state, &copy] {
            std::os::unix::fs::chown(folder.path(), Some(user), Some(group))
                .expect("tests are root");
        }
        let binary = copy.path().join("observer");
        std::fs::copy(self::binary(), &binary).expect("the binary can be copied");
        let (user, group) = (user.to_string(), group.to_string());
        // Before 5.11 maps count as locked memory, and only a third capability raises the limit.
        let unlimited = Rlimit { current: None, maximum: None };
        setrlimit(Resource::Memlock, unlimited).ok();
        let launcher = ["setpriv", "--reuid", &user, "--regid", &group, "--clear-groups"];
        let sets = ["--bounding-set", "--inh-caps", "--ambient-caps"];
        let launcher: Vec<_> = launcher
            .into_iter()
            .chain(sets.into_iter().flat_map(|set| [set, capabilities]))
            .collect();
        Self::start_copy(&launcher, &binary, state, env)
    }

    #[track_caller]
    fn ready(agent: Self) -> Self {
        let ready = |line: &str| line.starts_with("observer: ready").then_some(());
        let seen = agent.program.err.wait(0, READY_TIMEOUT, ready);
        assert!(seen.is_some(), "the agent did not get ready\n{}", agent.program.transcript());
        agent
    }

    /// Starts it with the connections to these loopback ports in the ledger.
    #[track_caller]
    pub fn watching(ports: &[u16]) -> Self {
        let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
        Self::start(&[("OBSERVER_TCP_PORTS", &ports.join(","))])
    }

    /// Starts it and does not wait.
    pub fn spawn(env: &[(&str, &str)]) -> Self {
        let state = TempDir::new().expect("a temporary directory");
        Self::spawn_through(&[], &binary(), state, env)
    }

    fn spawn_through(
        launcher: &[&str],
        binary: &Path,
        state: TempDir,
        env: &[(&str, &str)],
    ) -> Self {
        let out = state.path().join("out.jsonl");
        let words = launcher.iter().map(OsStr::new);
        let mut words = words.chain([binary.as_os_str(), OsStr::new("run"), OsStr::new("--out")]);
        let mut command = Command::new(words.next().expect("there is the binary"));
        prepare(&mut command, state.path());
        // What a test causes is not for the log of its host.
        command.env("OBSERVER_ALERT_KMSG", "false");
        command.args(words).arg(&out).envs(env.iter().copied());
        Self { program: Program::start(&mut command), state }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Its state directory.
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// The running program, for its output.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// One snapshot through `observer top --once --json`.
    #[track_caller]
    pub fn snapshot(&self) -> Snapshot {
        let output = output(self.state.path(), &["top", "--once", "--json"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "top: {errors}\n{}", self.program.transcript());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("top: {error}"))
    }

    /// Looks at snapshots until `pick` gives a value.
    #[track_caller]
    pub fn wait_snapshot<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut pick: impl FnMut(&Snapshot) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + timeout;
        loop {
            let snapshot = self.snapshot();
            if let Some(picked) = pick(&snapshot) {
                return picked;
            }
            if Instant::now() > deadline {
                let kept = kept_path("json");
                let json = serde_json::to_vec_pretty(&snapshot).expect("a snapshot is plain data");
                std::fs::write(&kept, json).expect("a temporary file can be written");
                panic!(
                    "not within {timeout:?}: {what}; the last snapshot is in {}",
                    kept.display()
                );
            }
            // sleep: the pace of a wait with a deadline
            std::thread::sleep(SNAPSHOT_POLL);
        }
    }

    /// What it has exported so far.
    pub fn telemetry(&self) -> Telemetry {
        Telemetry::parse(&std::fs::read_to_string(self.out_file()).unwrap_or_default())
    }

    fn out_file(&self) -> PathBuf {
        self.state.path().join("out.jsonl")
    }

    /// Looks at the exported telemetry until `pick` gives a value.
    #[track_caller]
    pub fn wait_telemetry<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut pick: impl FnMut(&Telemetry) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(picked) = pick(&self.telemetry()) {
                return picked;
            }
            if Instant::now() > deadline {
                let kept = kept_path("jsonl");
                std::fs::copy(self.out_file(), &kept).expect("a temporary file can be written");
                panic!("not within {timeout:?}: {what}; the telemetry is in {}", kept.display());
            }
            // sleep: the pace of a wait with a deadline
            std::thread::sleep(POLL);
        }
    }

    /// Asserts that nothing was lost anywhere. The stacks of page faults are samples: one that cannot be read is
    /// counted as well, but no fact goes with it.
    #[track_caller]
    pub fn assert_no_loss(&self) {
        let health = self.snapshot().health;
        assert!(!health.losses.is_empty(), "every place of loss has a row, also while nothing is");
        let lost: Vec<_> = health
            .losses
            .iter()
            .filter(|loss| loss.count > 0 && loss.stage != "alloc.stacks")
            // An interrupt may come at any time; what is told must be right all the same.
            .filter(|loss| !loss.stage.starts_with("missed."))
            .collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
    }

    /// Ends it by SIGTERM, asserts how it ended, and gives what it exported.
    #[track_caller]
    pub fn stop(mut self) -> Telemetry {
        self.program.signal(Signal::TERM);
        let status = self.program.wait(STOP_TIMEOUT);
        let transcript = self.program.transcript();
        let status = status
            .unwrap_or_else(|| panic!("still there {STOP_TIMEOUT:?} after SIGTERM\n{transcript}"));
        assert_eq!(status.code(), Some(0), "{status}\n{transcript}");
        let errors = self.program.err.all().join("\n");
        assert!(!errors.contains("panicked"), "{errors}");
        self.telemetry()
    }
}

/// Where something is left behind for whoever looks into a failure.
fn kept_path(extension: &str) -> PathBuf {
    std::env::temp_dir().join(format!("observer-test-{}.{extension}", std::process::id()))
}
