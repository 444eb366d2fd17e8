//! Who waits at an endpoint for longer than is usual there, and what that means: one long query, a pile-up behind a lock, or
//! a server that stands still.

use std::collections::BTreeMap;

use super::{
    SECOND, WITH_EVENTS,
    blocker::{self, Blocker},
    endpoint,
    habits::{Asking, Habits},
    is_client, is_cut, local_server, name,
};
use crate::{
    detect::{
        Level, Seen,
        key::{ByKey, key},
    },
    signal::tcp::{Activity, Connection, Endpoint},
};

/// Connections that must wait before it is more than slow queries.
const MANY: usize = 3;
/// A pile-up is one when the longest has waited for as long.
const PILE_UP_NS: u64 = 3 * SECOND;
/// Statements of a report are started together, within as long; those who run into a lock come one after the other.
const TOGETHER_NS: u64 = SECOND / 2;
/// Silence of a busy endpoint that is not a pause of its disk or of its garbage collector.
const FROZEN_NS: u64 = 5 * SECOND;
/// It was busy if it answered for as long before; where whole pools wait, for as long.
const BUSY_NS: u64 = 20 * SECOND;
const WHOLE_BUSY_NS: u64 = 5 * SECOND;
/// A new connection is greeted at once by a server that lives.
const GREETING_NS: u64 = 2 * SECOND;
/// After that it is not mended by itself.
const CRITICAL_NS: u64 = 30 * SECOND;

/// What the waits at an endpoint mean, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// One or two long queries.
    Alone,
    /// Many wait, others are answered.
    PileUp(Level),
    /// Nobody is answered any more.
    Frozen(Level),
}

/// Connections that wait for longer than usual at an endpoint.
pub(super) struct Crowd<'a> {
    /// They, the longest waiting first; at least one.
    pub(super) late: Vec<&'a Connection>,
    /// Open connections of their processes to the endpoint.
    pub(super) open: usize,
    /// Since when nothing came from the endpoint.
    pub(super) silent_ns: u64,
    /// What an answer usually takes.
    pub(super) usual_ns: u64,
    /// Whom they wait for, if it looks like one of the other clients.
    pub(super) blocker: Option<Blocker>,
    pub(super) verdict: Verdict,
}

/// An endpoint at which somebody waits for long.
struct Place<'a> {
    /// Who.
    late: Vec<Asking<'a>>,
    /// All connections to it that are shown.
    here: Vec<&'a Connection>,
    /// Pools there, if not all connections are shown.
    pools: Vec<&'a Endpoint>,
}

/// These endpoints, by address and port.
fn places<'a>(seen: &Seen<'a>, late: ByKey<u64, Vec<Asking<'a>>>) -> Vec<Place<'a>> {
    let tcp = &seen.snapshot.tcp;
    let mut places: Vec<Place<'_>> = late
        .into_values()
        .map(|late| Place { late, here: Vec::new(), pools: Vec::new() })
        .collect();
    places.sort_by_key(|place| place.first().map(endpoint));
    let at = |place: &Place<'_>| place.late.first().map(|asking| asking.at);
    let numbers: ByKey<u64, usize> =
        places.iter().zip(0..).filter_map(|(place, number)| Some((at(place)?, number))).collect();
    for row in tcp.connections.iter().filter(|row| is_client(row)) {
        let number = numbers.get(&key(endpoint(row)));
        if let Some(place) = number.and_then(|at| places.get_mut(*at)) {
            place.here.push(row);
        }
    }
    if is_cut(tcp) {
        // They are by name.
        let named = |place: &Place<'a>| place.first().map(|row| key((name(row), row.peer_port)));
        let numbers: ByKey<u64, usize> =
            places.iter().zip(0..).filter_map(|(place, at)| Some((named(place)?, at))).collect();
        for pool in tcp.endpoints.iter().filter(|pool| pool.role == "client") {
            let number = numbers.get(&key((pool.address.as_str(), pool.port)));
            if let Some(place) = number.and_then(|at| places.get_mut(*at)) {
                place.pools.push(pool);
            }
        }
    }
    places
}

