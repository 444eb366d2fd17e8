//! Writer of the archive format that the kernel unpacks at boot ("newc", Documentation/driver-api/early-userspace).

use std::collections::BTreeSet;

/// Kinds in the mode of an entry (inode(7)).
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// The entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive in memory. Paths are absolute; the folders above an entry are added by themselves.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// Adds a file; `mode` holds its permissions.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.above(path);
        self.entry(path, FILE | mode, 1, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.above(path);
        self.entry(path, LINK | 0o777, 1, (0, 0), target.as_bytes());
    }

    /// Adds a character device.
    pub(super) fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.above(path);
        self.entry(path, CHARACTER | 0o600, 1, (major, minor), &[]);
    }

    /// The archive, ended.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, 1, (0, 0), &[]);
        self.bytes
    }

    fn above(&mut self, path: &str) {
        let folders: Vec<_> = path.match_indices('/').map(|(at, _)| &path[..at]).collect();
        for folder in folders.into_iter().filter(|folder| !folder.is_empty()) {
            if self.folders.insert(folder.to_owned()) {
                self.entry(folder, FOLDER | 0o755, 2, (0, 0), &[]);
            }
        }
    }

    fn entry(&mut self, path: &str, mode: u32, links: u32, device: (u32, u32), content: &[u8]) {
        let name = path.trim_start_matches('/');
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("an entry is smaller than 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("a path is short");
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields =
            [self.entries, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    /// Headers and contents start at multiples of 4.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names, modes and contents, read back by the rules of the format.
    fn read(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701", "a header at {at}");
            let field = |index: usize| {
                let start = at + 6 + index * 8;
                let text = str::from_utf8(&bytes[start..start + 8]).expect("text");
                usize::from_str_radix(text, 16).expect("a number")
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = &bytes[at + 110..at + 110 + name_size - 1];
            let content = (at + 110 + name_size).next_multiple_of(4);
            found.push((
                String::from_utf8(name.to_vec()).expect("text"),
                u32::try_from(mode).expect("a mode"),
                bytes[content..content + size].to_vec(),
            ));
            at = (content + size).next_multiple_of(4);
        }
        found
    }

    #[test]
    fn entries_are_read_back() {
        let mut archive = Archive::default();
        archive.file("/job/run", 0o755, b"echo");
        archive.file("/job/odd", 0o644, b"12345");
        archive.link("/bin/sh", "busybox");
        archive.device("/dev/console", 5, 1);
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0, "what is appended must start at a multiple of 4");
        let entries = read(&bytes);
        let names: Vec<_> = entries.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(
            names,
            ["job", "job/run", "job/odd", "bin", "bin/sh", "dev", "dev/console", TRAILER]
        );
        assert_eq!(entries[1], ("job/run".to_owned(), 0o100_755, b"echo".to_vec()));
        assert_eq!(entries[2].2, b"12345");
        assert_eq!(entries[4].1, 0o120_777);
    }

    #[test]
    fn every_length_is_padded() {
        for length in 0..9 {
            let mut archive = Archive::default();
            archive.file(&format!("/{}", "n".repeat(length + 1)), 0o644, &vec![7; length]);
            assert_eq!(read(&archive.finish())[0].2, vec![7; length]);
        }
    }
}
