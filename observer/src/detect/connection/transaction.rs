//! Transactions that stay open while their program does something else.
//!
//! Where the server's replies can be read, they say so. Elsewhere the sockets say who fell silent just before the others began
//! to wait, and that is told as what it is: an estimate.

use std::{collections::BTreeMap, time::Duration};

use super::{
    SECOND, SOURCE, blocker::Blocker, count, crowd::Crowd, is_client, label, list, owners, seconds,
};
use crate::{
    config::{self, Config, Setting},
    detect::{Judgement, Kind, Level, Quality, Seen, State, evidence, judgement::Never, party},
    signal::tcp::{Activity, Connection, Transaction},
};

/// Somebody sits on a transaction.
pub static IDLE_IN_TRANSACTION: Kind = Kind {
    name: "connection.idle_in_transaction",
    signal: "tcp",
    help: "a session that asks nothing and has left its transaction open",
    reason: "PostgreSQL ends each reply with the state of the transaction, which is read where it is not encrypted. A session \
             is then WATCH when it has been idle in its transaction for a third of `detect.idle_in_transaction`, as no \
             request of a person takes, and WARN when connections pile up that began to wait since, or after ten times \
             that: it keeps what it has locked, and nothing deleted since can be cleaned up. One that has failed holds \
             nothing but its connection: WATCH. Where the replies cannot be read, this is told only while connections pile \
             up at the endpoint, nobody waits who could hold the others, and exactly one session of another program fell \
             silent within 5 s before the first of them began to wait: WATCH, and WARN when it is silent for \
             `detect.idle_in_transaction`: programs that hold locks for that long on purpose are batch jobs, and those do \
             not fall silent.",
    raise: Duration::from_secs(2),
    clear: Duration::from_secs(5),
    hazard: false,
    settings: &[SILENCE],
    detector: |_| Box::new(Never),
};

/// How long it may be silent.
pub const SILENCE: Setting = Setting {
    key: "detect.idle_in_transaction",
    kind: config::Kind::Duration { min_ms: 1000, max_ms: 3_600_000 },
    default: "30s",
    otel: &[],
    help: "how long a session may be silent that probably has a transaction others wait for, before it is a WARN; a third of \
           it where a transaction is certain and nobody waits, for a WATCH, and ten times for a WARN",
};

/// Systems with transactions that a client can leave open.
const WITH_TRANSACTIONS: &[&str] =
    &["postgresql", "mysql", "mariadb", "microsoft.sql_server", "oracle.db"];

/// Where the state of a transaction comes from.
const REPLIES: &str = "socket_filter/packets";

/// A session that has been silent for less is between two statements.
const SILENT_NS: u64 = 5 * SECOND;

/// A process's connections to an endpoint.
type Pool<'a> = (u32, &'a str, u16);

/// Finds them, in pile-ups and without.
pub(super) struct Transactions {
    silence_ns: u64,
}

impl Transactions {
    pub(super) fn new(config: &Config) -> Self {
        Self { silence_ns: config.duration(&SILENCE).as_nanos() as u64 }
    }

    /// Who left a transaction open, and what of it cannot be known. `crowds`: the pile-ups.
    pub(super) fn look(&self, seen: &Seen<'_>, crowds: &[&Crowd<'_>], found: &mut Vec<Judgement>) {
        found.extend(crowds.iter().filter_map(|crowd| estimate(seen, crowd, self.silence_ns)));
        let mut left: BTreeMap<Pool<'_>, Vec<&Connection>> = BTreeMap::new();
        let mut unknown: BTreeMap<&str, usize> = BTreeMap::new();
        for row in seen.snapshot.tcp.connections.iter().filter(|row| may_hold(row)) {
            match row.transaction {
                Transaction::Open | Transaction::Failed => {
                    let pool = (row.pid, row.peer_address.as_str(), row.peer_port);
                    left.entry(pool).or_default().push(row);
                }
                Transaction::Unknown if row.activity_ns >= SILENT_NS => {
                    *unknown.entry(&row.system).or_default() += 1;
                }
                Transaction::Unknown | Transaction::No => {}
            }
        }
        for (pool, mut rows) in left {
            rows.sort_by_key(|row| std::cmp::Reverse(row.activity_ns));
            let waits = crowds.iter().find(|crowd| is_blamed(crowd, pool));
            found.extend(self.certain(seen, &rows, waits.copied()));
        }
        found.extend(unknown.into_iter().map(|(system, sessions)| Judgement {
            subject: system.to_owned(),
            state: State::Undecided(
                format!(
                    "whether {} in a transaction cannot be read (encrypted, another protocol, or silent since before the \
                     agent looked), and is told only while others wait",
                    match sessions {
                        1 => "a silent session is".to_owned(),
                        many => format!("{many} silent sessions are"),
                    }
                )
                .into(),
            ),
            kind: Some(&IDLE_IN_TRANSACTION),
            ..Judgement::default()
        }));
    }
}

