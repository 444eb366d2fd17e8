//! Limits of control groups: memory use against its limit, and CPU time throttled by a quota; versions 1 and 2
//! (Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst, scheduler/sched-bwc.rst).

mod bounds;
mod mounts;

use std::path::Path;

use rustix::{fd::OwnedFd, io::Errno};

pub use self::bounds::{Bounds, Tasks};
use self::mounts::{Hierarchy, Mounts, Version};
use super::{
    Unavailable,
    file::{number, open, pairs, read_from_start, words},
};

/// Control groups watched at once. Each keeps up to [`FILES_EACH`] files open, so that all of them stay below the usual
/// limit of 1024 open files. What is beyond is refused and counted.
pub const MAX_CGROUPS: usize = 128;

/// Open files of a watched control group.
pub const FILES_EACH: usize = 5;

/// The files have less than 2 KiB.
const SIZE: usize = 4096;

/// Bytes read of mountinfo: a host with thousands of containers has a few hundred KiB.
const MAX_MOUNTINFO: usize = 4 * 1024 * 1024;

/// v1 has no word for "no limit", but a number near the largest that a page counter holds (PAGE_COUNTER_MAX).
const UNLIMITED_V1: u64 = 1 << 62;

/// Memory of a control group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Use, page cache included.
    pub usage_bytes: u64,
    /// Limit; `None` if unlimited.
    pub limit_bytes: Option<u64>,
    /// Times the limit was hit (v1 memory.failcnt, v2 `max` of memory.events, descendants included).
    pub limit_hits: u64,
    /// OOM kills in it (v1 since 4.13).
    pub oom_kills: u64,
}

/// CPU quota of a control group (`cpu.stat`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Enforcement periods in which it had work.
    pub periods: u64,
    /// Of these, periods in which it ran out of its quota.
    pub throttled_periods: u64,
    /// Time that its CPUs were held back, summed over them.
    pub throttled_ns: u64,
}

/// A control group with its open files.
#[derive(Debug)]
pub struct Watched {
    /// Path as it was asked for.
    pub path: String,
    /// The path that the memory numbers are of: itself, or the nearest above it for which memory is accounted.
    pub memory_path: String,
    /// Memory, as last read; `None` if it is accounted for the host only.
    pub memory: Option<Memory>,
    /// Throttling, as last read; `None` if it has no CPU controller.
    pub throttling: Option<Throttling>,
    /// Whether it was removed; the numbers are then the last ones.
    pub removed: bool,
    memory_files: Option<MemoryFiles>,
    cpu_stat: Option<OwnedFd>,
    wanted: bool,
}

#[derive(Debug)]
struct MemoryFiles {
    version: Version,
    usage: OwnedFd,
    limit: OwnedFd,
    /// v1 memory.failcnt.
    failures: Option<OwnedFd>,
    /// v2 memory.events, v1 memory.oom_control.
    events: OwnedFd,
}

/// The watched control groups of the host.
#[derive(Debug)]
pub struct Cgroups {
    mounts: Mounts,
    watched: Vec<Watched>,
    refused: u64,
    buffer: Box<[u8]>,
}

impl Cgroups {
    /// Finds the hierarchies in `self/mountinfo` below `proc_root`.
    pub fn open(proc_root: &Path) -> Result<Self, Unavailable> {
        let path = proc_root.join("self/mountinfo");
        let unavailable = |errno| {
            Unavailable::new(&path, errno, "mount /proc and the control groups (/sys/fs/cgroup)")
        };
        let mut text = vec![0; MAX_MOUNTINFO];
        let text = open(&path)
            .and_then(|file| read_from_start(&file, &mut text).map(String::from_utf8_lossy));
        let mounts = Mounts::parse(&text.map_err(unavailable)?);
        if mounts == Mounts::default() {
            return Err(unavailable(Errno::NOENT));
        }
        Ok(Cgroups {
            mounts,
            watched: Vec::with_capacity(MAX_CGROUPS),
            refused: 0,
            buffer: vec![0; SIZE].into(),
        })
    }

