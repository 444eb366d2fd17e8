//! PM2, the process manager of Node.js, with a daemon and a folder of its own, as each user of a host has.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{find_program, procfs, program::signal_pid, user_ids};

/// Where npm put PM2, and node-postgres beside it.
pub fn node_modules() -> Option<PathBuf> {
    let script = fs::canonicalize(find_program("pm2")?).ok()?;
    script.ancestors().nth(3).map(Path::to_owned)
}

/// An application as its ecosystem file has it.
pub struct App<'a> {
    /// Name.
    pub name: &'a str,
    /// Text of the script.
    pub script: &'a str,
    /// Workers of a cluster that share one port; none for a plain process.
    pub workers: Option<u32>,
    /// Environment.
    pub env: &'a [(&'a str, &'a str)],
}

/// Longest time that PM2 waits for the word of a worker.
const READY_MS: u32 = 60_000;

/// A daemon ("God Daemon") with its applications; killed with them when dropped.
pub struct Pm2 {
    home: TempDir,
    user: (u32, u32),
}

impl Pm2 {
    /// A daemon of this user; it comes with its first application.
    #[track_caller]
    pub fn new(user: &str) -> Self {
        let user = user_ids(user).unwrap_or_else(|| panic!("no user {user}"));
        let home = TempDir::new().expect("a temporary directory");
        chown(home.path(), Some(user.0), Some(user.1)).expect("root may give a directory away");
        Self { home, user }
    }

    /// Starts an application and waits until its workers have told PM2 that they are ready.
    #[track_caller]
    pub fn start(&mut self, app: &App) {
        let script = self.home.path().join(format!("{}.js", app.name));
        fs::write(&script, app.script).expect("a temporary file can be written");
        let mut env: serde_json::Map<_, _> =
            app.env.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        env.insert("NODE_PATH".into(), json!(node_modules().expect("PM2 is installed")));
        let (mode, workers) = app.workers.map_or(("fork", 1), |count| ("cluster", count));
        let apps = json!({ "apps": [{
            "name": app.name, "script": script, "exec_mode": mode, "instances": workers,
            "wait_ready": true, "listen_timeout": READY_MS, "env": env,
        }]});
        let file = self.home.path().join("ecosystem.config.json");
        fs::write(&file, apps.to_string()).expect("a temporary file can be written");
        self.command([OsStr::new("start"), file.as_os_str()]);
    }

    /// Runs the `pm2` command of this daemon to its end; gives what it printed.
    #[track_caller]
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let mut command = Command::new("pm2");
        command.uid(self.user.0).gid(self.user.1).current_dir(self.home.path()).args(args);
        // Without the update check and the usage report, which ask the network.
        command.env("PM2_HOME", self.home.path()).env("HOME", self.home.path());
        command.env("PM2_DISABLE_VERSION_CHECK", "true").env("NO_UPDATE_NOTIFIER", "1");
        let done = command.output().expect("pm2 can be started");
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let errors = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{command:?}: {errors}\n{text}");
        text
    }

    /// What PM2 knows of the workers of an application.
    #[track_caller]
    fn list(&self, app: &str) -> Vec<Value> {
        let text = self.command(["jlist"]);
        // Other lines tell what PM2 does.
        let json = text.lines().rfind(|line| line.starts_with("[{")).unwrap_or("[]");
        let mut list: Vec<Value> =
            serde_json::from_str(json).unwrap_or_else(|error| panic!("pm2 jlist: {error}: {text}"));
        list.retain(|process| process["name"] == app);
        list
    }

    /// Restarts that PM2 made of all workers of an application.
    pub fn restarts(&self, app: &str) -> u64 {
        let list = self.list(app);
        list.iter().filter_map(|process| process["pm2_env"]["restart_time"].as_u64()).sum()
    }

    /// Pids of the workers of an application, from the files that PM2 keeps of them: its command takes seconds in a guest.
    pub fn pids(&self, app: &str) -> Vec<u32> {
        let files = fs::read_dir(self.home.path().join("pids")).into_iter().flatten().flatten();
        let own = files.filter(|file| {
            let name = file.file_name().to_string_lossy().into_owned();
            name.strip_prefix(app).is_some_and(|rest| rest.starts_with('-'))
        });
        let texts = own.filter_map(|file| fs::read_to_string(file.path()).ok());
        texts.filter_map(|text| text.trim().parse().ok()).collect()
    }

    /// Pid of the daemon.
    pub fn daemon(&self) -> Option<u32> {
        fs::read_to_string(self.home.path().join("pm2.pid")).ok()?.trim().parse().ok()
    }

    /// Pids of the processes that it keeps alive at the moment.
    pub fn workers(&self) -> Vec<u32> {
        self.daemon().map(procfs::children).unwrap_or_default()
    }
}

impl Drop for Pm2 {
    fn drop(&mut self) {
        let Some(daemon) = self.daemon() else { return };
        // The daemon first: it would start its workers again.
        let workers = self.workers();
        signal_pid(daemon, Signal::KILL);
        workers.into_iter().for_each(|pid| signal_pid(pid, Signal::KILL));
    }
}