/// A silent client of a system that has transactions.
fn may_hold(row: &Connection) -> bool {
    is_client(row)
        && row.pid != 0
        && row.activity == Activity::Idle
        && WITH_TRANSACTIONS.contains(&row.system.as_str())
}

/// Whether a crowd waits for a session of a pool, as far as can be said.
fn is_blamed(crowd: &Crowd<'_>, (pid, address, port): Pool<'_>) -> bool {
    let blamed = |blocker: &Blocker| blocker.in_transaction && blocker.pid == pid;
    crowd.blocker.as_ref().is_some_and(blamed)
        && crowd.late.iter().any(|row| row.peer_address == address && row.peer_port == port)
}

impl Transactions {
    /// `rows`: sessions of a process at an endpoint that say that they are in a transaction, the longest silent first.
    fn certain(
        &self,
        seen: &Seen<'_>,
        rows: &[&Connection],
        crowd: Option<&Crowd<'_>>,
    ) -> Option<Judgement> {
        let open = rows.iter().find(|row| row.transaction == Transaction::Open);
        let row = *open.or(rows.first())?;
        let level = match (open, crowd) {
            (Some(_), Some(_)) => Level::Warn,
            (Some(_), None) if row.activity_ns / 10 >= self.silence_ns => Level::Warn,
            _ if row.activity_ns >= self.silence_ns / 3 => Level::Watch,
            _ => return None,
        };
        let holder = party::process(seen.snapshot, row.pid, &row.name, 1.0);
        let late = crowd.map(|crowd| crowd.late.as_slice()).unwrap_or_default();
        let victims = owners(seen, late);
        let (what, advice) = match open {
            Some(_) => ("a transaction", ADVICE),
            None => {
                ("a failed transaction", "see why that program does not roll back after an error")
            }
        };
        let since = match late.len() {
            0 => String::new(),
            waiting => format!(", and {} of {} wait", count(waiting, "connection"), list(&victims)),
        };
        let exact = |name, value, unit| evidence(name, value, unit, REPLIES);
        let mut numbers = vec![
            exact("idle_in_transaction", seconds(row.activity_ns), "s"),
            exact("transaction_open", seconds(row.transaction_ns.unwrap_or(row.activity_ns)), "s"),
            exact("sessions", rows.len() as f64, "{connection}"),
        ];
        if !late.is_empty() {
            let waiting =
                evidence("connections_waiting", late.len() as f64, "{connection}", SOURCE);
            numbers.push(waiting);
        }
        Some(Judgement {
            subject: subject(&row.name, row.pid, row),
            state: State::Firing(level),
            message: format!(
                "{} has left {what} open at {}, from its port {}: it asks nothing for {:.0} s{since}",
                holder.title,
                label(row),
                row.local_port,
                seconds(row.activity_ns),
            ),
            culprit: Some(holder),
            victims,
            evidence: numbers,
            advice: advice.to_owned(),
            kind: Some(&IDLE_IN_TRANSACTION),
            ..Judgement::default()
        })
    }
}

const ADVICE: &str = "see what that program does between its statements (a call to somebody else?), and set \
                      idle_in_transaction_session_timeout";

fn subject(name: &str, pid: u32, row: &Connection) -> String {
    format!("{name} {pid} {}", label(row))
}

/// The one that fell silent before the others began to wait.
fn estimate(seen: &Seen<'_>, crowd: &Crowd<'_>, silence_ns: u64) -> Option<Judgement> {
    let longest = crowd.late.first()?;
    let blocker = crowd.blocker.as_ref().filter(|blocker| blocker.guessed)?;
    if !WITH_TRANSACTIONS.contains(&longest.system.as_str()) {
        return None;
    }
    let holder = party::process(seen.snapshot, blocker.pid, &blocker.name, 1.0);
    let victims = owners(seen, &crowd.late);
    let level = if blocker.for_ns >= silence_ns { Level::Warn } else { Level::Watch };
    let estimated =
        |name, value, unit| evidence(name, value, unit, SOURCE).with(Quality::Estimated);
    Some(Judgement {
        subject: subject(&blocker.name, blocker.pid, longest),
        state: State::Firing(level),
        message: format!(
            "{} has probably left a transaction open: it asks {} nothing for {:.0} s, and {} of {} have begun to wait \
             since",
            holder.title,
            label(longest),
            seconds(blocker.for_ns),
            count(crowd.late.len(), "connection"),
            list(&victims)
        ),
        culprit: Some(holder),
        victims,
        evidence: vec![
            estimated("silent", seconds(blocker.for_ns), "s"),
            evidence("connections_waiting", crowd.late.len() as f64, "{connection}", SOURCE),
        ],
        advice: ADVICE.to_owned(),
        kind: Some(&IDLE_IN_TRANSACTION),
        ..Judgement::default()
    })
}
