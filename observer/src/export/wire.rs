//! Protobuf's wire format (protobuf.dev/programming-guides/encoding), as much of it as OTLP needs.
//!
//! [`Writer`] fills its buffer from the end towards the front: when a nested message is complete its length is known, so
//! there is no first pass over the data, nothing is patched or moved, and every length is as short as protobuf allows.
//! The price: fields are written in descending order, and lists from their last element to the first.

/// Lengths below this, and tags of fields below 16, take one byte.
pub const ONE_BYTE: usize = 0x80;

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// Tag of a field with text, bytes or a message, for numbers below 16.
#[inline]
pub const fn bytes_tag(field: u8) -> u8 {
    field << 3 | BYTES as u8
}

/// Tag of a `fixed64`, `sfixed64` or `double`, for numbers below 16.
#[inline]
pub const fn fixed64_tag(field: u8) -> u8 {
    field << 3 | FIXED64 as u8
}

/// Tag of an integer, for numbers below 16.
#[inline]
pub const fn varint_tag(field: u8) -> u8 {
    field << 3 | VARINT as u8
}

/// Longest varint.
pub const MAX_VARINT: usize = 10;

/// A number as a varint, in `bytes`.
#[inline]
pub fn varint_of(mut value: u64, bytes: &mut [u8; MAX_VARINT]) -> &[u8] {
    let mut len = 1;
    for byte in bytes.iter_mut() {
        *byte = value as u8 & 0x7f;
        value >>= 7;
        if value == 0 {
            break;
        }
        *byte |= 0x80;
        len += 1;
    }
    &bytes[..len]
}

/// First allocation of a [`Writer`]: holds a quiet tick's request.
const INITIAL_BYTES: usize = 64 * 1024;

/// Writes messages back to front into one buffer that is kept for the next message.
#[derive(Debug, Default)]
pub struct Writer {
    buffer: Vec<u8>,
    /// What is written is `buffer[at..]`.
    at: usize,
}

impl Writer {
    /// Forgets what was written, keeps the memory.
    pub fn clear(&mut self) {
        self.at = self.buffer.len();
    }

    /// The message.
    pub fn written(&self) -> &[u8] {
        self.buffer.get(self.at..).unwrap_or_default()
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.buffer.len() - self.at
    }

    /// Whether nothing is written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes back everything written since [`Self::len`] was `len`.
    pub fn rewind(&mut self, len: usize) {
        self.at = self.buffer.len().saturating_sub(len).max(self.at);
    }

    fn grow(&mut self, more: usize) {
        let len = self.len();
        let size = (self.buffer.len() * 2).max(len + more).max(INITIAL_BYTES);
        let mut buffer = vec![0; size];
        buffer[size - len..].copy_from_slice(self.written());
        self.buffer = buffer;
        self.at = size - len;
    }

    /// Room for `n` bytes in front of what is written; the caller fills all of it.
    #[inline]
    pub fn front(&mut self, n: usize) -> &mut [u8] {
        if self.at < n {
            self.grow(n);
        }
        let end = self.at;
        self.at -= n;
        &mut self.buffer[self.at..end]
    }

    /// Bytes as they are, such as fields encoded earlier.
    #[inline]
    pub fn raw(&mut self, bytes: &[u8]) {
        self.front(bytes.len()).copy_from_slice(bytes);
    }

    #[inline]
    fn varint(&mut self, value: u64) {
        if value < ONE_BYTE as u64 {
            self.front(1)[0] = value as u8;
        } else {
            self.raw(varint_of(value, &mut [0; MAX_VARINT]));
        }
    }

    #[inline]
    fn tag(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    /// An integer or enumeration; left out if 0, as all plain fields of proto3 are.
    #[inline]
    pub fn uint(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.uint_always(field, value);
        }
    }

    /// An integer that is written even if 0 (member of a `oneof`).
    #[inline]
    pub fn uint_always(&mut self, field: u64, value: u64) {
        self.varint(value);
        self.tag(field, VARINT);
    }

