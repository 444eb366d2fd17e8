//! A real Redis server on loopback, and the smallest client that can count its bytes.

use std::{fmt::Write as _, io, process::Command};

use tempfile::TempDir;

use crate::{
    free_port,
    program::Program,
    seconds, wait_until,
    wire::{Record, Wire},
};

/// A running server without persistence.
pub struct Redis {
    program: Program,
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    _data: TempDir,
}

impl Redis {
    /// Starts it.
    pub fn start() -> Self {
        Self::on(free_port())
    }

    /// Starts it on this port.
    pub fn on(port: u16) -> Self {
        let data = TempDir::new().expect("a temporary directory");
        let mut command = Command::new("redis-server");
        command.current_dir(data.path()).args(["--port", &port.to_string()]);
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        let program = Program::start(&mut command);
        wait_until("Redis answers", seconds(10), || Client::connect(port).ok().map(Client::close));
        Self { program, port, _data: data }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }
}

/// A client's connection.
pub struct Client {
    /// The counted connection below it.
    pub wire: Wire,
}

impl Client {
    /// Connects and pings.
    pub fn connect(port: u16) -> io::Result<Self> {
        let mut client = Self { wire: Wire::connect(port)? };
        client.command(&["PING"])?;
        Ok(client)
    }

    /// Sends a command and does not wait (RESP: array of bulk strings).
    pub fn send(&mut self, words: &[&str]) -> io::Result<()> {
        let mut message = format!("*{}\r\n", words.len());
        for word in words {
            write!(message, "${}\r\n{word}\r\n", word.len()).map_err(io::Error::other)?;
        }
        self.wire.write(message.as_bytes())
    }

    /// Reads one answer: a line, or a bulk string.
    pub fn receive(&mut self) -> io::Result<Vec<u8>> {
        let line = self.wire.read_line()?;
        let Some(size) = line.strip_prefix('$') else { return Ok(line.into_bytes()) };
        match size.trim().parse::<usize>() {
            Ok(size) => self.wire.read(size + 2),
            Err(_) => Ok(Vec::new()), // $-1: no such key
        }
    }

    /// Sends a command and reads its answer.
    pub fn command(&mut self, words: &[&str]) -> io::Result<Vec<u8>> {
        self.send(words)?;
        self.receive()
    }

    /// Closes it.
    pub fn close(self) -> Record {
        self.wire.close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::needs;

    /// The client's counts are the measure for the agent's, so they are checked against the server's.
    #[test]
    fn counts_agree_with_the_server() {
        if crate::find_program("redis-server").is_none() {
            return needs::skip(
                "redis::counts_agree_with_the_server",
                "redis-server is not installed",
            );
        }
        let _host = needs::quiet_host();
        let server = Redis::start();
        let mut observer = Client::connect(server.port).unwrap();
        let mut traffic = || {
            let stats = String::from_utf8(observer.command(&["INFO", "stats"]).unwrap()).unwrap();
            let own = observer.wire.record();
            let field = |name: &str| -> u64 {
                let line = stats.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap().parse().unwrap()
            };
            // What the observer has sent is counted when it reads; its own answer only after it was sent.
            (field("total_net_input_bytes:") - own.sent, own, field("total_net_output_bytes:"))
        };
        let before = traffic();
        let mut client = Client::connect(server.port).unwrap();
        client.command(&["SET", "key", &"x".repeat(5000)]).unwrap();
        client.command(&["GET", "key"]).unwrap();
        client.command(&["GET", "none"]).unwrap();
        let record = client.close();
        let after = traffic();
        assert_eq!(after.0 - before.0, record.sent);
        // The first INFO answer was sent after it was made, the second is not yet sent.
        let answers = after.1.received - before.1.received;
        let first_answer = before.1.received - "+PONG\r\n".len() as u64;
        let between = after.2 - before.2 - first_answer;
        assert!(answers > 0);
        assert_eq!(between, record.received);
    }
}
