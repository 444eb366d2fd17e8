//! Where a process has its allocator: the file that `malloc` and `free` are in, and at which of its bytes.
//!
//! Looked for in the order in which the dynamic linker does, among the files that may have it: the program, an allocator by
//! its name (jemalloc, tcmalloc, mimalloc), the C library.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use object::{
    Endianness, ReadCache, ReadRef, StringTable,
    elf::{FileHeader64, PT_LOAD, ProgramHeader64, SHT_DYNSYM, SHT_SYMTAB, STT_FUNC},
    read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _, Sym as _},
};

/// Bytes of a symbol table, or of its names, that are read: Node.js has some 20 MiB.
const MAX_TABLE_BYTES: u64 = 128 << 20;

/// A function of the allocator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// malloc(3).
    Malloc,
    /// calloc(3).
    Calloc,
    /// realloc(3).
    Realloc,
    /// free(3).
    Free,
}

/// All of them.
const FUNCTIONS: [(Function, &str); 4] = [
    (Function::Malloc, "malloc"),
    (Function::Calloc, "calloc"),
    (Function::Realloc, "realloc"),
    (Function::Free, "free"),
];

/// Where a probe goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// From the beginning of the file.
    pub offset: u64,
    /// Whether the kernel can carry out the instruction there by itself. Else it steps through a copy, at ten times the cost.
    pub is_emulated: bool,
}

/// The allocator of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocator {
    /// Its file, by a path that leads there from outside the process's mount namespace.
    pub file: PathBuf,
    /// Its functions: `malloc` and `free` at least.
    pub functions: Vec<(Function, Entry)>,
}

/// Finds the allocator of a process that has this mapped (`/proc/PID/maps`).
///
/// # Errors
/// If there is none, it cannot be read, or the process is gone; in a sentence for a person.
pub fn find(pid: u32, maps: &str) -> Result<Allocator> {
    let files = std::iter::once("exe".to_owned()).chain(libraries(maps));
    let files = files.map(|file| PathBuf::from(format!("/proc/{pid}/{file}")));
    let mut looked = Vec::new();
    for file in files {
        match functions(&file) {
            Ok(functions) if !functions.is_empty() => return Ok(Allocator { file, functions }),
            Ok(_) => looked.push(file.display().to_string()),
            Err(error) => looked.push(format!("{}: {error:#}", file.display())),
        }
    }
    bail!("malloc not found in {}", looked.join(", "))
}

/// Files of executable mappings that may have an allocator, those first that come before the C library; from `/proc/PID`.
fn libraries(maps: &str) -> Vec<String> {
    let mut found: Vec<(bool, &str, String)> = Vec::new();
    for line in maps.lines() {
        let mut fields = line.splitn(6, ' ');
        let range = fields.next().unwrap_or_default();
        let is_code = fields.next().is_some_and(|flags| flags.contains('x'));
        let path = fields.nth(3).unwrap_or_default().trim_start();
        let name = path.rsplit('/').next().unwrap_or_default();
        let is_libc = ["libc.so", "libc-", "ld-musl"].iter().any(|start| name.starts_with(start));
        let is_new = !found.iter().any(|(_, known, _)| *known == path);
        if is_code && is_new && path.starts_with('/') && (is_libc || name.contains("malloc")) {
            found.push((is_libc, path, place(range, path)));
        }
    }
    found.sort_by_key(|(is_libc, ..)| *is_libc);
    found.into_iter().map(|(.., place)| place).collect()
}

/// Where a mapped file is, from `/proc/PID`. What was deleted, or replaced as by an upgrade, is not where it was: the path is
/// another's, or nobody's.
fn place(range: &str, path: &str) -> String {
    match range.split_once('-') {
        Some((start, end)) if path.ends_with(" (deleted)") => {
            let plain = |address: &str| address.trim_start_matches('0').to_owned();
            format!("map_files/{}-{}", plain(start), plain(end))
        }
        _ => format!("root{path}"),
    }
}