impl<'a> Place<'a> {
    /// One who waits.
    fn first(&self) -> Option<&'a Connection> {
        self.late.first().map(|asking| asking.row)
    }

    /// Since anything came from there.
    fn silent_ns(&self) -> u64 {
        let shown = self.here.iter().filter_map(|row| row.last_receive_ns);
        let counted = self.pools.iter().filter_map(|pool| pool.last_receive_ns);
        shown.chain(counted).min().unwrap_or(u64::MAX)
    }

    /// Open connections of these processes.
    fn count(&self, pids: &mut BTreeMap<u32, (usize, usize)>) {
        for row in &self.here {
            if let Some((_, open)) = pids.get_mut(&row.pid) {
                *open += 1;
            }
        }
        for pool in &self.pools {
            if let Some((_, open)) = pids.get_mut(&pool.pid) {
                *open = (*open).max(usize::try_from(pool.open).unwrap_or(usize::MAX));
            }
        }
    }
}

/// Finds the crowds of a look.
pub(super) struct Crowds {
    habits: Habits,
    least_ns: u64,
}

impl Crowds {
    /// No wait shorter than `least_ns` counts.
    pub(super) fn new(least_ns: u64) -> Self {
        Self { habits: Habits::default(), least_ns }
    }

    /// Looks, and learns what is usual.
    pub(super) fn look<'a>(&mut self, seen: &Seen<'a>) -> Vec<Crowd<'a>> {
        let asking = Asking::all(seen, self.least_ns.min(SECOND));
        self.habits.learn(seen, &asking);
        let mut late: ByKey<u64, Vec<Asking<'_>>> = ByKey::default();
        for asking in asking.iter().filter(|asking| self.is_late(asking)) {
            late.entry(asking.at).or_default().push(*asking);
        }
        self.habits.learn_silences(seen, |at| late.contains_key(&at));
        if late.is_empty() {
            return Vec::new();
        }
        let mut crowds = Vec::new();
        for place in places(seen, late) {
            let Some(crowd) = self.crowd(seen, &place) else { continue };
            if let Verdict::PileUp(level) | Verdict::Frozen(level) = crowd.verdict
                && level >= Level::Warn
            {
                self.habits.excuse(&place.late);
            }
            crowds.push(crowd);
        }
        crowds
    }

    fn is_late(&self, asking: &Asking<'_>) -> bool {
        asking.row.activity_ns >= self.least_ns && self.habits.is_late(asking, self.least_ns)
    }

    fn crowd<'a>(&self, seen: &Seen<'a>, place: &Place<'a>) -> Option<Crowd<'a>> {
        let here = place.here.as_slice();
        let mut late: Vec<&Connection> = place.late.iter().map(|asking| asking.row).collect();
        late.sort_by_key(|row| std::cmp::Reverse(row.activity_ns));
        let longest = *late.first()?;
        let mut pids: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
        for row in &late {
            pids.entry(row.pid).or_default().0 += 1;
        }
        place.count(&mut pids);
        let mut crowd = Crowd {
            open: pids.values().map(|(_, open)| open).sum(),
            silent_ns: place.silent_ns(),
            usual_ns: self.habits.usual_ns(longest).unwrap_or_default(),
            blocker: blocker::find(&late, here, &self.habits),
            verdict: Verdict::Alone,
            late,
        };
        // One connection of a process that has others may wait for its turn as a leader, or for an event.
        let held = |(late, open): &&(usize, usize)| *late >= 2 || late == open;
        let stuck = pids.values().filter(held).map(|(late, _)| late).sum();
        crowd.verdict = self
            .frozen(seen, &crowd, here)
            .or_else(|| pile_up(&crowd, stuck))
            .unwrap_or(Verdict::Alone);
        Some(crowd)
    }

    /// Nothing is answered that was asked since some instant: the server stands still. In a pile-up, some wait for long
    /// while others are answered.
    fn frozen(&self, seen: &Seen<'_>, crowd: &Crowd<'_>, here: &[&Connection]) -> Option<Verdict> {
        let longest = *crowd.late.first()?;
        if here.iter().any(|row| row.activity == Activity::HalfOpen) {
            return None;
        }
        let slack_ns = self.habits.late_after_ns(longest, SECOND)?;
        let after_ns = crowd.silent_ns.saturating_add(slack_ns);
        let after = crowd.late.iter().filter(|row| row.activity_ns <= after_ns).count();
        let before = crowd.late.len() - after;
        let certain = is_certain(seen, crowd, here);
        let blocked = crowd.blocker.as_ref().is_some_and(|blocker| !blocker.guessed);
        let asked_ns = seen.now_ns.saturating_sub(crowd.silent_ns.min(longest.activity_ns));
        // A program that has just begun may ask two long questions after many short ones, but not with its whole pool.
        let whole = crowd.late.len() >= MANY && crowd.late.len() >= crowd.open;
        let busy_ns = if whole { WHOLE_BUSY_NS } else { BUSY_NS };
        let busy = self.habits.was_busy(longest, asked_ns, busy_ns);
        if !certain && (blocked || !busy || after < 2) || before * 2 > after || after == 0 {
            return None;
        }
        let known = certain || !WITH_EVENTS.contains(&longest.system.as_str());
        let sure = crowd.silent_ns >= self.habits.late_after_ns(longest, FROZEN_NS)?;
        Some(Verdict::Frozen(match (sure, known) {
            (false, _) | (_, false) => Level::Watch,
            (true, true) if crowd.silent_ns >= CRITICAL_NS && (certain || after >= MANY) => {
                Level::Critical
            }
            (true, true) => Level::Warn,
        }))
    }
}

