//! A peer that does not even acknowledge: its host is gone, or the path to it drops packets.

use std::{collections::BTreeMap, time::Duration};

use super::{MS, SECOND, SOURCE, count, is_stuck, list, owners, seconds};
use crate::{
    detect::{
        Detector, Judgement, Kind, Level, Seen, State, evidence, judgement::worst, key::ByKey,
        party,
    },
    signal::tcp::{Activity, Connection},
};

/// A peer is dead or black-holed.
pub static DEAD_PEER: Kind = Kind {
    name: "connection.dead_peer",
    signal: "tcp",
    help: "a peer does not acknowledge what is sent to it: its host is gone, or the path drops packets",
    reason: "TCP itself gives up after 15 minutes, a connect(2) after two. Three retransmissions without an answer are \
             1.4 s at the least time-out; 2.5 s more tell a dead peer from a brief loss, which ends within 3 s in all, \
             and still end the verdict within 7 s. A peer from which anything came since is not dead: WATCH.",
    raise: Duration::ZERO,
    clear: Duration::from_secs(5),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Dead::default()),
};

/// How long connections to a peer must be stuck. A loss of a second or two, mended by a retransmission, is shorter.
const HELD_NS: u64 = 2500 * MS;
/// A SYN without an answer for as long: it was sent three times.
const CONNECTING_NS: u64 = 3 * SECOND;
/// Where the agent looks this seldom, what is stuck at one look is taken for stuck if it is for [`SURE_NS`].
const SELDOM_NS: u64 = 5 * SECOND;
const SURE_NS: u64 = 6 * SECOND;
/// A peer that lives is heard within this time, if anybody asks it; it may have been heard after the first loss.
const SILENT_NS: u64 = 5 * SECOND;
/// A dead peer that two connections need is CRITICAL after this time: no retransmission will mend it soon.
const CRITICAL_NS: u64 = 15 * SECOND;
/// Two connections that stay stuck while others to the same peer live: some path to it is gone.
const PARTLY_NS: u64 = 10 * SECOND;
/// Peers followed; more than that at once is the own network's failure, and the first ones say it.
const MAX_PEERS: usize = 256;

#[derive(Default)]
struct Dead {
    /// By address: since when connections to it are stuck.
    since: BTreeMap<String, u64>,
}

/// Connections to a peer of which some are stuck.
#[derive(Default)]
struct Peer<'a> {
    stuck: Vec<&'a Connection>,
    open: usize,
    /// Since anything came from it.
    heard_ns: Option<u64>,
}

/// The peers in doubt, by address.
fn in_doubt<'a>(seen: &Seen<'a>) -> BTreeMap<&'a str, Peer<'a>> {
    let rows = &seen.snapshot.tcp.connections;
    let mut peers: BTreeMap<&str, Peer<'_>> = BTreeMap::new();
    for row in rows.iter().filter(|row| is_stuck(row)) {
        peers.entry(&row.peer_address).or_default().stuck.push(row);
    }
    if peers.is_empty() {
        return peers;
    }
    let mut lives: ByKey<&str, (usize, u64)> = ByKey::default();
    lives.extend(peers.keys().map(|address| (*address, (0, u64::MAX))));
    for row in rows {
        if let Some((open, heard_ns)) = lives.get_mut(row.peer_address.as_str()) {
            *open += 1;
            *heard_ns = row.last_receive_ns.unwrap_or(u64::MAX).min(*heard_ns);
        }
    }
    for (address, peer) in &mut peers {
        let (open, heard_ns) = lives.get(address).copied().unwrap_or_default();
        (peer.open, peer.heard_ns) = (open, Some(heard_ns).filter(|ns| *ns != u64::MAX));
    }
    peers
}

