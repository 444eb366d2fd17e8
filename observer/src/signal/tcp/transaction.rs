//! Whether a session is in a transaction, from the end of the last reply that came by.

use std::{collections::BTreeSet, net::IpAddr};

use observer_abi::{
    reply::{self, Reply},
    tcp::SocketRow,
};

use super::{
    span::Ends,
    view::{Activity, Transaction},
};

/// Systems (`db.system.name`) whose replies end in what the program for it reads.
const READABLE: &[&str] = &["postgresql"];

/// Where ends of replies should be looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch {
    /// Ports that the replies come from.
    pub ports: BTreeSet<u16>,
    /// Addresses of this host that they come to; a loopback address for what does not leave it.
    pub addresses: BTreeSet<IpAddr>,
}

impl Watch {
    /// Takes in a connection of a client.
    pub(super) fn add(&mut self, ends: &Ends, system: &str) {
        if READABLE.contains(&system) {
            self.ports.insert(ends.peer.1);
            let here = if ends.are_here() { IpAddr::from([127, 0, 0, 1]) } else { ends.local.0 };
            self.addresses.insert(here);
        }
    }

    /// Whether all that `other` asks for is in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.ports.is_superset(&other.ports) && self.addresses.is_superset(&other.addresses)
    }

    /// Takes in all that `other` asks for.
    pub fn extend(&mut self, other: &Self) {
        self.ports.extend(&other.ports);
        self.addresses.extend(&other.addresses);
    }
}

/// The transaction of a session that asks nothing, and for how long it has been open at least. The reply must be the last
/// that its socket has received; else the end of one was missed, and nothing is known.
pub(super) fn transaction(
    row: &SocketRow,
    reply: Option<&Reply>,
    activity: Activity,
    hz: u64,
) -> (Transaction, Option<u64>) {
    let silent = matches!(activity, Activity::Active | Activity::Idle | Activity::Unread);
    let last = reply.filter(|reply| silent && reply.next_sequence == row.received_sequence);
    let Some(reply) = last else { return (Transaction::Unknown, None) };
    let open = match reply.status {
        reply::IDLE => return (Transaction::No, None),
        reply::OPEN => Transaction::Open,
        reply::FAILED => Transaction::Failed,
        _ => return (Transaction::Unknown, None),
    };
    let jiffies = row.now_jiffies.saturating_sub(reply.opened_jiffies);
    let open_ns = u128::from(jiffies) * 1_000_000_000 / u128::from(hz.max(1));
    (open, Some(u64::try_from(open_ns).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    const HZ: u64 = 250;

    #[track_caller]
    fn check(
        status: u32,
        next_sequence: u32,
        activity: Activity,
        expect: (Transaction, Option<u64>),
    ) {
        let mut row = SocketRow::new_zeroed();
        (row.now_jiffies, row.received_sequence) = (10_000, 77);
        let reply = Reply { opened_jiffies: 9_000, next_sequence, status };
        assert_eq!(transaction(&row, Some(&reply), activity, HZ), expect);
        assert_eq!(transaction(&row, None, activity, HZ), (Transaction::Unknown, None));
    }

    #[test]
    fn a_transaction_is_told_of_a_session_that_asks_nothing() {
        let unknown = (Transaction::Unknown, None);
        check(reply::OPEN, 77, Activity::Idle, (Transaction::Open, Some(4_000_000_000)));
        check(reply::FAILED, 77, Activity::Active, (Transaction::Failed, Some(4_000_000_000)));
        check(reply::IDLE, 77, Activity::Idle, (Transaction::No, None));
        check(reply::UNKNOWN, 77, Activity::Idle, unknown);
        check(reply::OPEN, 77, Activity::Waiting, unknown);
        check(reply::OPEN, 77, Activity::HalfOpen, unknown);
        // The socket has more than was seen, or less.
        check(reply::OPEN, 76, Activity::Idle, unknown);
        check(reply::OPEN, 78, Activity::Idle, unknown);
    }
}
