//! A file that stays open and is read again and again, and the forms that such files have.

use std::path::Path;

use rustix::{
    fd::OwnedFd,
    fs::{CWD, Mode, OFlags, openat},
    io::{Errno, pread},
};
use thiserror::Error;

/// A source that this host does not offer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what}: {reason}; {remedy}")]
pub struct Unavailable {
    /// Path of the file.
    pub what: String,
    /// Why it cannot be used.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
}

impl Unavailable {
    pub(super) fn new(path: &Path, errno: Errno, remedy: &str) -> Self {
        let reason = std::io::Error::from(errno).to_string();
        Unavailable { what: path.display().to_string(), reason, remedy: remedy.to_owned() }
    }
}

/// An open file with the buffer that it is read into.
#[derive(Debug)]
pub(super) struct KeptFile {
    file: OwnedFd,
    buffer: Box<[u8]>,
}

impl KeptFile {
    /// Opens a file and reads it once, because some kernels refuse only the reading. `size` bounds what is seen of it.
    pub(super) fn open(path: &Path, size: usize, remedy: &str) -> Result<Self, Unavailable> {
        let unavailable = |errno| Unavailable::new(path, errno, remedy);
        let mut kept =
            KeptFile { file: open(path).map_err(unavailable)?, buffer: vec![0; size].into() };
        kept.read().map_err(unavailable)?;
        Ok(kept)
    }

    /// The content now.
    pub(super) fn read(&mut self) -> Result<&[u8], Errno> {
        read_from_start(&self.file, &mut self.buffer)
    }
}

/// Opens a file for reading.
pub(super) fn open(path: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Reads a file from its start, as much as fits.
pub(super) fn read_from_start<'a>(file: &OwnedFd, buffer: &'a mut [u8]) -> Result<&'a [u8], Errno> {
    let mut length = 0;
    while length < buffer.len() {
        match pread(file, &mut buffer[length..], length as u64)? {
            0 => break,
            count => length += count,
        }
    }
    Ok(&buffer[..length])
}

/// Lines `KEY VALUE` or `KEY: VALUE UNIT`; others are skipped.
pub(super) fn pairs(bytes: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    bytes.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut words = words(line);
        let key = words.next()?;
        Some((key.strip_suffix(b":").unwrap_or(key), number(words.next()?)?))
    })
}

/// Words of a line.
pub(super) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// A decimal number.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_is_there_now() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "first and long").unwrap();
        let mut kept = KeptFile::open(&path, 8, "").unwrap();
        assert_eq!(kept.read(), Ok(&b"first an"[..]), "as much as fits");
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        file.write_all(b"two").unwrap();
        assert_eq!(kept.read(), Ok(&b"two"[..]));
    }

    #[test]
    fn a_missing_file_says_what_and_how_to_mend() {
        let error = KeptFile::open(Path::new("/nowhere/at/all"), 8, "mount it").unwrap_err();
        assert_eq!(
            error.to_string(),
            "/nowhere/at/all: No such file or directory (os error 2); mount it"
        );
        let error = KeptFile::open(Path::new("/proc"), 8, "x").unwrap_err();
        assert_eq!(error.reason, "Is a directory (os error 21)", "opens, but cannot be read");
    }

    #[test]
    fn pairs_of_lines() {
        let found: Vec<_> =
            pairs(b"a 1\n\nb:\t 22 kB\nc\nd -1\ne 99999999999999999999\n f 3").collect();
        assert_eq!(found, [(&b"a"[..], 1), (b"b", 22), (b"f", 3)]);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(pairs(&bytes).count() <= bytes.len());
        }
    }
}
