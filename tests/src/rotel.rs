//! rotel, a real OTLP receiver made by others: it prints what it decoded.

use std::{net::TcpStream, path::PathBuf, process::Command, time::Duration};

use tempfile::TempDir;

use crate::{free_port, program::Program, seconds, wait_until};

/// Path of `rotel-agent`, from `OBSERVER_TEST_ROTEL`.
pub fn find_binary() -> Result<PathBuf, String> {
    let path = std::env::var_os("OBSERVER_TEST_ROTEL").ok_or("OBSERVER_TEST_ROTEL is not set")?;
    let path = PathBuf::from(path);
    if path.is_file() { Ok(path) } else { Err(format!("{} is not there", path.display())) }
}

/// A running receiver.
pub struct Rotel {
    program: Program,
    /// Port of OTLP over gRPC.
    pub grpc_port: u16,
    /// Port of OTLP over HTTP.
    pub http_port: u16,
    _dir: TempDir,
}

impl Rotel {
    /// Starts it and waits until it listens.
    pub fn start(binary: PathBuf) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let (grpc_port, http_port) = (free_port(), free_port());
        let mut command = Command::new(binary);
        command.current_dir(dir.path()).args(["start", "--exporter", "blackhole"]);
        for signal in ["traces", "metrics", "logs"] {
            command.args(["--debug-log", signal]);
        }
        command.args(["--debug-log-verbosity", "detailed"]);
        command.args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc_port}")]);
        command.args(["--otlp-http-endpoint", &format!("127.0.0.1:{http_port}")]);
        let program = Program::start(&mut command);
        let listens = |port| TcpStream::connect(("127.0.0.1", port)).ok();
        wait_until("rotel listens", seconds(20), || listens(grpc_port).and(listens(http_port)));
        Self { program, grpc_port, http_port, _dir: dir }
    }

    /// Waits until what it printed contains each of `texts`.
    #[track_caller]
    pub fn wait_for(&self, texts: &[&str], timeout: Duration) {
        for text in texts {
            let found = |line: &str| line.contains(text).then_some(());
            let seen = self.program.out.wait(0, timeout, found);
            assert!(seen.is_some(), "rotel did not print {text}\n{}", self.program.transcript());
        }
    }

    /// Everything that it printed.
    pub fn printed(&self) -> String {
        self.program.out.all().join("\n")
    }
}
