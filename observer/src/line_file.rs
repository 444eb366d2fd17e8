//! A file of lines that is only appended to, and that a crash or a full disk leaves readable.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
};

/// A file of lines that is only appended to.
#[derive(Debug)]
pub(crate) struct LineFile {
    path: PathBuf,
    /// Mode of a new file, before the umask.
    mode: u32,
    file: Option<File>,
    /// Length up to the end of the last whole line.
    len: u64,
    /// Whether half a line stands at the end and could not be cut off.
    torn: bool,
}

impl LineFile {
    /// A file that is opened with the first line.
    pub(crate) fn new(path: PathBuf, mode: u32) -> Self {
        Self { path, mode, file: None, len: 0, torn: false }
    }

    /// Opens or creates the file.
    pub(crate) fn open(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            let mut file =
                options.append(true).read(true).create(true).mode(self.mode).open(&self.path)?;
            self.len = file.metadata()?.len();
            self.torn = self.len > 0 && !ends_with_newline(&mut file);
            self.file = Some(file);
        }
        self.file.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Length up to the end of the last whole line; 0 before the file was opened.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Waits until all of it is on the disk. A pipe or a terminal has none.
    pub(crate) fn sync(&self) -> io::Result<()> {
        match self.file.as_ref().map(File::sync_data) {
            Some(Err(error)) if error.kind() != io::ErrorKind::InvalidInput => Err(error),
            _ => Ok(()),
        }
    }

    /// Appends whole lines.
    pub(crate) fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.open()?;
        let (torn, len) = (self.torn, self.len);
        let file = self.open()?;
        let written =
            if torn { file.write_all(b"\n") } else { Ok(()) }.and_then(|()| file.write_all(lines));
        if written.is_ok() {
            self.len = len + lines.len() as u64 + u64::from(torn);
            self.torn = false;
        } else {
            // Cut off what was written of the line. Should that fail, opening the file again finds the torn end; it also
            // finds a file that was moved away, or a mount that has become writable again.
            file.set_len(len).ok();
            self.file = None;
        }
        written
    }
}

fn ends_with_newline(file: &mut File) -> bool {
    let mut last = [0];
    // A pipe or terminal has no end to look at: lines simply follow each other there.
    let read = file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last));
    read.is_err() || last == *b"\n"
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_line_torn_by_a_crash_stays_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.jsonl");
        fs::write(&path, "{\"whole\":1}\n{\"tor").unwrap();
        LineFile::new(path.clone(), 0o644).append(b"{\"next\":1}\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"whole\":1}\n{\"tor\n{\"next\":1}\n");
    }

    #[test]
    fn a_full_device_is_an_error_each_time_and_no_more() {
        let mut full = LineFile::new("/dev/full".into(), 0o600);
        for _ in 0..3 {
            let error = full.append(b"{}\n").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
    }
}
