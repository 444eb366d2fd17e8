//! Where malloc is, in files as they are and as they should not be.

use std::{
    fs,
    io::{self, Cursor, Read, Seek, SeekFrom},
};

use proptest::{prelude::*, sample::Index};

use super::*;

#[test]
fn files_that_may_have_an_allocator() {
    let maps = "\
1000-2000 r-xp 00000000 08:01 1                          /app/server
7000-9000 r--p 00000000 08:01 2                          /usr/lib/libc.so.6
7000-9000 r-xp 00000000 08:01 2                          /usr/lib/libc.so.6
9000-a000 r-xp 00000000 08:01 3                          /usr/lib/libcap.so.2
a000-b000 r-xp 00000000 00:00 0
b000-c000 r-xp 00000000 08:01 4                          /usr/lib/libjemalloc.so.2
c000-d000 r-xp 00000000 08:01 4                          /usr/lib/libjemalloc.so.2
";
    assert_eq!(libraries(maps), ["root/usr/lib/libjemalloc.so.2", "root/usr/lib/libc.so.6"]);
    let musl = "/lib/ld-musl-x86_64.so.1";
    assert_eq!(libraries(&format!("1-2 r-xp 0 0 0 {musl}")), [format!("root{musl}")]);
    let replaced = "00401000-7fff00 r-xp 0 0 0   /lib/libc.so.6 (deleted)";
    assert_eq!(libraries(replaced), ["map_files/401000-7fff00"]);
    assert!(libraries("nonsense\n\n- r-xp").is_empty());
}

#[test]
#[cfg(target_arch = "x86_64")]
fn where_a_probe_costs_least() {
    #[track_caller]
    fn check(function: Function, code: &[u8], skipped: u64, is_emulated: bool) {
        assert_eq!(entry(function, 100, code), Entry { offset: 100 + skipped, is_emulated });
    }
    let (near, far) = (&[0x74, 0x20][..], &[0x0f, 0x84, 1, 2, 3, 4][..]);
    check(Function::Malloc, &[0x41, 0x54, 0x55], 0, true);
    check(Function::Malloc, &[&LANDING[..], &[0x55]].concat(), 4, true);
    check(Function::Malloc, &[0x48, 0x83, 0xec, 0x18], 0, false);
    check(Function::Free, &[&TEST[..], far, &[0x55]].concat(), 9, true);
    check(Function::Free, &[&LANDING[..], &TEST, near, &[0x41, 0x55]].concat(), 9, true);
    check(Function::Free, &[&TEST[..], near, &[0x48, 0x8b]].concat(), 0, false);
    check(Function::Free, &[&TEST[..], &[0x75, 2, 0x55]].concat(), 0, false);
    check(Function::Malloc, &[&TEST[..], near, &[0x55]].concat(), 0, false);
    check(Function::Free, &[], 0, false);
}

#[test]
fn ours_is_found() {
    let found = find(std::process::id(), &fs::read_to_string("/proc/self/maps").unwrap());
    let found = found.unwrap();
    assert_eq!(found.functions.len(), FUNCTIONS.len(), "{found:?}");
    let gone = find(u32::MAX >> 1, "").unwrap_err();
    assert!(format!("{gone:#}").contains("No such file"), "{gone:#}");
}

#[test]
fn what_is_no_program_says_so() {
    let error = functions(File::open("/proc/self/status").unwrap()).unwrap_err();
    assert!(format!("{error:#}").contains("no 64-bit ELF file"), "{error:#}");
}

/// Where the parts of [`library`] begin.
const SEGMENTS: usize = 64;
const SECTIONS: usize = 128;
const SYMBOLS: usize = SECTIONS + 4 * 64;
const NAMES: usize = SYMBOLS + 5 * 24;
const CODE: usize = 640;
/// Fields of a section's header.
const OFFSET: usize = 24;
const SIZE: usize = 32;
const LINK: usize = 40;

