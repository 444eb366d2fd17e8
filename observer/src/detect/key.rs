//! Short keys for what detectors remember: a number instead of texts, so that a row costs no allocation at a tick.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hash, Hasher},
};

/// Golden ratio, as in Fibonacci hashing (Knuth, TAOCP 3, 6.4).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A map by [`key`] or by pid; it hashes the same in each run, so that a recording gives the same findings again.
pub type ByKey<K, V> = HashMap<K, V, BuildHasherDefault<Mix>>;

/// Likewise, a set.
pub type Keys<K> = HashSet<K, BuildHasherDefault<Mix>>;

/// A number that is the same for the same things. Those of this host do not choose their names to collide; if they did, two
/// pools would share their habits.
pub fn key(parts: impl Hash) -> u64 {
    let mut mix = Mix::default();
    parts.hash(&mut mix);
    mix.finish()
}

/// Mixes eight bytes a step.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mix(u64);

impl Mix {
    fn take(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(GOLDEN);
    }
}

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.take(u64::from_le_bytes(*word)));
        if !rest.is_empty() {
            let last = rest.iter().rev().fold(0, |last, byte| last << 8 | u64::from(*byte));
            self.take(last | (rest.len() as u64) << 56);
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.take(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.take(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.take(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.take(value);
    }

    fn finish(&self) -> u64 {
        // The high bits are the mixed ones; the low ones choose the bucket.
        (self.0 ^ self.0 >> 32).wrapping_mul(GOLDEN).rotate_left(26)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_has_another_key() {
        let mut keys = Keys::default();
        let mut count = 0;
        for pid in 0..200_u32 {
            for port in 0..50_u16 {
                for address in ["10.0.0.1", "10.0.0.2", "10.0.0.21", "db.internal", ""] {
                    keys.insert(key((pid, address, port)));
                    count += 1;
                }
            }
        }
        assert_eq!(keys.len(), count);
        assert_ne!(key(("ab", "c")), key(("a", "bc")));
        assert_eq!(key(("ab", 1)), key(("ab".to_owned(), 1)));
        // No bucket of a table of 2^16 has many.
        let mut buckets = vec![0; 1 << 16];
        keys.iter().for_each(|key| buckets[*key as usize & 0xffff] += 1);
        assert!(buckets.into_iter().max() < Some(12));
    }
}
