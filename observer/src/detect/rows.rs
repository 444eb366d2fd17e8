//! What is remembered of each row of a table.

use super::key::ByKey;

/// By key, and in the order in which rows are asked for. A table comes in much the same order at each tick, so that the next
/// one is nearly always the one behind the last: found without a search, and read by the CPU before it is asked for. With
/// thousands of rows, whose memory other work has pushed out of the cache since the tick before, that is what costs.
#[derive(Debug, Default)]
pub struct Rows<T> {
    rows: Vec<Row<T>>,
    /// Where each is.
    places: ByKey<u64, usize>,
    /// Where the next one is expected.
    next: usize,
    round: u64,
    /// Rows that were asked for in this round, and those of them that were elsewhere than expected.
    asked: usize,
    moved: usize,
}

#[derive(Debug)]
struct Row<T> {
    key: u64,
    /// The round in which it was asked for last, and its number there.
    asked: (u64, usize),
    value: T,
}

/// Rounds after which the rows may be brought into the order of the table anew.
const ORDERED_EVERY: u64 = 64;

impl<T: Default> Rows<T> {
    /// What is remembered of a row; `None` if it is new, and there are `most` already.
    pub fn get(&mut self, key: u64, most: usize) -> Option<&mut T> {
        let expected = self.rows.get(self.next).is_some_and(|row| row.key == key);
        let known = if expected { Some(self.next) } else { self.places.get(&key).copied() };
        let at = match known {
            Some(at) => at,
            None if self.rows.len() >= most => return None,
            None => {
                self.places.insert(key, self.rows.len());
                self.rows.push(Row { key, asked: (0, 0), value: T::default() });
                self.rows.len() - 1
            }
        };
        self.next = at + 1;
        self.moved += usize::from(!expected);
        let (round, number) = (self.round + 1, self.asked);
        let row = self.rows.get_mut(at)?;
        if row.asked.0 != round {
            row.asked = (round, number);
            self.asked += 1;
        }
        Some(&mut row.value)
    }

    /// Ends a round: rows that were not asked for are forgotten.
    pub fn end(&mut self) {
        self.round += 1;
        let gone = self.asked < self.rows.len();
        let mixed = self.round.is_multiple_of(ORDERED_EVERY) && self.moved > self.rows.len() / 4;
        if gone {
            let round = self.round;
            self.rows.retain(|row| row.asked.0 == round);
        }
        if mixed {
            self.rows.sort_unstable_by_key(|row| row.asked.1);
        }
        if gone || mixed {
            self.places.clear();
            self.places.extend(self.rows.iter().zip(0..).map(|(row, at)| (row.key, at)));
        }
        (self.next, self.asked, self.moved) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 8;

    proptest! {
        /// It is a map whose rows are forgotten when a round does not ask for them.
        #[test]
        fn it_is_a_map(rounds: Vec<Vec<u8>>) {
            let mut rows = Rows::<u64>::default();
            let mut map = BTreeMap::<u64, u64>::new();
            for round in rounds {
                let mut asked = Vec::new();
                for key in round.into_iter().map(|key| u64::from(key % 16)) {
                    let full = map.len() >= MOST && !map.contains_key(&key);
                    let expect = (!full).then(|| {
                        asked.push(key);
                        *map.entry(key).and_modify(|count| *count += 1).or_insert(1)
                    });
                    let found = rows.get(key, MOST).map(|count| {
                        *count += 1;
                        *count
                    });
                    prop_assert_eq!(found, expect);
                }
                map.retain(|key, _| asked.contains(key));
                rows.end();
            }
        }
    }

    #[test]
    fn rows_come_into_the_order_of_the_table() {
        let mut rows = Rows::<()>::default();
        let order = |rows: &Rows<()>| rows.rows.iter().map(|row| row.key).collect::<Vec<_>>();
        for (asked, expect) in [([1, 2, 3, 4], [1, 2, 3, 4]), ([4, 3, 2, 1], [4, 3, 2, 1])] {
            for _ in 0..ORDERED_EVERY {
                asked.iter().for_each(|key| _ = rows.get(*key, 4));
                rows.end();
            }
            assert_eq!(order(&rows), expect);
        }
    }
}