    /// A `fixed64`; left out if 0.
    #[inline]
    pub fn fixed64(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.fixed64_always(field, value);
        }
    }

    /// A `fixed64`, `sfixed64` or `double` (its bits) that is written even if 0.
    #[inline]
    pub fn fixed64_always(&mut self, field: u64, value: u64) {
        self.raw(&value.to_le_bytes());
        self.tag(field, FIXED64);
    }

    /// A `repeated fixed64` or `repeated double` in packed form; left out if empty.
    pub fn packed(&mut self, field: u64, values: impl DoubleEndedIterator<Item = u64>) {
        let since = self.len();
        values.rev().for_each(|value| self.raw(&value.to_le_bytes()));
        if self.len() > since {
            self.close(field, since);
        }
    }

    /// Text or bytes; left out if empty.
    #[inline]
    pub fn bytes(&mut self, field: u64, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.bytes_always(field, bytes);
        }
    }

    /// Text or bytes that are written even if empty.
    #[inline]
    pub fn bytes_always(&mut self, field: u64, bytes: &[u8]) {
        self.raw(bytes);
        self.varint(bytes.len() as u64);
        self.tag(field, BYTES);
    }

    /// A nested message, written even if empty.
    #[inline]
    pub fn message(&mut self, field: u64, body: impl FnOnce(&mut Self)) {
        let since = self.len();
        body(self);
        self.close(field, since);
    }

    /// Makes what was written since [`Self::len`] was `since` a nested message.
    #[inline]
    pub fn close(&mut self, field: u64, since: usize) {
        self.varint((self.len() - since) as u64);
        self.tag(field, BYTES);
    }
}

/// One field of a message. Numbers of fixed width are not told apart from each other further.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Field<'a> {
    /// Integer, enumeration or truth value.
    Uint(u64),
    /// 64 bits.
    Fixed64(u64),
    /// 32 bits.
    Fixed32(u32),
    /// Text, bytes, nested message or packed list.
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    /// Its bytes, if it has any.
    pub fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }
}

/// Not a protobuf message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a protobuf message")]
pub struct Malformed;

/// Iterates over the fields of an encoded message; ends after the first malformed one.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Fields of `message`.
    pub fn of(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.rest.split_at_checked(n).ok_or(Malformed)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.first_chunk().copied().ok_or(Malformed)
    }

    fn field(&mut self) -> Result<(u64, Field<'a>), Malformed> {
        let tag = self.varint()?;
        let field = match tag & 7 {
            VARINT => Field::Uint(self.varint()?),
            FIXED64 => Field::Fixed64(u64::from_le_bytes(self.fixed()?)),
            FIXED32 => Field::Fixed32(u32::from_le_bytes(self.fixed()?)),
            BYTES => {
                let len = self.varint()?;
                Field::Bytes(self.take(usize::try_from(len).unwrap_or(usize::MAX))?)
            }
            _ => return Err(Malformed),
        };
        Ok((tag >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn fields_are_read_as_written(a in any::<u64>(), b in any::<u64>(), text in ".{0,300}", list in prop::collection::vec(any::<u64>(), 0..40)) {
            let mut writer = Writer::default();
            writer.message(2000, |w| {
                w.packed(4, list.iter().copied());
                w.bytes_always(3, text.as_bytes());
                w.fixed64_always(2, b);
                w.uint_always(1, a);
            });
            let outer: Vec<_> = Fields::of(writer.written()).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(outer.len(), 1);
            prop_assert_eq!(outer[0].0, 2000);
            let inner: Vec<_> = Fields::of(outer[0].1.bytes().unwrap()).collect::<Result<_, _>>().unwrap();
            let packed: Vec<u8> = list.iter().flat_map(|n| n.to_le_bytes()).collect();
            let mut want = vec![(1, Field::Uint(a)), (2, Field::Fixed64(b)), (3, Field::Bytes(text.as_bytes()))];
            if !list.is_empty() {
                want.push((4, Field::Bytes(&packed)));
            }
            prop_assert_eq!(inner, want);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Fields::of(&bytes).count() <= bytes.len());
        }
    }

    #[test]
    fn rewinding_takes_back_what_was_written_last() {
        let mut writer = Writer::default();
        writer.uint(1, 7);
        let kept = writer.written().to_vec();
        let len = writer.len();
        writer.bytes(2, &vec![1; 3 * INITIAL_BYTES]);
        writer.rewind(len);
        assert_eq!(writer.written(), kept);
        writer.clear();
        assert!(writer.is_empty());
    }
}
