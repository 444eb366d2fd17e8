//! The form of a JVM's file of counters, `/tmp/hsperfdata_USER/PID`, which `jstat` reads too (HotSpot's
//! src/hotspot/share/runtime/perfMemory.hpp; the same since Java 5). The JVM writes it through a mapping, so a file is
//! never quite of one instant.

/// A counter's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A number.
    Long(i64),
    /// A text.
    Text(&'a str),
}

/// First bytes of a file.
const MAGIC: [u8; 4] = [0xca, 0xfe, 0xc0, 0xc0];
/// Version of the form.
const MAJOR: u8 = 2;
/// Where the offset of the first counter stands, and how many there are.
const FIRST_AT: usize = 24;
const COUNT_AT: usize = 28;
/// Counters read at most: a JVM has some 300.
const MAX_COUNTERS: u32 = 4096;
/// Bytes of a counter's head, within it the places of its parts.
const HEAD: usize = 20;
const NAME_AT: usize = 4;
const LENGTH_AT: usize = 8;
const TYPE_AT: usize = 12;
const DATA_AT: usize = 16;

/// Counters of a file, by name; `None` if it is none, or not filled yet, or was read while another JVM began to write it:
/// then it ends before its last counter, and what is missing is not zero.
pub(super) fn counters(bytes: &[u8]) -> Option<impl Iterator<Item = (&str, Value<'_>)>> {
    let is_ready = *bytes.get(7)? != 0;
    if bytes.get(..4)? != MAGIC || *bytes.get(5)? != MAJOR || !is_ready {
        return None;
    }
    let file = File { bytes, is_little: *bytes.get(4)? == 1 };
    let mut at = file.offset(FIRST_AT)?;
    let mut left = file.word(COUNT_AT).filter(|count| *count > 0)?.min(MAX_COUNTERS);
    (0..left).try_fold(at, |at, _| file.end(at))?;
    let next = move || {
        while left > 0 {
            left -= 1;
            let start = at;
            at = file.end(start)?;
            let entry = File { bytes: file.bytes.get(start..at)?, is_little: file.is_little };
            if let Some(counter) = entry.counter() {
                return Some(counter);
            }
        }
        None
    };
    Some(std::iter::from_fn(next))
}

/// Bytes of a file, or of one counter in it.
#[derive(Clone, Copy)]
struct File<'a> {
    bytes: &'a [u8],
    is_little: bool,
}

impl<'a> File<'a> {
    fn word(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if self.is_little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }

    fn offset(&self, at: usize) -> Option<usize> {
        self.word(at)?.try_into().ok()
    }

    /// Where the counter ends that begins here.
    fn end(&self, start: usize) -> Option<usize> {
        let length = self.offset(start).filter(|length| *length >= HEAD)?;
        start.checked_add(length).filter(|end| *end <= self.bytes.len())
    }

    /// The counter that these bytes are; `None` for a type that is not read.
    fn counter(&self) -> Option<(&'a str, Value<'a>)> {
        let name = text(self.bytes.get(self.offset(NAME_AT)?..)?)?;
        let length = self.offset(LENGTH_AT)?;
        let data = self.bytes.get(self.offset(DATA_AT)?..)?;
        let value = match (*self.bytes.get(TYPE_AT)?, length) {
            (b'J', 0) => {
                let bytes = data.get(..8)?.try_into().ok()?;
                let number = if self.is_little {
                    i64::from_le_bytes(bytes)
                } else {
                    i64::from_be_bytes(bytes)
                };
                Value::Long(number)
            }
            (b'B', 1..) => Value::Text(text(data.get(..length)?)?),
            _ => return None,
        };
        Some((name, value))
    }
}

/// Up to the first zero, or all.
fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    str::from_utf8(&bytes[..end]).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file with these counters.
    pub(in crate::limits) fn file(counters: &[(&str, Value<'_>)], is_little: bool) -> Vec<u8> {
        let word = |number: usize| {
            let number = u32::try_from(number).unwrap();
            if is_little { number.to_le_bytes() } else { number.to_be_bytes() }
        };
        let mut bytes = [&MAGIC[..], &[u8::from(is_little), MAJOR, 0, 1], &[0; 16]].concat();
        bytes.extend([word(32), word(counters.len())].concat());
        for (name, value) in counters {
            let name_room = (name.len() + 1).next_multiple_of(8);
            let (kind, length, data) = match value {
                Value::Long(number) if is_little => (b'J', 0, number.to_le_bytes().to_vec()),
                Value::Long(number) => (b'J', 0, number.to_be_bytes().to_vec()),
                Value::Text(text) => (b'B', text.len() + 1, [text.as_bytes(), &[0]].concat()),
            };
            let end = (HEAD + name_room + data.len()).next_multiple_of(4);
            let start = bytes.len();
            bytes.extend([word(end), word(HEAD), word(length)].concat());
            bytes.extend([kind, 0, 1, 1]);
            bytes.extend(word(HEAD + name_room));
            bytes.extend(name.as_bytes());
            bytes.resize(start + HEAD + name_room, 0);
            bytes.extend(data);
            bytes.resize(start + end, 0);
        }
        bytes
    }

    #[test]
    fn counters_of_both_byte_orders() {
        let written = [
            ("sun.gc.collector.1.time", Value::Long(-7)),
            ("java.rt.vmArgs", Value::Text("-Xmx64m")),
            ("sun.gc.cause", Value::Text("")),
        ];
        for is_little in [true, false] {
            let bytes = file(&written, is_little);
            let read: Vec<_> = counters(&bytes).unwrap().collect();
            assert_eq!(read, written);
        }
    }

    #[test]
    fn what_is_no_such_file() {
        let good = file(&[("a", Value::Long(1))], true);
        for (at, byte) in [(0, 0), (5, 1), (7, 0)] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            assert!(counters(&bytes).is_none(), "{at}");
        }
        assert!(counters(&good[..20]).is_none());
        assert!(counters(&good[..40]).is_none(), "cut within the first counter");
    }

    #[test]
    fn a_file_that_changes_while_it_is_read() {
        let (two, three) = (Value::Long(2), Value::Text("three"));
        let old = file(&[("one", Value::Long(1)), ("two", two), ("three", three)], true);
        // The JVM adds a counter, and counts it when it is there.
        let grown = [&old[..], &file(&[("four", Value::Long(4))], true)[32..]].concat();
        assert_eq!(counters(&grown).unwrap().count(), 3);
        // Another begins with a file of zeros, which it fills from the front.
        for cut in 1..old.len() {
            let begun = [&old[..cut], &vec![0; old.len() - cut]].concat();
            let read = counters(&begun).map(Iterator::count);
            assert!(read.is_none_or(|count| (2..=3).contains(&count)), "{cut}: {read:?}");
            assert!(counters(&old[..cut]).is_none(), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20), cut in any::<prop::sample::Index>(), noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = file(&[("one", Value::Long(1)), ("two", Value::Text("text")), ("three", Value::Long(3))], true);
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            for bytes in [bytes, [&MAGIC[..], &[1, MAJOR, 0, 1], &noise].concat()] {
                prop_assert!(counters(&bytes).is_none_or(|all| all.count() <= bytes.len()));
            }
        }
    }
}
