//! The local door of a running agent: a Unix socket that gives snapshots to root and one group, and a lock so that only
//! one agent runs.
//!
//! Protocol: the client sends one line, `snapshot` or `watch`; the agent answers with one snapshot as a JSON line
//! (docs/snapshot-json.md), for `watch` one a second until the client leaves. A refusal is a line `{"error":"why"}`.

mod access;
mod client;
mod lock;
mod server;
mod slot;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf};

pub use self::{
    client::{Client, connect, connect_once, snapshot},
    lock::Lock,
    server::Server,
    slot::Slot,
};

/// Name of the socket in [`crate::config::Config::run_dir`].
pub const SOCKET_NAME: &str = "observer.sock";

/// Request for one snapshot.
const SNAPSHOT: &str = "snapshot";
/// Request for a snapshot a second.
const WATCH: &str = "watch";

/// How a refusal begins; no snapshot does.
const ERROR_PREFIX: &[u8] = b"{\"error\":";

/// What goes wrong between agents, and between an agent and its clients.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens there.
    #[error("no agent runs: nobody listens on {}; start `observer run`", .path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The socket's permissions keep this user out.
    #[error("{} may be read by root and the configured group only; use sudo, or join the group", .path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The agent answered with a reason instead of a snapshot.
    #[error("the agent refuses: {0}")]
    Refused(String),
    /// The agent ended, or closed the connection.
    #[error("the agent closed the connection")]
    Closed,
    /// The agent speaks another version of the snapshot.
    #[error(
        "the agent speaks snapshot version {found}, this program version {wanted}; restart the agent or use its own `observer`"
    )]
    Version {
        /// The agent's.
        found: u32,
        /// Ours.
        wanted: u32,
    },
    /// The answer is no snapshot.
    #[error("the answer of the agent cannot be read: {0}")]
    Answer(String),
    /// Another agent holds the lock.
    #[error("another observer runs already ({pid}); stop it first, or give this one its own state_dir (lock: {})", .path.display())]
    Busy {
        /// `pid 123`, or `pid unknown`.
        pid: String,
        /// The lock file.
        path: PathBuf,
    },
    /// The run folder belongs to others.
    #[error(
        "{} may not be written by this user; run as root, or give `run` and `top` a folder of yours: --set state_dir=DIR",
        .path.display()
    )]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// Anything else that the system refused.
    #[error("{what} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
