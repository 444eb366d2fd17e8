//! TCP lifetimes: the ledger of every connection to a database or Redis, with its owner, age and state.

mod activity;
mod churn;
mod endpoint;
mod fold;
mod gone;
mod span;
#[cfg(test)]
mod tests;
mod transaction;
mod view;

use std::time::Duration;

#[cfg(test)]
pub(crate) use self::fold::endpoints;
pub use self::{
    endpoint::{Naming, known_ports},
    fold::{PeerNames, Tcp},
    gone::{Gone, end},
    transaction::Watch,
    view::{Activity, Closing, Connection, Endpoint, Transaction, UNNEEDED_NS, View},
};
use crate::{
    config::{Config, ConfigError, Kind, Setting},
    signal::Signal,
    telemetry::{Metric, MetricKind},
    top::panes,
};

/// Registry entry.
pub const SIGNAL: Signal = Signal {
    name: "tcp",
    help: "every connection to a database or Redis: owner, age, bytes, and what it waits for",
    metrics: &[&CONNECTIONS, &OPENED, &CLOSED, &LONGEST_WAIT],
    settings: &[PORTS, SYSTEMS, SEGMENT],
    table: panes::tcp::table,
};

/// Semantic convention; `used` and `idle` are estimates from the socket.
pub(super) const CONNECTIONS: Metric = Metric {
    name: "db.client.connection.count",
    unit: "{connection}",
    kind: MetricKind::UpDownCounter,
    help: "Open connections of a process to an endpoint, by what they do; estimated from the sockets.",
};
pub(super) const OPENED: Metric = Metric {
    name: "observer.tcp.opened",
    unit: "{connection}",
    kind: MetricKind::Counter,
    help: "Connections to databases and Redis opened since the agent started.",
};
pub(super) const CLOSED: Metric = Metric {
    name: "observer.tcp.closed",
    unit: "{connection}",
    kind: MetricKind::Counter,
    help: "Connections to databases and Redis closed since the agent started.",
};
pub(super) const LONGEST_WAIT: Metric = Metric {
    name: "observer.tcp.longest_wait",
    unit: "s",
    kind: MetricKind::Gauge,
    help: "The longest that a connection of a process to an endpoint now waits for a reply.",
};

/// Ports beside the known ones.
pub const PORTS: Setting = Setting {
    key: "tcp.ports",
    kind: Kind::Ports,
    default: "",
    otel: &[],
    help: "peer ports taken as databases, beside the known ones",
};
/// What listens on them.
pub const SYSTEMS: Setting = Setting {
    key: "tcp.systems",
    kind: Kind::List,
    default: "",
    otel: &[],
    help: "what listens on a port, as PORT=SYSTEM, such as 6432=postgresql; the port is then watched, too",
};
/// Long connections.
pub const SEGMENT: Setting = Setting {
    key: "tcp.segment",
    kind: Kind::Duration { min_ms: 1_000, max_ms: 86_400_000 },
    default: "60s",
    otel: &[],
    help: "a connection that stays open makes a span each time this long has passed",
};

/// The settings, read once.
#[derive(Debug, Clone)]
pub struct Limits {
    /// [`SEGMENT`].
    pub segment: Duration,
    /// Ports and what listens there: known ones, [`PORTS`] and [`SYSTEMS`].
    pub naming: Naming,
}

impl Limits {
    /// From the configuration.
    ///
    /// # Errors
    /// If an entry of [`SYSTEMS`] is not PORT=SYSTEM.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let naming = Naming::new(config.ports(&PORTS), config.list(&SYSTEMS))
            .map_err(|fault| config.problem(&SYSTEMS, fault))?;
        Ok(Self { segment: config.duration(&SEGMENT), naming })
    }
}
