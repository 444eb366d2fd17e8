//! A real terminal: tmux on a socket of its own.

use std::{ffi::OsStr, path::PathBuf, process::Command, time::Duration};

use tempfile::TempDir;

use crate::wait_until;

/// A terminal of 160 columns and 50 rows with one program in it.
pub struct Terminal {
    socket: PathBuf,
    _dir: TempDir,
}

impl Terminal {
    /// Starts `command` in it; the environment that was set on the command goes along.
    pub fn start(command: &Command) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let terminal = Self { socket: dir.path().join("tmux"), _dir: dir };
        let mut tmux =
            terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "160", "-y", "50"]);
        tmux.arg("env");
        // env(1) takes options only before the first variable.
        for (name, _) in command.get_envs().filter(|(_, value)| value.is_none()) {
            tmux.arg("-u").arg(name);
        }
        for (name, value) in command.get_envs() {
            tmux.args(value.map(|value| [name, value].join(OsStr::new("="))));
        }
        tmux.arg(command.get_program()).args(command.get_args());
        let started = tmux.output().expect("tmux can be started");
        assert!(started.status.success(), "tmux: {}", String::from_utf8_lossy(&started.stderr));
        terminal
    }

    /// What it shows now.
    pub fn screen(&self) -> String {
        let captured = self.tmux(&["capture-pane", "-p"]).output().expect("tmux can be started");
        String::from_utf8_lossy(&captured.stdout).into_owned()
    }

    /// Waits until it shows all of `texts`.
    #[track_caller]
    pub fn wait_for(&self, texts: &[&str], timeout: Duration) -> String {
        let mut last = String::new();
        let missing = format!("the screen shows {texts:?}");
        let shown = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until(&missing, timeout, || {
                last = self.screen();
                texts.iter().all(|text| last.contains(text)).then_some(())
            });
        }));
        assert!(shown.is_ok(), "{missing}; last screen:\n{last}");
        last
    }

    /// Presses keys, named as tmux names them.
    pub fn press(&self, keys: &[&str]) {
        let sent = self.tmux(&["send-keys"]).args(keys).status().expect("tmux can be started");
        assert!(sent.success(), "tmux send-keys {keys:?}");
    }

    /// Whether the program still runs.
    pub fn is_running(&self) -> bool {
        self.tmux(&["has-session"]).output().is_ok_and(|output| output.status.success())
    }

    fn tmux(&self, args: &[&str]) -> Command {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(&self.socket).args(args).env_remove("TMUX").env("LC_ALL", "C.UTF-8");
        command
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        drop(self.tmux(&["kill-server"]).output());
    }
}
