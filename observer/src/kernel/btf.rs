//! A small reader of BTF (Documentation/bpf/btf.rst): finds members of structures and parameters of tracepoints in the
//! kernel's own type information without keeping it.

use thiserror::Error;

/// Why a BTF blob cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    /// Not BTF, or of another byte order.
    #[error("it does not start with the BTF magic number 0xeb9f in this machine's byte order")]
    Magic,
    /// A section or type reaches beyond the end.
    #[error("it is cut short or damaged at byte {0}")]
    Damaged(usize),
}

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
/// Deepest nesting of anonymous members followed; the kernel's own stay below ten.
const MAX_DEPTH: u32 = 16;

/// Parsed index over a BTF blob.
pub struct Btf<'a> {
    data: &'a [u8],
    strings: &'a [u8],
    /// Byte offset of each type, by id; id 0 is void.
    types: Vec<u32>,
}

/// A type record.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    /// Number of members or parameters.
    count: usize,
    /// Whether member offsets carry a bit-field size.
    bit_fields: bool,
    /// Size or referred type.
    size_or_type: u32,
    /// Offset of what follows the record.
    body: usize,
}

/// Place of a member within a structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Offset in bits.
    pub bit_offset: u32,
    /// Size in bits of a bit field, else 0.
    pub bits: u32,
    /// Its type.
    type_id: u32,
}

