//! Programs beside the shop, in a process group of their own that ends as one.

use std::{
    os::unix::{fs::symlink, process::CommandExt as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

/// A process group.
#[derive(Default)]
pub struct Jobs {
    children: Vec<Child>,
}

impl Jobs {
    /// Adds one. It reads and writes nothing.
    pub fn start(&mut self, command: &mut Command) {
        let group = self.children.first().map_or(0, Child::id).cast_signed();
        command.process_group(group);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        self.children.push(child);
    }

    /// Processes that were started.
    pub fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        // The first one is not yet waited for, so its number is still that of the group.
        let first = self.children.first().and_then(|child| Pid::from_raw(child.id().cast_signed()));
        if let Some(group) = first {
            kill_process_group(group, Signal::KILL).ok();
        }
        for child in &mut self.children {
            child.wait().ok();
        }
    }
}

/// This binary under another name, which its process has then.
pub struct Own {
    folder: TempDir,
    name: &'static str,
}

impl Own {
    /// Gives it this name.
    pub fn named(name: &'static str) -> Self {
        let own = std::env::current_exe().expect("this program has a path");
        let folder = TempDir::new().expect("a temporary directory");
        symlink(own, folder.path().join(name)).expect("a temporary directory takes links");
        Self { folder, name }
    }

    /// The program.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join(self.name)
    }
}
