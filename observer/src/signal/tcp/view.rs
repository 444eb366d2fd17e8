//! What the snapshot holds of `tcp`; field names and units are those of docs/snapshot-json.md.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// What `top` and the JSON snapshot show of connections.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct View {
    /// Open connections, the longest waiting first; bounded by [`crate::snapshot::MAX_ROWS`]. Of more, those used last are
    /// shown, too, a quarter of the bound: they tell how long answers take.
    pub connections: Vec<Connection>,
    /// Open connections, also those beyond the bound.
    pub connection_count: u64,
    /// Counts per process and endpoint.
    pub endpoints: Vec<Endpoint>,
    /// Connections that processes of this host have closed first within about a minute, by process and address, the most
    /// first; bounded by 256 rows. Their local ports are still taken.
    #[serde(default)]
    pub closing: Vec<Closing>,
    /// Connections opened since the agent started.
    pub opened: u64,
    /// Connections closed since the agent started.
    pub closed: u64,
}

/// What a connection does at the moment, from the socket alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// Handshake not finished.
    Connecting,
    /// Data went out last and no answer has come.
    Waiting,
    /// An answer lies in the receive queue and the process does not read it.
    Unread,
    /// Data moved within the last second.
    #[default]
    Active,
    /// Nothing in flight either way.
    Idle,
    /// Sent data is not acknowledged; the peer or the path may be dead.
    HalfOpen,
    /// The peer's window is closed: it is alive and does not read.
    ZeroWindow,
    /// One side has closed, the other has not.
    Closing,
}

/// Whether a session is in a transaction, as its server says at the end of each reply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transaction {
    /// Not known: it asks something, its protocol is not read or encrypted, or no reply came by.
    #[default]
    Unknown,
    /// It is in none.
    No,
    /// It is in one.
    Open,
    /// It is in one that has failed: the server holds nothing for it any more, and waits for its ROLLBACK.
    Failed,
}

/// One open connection.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Connection {
    /// Owner: the process that connected or accepted; 0 if not known.
    pub pid: u32,
    /// Its command name.
    pub name: String,
    /// `client` (connected) or `server` (accepted).
    pub role: Cow<'static, str>,
    /// `postgresql`, `mysql`, `redis`, ... (OpenTelemetry `db.system.name`).
    pub system: String,
    /// Peer address.
    pub peer_address: String,
    /// Peer port.
    pub peer_port: u16,
    /// Name of the peer in DNS answers seen on this host, else empty.
    pub peer_name: String,
    /// Local address.
    pub local_address: String,
    /// Local port.
    pub local_port: u16,
    /// TCP state, as `ESTABLISHED`.
    pub state: Cow<'static, str>,
    /// What it does.
    pub activity: Activity,
    /// How long it has done that.
    pub activity_ns: u64,
    /// Since connect or accept, or since it was first seen if older than the agent.
    pub age_ns: u64,
    /// Whether it is older than the agent, so that `age_ns` is a lower bound.
    pub preexisting: bool,
    /// Payload bytes sent.
    pub sent_bytes: u64,
    /// Payload bytes received.
    pub received_bytes: u64,
    /// Smoothed round trip time.
    pub srtt_ns: u64,
    /// Segments retransmitted.
    pub retransmits: u64,
    /// Since data was last sent; `None` if never.
    pub last_send_ns: Option<u64>,
    /// Since data was last received; `None` if never.
    pub last_receive_ns: Option<u64>,
    /// Whether it is in a transaction.
    #[serde(default)]
    pub transaction: Transaction,
    /// Since the first reply in that transaction, or in it since its replies are looked at; `None` if it is in none.
    #[serde(default)]
    pub transaction_ns: Option<u64>,
}

impl Connection {
    /// Whether it has been idle for as long.
    pub fn is_idle_for(&self, least_ns: u64) -> bool {
        self.activity == Activity::Idle && self.activity_ns >= least_ns
    }
}

/// A connection that has been idle for as long could have been used instead of a new one.
pub const UNNEEDED_NS: u64 = 10_000_000_000;

/// Connections of one process to one endpoint.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Endpoint {
    /// Owner.
    pub pid: u32,
    /// Its command name.
    pub name: String,
    /// `client` (it connected) or `server` (it accepted; address and port are then its own).
    #[serde(default)]
    pub role: Cow<'static, str>,
    /// `db.system.name`.
    pub system: String,
    /// DNS name if known, else the address.
    pub address: String,
    /// Peer port.
    pub port: u16,
    /// Open connections.
    pub open: u64,
    /// Of these, waiting for a reply.
    pub waiting: u64,
    /// Of these, with a reply unread.
    pub unread: u64,
    /// Of these, idle.
    pub idle: u64,
    /// Of these, half open or with a zero window.
    pub stuck: u64,
    /// Of the idle ones, idle for [`UNNEEDED_NS`].
    #[serde(default)]
    pub unneeded: u64,
    /// The longest wait for a reply.
    pub longest_wait_ns: u64,
    /// Since data was last received on any of them; `None` if never.
    #[serde(default)]
    pub last_receive_ns: Option<u64>,
}

/// Connections of one process to one address that it has closed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closing {
    /// Owner.
    pub pid: u32,
    /// Its command name.
    pub name: String,
    /// Peer address.
    pub address: String,
    /// Peer port.
    pub port: u16,
    /// How many, fading with a constant of 60 s.
    pub count: u64,
}