    /// Watches these and no others; those already watched keep their files. Ones beyond [`MAX_CGROUPS`] are refused.
    pub fn watch<'a>(&mut self, paths: impl IntoIterator<Item = &'a str>) {
        self.watched.iter_mut().for_each(|watched| watched.wanted = false);
        let mut new = Vec::new();
        for path in paths {
            match self.watched.iter_mut().find(|watched| watched.path == path && !watched.removed) {
                Some(watched) => watched.wanted = true,
                None if new.len() < MAX_CGROUPS && !new.contains(&path) => new.push(path),
                None => self.refused += u64::from(!new.contains(&path)),
            }
        }
        self.watched.retain(|watched| watched.wanted);
        let room = MAX_CGROUPS - self.watched.len();
        self.refused += new.len().saturating_sub(room) as u64;
        self.watched
            .extend(new.into_iter().take(room).map(|path| Watched::open(&self.mounts, path)));
    }

    /// Reads all that are watched.
    pub fn read(&mut self) -> &[Watched] {
        for watched in &mut self.watched {
            watched.read(&mut self.buffer);
        }
        &self.watched
    }

    /// Control groups not watched for want of room, since the start.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

impl Watched {
    fn open(mounts: &Mounts, path: &str) -> Self {
        let memory = mounts.memory.as_ref().and_then(|hierarchy| {
            Hierarchy::ancestors(path)
                .find_map(|path| Some((path, MemoryFiles::open(hierarchy, path).ok()?)))
        });
        let cpu_stat = mounts.cpu.as_ref().and_then(|hierarchy| {
            // In v2 cpu.stat is always there, but tells of quotas only where the controller is enabled.
            let sign = if hierarchy.version == Version::V2 { "cpu.max" } else { "cpu.stat" };
            let mut accounted = Hierarchy::ancestors(path)
                .filter(|path| hierarchy.directory(path).join(sign).exists());
            open(&hierarchy.directory(accounted.next()?).join("cpu.stat")).ok()
        });
        let (memory_path, memory_files) =
            memory.map_or((String::new(), None), |(path, files)| (path.to_owned(), Some(files)));
        Watched {
            path: path.to_owned(),
            memory_path,
            memory: None,
            throttling: None,
            removed: false,
            memory_files,
            cpu_stat,
            wanted: true,
        }
    }

    fn read(&mut self, buffer: &mut [u8]) {
        if let Some(files) = &self.memory_files {
            match files.read(buffer) {
                Ok(memory) => self.memory = Some(memory),
                Err(_) => self.removed = true,
            }
        }
        if let Some(file) = &self.cpu_stat {
            match read_from_start(file, buffer) {
                Ok(text) => self.throttling = Throttling::parse(text),
                Err(_) => self.removed = true,
            }
        }
    }
}

impl MemoryFiles {
    fn open(hierarchy: &Hierarchy, path: &str) -> Result<Self, Errno> {
        let directory = hierarchy.directory(path);
        let file = |name: &str| open(&directory.join(name));
        Ok(match hierarchy.version {
            Version::V1 => MemoryFiles {
                version: Version::V1,
                usage: file("memory.usage_in_bytes")?,
                limit: file("memory.limit_in_bytes")?,
                failures: Some(file("memory.failcnt")?),
                events: file("memory.oom_control")?,
            },
            Version::V2 => MemoryFiles {
                version: Version::V2,
                usage: file("memory.current")?,
                limit: file("memory.max")?,
                failures: None,
                events: file("memory.events")?,
            },
        })
    }

    fn read(&self, buffer: &mut [u8]) -> Result<Memory, Errno> {
        let one = |file: &OwnedFd, buffer: &mut [u8]| {
            Ok::<_, Errno>(words(read_from_start(file, buffer)?).next().and_then(number))
        };
        let usage = one(&self.usage, buffer)?;
        let limit = one(&self.limit, buffer)?;
        let failures = self.failures.as_ref().map(|file| one(file, buffer)).transpose()?.flatten();
        let events = read_from_start(&self.events, buffer)?;
        let event =
            |name: &[u8]| pairs(events).find(|(key, _)| *key == name).map_or(0, |(_, count)| count);
        Ok(Memory {
            usage_bytes: usage.unwrap_or_default(),
            // v2 says `max`, which is no number.
            limit_bytes: limit.filter(|&limit| self.version == Version::V2 || limit < UNLIMITED_V1),
            limit_hits: failures.unwrap_or_else(|| event(b"max")),
            oom_kills: event(b"oom_kill"),
        })
    }
}

impl Throttling {
    /// Reads `cpu.stat`; `None` if it tells nothing of quotas.
    fn parse(text: &[u8]) -> Option<Self> {
        let value = |name: &[u8]| pairs(text).find(|(key, _)| *key == name).map(|(_, value)| value);
        let throttled_ns = value(b"throttled_time")
            .or_else(|| Some(value(b"throttled_usec")?.saturating_mul(1000)));
        Some(Throttling {
            periods: value(b"nr_periods")?,
            throttled_periods: value(b"nr_throttled")?,
            throttled_ns: throttled_ns?,
        })
    }
}

#[cfg(test)]
mod tests;
