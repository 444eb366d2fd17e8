//! TCP lifetimes: connections in trouble, then counts per process and endpoint, then all other connections.

use super::{id, level, plain, toned};
use crate::{
    signal::tcp::{Activity, Connection, Endpoint, Transaction},
    snapshot::Snapshot,
    top::{
        Cell, Table, Tone,
        format::{bytes, duration},
    },
};

const SECOND_NS: u64 = 1_000_000_000;

/// From when, in nanoseconds, an activity is suspicious and from when it is bad; `None` where it never is.
fn thresholds(activity: Activity) -> Option<(u64, u64)> {
    match activity {
        // A handshake takes one round trip; the first repeat of a lost SYN comes after a second.
        Activity::Connecting => Some((SECOND_NS, 3 * SECOND_NS)),
        // A long query is legal, so only minutes are bad.
        Activity::Waiting => Some((5 * SECOND_NS, 60 * SECOND_NS)),
        // We do not read an answer that is here: an event loop stands still.
        Activity::Unread => Some((SECOND_NS / 2, 5 * SECOND_NS)),
        // No acknowledgement for this long is no longer a slow path.
        Activity::HalfOpen => Some((SECOND_NS, 5 * SECOND_NS)),
        // The peer lives and does not read.
        Activity::ZeroWindow => Some((SECOND_NS, 10 * SECOND_NS)),
        // FIN_WAIT_2 ends after 60 s by itself (tcp_fin_timeout); CLOSE_WAIT never does.
        Activity::Closing => Some((60 * SECOND_NS, 600 * SECOND_NS)),
        Activity::Active | Activity::Idle => None,
    }
}

/// Retransmitted segments of one connection that tell of a bad path.
const RETRANSMITS_WARN: u64 = 5;

/// Here the path is broken rather than bad.
const RETRANSMITS_BAD: u64 = 50;

const COLUMNS: &[(&str, u16)] = &[
    (" PID", 7),
    ("NAME", 12),
    ("DOES", 11),
    (" FOR", 6),
    (" AGE", 7),
    (" RTT", 5),
    (" RETR", 4),
    ("PEER", 0),
];

/// The pane of connections.
pub fn table(snapshot: &Snapshot) -> Table {
    let view = &snapshot.tcp;
    let (trouble, calm): (Vec<_>, Vec<_>) =
        view.connections.iter().partition(|connection| activity_tone(connection) != Tone::Plain);
    let trouble = trouble.into_iter().map(connection_row);
    let endpoints = view.endpoints.iter().map(endpoint_row);
    let rows = trouble.chain(endpoints).chain(calm.into_iter().map(connection_row)).collect();
    Table { summary: summary(snapshot), columns: COLUMNS, rows }
}

fn summary(snapshot: &Snapshot) -> String {
    let view = &snapshot.tcp;
    let total = |of: fn(&Endpoint) -> u64| view.endpoints.iter().map(of).sum::<u64>();
    let mut parts = vec![format!("{} open", view.connection_count)];
    for (number, what) in [
        (total(|endpoint| endpoint.waiting), "waiting for a reply"),
        (total(|endpoint| endpoint.unread), "reply unread"),
        (total(|endpoint| endpoint.stuck), "stuck"),
        (total(|endpoint| endpoint.idle), "idle"),
    ] {
        if number > 0 {
            parts.push(format!("{number} {what}"));
        }
    }
    format!("{}; {} opened, {} closed since start", parts.join(", "), view.opened, view.closed)
}

fn endpoint_row(endpoint: &Endpoint) -> Vec<Cell> {
    let parts = [
        (endpoint.waiting, "waiting"),
        (endpoint.unread, "unread"),
        (endpoint.stuck, "stuck"),
        (endpoint.idle, "idle"),
    ];
    let parts: Vec<_> = parts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, what)| format!("{number} {what}"))
        .collect();
    let tone = if endpoint.stuck + endpoint.unread > 0 { Tone::Warn } else { Tone::Plain };
    let wait = endpoint.longest_wait_ns;
    let (warn, bad) = thresholds(Activity::Waiting).unwrap_or((u64::MAX, u64::MAX));
    vec![
        id(endpoint.pid),
        plain(&endpoint.name),
        toned(format!("= {} open", endpoint.open), tone),
        toned(if wait == 0 { String::new() } else { duration(wait) }, level(wait, warn, bad)),
        plain(""),
        plain(""),
        plain(""),
        plain(format!(
            "{} {}",
            peer(&endpoint.address, endpoint.port, &endpoint.system),
            parts.join(", ")
        )),
    ]
}

fn connection_row(connection: &Connection) -> Vec<Cell> {
    let tone = activity_tone(connection);
    let address = if connection.peer_name.is_empty() {
        &connection.peer_address
    } else {
        &connection.peer_name
    };
    let side = if connection.role == "server" { " (accepted)" } else { "" };
    let transaction = match connection.transaction {
        Transaction::Open => " in transaction",
        Transaction::Failed => " in failed transaction",
        Transaction::No | Transaction::Unknown => "",
    };
    vec![
        id(connection.pid),
        plain(&connection.name),
        toned(activity_word(connection.activity), tone),
        toned(duration(connection.activity_ns), tone),
        plain(format!(
            "{}{}",
            if connection.preexisting { ">" } else { "" },
            duration(connection.age_ns)
        )),
        plain(duration(connection.srtt_ns)),
        toned(
            connection.retransmits.to_string(),
            level(connection.retransmits, RETRANSMITS_WARN, RETRANSMITS_BAD),
        ),
        plain(format!(
            "{}{side}{transaction} sent {} got {}",
            peer(address, connection.peer_port, &connection.system),
            bytes(connection.sent_bytes),
            bytes(connection.received_bytes)
        )),
    ]
}

fn activity_tone(connection: &Connection) -> Tone {
    match thresholds(connection.activity) {
        Some((warn, bad)) => level(connection.activity_ns, warn, bad),
        None => Tone::Plain,
    }
}

/// The field's JSON word, with blanks.
fn activity_word(activity: Activity) -> &'static str {
    match activity {
        Activity::Connecting => "connecting",
        Activity::Waiting => "waiting",
        Activity::Unread => "unread",
        Activity::Active => "active",
        Activity::Idle => "idle",
        Activity::HalfOpen => "half open",
        Activity::ZeroWindow => "zero window",
        Activity::Closing => "closing",
    }
}

/// The address first, because the column may be cut.
fn peer(address: &str, port: u16, system: &str) -> String {
    // Brackets as in RFC 3986, so that the port can be told from an IPv6 address.
    if address.contains(':') {
        format!("[{address}]:{port} {system}")
    } else {
        format!("{address}:{port} {system}")
    }
}