impl<'a> Btf<'a> {
    /// Reads the header and indexes the types.
    ///
    /// # Errors
    /// [`BtfError`] if the blob is not whole.
    pub fn parse(data: &'a [u8]) -> Result<Self, BtfError> {
        if read_u16(data, 0)? != 0xeb9f {
            return Err(BtfError::Magic);
        }
        let header = read_u32(data, 4)? as usize;
        let section = |at: usize| -> Result<&'a [u8], BtfError> {
            let start = header.saturating_add(read_u32(data, at)? as usize);
            let end = start.saturating_add(read_u32(data, at + 4)? as usize);
            data.get(start..end).ok_or(BtfError::Damaged(at))
        };
        let (records, strings) = (section(8)?, section(16)?);
        let mut btf = Self { data: records, strings, types: vec![0] };
        let mut at = 0;
        while at < records.len() {
            btf.types.push(u32::try_from(at).map_err(|_e| BtfError::Damaged(at))?);
            at = btf.record(at)?.end()?;
        }
        Ok(btf)
    }

    fn record(&self, at: usize) -> Result<Type, BtfError> {
        let info = read_u32(self.data, at + 4)?;
        Ok(Type {
            name: read_u32(self.data, at)?,
            kind: (info >> 24) & 0x1f,
            count: (info & 0xffff) as usize,
            bit_fields: info >> 31 != 0,
            size_or_type: read_u32(self.data, at + 8)?,
            body: at + 12,
        })
    }

    fn by_id(&self, id: u32) -> Option<Type> {
        self.record(*self.types.get(id as usize)? as usize).ok()
    }

    fn name_is(&self, name: u32, wanted: &str) -> bool {
        let Some(tail) = self.strings.get(name as usize..) else { return false };
        tail.strip_prefix(wanted.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    fn find(&self, name: &str, kinds: &[u32]) -> Option<Type> {
        self.by_id(self.find_id(name, kinds)?)
    }

    fn find_id(&self, name: &str, kinds: &[u32]) -> Option<u32> {
        let wanted = |id: &u32| {
            self.by_id(*id).is_some_and(|ty| {
                kinds.contains(&ty.kind)
                    && self.name_is(ty.name, name)
                    && !(ty.kind == KIND_STRUCT && ty.count == 0)
            })
        };
        (1..u32::try_from(self.types.len()).unwrap_or(u32::MAX)).find(wanted)
    }

    /// Type id of a kernel function; `None` if it does not exist or was inlined everywhere.
    pub fn function_id(&self, name: &str) -> Option<u32> {
        self.find_id(name, &[KIND_FUNC])
    }

    /// Type id of a tracepoint, which a BTF-typed program names as its hook.
    pub fn tracepoint_id(&self, name: &str) -> Option<u32> {
        self.find_id(&format!("btf_trace_{name}"), &[KIND_TYPEDEF])
    }

    /// Follows typedefs and qualifiers to a structure.
    fn resolve(&self, mut id: u32) -> Option<Type> {
        for _ in 0..MAX_DEPTH {
            let ty = self.by_id(id)?;
            match ty.kind {
                8..=11 | 18 => id = ty.size_or_type,
                _ => return Some(ty),
            }
        }
        None
    }

    /// Finds `a.b.c` in a structure, looking into anonymous members. `a|b` means whichever exists.
    pub fn member(&self, structure: &str, path: &str) -> Option<Member> {
        let root = self.find(structure, &[KIND_STRUCT, KIND_UNION])?;
        path.split('|').find_map(|path| {
            let mut found = Member { bit_offset: 0, bits: 0, type_id: 0 };
            let mut within = root;
            for (depth, name) in path.split('.').enumerate() {
                if depth > 0 {
                    within = self.resolve(found.type_id)?;
                }
                let inner = self.member_of(within, name, MAX_DEPTH)?;
                found = Member { bit_offset: found.bit_offset + inner.bit_offset, ..inner };
            }
            Some(found)
        })
    }

    fn member_of(&self, ty: Type, name: &str, depth: u32) -> Option<Member> {
        if depth == 0 || name.is_empty() || !matches!(ty.kind, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        (0..ty.count).find_map(|index| {
            let at = ty.body + index * 12;
            let offset = read_u32(self.data, at + 8).ok()?;
            let (bit_offset, bits) =
                if ty.bit_fields { (offset & 0x00ff_ffff, offset >> 24) } else { (offset, 0) };
            let found = Member { bit_offset, bits, type_id: read_u32(self.data, at + 4).ok()? };
            let member_name = read_u32(self.data, at).ok()?;
            if self.name_is(member_name, name) {
                return Some(found);
            }
            let anonymous = self.strings.get(member_name as usize) == Some(&0);
            let inner = anonymous
                .then(|| self.member_of(self.resolve(found.type_id)?, name, depth - 1))??;
            Some(Member { bit_offset: bit_offset + inner.bit_offset, ..inner })
        })
    }

    /// Size in bytes of a structure.
    pub fn size(&self, structure: &str) -> Option<u32> {
        Some(self.find(structure, &[KIND_STRUCT])?.size_or_type)
    }

    /// Whether an enumeration has this name among its values.
    pub fn has_value(&self, enumeration: &str, value: &str) -> bool {
        // A value is its name and a number of 4 bytes.
        const VALUE_BYTES: usize = 8;
        self.find(enumeration, &[KIND_ENUM]).is_some_and(|ty| {
            let mut names =
                (0..ty.count).map(|index| read_u32(self.data, ty.body + index * VALUE_BYTES));
            names.any(|name| name.is_ok_and(|name| self.name_is(name, value)))
        })
    }

    /// Size in bytes of one element of an array member; `None` if it is no array of structures.
    pub fn element_size(&self, member: Member) -> Option<u32> {
        const KIND_ARRAY: u32 = 3;
        let array = self.resolve(member.type_id).filter(|ty| ty.kind == KIND_ARRAY)?;
        let element = self.resolve(read_u32(self.data, array.body).ok()?)?;
        Some(element.size_or_type)
    }

    /// Whether each parameter of a tracepoint, without the leading data pointer, is a pointer; `None` if there is no such
    /// tracepoint.
    pub fn tracepoint_parameters(&self, name: &str) -> Option<Vec<bool>> {
        const KIND_POINTER: u32 = 2;
        let function = self.tracepoint(name)?;
        let parameter = |index: usize| {
            let id = read_u32(self.data, function.body + index * 8 + 4).ok()?;
            Some(self.resolve(id)?.kind == KIND_POINTER)
        };
        Some((1..function.count).map(|index| parameter(index).unwrap_or(false)).collect())
    }

    fn tracepoint(&self, name: &str) -> Option<Type> {
        let typedef = self.find(&format!("btf_trace_{name}"), &[KIND_TYPEDEF])?;
        let pointer = self.by_id(typedef.size_or_type)?;
        self.by_id(pointer.size_or_type).filter(|ty| ty.kind == KIND_FUNC_PROTO)
    }
}

impl Type {
    /// Offset of the next record (include/uapi/linux/btf.h).
    fn end(self) -> Result<usize, BtfError> {
        let extra = match self.kind {
            1 | 14 | 17 => 4,
            3 => 12,
            KIND_STRUCT | KIND_UNION | 15 | 19 => 12 * self.count,
            KIND_ENUM | KIND_FUNC_PROTO => 8 * self.count,
            2 | 7..=12 | 16 | 18 => 0,
            _ => return Err(BtfError::Damaged(self.body)),
        };
        Ok(self.body + extra)
    }
}

fn read_u32(data: &[u8], at: usize) -> Result<u32, BtfError> {
    let bytes = data.get(at..).and_then(|tail| tail.first_chunk()).ok_or(BtfError::Damaged(at))?;
    Ok(u32::from_ne_bytes(*bytes))
}

fn read_u16(data: &[u8], at: usize) -> Result<u16, BtfError> {
    let bytes = data.get(at..).and_then(|tail| tail.first_chunk()).ok_or(BtfError::Damaged(at))?;
    Ok(u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// struct outer { int a; union { struct inner { long b; } c; }; int d : 3; } and enum colour { red, blue } as BTF.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0a\0inner\0b\0c\0outer\0d\0colour\0red\0blue\0";
        let name = |text: &str| {
            strings
                .windows(text.len() + 2)
                .position(|w| w == [b"\0", text.as_bytes(), b"\0"].concat())
                .unwrap() as u32
                + 1
        };
        let mut types: Vec<u32> = Vec::new();
        types.extend([name("int"), 1 << 24, 4, 32]); // 1
        types.extend([name("inner"), 4 << 24 | 1, 8, name("b"), 1, 64]); // 2
        types.extend([0, 5 << 24 | 1, 8, name("c"), 2, 0]); // 3
        types.extend([name("outer"), 1 << 31 | 4 << 24 | 3, 32]); // 4
        types.extend([name("a"), 1, 0, 0, 3, 64, name("d"), 1, 3 << 24 | 133]);
        types.extend([name("colour"), 6 << 24 | 2, 4, name("red"), 0, name("blue"), 1]); // 5
        let mut blob = Vec::new();
        blob.extend(0xeb9f_u16.to_ne_bytes());
        blob.extend([1, 0]);
        for word in [24, 0, types.len() as u32 * 4, types.len() as u32 * 4, strings.len() as u32] {
            blob.extend(word.to_ne_bytes());
        }
        types.iter().for_each(|word| blob.extend(word.to_ne_bytes()));
        blob.extend(strings);
        blob
    }

    #[test]
    fn members_are_found_through_anonymous_ones() {
        let blob = sample();
        let btf = Btf::parse(&blob).unwrap();
        let check = |path: &str, expect: Option<(u32, u32)>| {
            assert_eq!(btf.member("outer", path).map(|m| (m.bit_offset, m.bits)), expect, "{path}");
        };
        check("a", Some((0, 0)));
        check("c.b", Some((128, 0)));
        check("missing|c", Some((64, 0)));
        check("d", Some((133, 3)));
        check("c.missing", None);
        check("", None);
    }

    #[test]
    fn values_of_enumerations_are_found() {
        let blob = sample();
        let btf = Btf::parse(&blob).unwrap();
        assert!(btf.has_value("colour", "blue"));
        assert!(!btf.has_value("colour", "green"));
        assert!(!btf.has_value("outer", "a"));
        assert_eq!((btf.size("outer"), btf.size("colour")), (Some(32), None));
    }

    proptest::proptest! {
        #[test]
        fn damage_is_an_error_or_absence_never_a_panic(at in 0_usize..200, value: u8, cut in 0_usize..250) {
            let mut blob = sample();
            if let Some(byte) = blob.get_mut(at) { *byte = value; }
            blob.truncate(cut);
            if let Ok(btf) = Btf::parse(&blob) {
                btf.member("outer", "c.b");
                btf.tracepoint_parameters("x");
                btf.has_value("colour", "red");
            }
        }
    }
}
