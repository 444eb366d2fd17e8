//! Node.js programs.

use std::process::Command;

use serde::Deserialize;

use crate::{http, procfs, program::Program, seconds, source::Source, wait_until};

/// A running Node.js program.
pub struct Node {
    /// The process.
    pub program: Program,
    _source: Source,
}

impl Node {
    /// Starts a script with these options of `node` and this environment.
    pub fn start(script: &str, options: &[&str], env: &[(&str, &str)]) -> Self {
        Self::named("server.js", script, options, env)
    }

    /// Starts a script under a name of its own.
    pub fn named(name: &'static str, script: &str, options: &[&str], env: &[(&str, &str)]) -> Self {
        let source = Source::new(name, script);
        let mut command = Command::new("node");
        command.args(options).arg(source.path()).current_dir(source.dir());
        command.envs(env.iter().copied());
        Self { program: Program::start(&mut command), _source: source }
    }
}

/// What Node measured around one block of its event loop.
#[derive(Debug, Clone, Deserialize)]
pub struct Block {
    /// Wall time by `performance.now()`.
    pub wall_ms: f64,
    /// CPU time of the process by `process.cpuUsage()`.
    pub cpu_ms: f64,
}

/// An HTTP server that blocks its own event loop on request.
pub struct Blocker {
    /// The process.
    pub node: Node,
    port: u16,
}

impl Blocker {
    /// Starts it and waits until it listens.
    pub fn start() -> Self {
        let node = Node::start(include_str!("../load/blocker.js"), &[], &[]);
        let port =
            node.program.wait_line(seconds(20), |line| line.strip_prefix("port=")?.parse().ok());
        Self { node, port }
    }

    /// Blocks the loop for `ms` in this way (`spin`, `wait`, `exec`; `poll` only keeps it from sleep) and gives what Node measured. Returns when the loop
    /// sleeps again: without sleep between them, two blocks are one turn for the scheduler.
    pub fn block(&self, how: &str, ms: u64) -> Block {
        let block = block(self.port, how, ms);
        let pid = self.node.program.pid();
        wait_until("Node sleeps again", seconds(5), || procfs::is_asleep(pid).then_some(()));
        block
    }

    /// Starts a block and does not wait for its end.
    pub fn block_in_background(
        &self,
        how: &'static str,
        ms: u64,
    ) -> std::thread::JoinHandle<Block> {
        let port = self.port;
        std::thread::spawn(move || block(port, how, ms))
    }
}

fn block(port: u16, how: &str, ms: u64) -> Block {
    let body = http::get(port, &format!("/{how}?ms={ms}")).expect("the server answers");
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
}