impl Detector for Dead {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let peers = in_doubt(seen);
        self.since.retain(|address, _| peers.contains_key(address.as_str()));
        let mut told = Vec::new();
        for (address, peer) in &peers {
            let since_ns = match self.since.get(*address) {
                Some(since_ns) => *since_ns,
                None if self.since.len() >= MAX_PEERS => continue,
                None => *self.since.entry((*address).to_owned()).or_insert(seen.now_ns),
            };
            told.push((*address, peer, seen.now_ns.saturating_sub(since_ns)));
        }
        let told = worst(told, |(_, peer, held_ns)| (*held_ns, peer.stuck.len()), found);
        found.extend(told.into_iter().map(|(address, peer, held_ns)| {
            judge(seen, address, &peer.stuck, peer.open, held_ns, peer.heard_ns)
        }));
    }
}

/// `open`: connections to the peer; `held_ns`: for how long some have been stuck; `heard_ns`: since anything came from it.
fn judge(
    seen: &Seen<'_>,
    address: &str,
    stuck: &[&Connection],
    open: usize,
    held_ns: u64,
    heard_ns: Option<u64>,
) -> Judgement {
    let of = |activity| stuck.iter().filter(move |row| row.activity == activity);
    let unacknowledged_ns = of(Activity::HalfOpen).map(|row| row.activity_ns).min();
    let connecting_ns = of(Activity::Connecting).map(|row| row.activity_ns).max().unwrap_or(0);
    let silent_ns = unacknowledged_ns.unwrap_or(connecting_ns).max(held_ns);
    let sure = held_ns >= HELD_NS
        || connecting_ns >= CONNECTING_NS
        || seen.elapsed_ns >= SELDOM_NS && silent_ns >= SURE_NS;
    let lives = heard_ns.is_some_and(|heard_ns| heard_ns < held_ns.clamp(SECOND, SILENT_NS));
    let several = stuck.len() >= 2;
    let level = match (sure, lives) {
        (false, _) => Level::Watch,
        (true, true) if several && (stuck.len() * 2 >= open || held_ns >= PARTLY_NS) => Level::Warn,
        (true, true) => Level::Watch,
        (true, false) if several && held_ns >= CRITICAL_NS && unacknowledged_ns.is_some() => {
            Level::Critical
        }
        (true, false) => Level::Warn,
    };
    let victims = owners(seen, stuck);
    let mut culprit = party::peer(address);
    if let Some(row) = stuck.iter().find(|row| !row.peer_name.is_empty()) {
        culprit.title = format!("{} ({address})", row.peer_name);
    }
    let connections = count(stuck.len(), "connection");
    let message = match unacknowledged_ns {
        _ if lives => format!(
            "{} answers on some connections, but {connections} of {} are not acknowledged for {:.0} s",
            culprit.title,
            list(&victims),
            seconds(silent_ns)
        ),
        Some(_) => format!(
            "{} is dead or cut off: it has acknowledged nothing for {:.1} s; {connections} of {} wait",
            culprit.title,
            seconds(silent_ns),
            list(&victims)
        ),
        None => format!(
            "{} does not answer: {connections} of {} are being opened for {:.1} s",
            culprit.title,
            list(&victims),
            seconds(silent_ns)
        ),
    };
    let number = |name, value, unit| evidence(name, value, unit, SOURCE);
    let retransmits: u64 = stuck.iter().fold(0, |sum, row| sum.saturating_add(row.retransmits));
    let mut evidence = vec![
        number("connections_stuck", stuck.len() as f64, "{connection}"),
        number("acknowledged_nothing", seconds(silent_ns), "s"),
        number("retransmits", retransmits as f64, "{segment}"),
    ];
    evidence.extend(heard_ns.map(|heard_ns| number("received_nothing", seconds(heard_ns), "s")));
    Judgement {
        subject: address.to_owned(),
        state: State::Firing(level),
        culprit: Some(culprit),
        victims,
        evidence,
        message,
        advice: format!(
            "see whether the host of {address} runs and is reachable (ping, security groups, routes, its console); \
             connections to it fail by themselves only after about 15 minutes, so restart the pool or set \
             TCP_USER_TIMEOUT or a query time-out"
        ),
        ..Judgement::default()
    }
}