/// The functions that a file defines; none without `malloc` and `free`.
fn functions(path: &Path) -> Result<Vec<(Function, Entry)>> {
    let file = File::open(path)?;
    let data = ReadCache::new(&file);
    let header = FileHeader64::<Endianness>::parse(&data).context("no 64-bit ELF file")?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, &data)?;
    let addresses = addresses(header, endian, &data)?;
    let mut found = Vec::new();
    for ((function, _), address) in FUNCTIONS.into_iter().zip(addresses) {
        let Some(address) = address else { continue };
        let offset = offset(segments, endian, address).context("a symbol outside of the file")?;
        let mut code = [0; 16];
        let length = file.read_at(&mut code, offset)?;
        found.push((function, entry(function, offset, &code[..length])));
    }
    let has = |function| found.iter().any(|(other, _)| *other == function);
    Ok(if has(Function::Malloc) && has(Function::Free) { found } else { Vec::new() })
}

/// Addresses of [`FUNCTIONS`]. What a program takes from its libraries is not looked for among its private symbols.
fn addresses<'data>(
    header: &FileHeader64<Endianness>,
    endian: Endianness,
    data: impl ReadRef<'data>,
) -> Result<[Option<u64>; FUNCTIONS.len()]> {
    let sections = header.sections(endian, data)?;
    let mut found = [None; FUNCTIONS.len()];
    for kind in [SHT_DYNSYM, SHT_SYMTAB] {
        let table = sections.symbols(endian, data, kind)?;
        if table.is_empty() {
            continue;
        }
        let names = sections.section(table.string_section())?;
        let bytes = names.sh_size(endian).max((table.len() * 24) as u64);
        ensure!(bytes <= MAX_TABLE_BYTES, "a symbol table of {bytes} bytes");
        // At once: a name at a time would be kept one by one.
        let names = names.data(endian, data)?;
        let names = StringTable::new(names, 0, names.len() as u64);
        let mut is_import = false;
        for symbol in table.iter() {
            let Ok(name) = symbol.name(endian, names) else { continue };
            let Some(at) = FUNCTIONS.iter().position(|(_, of)| of.as_bytes() == name) else {
                continue;
            };
            let is_ours = symbol.is_definition(endian, names) && symbol.st_type() == STT_FUNC;
            is_import |= symbol.is_undefined(endian);
            if is_ours && !symbol.is_local() {
                found[at] = Some(symbol.st_value(endian));
            }
        }
        if is_import || found[0].is_some() {
            break;
        }
    }
    Ok(found)
}

/// Where in the file an address is.
fn offset(
    segments: &[ProgramHeader64<Endianness>],
    endian: Endianness,
    address: u64,
) -> Option<u64> {
    let within = |segment: &&ProgramHeader64<Endianness>| {
        let start = segment.p_vaddr(endian);
        segment.p_type(endian) == PT_LOAD
            && (start..start.saturating_add(segment.p_filesz(endian))).contains(&address)
    };
    let segment = segments.iter().find(within)?;
    (address - segment.p_vaddr(endian)).checked_add(segment.p_offset(endian))
}

/// ENDBR64, with which functions begin where control flow is guarded.
const LANDING: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
/// `test %rdi, %rdi`.
const TEST: [u8; 3] = [0x48, 0x85, 0xff];

/// The first instruction of a function that the kernel carries out by itself, if that is near enough: behind its landing pad,
/// and of `free` behind the check for null, which changes no argument.
fn entry(function: Function, offset: u64, code: &[u8]) -> Entry {
    let first = Entry { offset, is_emulated: false };
    if cfg!(not(target_arch = "x86_64")) {
        return first;
    }
    let mut rest = code.strip_prefix(&LANDING).unwrap_or(code);
    if function == Function::Free
        && let Some(jump) = rest.strip_prefix(&TEST)
    {
        rest = match jump {
            [0x74, _, rest @ ..] | [0x0f, 0x84, _, _, _, _, rest @ ..] => rest,
            _ => rest,
        };
    }
    // push, nop, jmp (arch/x86/kernel/uprobes.c: push_setup_xol_ops, branch_setup_xol_ops).
    match rest {
        [0x50..=0x57 | 0x90 | 0xe9 | 0xeb, ..] | [0x41, 0x50..=0x57, ..] => {
            let skipped = (code.len() - rest.len()) as u64;
            Entry { offset: offset.saturating_add(skipped), is_emulated: true }
        }
        _ => first,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

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
        let error = functions(Path::new("/proc/self/status")).unwrap_err();
        assert!(format!("{error:#}").contains("no 64-bit ELF file"), "{error:#}");
    }
}
