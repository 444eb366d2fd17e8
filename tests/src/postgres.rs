//! A real PostgreSQL server on loopback, and the smallest client that can count its bytes.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    free_port,
    program::Program,
    seconds, user_ids, wait_until,
    wire::{Record, Wire},
};

/// Protocol version 3.0 (PostgreSQL documentation, 55.7 Message Formats, StartupMessage).
const PROTOCOL: u32 = 196_608;

/// A program of the newest PostgreSQL that Debian's packages have put here.
pub fn find_binary(name: &str) -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let binaries = versions.flatten().map(|version| version.path().join("bin").join(name));
    binaries.filter(|path| path.is_file()).max()
}

/// What differs from one server to the next.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// Where it listens beside 127.0.0.1; nowhere if empty.
    pub address: &'a str,
    /// Its port; one that is free, if 0.
    pub port: u16,
    /// `max_connections`. Three of them are for superusers.
    pub max_connections: u32,
    /// Folder of its data, which commits then wait for; without one, the data are temporary and never flushed.
    pub folder: Option<&'a Path>,
}

impl Default for Settings<'_> {
    fn default() -> Self {
        Self { address: "", port: 0, max_connections: 400, folder: None }
    }
}

/// A running server, data in a directory of its own.
pub struct Postgres {
    program: Program,
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    _data: TempDir,
}

impl Postgres {
    /// Starts one that trusts every client.
    pub fn start() -> Self {
        Self::with(Settings::default())
    }

    /// Starts one with these settings. It refuses to run as root, so it runs as the package's user.
    pub fn with(settings: Settings) -> Self {
        let data = settings.folder.map_or_else(TempDir::new, TempDir::new_in);
        let data = data.expect("a temporary directory");
        let (user, group) = user_ids("postgres").expect("the package has made the user postgres");
        chown(data.path(), Some(user), Some(group)).expect("root may give a directory away");
        let command = |name: &str| {
            let mut command = Command::new(find_binary(name).expect("PostgreSQL is installed"));
            command.uid(user).gid(group).current_dir(data.path()).env("LC_ALL", "C");
            command.args([Path::new("-D"), &data.path().join("db")]);
            command
        };
        let made = command("initdb").args(["-A", "trust", "-U", "postgres", "--no-sync"]).output();
        let made = made.expect("initdb can be started");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        if !settings.address.is_empty() {
            let rules = data.path().join("db/pg_hba.conf");
            let mut rules = OpenOptions::new().append(true).open(rules).expect("initdb made it");
            writeln!(rules, "host all all all trust").expect("it can be written");
        }
        let port = if settings.port == 0 { free_port() } else { settings.port };
        let mut server = command("postgres");
        server.args(["-p", &port.to_string()]);
        let sockets = format!("unix_socket_directories={}", data.path().display());
        let addresses = match settings.address {
            "" => "listen_addresses=127.0.0.1".to_owned(),
            address => format!("listen_addresses=127.0.0.1,{address}"),
        };
        let connections = format!("max_connections={}", settings.max_connections);
        let flushed = if settings.folder.is_some() { "fsync=on" } else { "fsync=off" };
        for setting in [&addresses, &connections, flushed, &sockets] {
            server.args(["-c", setting]);
        }
        let program = Program::start(&mut server);
        wait_until("PostgreSQL answers", seconds(60), || {
            Client::connect(port).ok().map(Client::close)
        });
        Self { program, port, _data: data }
    }

    /// Pid of the postmaster.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Immediate shutdown: the postmaster takes its backends with it.
        self.program.signal(Signal::QUIT);
        self.program.wait(seconds(5));
    }
}

/// A client's connection.
pub struct Client {
    /// The counted connection below it.
    pub wire: Wire,
}

