//! Pressure stall information, `/proc/pressure/*` (Documentation/accounting/psi.rst).

use std::path::Path;

use rustix::io::Errno;

use super::{
    Unavailable,
    file::{KeptFile, number, words},
};

/// The file has two lines of some 60 bytes.
const SIZE: usize = 512;

/// What to do where there is no pressure stall information.
pub(super) const REMEDY: &str = "boot with psi=1 (the kernel needs CONFIG_PSI)";

/// What tasks wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Reclaim, refaults, swap.
    Memory,
    /// Block devices.
    Io,
    /// A CPU.
    Cpu,
}

impl Resource {
    /// All of them.
    pub const ALL: [Resource; 3] = [Resource::Memory, Resource::Io, Resource::Cpu];

    /// Name of the file.
    pub fn name(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::Io => "io",
            Resource::Cpu => "cpu",
        }
    }
}

/// One line of the file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StallTime {
    /// Share of the last ten seconds, in percent.
    pub avg10_percent: f64,
    /// Time since boot.
    pub total_ns: u64,
}

/// How long tasks were stalled.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Time in which at least one task waited.
    pub some: StallTime,
    /// Time in which all tasks that had work waited. For the CPU of a whole host it is always 0, and absent before 5.13.
    pub full: Option<StallTime>,
}

impl Stall {
    /// Reads the file's text; `None` if it has no `some` line.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let line = |scope: &[u8]| {
            text.split(|&byte| byte == b'\n').find_map(|line| {
                let mut words = words(line);
                (words.next()? == scope).then(|| StallTime::parse(words))?
            })
        };
        Some(Stall { some: line(b"some")?, full: line(b"full") })
    }
}

impl StallTime {
    fn parse<'a>(words: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let (mut avg10, mut total) = (None, None);
        for word in words {
            if let Some(value) = word.strip_prefix(b"avg10=") {
                avg10 = str::from_utf8(value).ok()?.parse().ok();
            } else if let Some(value) = word.strip_prefix(b"total=") {
                total = number(value);
            }
        }
        Some(StallTime { avg10_percent: avg10?, total_ns: total?.saturating_mul(1000) })
    }
}

/// The open file.
#[derive(Debug)]
pub struct PressureFile(KeptFile);

impl PressureFile {
    /// Opens the resource's file below `proc_root`.
    pub fn open(proc_root: &Path, resource: Resource) -> Result<Self, Unavailable> {
        let path = proc_root.join("pressure").join(resource.name());
        KeptFile::open(&path, SIZE, REMEDY).map(PressureFile)
    }

    /// The state now.
    pub fn read(&mut self) -> Result<Stall, Errno> {
        Stall::parse(self.0.read()?).ok_or(Errno::INVAL)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn real_texts() {
        #[track_caller]
        fn check(text: &str, expected: Option<(f64, u64, Option<u64>)>) {
            let stall = Stall::parse(text.as_bytes());
            let found = stall
                .map(|s| (s.some.avg10_percent, s.some.total_ns, s.full.map(|full| full.total_ns)));
            assert_eq!(found, expected, "{text}");
        }
        check(
            "some avg10=58.81 avg60=15.23 avg300=4.07 total=31236236\nfull avg10=54.97 avg60=14.49 avg300=3.89 total=30375185\n",
            Some((58.81, 31_236_236_000, Some(30_375_185_000))),
        );
        // CPU before 5.13.
        check(
            "some avg10=0.73 avg60=0.48 avg300=0.98 total=12679247\n",
            Some((0.73, 12_679_247_000, None)),
        );
        check("full avg10=0.73 avg60=0.48 avg300=0.98 total=12679247\n", None);
        check("some avg10=x total=1\n", None);
        check("some avg10=1\n", None);
        check("", None);
    }

    #[test]
    fn absent_or_disabled() {
        let directory = tempfile::tempdir().unwrap();
        let error = PressureFile::open(directory.path(), Resource::Io).unwrap_err();
        assert!(error.what.ends_with("/pressure/io"), "{error}");
        assert!(error.to_string().contains("psi=1"), "{error}");
    }

    proptest! {
        #[test]
        fn never_panics(text in "((some|full) (avg10=|total=)[0-9.]{0,22} (avg10=|total=)[0-9.]{0,22}\n){0,3}") {
            Stall::parse(text.as_bytes());
        }
    }
}
