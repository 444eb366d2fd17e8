//! The bounded local store: files of OTLP JSON lines.
//!
//! A file that cannot be written (full, read-only, gone) loses the line, is counted, and is tried again with the next one.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use crate::line_file::LineFile;

/// Files in the store: their number is how finely it forgets.
pub(super) const STORE_FILES: u64 = 8;

const PREFIX: &str = "otlp-";
const SUFFIX: &str = ".jsonl";

/// The local store: at most [`STORE_FILES`] files of equal size under one directory.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    file_bytes: u64,
    /// Number and length of each file, oldest first; the last one is written.
    files: Vec<(u64, u64)>,
    lines: Option<LineFile>,
}

impl Store {
    /// A store of `max_bytes` under `directory`, which need not exist yet.
    pub(super) fn new(directory: PathBuf, max_bytes: u64) -> Self {
        Self { directory, file_bytes: max_bytes / STORE_FILES, files: Vec::new(), lines: None }
    }

    /// Appends one line (with its newline); adds the bytes of the old files that went for it to `rotated_bytes`.
    pub(super) fn append(&mut self, line: &[u8], rotated_bytes: &mut u64) -> io::Result<()> {
        if line.len() as u64 > self.file_bytes {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "line larger than a file of the store",
            ));
        }
        let appended = self.rotate(line.len() as u64, rotated_bytes).and_then(|lines| {
            lines.append(line)?;
            Ok(lines.len())
        });
        match (appended, self.files.last_mut()) {
            (Ok(len), Some(file)) => file.1 = len,
            (Ok(_), None) => {}
            // Look at the directory anew before the next line.
            (Err(error), _) => {
                self.lines = None;
                return Err(error);
            }
        }
        Ok(())
    }

    /// The file that takes `bytes` more.
    fn rotate(&mut self, bytes: u64, rotated_bytes: &mut u64) -> io::Result<&mut LineFile> {
        if self.lines.is_none() {
            self.open()?;
        }
        if self.files.last().is_none_or(|(_, len)| len + bytes > self.file_bytes) {
            let number = self.files.last().map_or(1, |(number, _)| number + 1);
            let mut lines = LineFile::new(self.path(number), 0o600);
            lines.open()?;
            self.lines = Some(lines);
            self.files.push((number, 0));
        }
        while self.files.len() as u64 > STORE_FILES {
            let (number, len) = self.files[0];
            match fs::remove_file(self.path(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => *rotated_bytes += len,
            }
            self.files.remove(0);
        }
        self.lines.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Looks at what is in the directory and goes on writing the newest file.
    fn open(&mut self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        self.files.clear();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if let Some(number) = number(&entry.file_name().to_string_lossy()) {
                self.files.push((number, entry.metadata()?.len()));
            }
        }
        self.files.sort_unstable();
        if let Some((number, _)) = self.files.last() {
            let mut lines = LineFile::new(self.path(*number), 0o600);
            lines.open()?;
            self.lines = Some(lines);
        }
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{PREFIX}{number:08}{SUFFIX}"))
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

fn number(file_name: &str) -> Option<u64> {
    file_name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(directory: &Path) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn content(directory: &Path) -> String {
        files(directory).iter().map(|path| fs::read_to_string(path).unwrap()).collect()
    }

    #[test]
    fn the_store_keeps_the_newest_lines_within_its_size_across_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let mut rotated = 0;
        let mut all = String::new();
        for restart in 0..5 {
            let mut store = Store::new(path.clone(), 8 * 100);
            for n in 0..40 {
                let line = format!("{{\"line\":{}}}\n", restart * 100 + n);
                store.append(line.as_bytes(), &mut rotated).unwrap();
                all.push_str(&line);
                let files = files(&path);
                assert!(files.len() as u64 <= STORE_FILES);
                assert!(files.iter().all(|file| fs::metadata(file).unwrap().len() <= 100));
            }
        }
        let kept = content(&path);
        assert!(all.ends_with(&kept) && kept.len() > 600, "{kept}");
        assert_eq!(rotated as usize, all.len() - kept.len());
    }

    #[test]
    fn a_line_that_cannot_be_written_does_not_stop_later_ones() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        fs::write(&path, "in the way").unwrap();
        let mut store = Store::new(path.clone(), 800);
        assert!(store.append(b"{}\n", &mut 0).is_err());
        fs::remove_file(&path).unwrap();
        store.append(b"{\"n\":1}\n", &mut 0).unwrap();
        fs::remove_dir_all(&path).unwrap();
        // The open file is still there for us; a new one needs its directory back.
        for _ in 0..20 {
            store.append(&[b' '; 90], &mut 0).ok();
        }
        store.append(b"{\"n\":2}\n", &mut 0).unwrap();
        assert!(content(&path).ends_with("{\"n\":2}\n"));
        assert!(store.append(&[b' '; 101], &mut 0).is_err());
    }
}
