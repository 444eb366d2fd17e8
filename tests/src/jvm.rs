//! A Java program that holds a database connection.

use std::process::Command;

use crate::{program::Program, seconds, source::Source};

/// A running JVM that listens and holds one connection to Redis.
pub struct Jvm {
    /// The process.
    pub program: Program,
    /// Local port of its connection.
    pub local_port: u16,
    _source: Source,
}

impl Jvm {
    /// Compiles and starts it (JEP 330: `java FILE` runs a single source file).
    pub fn start(redis_port: u16) -> Self {
        let source = Source::new("Hold.java", include_str!("../load/Hold.java"));
        let mut command = Command::new("java");
        command.args(["-Xmx64m", "-XX:+UseSerialGC"]).arg(source.path());
        let program = Program::start(command.arg(redis_port.to_string()));
        let port = |line: &str| line.strip_prefix("local_port=")?.parse().ok();
        let local_port = program.wait_line(seconds(60), port);
        Self { program, local_port, _source: source }
    }
}