impl Client {
    /// Connects, logs in and waits until the server is ready for a query.
    pub fn connect(port: u16) -> io::Result<Self> {
        let mut wire = Wire::connect(port)?;
        let parameters = b"user\0postgres\0database\0postgres\0\0";
        let mut message = Vec::from(length(8 + parameters.len()));
        message.extend(PROTOCOL.to_be_bytes());
        message.extend(parameters);
        wire.write(&message)?;
        let mut client = Self { wire };
        client.receive()?;
        Ok(client)
    }

    /// Sends a query and does not wait.
    pub fn send(&mut self, query: &str) -> io::Result<()> {
        let mut message = vec![b'Q'];
        message.extend(length(4 + query.len() + 1));
        message.extend(query.as_bytes());
        message.push(0);
        self.wire.write(&message)
    }

    /// Reads everything up to ReadyForQuery.
    pub fn receive(&mut self) -> io::Result<()> {
        self.receive_value().map(drop)
    }

    /// Sends a query and gives the first field of its last row; empty if there is none.
    pub fn value(&mut self, query: &str) -> io::Result<String> {
        self.send(query)?;
        self.receive_value()
    }

    fn receive_value(&mut self) -> io::Result<String> {
        let mut value = String::new();
        loop {
            let head = self.wire.read(5)?;
            let size = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let body = self.wire.read(size.saturating_sub(4))?;
            match head[0] {
                b'Z' => return Ok(value),
                b'D' => value = first_field(&body),
                b'E' => return Err(io::Error::other(String::from_utf8_lossy(&body).into_owned())),
                _ => {}
            }
        }
    }

    /// Sends a query and reads its answer.
    pub fn query(&mut self, query: &str) -> io::Result<()> {
        self.send(query)?;
        self.receive()
    }

    /// Says goodbye and closes at once, as libpq does.
    pub fn close(mut self) -> Record {
        self.terminate();
        self.wire.close()
    }

    /// Says goodbye and lets the server close first.
    pub fn close_after_server(mut self) -> Record {
        self.terminate();
        self.wire.read_to_end().expect("the server closes");
        self.wire.close()
    }

    fn terminate(&mut self) {
        self.wire.write(&[b'X', 0, 0, 0, 4]).expect("the server is there");
    }
}

/// Of a row: number of fields in two bytes, then each with its length in four; a NULL has length -1.
fn first_field(row: &[u8]) -> String {
    let length = row.get(2..6).and_then(|bytes| bytes.try_into().ok()).map(i32::from_be_bytes);
    let length = length.and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    String::from_utf8_lossy(row.get(6..6 + length).unwrap_or_default()).into_owned()
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).expect("messages are short").to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{needs, program::Program};

    /// The client's counts are the measure for the agent's, so they are checked against the kernel's (`ss -i`).
    #[test]
    fn counts_agree_with_the_kernel() {
        let root = rustix::process::geteuid().is_root();
        if find_binary("postgres").is_none() || !root || crate::find_program("ss").is_none() {
            let reason = "not root, or PostgreSQL or ss is not installed";
            return needs::skip("postgres::counts_agree_with_the_kernel", reason);
        }
        let _host = needs::quiet_host();
        let server = Postgres::start();
        let mut client = Client::connect(server.port).unwrap();
        client.query("SELECT repeat('x', 7000)").unwrap();
        let record = client.wire.record();
        let filter = format!("sport = :{}", record.local_port);
        let ss = Program::start(Command::new("ss").args(["-tinH", &filter]));
        let line =
            ss.wait_line(seconds(5), |line| line.contains("bytes_acked").then(|| line.to_owned()));
        let field = |name: &str| -> u64 {
            let value = line.split_whitespace().find_map(|word| word.strip_prefix(name));
            value.unwrap().parse().unwrap()
        };
        // The kernel counts the SYN as an acknowledged byte.
        assert_eq!(
            (field("bytes_acked:") - 1, field("bytes_received:")),
            (record.sent, record.received)
        );
        assert!(client.close_after_server().duration_ns().0 > 0);
    }
}
