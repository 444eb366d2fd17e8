//! Entries of the ledger whose socket is gone although no program saw its end: the kernel skips programs now and then.

use std::collections::HashSet;

use observer_abi::{
    Header, Kind,
    tcp::{Closed, NOT_READ, OPEN, Owned, Socket, SocketRow, UNSEEN},
};

use crate::signal::Now;

/// The kernel gives up a connection that its owner has closed after some minutes (tcp(7): tcp_orphan_retries,
/// tcp_fin_timeout).
const LINGERS_NS: u64 = 900_000_000_000;

/// An entry: its key and birth.
type Id = (u64, u64);

/// What is known of the entries from one look to the next.
#[derive(Debug, Default)]
pub struct Gone {
    /// Those that had a row: the iterator sees their namespace.
    seen: HashSet<Id>,
    /// Those that had a row before, and none at the last look.
    missed: HashSet<Id>,
}

impl Gone {
    /// Entries whose socket is gone: the owner closed it long ago, or it had a row once and had none at two looks.
    /// What has a row is there, and of what never had one, as in another namespace, nothing else is known.
    pub fn look(
        &mut self,
        entries: impl Iterator<Item = (u64, Owned)>,
        rows: &[SocketRow],
        now: Now,
    ) -> Vec<(u64, Owned)> {
        let there: HashSet<Id> =
            rows.iter().map(|row| (row.key, row.owned.birth_ktime_ns)).collect();
        let missed_before = std::mem::take(&mut self.missed);
        let seen_before = std::mem::replace(&mut self.seen, there);
        let mut gone = Vec::new();
        for (key, owned) in entries {
            let id = (key, owned.birth_ktime_ns);
            if self.seen.contains(&id) {
                continue;
            }
            let lingers =
                owned.closed_ktime_ns == 0 || now.since(owned.closed_ktime_ns) < LINGERS_NS;
            if missed_before.contains(&id) || !lingers {
                gone.push((key, owned));
            } else if seen_before.contains(&id) {
                self.missed.insert(id);
            }
        }
        gone
    }
}

/// The record of the end of such a connection: what its entry has. Whether nobody saw who closed it.
pub fn end(key: u64, owned: Owned, now: Now) -> (Closed, bool) {
    let is_unseen = owned.closer == OPEN;
    let header = Header {
        kind: Kind::TcpClosed as u32,
        tgid: owned.tgid,
        tid: owned.tid,
        reserved: 0,
        ktime_ns: now.ktime_ns,
        comm: owned.comm,
    };
    let [low, high] = owned.peer_address.map(u64::to_ne_bytes);
    let mut peer_address = [0; 16];
    peer_address[..8].copy_from_slice(&low);
    peer_address[8..].copy_from_slice(&high);
    let socket = Socket {
        peer_address,
        local_port: owned.local_port,
        peer_port: owned.peer_port,
        error: NOT_READ,
        ..Socket::default()
    };
    let closer = if is_unseen { UNSEEN } else { owned.closer };
    let owned = Owned { closer, ..owned };
    (Closed { header, key, owned, socket, old_state: 0, reserved: 0 }, is_unseen)
}

#[cfg(test)]
mod tests {
    use observer_abi::tcp::LOCAL;
    use zerocopy::FromZeros as _;

    use super::*;
    use crate::signal::testing::{SECOND, at};

    /// Whether an entry that was closed at a second (0: it was not) is gone at each look, a minute apart, by whether it had
    /// a row there.
    #[track_caller]
    fn check(closed_second: u64, rows: &[bool], expect: &[bool]) {
        let owned = Owned {
            birth_ktime_ns: 7,
            closed_ktime_ns: closed_second * SECOND,
            ..Owned::default()
        };
        let mut row = SocketRow::new_zeroed();
        (row.key, row.owned) = (1, owned);
        let mut gone = Gone::default();
        let looks = rows.iter().zip(1..).map(|(has_row, minute)| {
            let rows = if *has_row { &[row][..] } else { &[] };
            let now = at(minute * 60 * SECOND);
            !gone.look([(1, owned)].into_iter(), rows, now).is_empty()
        });
        assert_eq!(looks.collect::<Vec<_>>(), expect, "{closed_second} {rows:?}");
    }

    #[test]
    fn only_what_cannot_be_there_any_more_is_gone() {
        check(0, &[true, true, true], &[false; 3]);
        check(0, &[true, false, true, false], &[false; 4]);
        check(0, &[true, false, false], &[false, false, true]);
        // Of another namespace.
        check(0, &[false; 20], &[false; 20]);
        let mut closed = [false; 20];
        closed[15..].fill(true);
        check(60, &[false; 20], &closed);
        check(1, &[true; 20], &[false; 20]);
    }

    #[test]
    fn an_entry_of_another_birth_is_another() {
        let mut row = SocketRow::new_zeroed();
        (row.key, row.owned.birth_ktime_ns) = (1, 7);
        let mut gone = Gone::default();
        let young = Owned { birth_ktime_ns: 8, ..row.owned };
        assert!(gone.look([(1, row.owned)].into_iter(), &[row], at(SECOND)).is_empty());
        for minute in 1..5 {
            let now = at(minute * 60 * SECOND);
            assert!(gone.look([(1, young)].into_iter(), &[], now).is_empty(), "never had a row");
        }
    }

    #[test]
    fn who_closed_is_told_if_it_was_seen() {
        for (closer, expect, unseen) in [(OPEN, UNSEEN, true), (LOCAL, LOCAL, false)] {
            let owned = Owned { closer, peer_port: 5432, ..Owned::default() };
            let (record, is_unseen) = end(1, owned, at(SECOND));
            assert_eq!((record.owned.closer, is_unseen), (expect, unseen));
            assert_eq!((record.socket.peer_port, record.socket.error), (5432, NOT_READ));
        }
    }
}
