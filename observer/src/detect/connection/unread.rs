//! Answers that are here and are not read: the process is the one that is late, not the database.

use std::{collections::BTreeMap, time::Duration};

use super::{SECOND, SOURCE, count, is_client, label, seconds};
use crate::{
    detect::{
        Detector, Judgement, Kind, Level, Seen, State, evidence, judgement::worst, key::ByKey,
        party,
    },
    signal::{
        sched::EventLoop,
        tcp::{Activity, Connection},
    },
};

/// We do not read.
pub static UNREAD: Kind = Kind {
    name: "connection.unread",
    signal: "tcp",
    help: "answers of a database lie unread in a process, which is too busy or stands still",
    reason: "Data is read within milliseconds by a loop that turns. One connection whose data waits for 1 s may be paused on \
             purpose (a stream that is consumed slowly): WATCH. WARN after 3 s if the event loop of the process is in one \
             turn all the time, which proves that it does not read; without an event loop, after 10 s and with three \
             connections.",
    raise: Duration::ZERO,
    clear: Duration::from_secs(2),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Unread),
};

const WATCH_NS: u64 = SECOND;
const WARN_NS: u64 = 3 * SECOND;
const WITHOUT_LOOP_NS: u64 = 10 * SECOND;
const WITHOUT_LOOP: usize = 3;
/// A process that reads nothing for as long is hung.
const CRITICAL_NS: u64 = 60 * SECOND;

struct Unread;

impl Detector for Unread {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let mut unread: BTreeMap<u32, Vec<&Connection>> = BTreeMap::new();
        for row in &seen.snapshot.tcp.connections {
            if row.activity == Activity::Unread && row.activity_ns >= WATCH_NS && row.pid != 0 {
                unread.entry(row.pid).or_default().push(row);
            }
        }
        if unread.is_empty() {
            return;
        }
        let turns = open_turns(seen);
        let longest = |rows: &[&Connection]| rows.iter().map(|row| row.activity_ns).max();
        let unread = unread.into_iter().collect();
        for (pid, rows) in worst(unread, |(_, rows)| (longest(rows), rows.len()), found) {
            found.extend(judge(seen, pid, &rows, turns.get(&pid).copied()));
        }
    }
}

/// The longest turn that a thread of each process is in.
fn open_turns<'a>(seen: &Seen<'a>) -> ByKey<u32, &'a EventLoop> {
    let mut turns: ByKey<u32, &EventLoop> = ByKey::default();
    for thread in &seen.snapshot.sched.threads {
        let Some(turn) = &thread.event_loop else { continue };
        let longest = turns.entry(thread.pid).or_insert(turn);
        if turn.open_ns >= longest.open_ns {
            *longest = turn;
        }
    }
    turns
}

fn judge(
    seen: &Seen<'_>,
    pid: u32,
    rows: &[&Connection],
    turn: Option<&EventLoop>,
) -> Option<Judgement> {
    let longest = rows.iter().max_by_key(|row| row.activity_ns)?;
    let open_ns = turn.map_or(0, |turn| turn.open_ns);
    let proven = open_ns >= longest.activity_ns.min(WARN_NS);
    let level = match (proven, turn) {
        (true, _) if longest.activity_ns >= CRITICAL_NS => Level::Critical,
        (true, _) if longest.activity_ns >= WARN_NS => Level::Warn,
        (false, None)
            if longest.activity_ns >= WITHOUT_LOOP_NS
                && rows.len() >= WITHOUT_LOOP
                && rows.iter().all(|row| is_client(row)) =>
        {
            Level::Warn
        }
        _ => Level::Watch,
    };
    let owner = party::process(seen.snapshot, pid, &longest.name, 1.0);
    let why = match turn {
        Some(turn) if proven => {
            let parts = [
                (turn.open_on_cpu_ns, "most of it on a CPU"),
                (turn.open_waiting_ns, "most of it waiting for a CPU"),
                (turn.open_blocked_ns, "most of it blocked"),
            ];
            let most = parts.iter().max_by_key(|(ns, _)| *ns).map_or("", |(_, text)| text);
            format!("its event loop has been in one turn for {:.1} s, {most}", seconds(open_ns))
        }
        Some(_) => "its event loop turns, so it may have paused reading".to_owned(),
        None => "whether it runs is not known".to_owned(),
    };
    let mut evidence = vec![
        evidence("connections_unread", rows.len() as f64, "{connection}", SOURCE),
        evidence("longest_unread", seconds(longest.activity_ns), "s", SOURCE),
    ];
    if open_ns > 0 {
        let turn = super::super::evidence("event_loop_turn", seconds(open_ns), "s", "epoll");
        evidence.push(turn);
    }
    Some(Judgement {
        subject: format!("{} {pid}", longest.name),
        state: State::Firing(level),
        message: format!(
            "{} does not read the answers on {} to {}, the oldest for {:.1} s: the database has answered; {why}",
            owner.title,
            count(rows.len(), "connection"),
            label(longest),
            seconds(longest.activity_ns)
        ),
        culprit: Some(owner),
        evidence,
        advice: "look at what the process does (its stacks), not at the database".to_owned(),
        ..Judgement::default()
    })
}