/// Writes a number of so many bytes.
fn put(file: &mut [u8], at: usize, bytes: usize, value: u64) {
    file[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
}

/// A C library with the four functions, `free` in two symbols' time behind `malloc`: the smallest file that has all parts.
fn library() -> Vec<u8> {
    const TEXT: &[u8] = b"\0malloc\0calloc\0realloc\0free\0";
    let mut file = vec![0; CODE + 4 * CODE_BYTES as usize];
    file[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
    // Type, machine, version; offsets of segments and sections; sizes and numbers of all.
    for (at, bytes, value) in [
        (16, 2, 3),
        (18, 2, 62),
        (20, 4, 1),
        (32, 8, SEGMENTS as u64),
        (40, 8, SECTIONS as u64),
        (52, 2, 64),
        (54, 2, 56),
        (56, 2, 1),
        (58, 2, 64),
        (60, 2, 4),
        (62, 2, 3),
    ] {
        put(&mut file, at, bytes, value);
    }
    let end = file.len() as u64;
    for (at, bytes, value) in [(0, 4, 1), (4, 4, 5), (16, 8, 0x1000), (32, 8, end), (40, 8, end)] {
        put(&mut file, SEGMENTS + at, bytes, value);
    }
    // Symbols, their names, and the names of sections, which are the same.
    let sections = [(11, SYMBOLS, 5 * 24, 2), (3, NAMES, TEXT.len(), 0), (3, NAMES, TEXT.len(), 0)];
    for (index, (kind, offset, size, link)) in sections.into_iter().enumerate() {
        let header = SECTIONS + (index + 1) * 64;
        put(&mut file, header + 4, 4, kind);
        put(&mut file, header + OFFSET, 8, offset as u64);
        put(&mut file, header + SIZE, 8, size as u64);
        put(&mut file, header + LINK, 4, link);
        put(&mut file, header + 56, 8, if kind == 11 { 24 } else { 0 });
    }
    file[NAMES..NAMES + TEXT.len()].copy_from_slice(TEXT);
    for (index, name) in [1, 8, 15, 23].into_iter().enumerate() {
        let symbol = SYMBOLS + (index + 1) * 24;
        put(&mut file, symbol, 4, name);
        // A global function of some section.
        (file[symbol + 4], file[symbol + 6]) = (0x12, 1);
        put(&mut file, symbol + 8, 8, (0x1000 + CODE + index * CODE_BYTES as usize) as u64);
        file[CODE + index * CODE_BYTES as usize] = 0x55;
    }
    file
}

/// The functions of such a library after this was done to it.
fn of_damaged(damage: impl FnOnce(&mut Vec<u8>)) -> Result<Vec<(Function, Entry)>> {
    let mut file = library();
    damage(&mut file);
    functions(Cursor::new(file))
}

#[test]
fn what_is_malformed_says_how() {
    let whole = of_damaged(|_| ()).unwrap();
    let offsets: Vec<u64> = whole.iter().map(|(_, entry)| entry.offset).collect();
    assert_eq!(offsets, [640, 656, 672, 688]);

    #[track_caller]
    fn check(expect: &str, damage: impl FnOnce(&mut Vec<u8>)) {
        let told = match of_damaged(damage) {
            Ok(found) => format!("found {}", found.len()),
            Err(error) => format!("{error:#}"),
        };
        assert!(told.contains(expect), "{told}, not {expect}");
    }
    let section = |index: usize| SECTIONS + index * 64;
    // Truncated.
    check("no 64-bit ELF file", |file| file.clear());
    check("no 64-bit ELF file", |file| file.truncate(63));
    check("program header", |file| file.truncate(SEGMENTS + 55));
    check("section header", |file| file.truncate(SECTIONS + 3 * 64));
    check("symbol table", |file| file.truncate(SYMBOLS + 24));
    check("malloc is outside of the file", |file| file.truncate(CODE));
    check("found 4", |file| file.truncate(CODE + 3 * CODE_BYTES as usize + 1));
    // Of another class, of a byte order that does not exist.
    check("no 64-bit ELF file", |file| file[4] = 1);
    check("no 64-bit ELF file", |file| file[5] = 3);
    // More headers than there is file, also by the field for those that are too many.
    check("section header", |file| put(file, 60, 2, 0xffff));
    check("section header", |file| {
        put(file, 60, 2, 0);
        put(file, section(0) + SIZE, 8, u64::MAX / 64);
    });
    check("program header", |file| put(file, 56, 2, 0xfffe));
    check("section header", |file| put(file, 40, 8, u64::MAX - 8));
    // Symbols, and their names, out of bounds; names without an end.
    check("symbol table", |file| put(file, section(1) + OFFSET, 8, 1 << 40));
    check("symbol table", |file| put(file, section(1) + SIZE, 8, u64::MAX - 23));
    check("section", |file| put(file, section(1) + LINK, 4, 9));
    check("section", |file| put(file, section(2) + OFFSET, 8, u64::MAX));
    check("found 0", |file| put(file, section(2) + SIZE, 8, 27));
    check("found 0", |file| put(file, SYMBOLS + 24, 4, u32::MAX.into()));
    // Functions that are not in the file.
    check("malloc is outside of the file", |file| put(file, SYMBOLS + 24 + 8, 8, u64::MAX));
    check("malloc is outside of the file", |file| put(file, SEGMENTS + 8, 8, u64::MAX - 0x1000));
}

/// A file that has a hole of so many bytes behind it.
struct Sparse(Cursor<Vec<u8>>, u64);

impl Read for Sparse {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match Read::read(&mut self.0, bytes)? {
            0 => {
                bytes.fill(0);
                Ok(bytes.len())
            }
            read => Ok(read),
        }
    }
}

impl Seek for Sparse {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match to {
            SeekFrom::End(_) => Ok(self.1),
            to => Seek::seek(&mut self.0, to),
        }
    }
}

