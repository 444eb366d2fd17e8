//! Network namespaces of a test. They end with the process that holds them, and what was in them with it.

use std::{fs::File, os::fd::AsFd as _, process::Command};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{program::Program, seconds};

/// A network namespace with its loopback interface up.
pub struct Namespace {
    holder: Program,
    file: File,
}

impl Namespace {
    /// Makes one.
    #[track_caller]
    pub fn new() -> Self {
        Self::prepared("")
    }

    /// Makes one in which any CPU takes in what loopback carries, by an interrupt, as from a network card. With one CPU it
    /// is as any.
    #[track_caller]
    pub fn with_interrupts() -> Self {
        // Its own sysfs shows its own interfaces. All CPUs that a mask of 32 bits can name: others are refused.
        let mask =
            (1_u64 << std::thread::available_parallelism().map_or(1, usize::from).min(32)) - 1;
        let file = "/sys/class/net/lo/queues/rx-0/rps_cpus";
        Self::prepared(&format!("mount -t sysfs none /sys && echo {mask:x} > {file} && "))
    }

    #[track_caller]
    fn prepared(first: &str) -> Self {
        let mut command = Command::new("unshare");
        let script = format!("{first}ip link set lo up && echo up && exec cat");
        command.args(["--net", "--mount", "sh", "-c", &script]);
        let holder = Program::start(&mut command);
        holder.wait_line(seconds(20), |line| (line == "up").then_some(()));
        let file = File::open(format!("/proc/{}/ns/net", holder.pid()));
        Self { holder, file: file.expect("its process is there") }
    }

    /// Runs something on a thread inside: sockets that it opens and processes that it starts belong there.
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter a namespace");
            act()
        };
        std::thread::scope(|scope| scope.spawn(inside).join()).expect("the thread has not panicked")
    }

    /// Runs `ip` inside.
    #[track_caller]
    pub fn ip(&self, words: &str) {
        self.enter(|| ip(words));
    }

    /// Makes a cable to it from the namespace of the caller: `near` and `far` are the names of its ends.
    #[track_caller]
    pub fn plug(&self, near: &str, far: &str) {
        ip(&format!("link add {near} type veth peer name {far} netns {}", self.holder.pid()));
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs `ip` with these words.
#[track_caller]
pub fn ip(words: &str) {
    let done = Command::new("ip").args(words.split(' ')).output().expect("ip can be started");
    assert!(done.status.success(), "ip {words}: {}", String::from_utf8_lossy(&done.stderr));
}
