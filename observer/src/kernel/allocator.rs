//! Where a process has its allocator: the file that `malloc` and `free` are in, and at which of its bytes.
//!
//! Looked for in the order in which the dynamic linker does, among the files that may have it: the program, an allocator by
//! its name (jemalloc, tcmalloc, mimalloc), the C library.

use std::{cell::Cell, fs::File, ops::Range, path::PathBuf};

use anyhow::{Context as _, Error, Result, anyhow, bail};
use object::{
    Endianness, ReadCache, ReadCacheOps, ReadRef, StringTable,
    elf::{FileHeader64, PT_LOAD, ProgramHeader64, SHT_DYNSYM, SHT_SYMTAB, STT_FUNC},
    read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _, Sym as _},
};

/// Bytes of a file that are read: the tables of a Node.js have some 20 MiB.
const MAX_READ_BYTES: u64 = 128 << 20;
/// Bytes of a function that are looked at.
const CODE_BYTES: u64 = 16;

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
        match File::open(&file).map_err(Error::new).and_then(functions) {
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
fn functions(file: impl ReadCacheOps) -> Result<Vec<(Function, Entry)>> {
    let (data, wanted_bytes) = (ReadCache::new(file), Cell::new(0));
    let data = Bounded { data: &data, wanted_bytes: &wanted_bytes };
    functions_in(data).map_err(|error| match wanted_bytes.get() {
        wanted if wanted > MAX_READ_BYTES => {
            anyhow!(
                "its tables would take more than the {} MiB that are read",
                MAX_READ_BYTES >> 20
            )
        }
        _ => error,
    })
}

/// Likewise.
fn functions_in<'data>(data: impl ReadRef<'data>) -> Result<Vec<(Function, Entry)>> {
    let header = FileHeader64::<Endianness>::parse(data).context("no 64-bit ELF file")?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, data)?;
    let addresses = addresses(header, endian, data)?;
    let mut found = Vec::new();
    for ((function, name), address) in FUNCTIONS.into_iter().zip(addresses) {
        let Some(address) = address else { continue };
        let code = offset(segments, endian, address)
            .and_then(|offset| Some((offset, code(data, offset)?)))
            .with_context(|| format!("its {name} is outside of the file"))?;
        found.push((function, entry(function, code.0, code.1)));
    }
    let has = |function| found.iter().any(|(other, _)| *other == function);
    Ok(if has(Function::Malloc) && has(Function::Free) { found } else { Vec::new() })
}

/// The first bytes of a function.
fn code<'data>(data: impl ReadRef<'data>, offset: u64) -> Option<&'data [u8]> {
    let left = data.len().ok()?.checked_sub(offset).filter(|left| *left > 0)?;
    data.read_bytes_at(offset, left.min(CODE_BYTES)).ok()
}

/// A file of which no more than [`MAX_READ_BYTES`] are read: how long its tables are, and how many, is only its own word.
#[derive(Clone, Copy)]
struct Bounded<'budget, R> {
    data: R,
    wanted_bytes: &'budget Cell<u64>,
}

impl<R> Bounded<'_, R> {
    fn take(&self, bytes: u64) -> Result<(), ()> {
        let wanted = self.wanted_bytes.get().saturating_add(bytes);
        self.wanted_bytes.set(wanted);
        if wanted <= MAX_READ_BYTES { Ok(()) } else { Err(()) }
    }
}

impl<'data, R: ReadRef<'data>> ReadRef<'data> for Bounded<'_, R> {
    fn len(self) -> Result<u64, ()> {
        self.data.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'data [u8], ()> {
        // What is not there takes nothing, and has an error of its own.
        if offset.checked_add(size).is_none_or(|end| self.len().is_ok_and(|length| end > length)) {
            return Err(());
        }
        self.take(size)?;
        self.data.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'data [u8], ()> {
        self.take(range.end.saturating_sub(range.start))?;
        self.data.read_bytes_at_until(range, delimiter)
    }
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
        // At once: a name at a time would be kept one by one.
        let names = sections.section(table.string_section())?.data(endian, data)?;
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
mod tests;