#[test]
fn a_file_does_not_say_how_much_memory_is_taken() {
    #[track_caller]
    fn check(damage: impl FnOnce(&mut Vec<u8>)) {
        let mut file = library();
        damage(&mut file);
        let error = functions(Sparse(Cursor::new(file), 1 << 50)).unwrap_err();
        assert!(error.to_string().contains("more than the 128 MiB"), "{error:#}");
    }
    let section = |index: usize| SECTIONS + index * 64;
    check(|file| put(file, section(1) + SIZE, 8, 24 << 40));
    check(|file| put(file, section(2) + SIZE, 8, 1 << 49));
    check(|file| {
        put(file, 60, 2, 0);
        put(file, section(0) + SIZE, 8, 1 << 40);
    });
    // Each within its bound, but not all: what belongs to symbols of many sections, a table each.
    check(|file| {
        put(file, 60, 2, 0x100);
        let at = 1 << 16;
        file.resize(at + 0x100 * 64, 0);
        let headers: Vec<u8> = file[SECTIONS..SECTIONS + 4 * 64].to_vec();
        file[at..at + headers.len()].copy_from_slice(&headers);
        put(file, 40, 8, at as u64);
        for index in 4..0x100 {
            put(file, at + index * 64 + 4, 4, 18);
            put(file, at + index * 64 + OFFSET, 8, index as u64);
            put(file, at + index * 64 + SIZE, 8, 65 << 20);
            put(file, at + index * 64 + LINK, 4, 1);
        }
    });
}

proptest! {
    /// Never a panic, and never a place outside of the file.
    #[test]
    fn damaged_files_are_refused_or_read(
        damages in prop::collection::vec((any::<Index>(), prop_oneof![any::<u8>(), Just(0), Just(255)]), 0..12),
        fields in prop::collection::vec((0_usize..80, prop_oneof![any::<u64>(), 0_u64..1024, Just(u64::MAX)]), 0..3),
        length in prop::option::of(any::<Index>()),
    ) {
        let mut file = library();
        // Words of the headers and tables, which is where it hurts.
        for (word, value) in fields {
            put(&mut file, word * 8, 8, value);
        }
        for (at, byte) in damages {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Some(length) = length {
            file.truncate(length.index(file.len()));
        }
        let length = file.len() as u64;
        match functions(Cursor::new(file)) {
            Ok(found) => prop_assert!(found.iter().all(|(_, entry)| entry.offset < length), "{found:?}"),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let file = [&[0x7f, b'E', b'L', b'F', 2, 1, 1][..], &bytes].concat();
        drop(functions(Cursor::new(bytes)));
        drop(functions(Cursor::new(file)));
    }
}
