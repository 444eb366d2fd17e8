//! The name of each address, for a day.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use super::Answer;

/// Addresses kept. Beyond it those seen longest ago go and are counted.
pub const MAX_NAMES: usize = 8192;

/// How long a name is kept after it was last answered. Times to live are seconds at cloud databases, but connections live for
/// days, and are opened with addresses that a resolver kept.
pub const HISTORY_NS: u64 = 24 * 3600 * 1_000_000_000;

/// Share of the table that goes at once when it is full.
const EVICTED_SHARE: usize = 16;

/// Names by address.
#[derive(Debug, Default)]
pub struct Names {
    entries: HashMap<IpAddr, Entry>,
    evicted: u64,
}

#[derive(Debug)]
struct Entry {
    name: Arc<str>,
    database: Option<&'static str>,
    seen_unix_ns: u64,
}

impl Names {
    /// Remembers an answer. The newest name counts, but one that is no database's does not take the place of one that is.
    pub fn insert(&mut self, answer: &Answer, now_unix_ns: u64) {
        let address = answer.address.to_canonical();
        let fresh = Entry {
            name: answer.name.clone(),
            database: answer.database,
            seen_unix_ns: now_unix_ns,
        };
        if let Some(entry) = self.entries.get_mut(&address) {
            let keeps =
                entry.database.is_some() && fresh.database.is_none() && entry.is_valid(now_unix_ns);
            if !keeps {
                *entry = fresh;
            }
            return;
        }
        if self.entries.len() >= MAX_NAMES {
            self.make_room(now_unix_ns);
        }
        self.entries.insert(address, fresh);
    }

    /// The name that was last answered with this address within [`HISTORY_NS`].
    pub fn name(&self, address: IpAddr, now_unix_ns: u64) -> Option<&Arc<str>> {
        self.entry(address, now_unix_ns).map(|entry| &entry.name)
    }

    /// The database system at this address, if its name tells.
    pub fn database(&self, address: IpAddr, now_unix_ns: u64) -> Option<&'static str> {
        self.entry(address, now_unix_ns)?.database
    }

    /// Addresses known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Names dropped before their time because the table was full, since it was made.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// As the application connects with what the resolver gave it, an address of IPv4 inside one of IPv6 is the same.
    fn entry(&self, address: IpAddr, now_unix_ns: u64) -> Option<&Entry> {
        self.entries.get(&address.to_canonical()).filter(|entry| entry.is_valid(now_unix_ns))
    }

    fn make_room(&mut self, now_unix_ns: u64) {
        self.entries.retain(|_, entry| entry.is_valid(now_unix_ns));
        let before = self.entries.len();
        if before < MAX_NAMES {
            return;
        }
        let mut times: Vec<u64> = self.entries.values().map(|entry| entry.seen_unix_ns).collect();
        let count = before / EVICTED_SHARE;
        let (_, &mut limit, _) = times.select_nth_unstable(count);
        let mut left = count;
        self.entries.retain(|_, entry| {
            let goes = left > 0 && entry.seen_unix_ns <= limit;
            left -= usize::from(goes);
            !goes
        });
        self.evicted += (before - self.entries.len()) as u64;
    }
}

impl Entry {
    fn is_valid(&self, now_unix_ns: u64) -> bool {
        now_unix_ns.saturating_sub(self.seen_unix_ns) <= HISTORY_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    fn answer(name: &str, number: u32, database: Option<&'static str>) -> Answer {
        Answer { name: name.into(), address: address(number), ttl_seconds: 5, database }
    }

    #[test]
    fn newest_name_but_a_database_stays() {
        let mut names = Names::default();
        names.insert(&answer("a", 1, None), 10);
        names.insert(&answer("b", 1, None), 20);
        assert_eq!(names.name(address(1), 20).map(|name| &**name), Some("b"));
        names.insert(&answer("db", 1, Some("redis")), 30);
        names.insert(&answer("c", 1, None), 40);
        assert_eq!(
            (names.name(address(1), 40).map(|name| &**name), names.database(address(1), 40)),
            (Some("db"), Some("redis"))
        );
        names.insert(&answer("c", 1, None), 31 + HISTORY_NS);
        assert_eq!(names.name(address(1), 31 + HISTORY_NS).map(|name| &**name), Some("c"));
        assert_eq!(names.len(), 1);
    }

    #[test]
    fn a_day_of_history() {
        let mut names = Names::default();
        names.insert(&answer("db", 0x7f00_0001, Some("redis")), 10);
        assert_eq!(names.database(address(0x7f00_0001), 10 + HISTORY_NS), Some("redis"));
        assert_eq!(names.database(address(0x7f00_0001), 11 + HISTORY_NS), None);
        assert_eq!(
            names.database(address(0x7f00_0001), 0),
            Some("redis"),
            "a clock that was set back"
        );
        assert_eq!(names.database("::ffff:127.0.0.1".parse().unwrap(), 20), Some("redis"));
        assert_eq!(names.name(address(2), 10), None);
    }

    #[test]
    fn bounded_and_counted() {
        let mut names = Names::default();
        let max = u32::try_from(MAX_NAMES).unwrap();
        for number in 0..=max {
            names.insert(&answer("n", number, None), u64::from(number));
        }
        assert!(names.len() <= MAX_NAMES && names.len() >= MAX_NAMES * 15 / 16);
        assert_eq!(names.len() as u64 + names.evicted(), u64::from(max) + 1);
        assert!(names.name(address(0), 0).is_none() && names.name(address(max), 0).is_some());

        // What is out of date goes first, and is not counted as lost.
        let lost = names.evicted();
        for number in max + 1..max + 2000 {
            names.insert(&answer("n", number, None), u64::from(max) + 1 + HISTORY_NS);
        }
        assert_eq!(names.evicted(), lost);
        assert!(names.len() <= 2000);

        // All at the same time.
        let mut names = Names::default();
        for number in 0..=max {
            names.insert(&answer("n", number, None), 7);
        }
        assert_eq!(names.evicted(), u64::from(max) / EVICTED_SHARE as u64);
    }
}
