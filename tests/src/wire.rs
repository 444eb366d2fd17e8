//! A client's end of a TCP connection that counts its bytes and notes when it was opened and closed.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::monotonic_ns;

/// What the client knows of one connection. Times are of the monotonic clock; each is an interval, because the client
/// can lose the CPU between reading the clock and the call.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Port of the client's end.
    pub local_port: u16,
    /// Payload bytes written.
    pub sent: u64,
    /// Payload bytes read.
    pub received: u64,
    /// Before and after `connect`.
    pub opened_ns: (u64, u64),
    /// Before and after `close`; 0 while open.
    pub closed_ns: (u64, u64),
}

impl Record {
    /// Shortest and longest duration that the connection can have had.
    pub fn duration_ns(&self) -> (u64, u64) {
        (self.closed_ns.0 - self.opened_ns.1, self.closed_ns.1 - self.opened_ns.0)
    }
}

/// The connection.
pub struct Wire {
    stream: TcpStream,
    record: Record,
}

impl Wire {
    /// Connects to a port of the loopback interface.
    pub fn connect(port: u16) -> std::io::Result<Self> {
        let before = monotonic_ns();
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        let opened_ns = (before, monotonic_ns());
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let local_port = stream.local_addr()?.port();
        Ok(Self { stream, record: Record { local_port, opened_ns, ..Record::default() } })
    }

    /// Port of the client's end.
    pub fn local_port(&self) -> u16 {
        self.record.local_port
    }

    /// What is known of it while it is open.
    pub fn record(&self) -> Record {
        self.record.clone()
    }

    /// Writes all of `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)?;
        self.record.sent += bytes.len() as u64;
        Ok(())
    }

    /// Reads exactly `count` bytes.
    pub fn read(&mut self, count: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes)?;
        self.record.received += count as u64;
        Ok(bytes)
    }

    /// Reads up to and with the next line feed.
    pub fn read_line(&mut self) -> std::io::Result<String> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.extend(self.read(1)?);
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// Reads until the peer closes.
    pub fn read_to_end(&mut self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.record.received += self.stream.read_to_end(&mut bytes)? as u64;
        Ok(bytes)
    }

    /// Closes it.
    pub fn close(self) -> Record {
        let Self { stream, mut record } = self;
        let before = monotonic_ns();
        drop(stream);
        record.closed_ns = (before, monotonic_ns());
        record
    }
}
