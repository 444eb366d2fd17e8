//! Transactions that stay open while their program does something else.
//!
//! Whether a silent session is in a transaction, only its protocol says. What the sockets say is who fell silent just before
//! the others began to wait, and that is told as what it is: an estimate.

use std::time::Duration;

use super::{SOURCE, count, crowd::Crowd, is_client, label, list, owners, seconds};
use crate::{
    config::{self, Config, Setting},
    detect::{Judgement, Kind, Level, Quality, Seen, State, evidence, judgement::Never, party},
};

/// Somebody sits on a transaction.
pub static IDLE_IN_TRANSACTION: Kind = Kind {
    name: "connection.idle_in_transaction",
    signal: "tcp",
    help: "a silent session that others probably wait for: its transaction was left open",
    reason: "The payload is not looked at, so this is told only while connections pile up at the endpoint, nobody waits who \
             could hold the others, and exactly one session of another program fell silent within 5 s before the first of \
             them began to wait. WATCH, and WARN when it is silent for `detect.idle_in_transaction`: programs that hold \
             locks for that long on purpose are batch jobs, and those do not fall silent.",
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
    help: "how long a session that others wait for may be silent before it is a WARN",
};

/// Systems with transactions that a client can leave open.
const WITH_TRANSACTIONS: &[&str] =
    &["postgresql", "mysql", "mariadb", "microsoft.sql_server", "oracle.db"];

/// Finds them in a pile-up.
pub(super) struct Transactions {
    silence_ns: u64,
}

impl Transactions {
    pub(super) fn new(config: &Config) -> Self {
        Self { silence_ns: config.duration(&SILENCE).as_nanos() as u64 }
    }

    /// Who left a transaction open that this pile-up waits for, if it looks like that.
    pub(super) fn judge(&self, seen: &Seen<'_>, crowd: &Crowd<'_>) -> Option<Judgement> {
        judge(seen, crowd, self.silence_ns)
    }
}

/// What cannot be said while nobody waits.
pub(super) fn undecided(seen: &Seen<'_>) -> impl Iterator<Item = Judgement> {
    let rows = || seen.snapshot.tcp.connections.iter().filter(|row| is_client(row));
    let used = move |system: &&&str| rows().any(|row| row.system == **system);
    WITH_TRANSACTIONS.iter().filter(used).map(|system| Judgement {
        subject: (*system).to_owned(),
        state: State::Undecided(
            "whether a silent session is in a transaction is known only while others wait for it: the payload is not \
             looked at"
                .into(),
        ),
        kind: Some(&IDLE_IN_TRANSACTION),
        ..Judgement::default()
    })
}

fn judge(seen: &Seen<'_>, crowd: &Crowd<'_>, silence_ns: u64) -> Option<Judgement> {
    let longest = crowd.late.first()?;
    let blocker = crowd.blocker.as_ref().filter(|blocker| blocker.guessed)?;
    if !WITH_TRANSACTIONS.contains(&longest.system.as_str()) {
        return None;
    }
    let holder = party::process(seen.snapshot, blocker.pid, &blocker.name, 1.0);
    let victims = owners(seen, &crowd.late);
    let level = if blocker.for_ns >= silence_ns { Level::Warn } else { Level::Watch };
    let estimate = |name, value, unit| evidence(name, value, unit, SOURCE).with(Quality::Estimated);
    Some(Judgement {
        subject: format!("{} {} {}", blocker.name, blocker.pid, label(longest)),
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
            estimate("silent", seconds(blocker.for_ns), "s"),
            evidence("connections_waiting", crowd.late.len() as f64, "{connection}", SOURCE),
        ],
        advice:
            "see what that program does between its statements (a call to somebody else?), and set \
                 idle_in_transaction_session_timeout"
                .to_owned(),
        kind: Some(&IDLE_IN_TRANSACTION),
        ..Judgement::default()
    })
}
