//! The blocking client that `top` uses.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{ControlError, ERROR_PREFIX, SNAPSHOT, WATCH};
use crate::snapshot::{self, Snapshot};

/// Longest answer taken; a snapshot of full tables has about 6 MiB.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Longest silence of the agent, which sends once a second.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// A connection to a running agent.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<UnixStream>,
    path: PathBuf,
}

/// Connects to the agent to watch it: each [`Client::next`] waits for the next snapshot, about a second.
///
/// # Errors
/// [`ControlError::NotRunning`] and [`ControlError::Denied`] tell the usual cases apart.
pub fn connect(path: &Path) -> Result<Client, ControlError> {
    request(path, WATCH)
}

/// Connects to the agent for one snapshot: the second [`Client::next`] finds the connection closed.
///
/// # Errors
/// As [`connect`].
pub fn connect_once(path: &Path) -> Result<Client, ControlError> {
    request(path, SNAPSHOT)
}

/// Asks the agent for one snapshot.
///
/// # Errors
/// As [`connect`] and [`Client::next`].
pub fn snapshot(path: &Path) -> Result<Snapshot, ControlError> {
    connect_once(path)?.next()
}

fn request(path: &Path, line: &str) -> Result<Client, ControlError> {
    let io = |what| move |source| ControlError::Io { what, path: path.to_owned(), source };
    let mut stream = UnixStream::connect(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            ControlError::NotRunning { path: path.to_owned() }
        }
        ErrorKind::PermissionDenied => ControlError::Denied { path: path.to_owned() },
        _ => io("cannot connect to")(error),
    })?;
    stream.set_read_timeout(Some(SILENCE_MAX)).map_err(io("cannot set up"))?;
    match writeln!(stream, "{line}") {
        // An agent that refuses closes at once; why stands in what it sent before.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        result => result.map_err(io("cannot write to"))?,
    }
    Ok(Client { reader: BufReader::new(stream), path: path.to_owned() })
}

impl Client {
    /// Where the agent listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the next snapshot.
    ///
    /// # Errors
    /// The agent refuses, ended, is silent for ten seconds, or speaks another version.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would hide that it can fail and go on"
    )]
    pub fn next(&mut self) -> Result<Snapshot, ControlError> {
        let mut line = Vec::new();
        match self.reader.by_ref().take(ANSWER_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) => Err(ControlError::Closed),
            Ok(_) if line.last() != Some(&b'\n') => Err(ControlError::Closed),
            Ok(_) => decode(&line),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Err(ControlError::Closed),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                Err(ControlError::Answer(format!("silent for {} s", SILENCE_MAX.as_secs())))
            }
            Err(source) => {
                Err(ControlError::Io { what: "cannot read from", path: self.path.clone(), source })
            }
        }
    }
}

fn decode(line: &[u8]) -> Result<Snapshot, ControlError> {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let answer = |error: serde_json::Error| ControlError::Answer(error.to_string());
    if line.starts_with(ERROR_PREFIX) {
        return Err(ControlError::Refused(
            serde_json::from_slice::<Refusal>(line).map_err(answer)?.error,
        ));
    }
    let found = serde_json::from_slice::<Version>(line).map_err(answer)?.version;
    if found != snapshot::VERSION {
        return Err(ControlError::Version { found, wanted: snapshot::VERSION });
    }
    serde_json::from_slice(line).map_err(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let check = |line: &str, expect: &str| {
            let error = decode(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expect), "{line}: {error}");
        };
        check("{\"error\":\"too many\"}\n", "the agent refuses: too many");
        check("{\"error\":7}\n", "cannot be read");
        check("{\"version\":99}\n", "snapshot version 99, this program version 1");
        check("{\"version\":1}\n", "missing field");
        check("{}\n", "missing field `version`");
        check("HTTP/1.1 400\n", "cannot be read");
    }
}
