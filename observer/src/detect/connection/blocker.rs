//! Who holds what the others wait for: from the order in time, and from what the server says of transactions where it can be
//! read.
//!
//! PostgreSQL's lock queue is fair: a migration that waits for a report stops everybody who comes later. So the one to name is
//! the last outsider that had begun to wait before the crowd did, not the one that waits longest.

use std::collections::{BTreeMap, BTreeSet};

use super::{SECOND, habits::Habits};
use crate::signal::tcp::{Activity, Connection, Transaction};

/// The crowd's first question may have been sent this much before the blocker's, and be answered late all the same.
const SLACK_NS: u64 = 500_000_000;
/// An outsider that began longer before has been harmless for that long.
const WAITING_NS: u64 = 30 * SECOND;
/// One that fell silent so shortly before the crowd began may be in the midst of a transaction.
const SILENT_NS: u64 = 5 * SECOND;

/// A connection that others probably wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocker {
    /// Its owner.
    pub(super) pid: u32,
    /// Its command name.
    pub(super) name: String,
    /// What it does: `waits`, `is silent` or `is idle in a transaction`.
    pub(super) what: &'static str,
    /// For how long.
    pub(super) for_ns: u64,
    /// Whether it is the only one that was there at that time, and no more is known.
    pub(super) guessed: bool,
    /// Whether its server says that it is in a transaction.
    pub(super) in_transaction: bool,
}

/// `late`: the crowd, the longest waiting first; `here`: all connections to the endpoint.
pub(super) fn find(late: &[&Connection], here: &[&Connection], habits: &Habits) -> Option<Blocker> {
    let oldest_ns = late.first()?.activity_ns;
    let blocker = |row: &Connection, what, guessed| Blocker {
        pid: row.pid,
        name: row.name.clone(),
        what,
        for_ns: row.activity_ns,
        guessed,
        in_transaction: false,
    };
    // The crowd is who waits in numbers; a program with one connection in it may be whom it waits for.
    let crowd: BTreeSet<u32> = crowd_of(late);
    let first_ns = late
        .iter()
        .filter(|row| crowd.contains(&row.pid))
        .map(|row| row.activity_ns)
        .max()
        .unwrap_or(oldest_ns);
    // Everybody behind it waits for it, whoever comes first among them; and it may be of the same pool.
    let held = here.iter().filter(|row| row.pid != 0 && is_idle_in_transaction(row));
    let held = held.filter(|row| row.activity_ns.saturating_add(SLACK_NS) >= first_ns);
    if let Some(row) = held.max_by_key(|row| (row.transaction_ns, row.activity_ns)) {
        let holder = blocker(row, "is idle in a transaction", false);
        return Some(Blocker { in_transaction: true, ..holder });
    }
    let outsiders = || here.iter().filter(|row| row.pid != 0 && !crowd.contains(&row.pid));
    let before = |row: &&&Connection, most_ns: u64| {
        row.activity_ns.saturating_add(SLACK_NS) >= first_ns
            && row.activity_ns <= first_ns.saturating_add(most_ns)
    };
    let waits = outsiders()
        .filter(|row| row.activity == Activity::Waiting && before(row, WAITING_NS))
        .filter(|row| !habits.is_habit(row) && !habits.is_usual(row))
        .min_by_key(|row| row.activity_ns);
    if let Some(row) = waits {
        return Some(blocker(row, "waits", false));
    }
    // Of a pool that rests as often as it works, some session always fell silent just then.
    let range_ns = (first_ns.saturating_sub(SLACK_NS), first_ns.saturating_add(SILENT_NS));
    let sessions = |row: &Connection| here.iter().filter(|other| other.name == row.name).count();
    let mut silent = outsiders()
        .filter(|row| row.activity == Activity::Idle && row.last_receive_ns.is_some())
        .filter(|row| row.transaction == Transaction::Unknown)
        .filter(|row| before(row, SILENT_NS))
        .filter(|row| !habits.is_often_silent(row, range_ns, sessions(row)));
    match (silent.next(), silent.next()) {
        (Some(row), None) => Some(blocker(row, "is silent", true)),
        _ => None,
    }
}

/// Its program does something else than its transaction. One that has failed holds nothing any more.
fn is_idle_in_transaction(row: &Connection) -> bool {
    row.activity == Activity::Idle && row.transaction == Transaction::Open
}

/// The processes with the most waits; also those that have more than half as many.
fn crowd_of(late: &[&Connection]) -> BTreeSet<u32> {
    let mut waits: BTreeMap<u32, usize> = BTreeMap::new();
    for row in late {
        *waits.entry(row.pid).or_default() += 1;
    }
    let most = waits.values().copied().max().unwrap_or(0);
    waits.retain(|_, waits| *waits * 2 > most);
    waits.into_keys().collect()
}