/// What only a process that stands still does: it reads nothing, greets nobody, or turns no more.
fn is_certain(seen: &Seen<'_>, crowd: &Crowd<'_>, here: &[&Connection]) -> bool {
    let ungreeted = |row: &Connection| {
        row.activity == Activity::Waiting
            && row.received_bytes == 0
            && row.sent_bytes > 0
            && row.activity_ns >= GREETING_NS
    };
    here.iter().any(|row| row.activity == Activity::ZeroWindow || ungreeted(row))
        || crowd.late.first().is_some_and(|row| turns_no_more(seen, row).is_some())
}

/// For how long the event loop of a server on this host, such as Redis, has been in one turn.
pub(super) fn turns_no_more(seen: &Seen<'_>, row: &Connection) -> Option<u64> {
    let (pid, _) = local_server(seen, row)?;
    let threads = seen.snapshot.sched.threads.iter();
    let main = threads.filter(|thread| thread.pid == pid && thread.tid == pid);
    let open_ns = main.filter_map(|thread| thread.event_loop.as_ref()).map(|turn| turn.open_ns);
    open_ns.max().filter(|open_ns| *open_ns >= SECOND)
}

/// `stuck`: waits in processes that wait with more than one connection, or with all they have.
fn pile_up(crowd: &Crowd<'_>, stuck: usize) -> Option<Verdict> {
    let longest = crowd.late.first()?;
    if crowd.late.len() < MANY {
        return None;
    }
    let third_ns = crowd.late.get(MANY - 1).map_or(0, |row| row.activity_ns);
    let all = stuck * 10 >= crowd.open * 9;
    let joined = crowd.late.len() - most_together(&crowd.late) >= MANY - 1;
    let known = !WITH_EVENTS.contains(&longest.system.as_str());
    let many = stuck >= MANY && stuck * 5 >= crowd.open && (joined || all);
    Some(Verdict::PileUp(match known && many && longest.activity_ns >= PILE_UP_NS {
        false => Level::Watch,
        true if all && stuck > MANY && third_ns >= CRITICAL_NS => Level::Critical,
        true => Level::Warn,
    }))
}

/// The most questions that were asked at about the same time; the longest waiting come first.
fn most_together(late: &[&Connection]) -> usize {
    let with = |first: &&Connection| {
        let together = |row: &&&Connection| {
            row.activity_ns <= first.activity_ns
                && first.activity_ns - row.activity_ns <= TOGETHER_NS
        };
        late.iter().filter(together).count()
    };
    // Beyond some dozens, the answer is the same.
    late.iter().take(64).map(with).max().unwrap_or(0)
}
