//! Answers that do not come: one long query, many that wait for a lock, or a server that stands still.

use std::time::Duration;

use super::{
    SECOND, SOURCE, count,
    crowd::{Crowd, Crowds, Verdict, turns_no_more},
    label, list, owners, seconds, server,
    transaction::Transactions,
};
use crate::{
    config::{self, Config, Setting},
    detect::{
        Detector, Evidence, Judgement, Kind, Level, Party, Quality, Seen, State, evidence,
        judgement::{Never, worst},
        party,
    },
};

/// A server that lives and does not answer.
pub static FROZEN_PEER: Kind = Kind {
    name: "connection.frozen_peer",
    signal: "tcp",
    help: "a server whose kernel acknowledges, but which answers nobody",
    reason: "An endpoint that answered all the time and gives no answer for 5 s (or three times what one in twenty answers \
             takes), to at least two questions asked since. Its kernel acknowledges, so that neither keepalive nor \
             heartbeats of the network show it. A closed window, a new connection that is not greeted within 2 s, or an \
             event loop of a local server in one turn make it certain. Where clients wait for events (Redis BLPOP, MongoDB), \
             silence alone is no more than WATCH.",
    raise: Duration::ZERO,
    clear: Duration::from_secs(5),
    hazard: false,
    settings: &[],
    detector: |config| Box::new(Waits::new(config)),
};

/// Many wait for a lock, or for a database that has too much to do.
pub static PILE_UP: Kind = Kind {
    name: "connection.waiting_pile_up",
    signal: "tcp",
    help: "many connections of an endpoint wait for an answer at once: a lock, or a database with too much to do",
    reason: "Late is what takes longer than `detect.waiting`, 20 times the median of the program's own answers there, and \
             three times what one in twenty takes; connections that wait for long in good health are learned and left out. \
             At least three must be late, a fifth of their processes' pools, and have come one after the other: reports are \
             started together, those who run into a lock are not.",
    raise: Duration::from_secs(1),
    clear: Duration::from_secs(5),
    hazard: false,
    settings: &[WAITING],
    detector: |_| Box::new(Never),
};

/// One or two long queries.
pub static LONG_WAIT: Kind = Kind {
    name: "connection.waiting",
    signal: "tcp",
    help: "a connection waits far longer for its answer than is usual for its program",
    reason: "One long query hurts nobody by itself, so it is never more than WATCH, after 30 s.",
    raise: Duration::ZERO,
    clear: Duration::from_secs(2),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Never),
};

/// The least wait that counts.
pub const WAITING: Setting = Setting {
    key: "detect.waiting",
    kind: config::Kind::Duration { min_ms: 100, max_ms: 3_600_000 },
    default: "1s",
    otel: &[],
    help: "an answer from a database that takes less is never late, whatever is usual",
};

/// A long query is told after this time.
const LONG_NS: u64 = 30 * SECOND;

/// Judges for all kinds that are about answers that do not come: a crowd is one of them, and its habits are learned once.
struct Waits {
    crowds: Crowds,
    transactions: Transactions,
}

impl Waits {
    fn new(config: &Config) -> Self {
        let least_ns = config.duration(&WAITING).as_nanos() as u64;
        Self { crowds: Crowds::new(least_ns), transactions: Transactions::new(config) }
    }
}

impl Detector for Waits {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let crowds = self.crowds.look(seen);
        let crowds = worst(crowds, |crowd| (crowd.verdict, crowd.late.len()), found);
        let mut pile_ups = Vec::new();
        for crowd in &crowds {
            match crowd.verdict {
                Verdict::Frozen(level) => found.extend(frozen(seen, crowd, level)),
                Verdict::PileUp(level) => {
                    found.extend(pile_up(seen, crowd, level));
                    pile_ups.push(crowd);
                }
                Verdict::Alone => found.extend(long_wait(seen, crowd)),
            }
        }
        self.transactions.look(seen, &pile_ups, found);
    }
}

fn frozen(seen: &Seen<'_>, crowd: &Crowd<'_>, level: Level) -> Option<Judgement> {
    let longest = crowd.late.first()?;
    let culprit = server(seen, longest);
    let victims = owners(seen, &crowd.late);
    let turn_ns = turns_no_more(seen, longest);
    let why = match turn_ns {
        Some(turn_ns) => {
            format!("its event loop has been in one turn for {:.1} s", seconds(turn_ns))
        }
        None => "its kernel acknowledges, so the host lives and the process does not".to_owned(),
    };
    let message = format!(
        "{} answers nobody for {:.1} s ({why}): {} of {} wait",
        culprit.title,
        seconds(crowd.silent_ns),
        count(crowd.late.len(), "connection"),
        list(&victims)
    );
    let mut judgement = judgement(&FROZEN_PEER, crowd, level, culprit, message)?;
    judgement.victims = victims;
    let turn =
        turn_ns.map(|ns| evidence("event_loop_turn", seconds(ns), "s", "fentry/do_epoll_wait"));
    judgement.evidence.extend(turn);
    judgement.advice = "look at the server's process: stopped, paging, in a full garbage collection, in one long command, \
                        or everything waits for one lock; its host and the network are well"
        .to_owned();
    Some(judgement)
}

fn pile_up(seen: &Seen<'_>, crowd: &Crowd<'_>, level: Level) -> Option<Judgement> {
    let longest = crowd.late.first()?;
    let victims = owners(seen, &crowd.late);
    let (culprit, why) = match &crowd.blocker {
        Some(blocker) => {
            let culprit = party::process(seen.snapshot, blocker.pid, &blocker.name, 1.0);
            let (what, since) = (blocker.what, seconds(blocker.for_ns));
            let why = format!("probably for {}, which {what} for {since:.0} s", culprit.title);
            (culprit, why)
        }
        None => (server(seen, longest), "a lock, or too much to do".to_owned()),
    };
    let message = format!(
        "{} of {} ({} open) wait at {}, the longest for {:.1} s, where {:.0} ms are usual: {why}",
        count(crowd.late.len(), "connection"),
        list(&victims),
        crowd.open,
        label(longest),
        seconds(longest.activity_ns),
        seconds(crowd.usual_ns) * 1000.0
    );
    let mut judgement = judgement(&PILE_UP, crowd, level, culprit, message)?;
    judgement.victims = victims;
    judgement.advice = match (&crowd.blocker, longest.system.as_str()) {
        (_, "postgresql") => {
            "look who blocks whom (pg_blocking_pids over pg_stat_activity) and end the first; set lock_timeout for \
             migrations and idle_in_transaction_session_timeout"
        }
        (Some(_), _) => "see what that program does in its transaction, and end it",
        _ => "look for locks and long statements at the database",
    }
    .to_owned();
    if let Some(blocker) = &crowd.blocker {
        let quality = if blocker.guessed { Quality::Estimated } else { Quality::Exact };
        let row = evidence("blocker", seconds(blocker.for_ns), "s", SOURCE).with(quality);
        judgement.evidence.push(row);
    }
    Some(judgement)
}

fn long_wait(seen: &Seen<'_>, crowd: &Crowd<'_>) -> Option<Judgement> {
    let longest = crowd.late.first().filter(|row| row.activity_ns >= LONG_NS)?;
    let waits = party::process(seen.snapshot, longest.pid, &longest.name, 1.0);
    let message = format!(
        "{} waits for an answer of {} for {:.0} s, where {:.0} ms are usual",
        waits.title,
        label(longest),
        seconds(longest.activity_ns),
        seconds(crowd.usual_ns) * 1000.0
    );
    let judgement = judgement(&LONG_WAIT, crowd, Level::Watch, waits.clone(), message)?;
    let advice = "nothing, if it is a report; else look at the statement".to_owned();
    Some(Judgement { advice, victims: vec![waits], ..judgement })
}

/// What the three have in common.
fn judgement(
    kind: &'static Kind,
    crowd: &Crowd<'_>,
    level: Level,
    culprit: Party,
    message: String,
) -> Option<Judgement> {
    let longest = crowd.late.first()?;
    let number = |name, value, unit| -> Evidence { evidence(name, value, unit, SOURCE) };
    let silent = (crowd.silent_ns != u64::MAX)
        .then(|| number("received_nothing", seconds(crowd.silent_ns), "s"));
    let mut evidence = vec![
        number("connections_waiting", crowd.late.len() as f64, "{connection}"),
        number("connections_open", crowd.open as f64, "{connection}"),
        number("longest_wait", seconds(longest.activity_ns), "s"),
        number("usual_answer", seconds(crowd.usual_ns), "s").with(Quality::Sampled),
    ];
    evidence.extend(silent);
    Some(Judgement {
        subject: label(longest),
        state: State::Firing(level),
        culprit: Some(culprit),
        evidence,
        message,
        kind: Some(kind),
        ..Judgement::default()
    })
}
