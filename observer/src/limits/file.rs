//! Files of processes, also below the root folder of a container: its owner may have put links, pipes or devices there,
//! which must neither lead us out of it nor make us wait.

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2},
    io::{Errno, read},
};

/// Bytes that a buffer grows by.
const STEP: usize = 4096;

/// A folder of `/proc/PID`, as `root` and `cwd`.
pub(super) fn folder(pid: u32, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, format!("/proc/{pid}/{name}"), flags, Mode::empty())
}

/// A file of `/proc`, as much of it as `max_bytes`.
pub(super) fn of_proc(path: &str, max_bytes: usize) -> Result<Vec<u8>, Errno> {
    let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    content(&file, max_bytes)
}

/// A regular file below `root`, as much of it as `max_bytes`, and what the file system says of it.
pub(super) fn below(
    root: &OwnedFd,
    path: &str,
    max_bytes: usize,
) -> Result<(Stat, Vec<u8>), Errno> {
    let file = open_below(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    Ok((stat, content(&file, max_bytes)?))
}

/// Names in a folder below `root` that `wanted` accepts, of its first `max_names` entries.
pub(super) fn names_below(
    root: &OwnedFd,
    path: &str,
    max_names: usize,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<String>, Errno> {
    let folder = open_below(root, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK)?;
    let entries = Dir::read_from(&folder)?.take(max_names);
    let names =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned));
    Ok(names.filter(|name| wanted(name)).collect())
}

/// Opens a path as it is seen by who has `root` as its root folder. Before 5.6 no part of it may be a link.
fn open_below(root: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Err(Errno::NOSYS) => walk(root.as_fd(), path, flags),
        opened => opened,
    }
}

fn walk(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let last = parts.next_back().ok_or(Errno::INVAL)?;
    let mut folder: Option<OwnedFd> = None;
    let at = |folder: &Option<OwnedFd>, part: &str, flags| {
        if part == ".." {
            return Err(Errno::XDEV);
        }
        let from = folder.as_ref().map_or(root, AsFd::as_fd);
        openat(from, part, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    };
    for part in parts {
        folder = Some(at(&folder, part, OFlags::PATH | OFlags::DIRECTORY)?);
    }
    at(&folder, last, flags)
}

fn content(file: &OwnedFd, max_bytes: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    while bytes.len() < max_bytes {
        bytes.reserve(STEP);
        if read(file, rustix::buffer::spare_capacity(&mut bytes))? == 0 {
            break;
        }
    }
    bytes.truncate(max_bytes);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use rustix::fs::mkfifoat;

    use super::*;

    #[test]
    fn a_root_is_not_left() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "no").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("tmp")).unwrap();
        fs::write(at("tmp/file"), "content").unwrap();
        symlink("file", at("tmp/link")).unwrap();
        symlink(outside.path().join("secret"), at("tmp/out")).unwrap();
        symlink(outside.path(), at("away")).unwrap();
        mkfifoat(CWD, at("tmp/pipe"), Mode::RWXU).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let root = openat(CWD, directory.path(), flags, Mode::empty()).unwrap();
        let text = |path: &str| below(&root, path, 100).map(|(_, bytes)| bytes);
        assert_eq!(text("/tmp/file").unwrap(), b"content");
        assert_eq!(below(&root, "tmp/file", 3).unwrap().1, b"con");
        for path in ["/tmp/out", "/away/secret", "/tmp/pipe", "/tmp", "/none", "../secret"] {
            assert!(text(path).is_err(), "{path}");
        }
        let walked = |path: &str| walk(root.as_fd(), path, OFlags::RDONLY).is_ok();
        assert!(walked("/tmp/file"));
        for path in ["/tmp/link", "/tmp/out", "/away/secret", "/tmp/../tmp/file", "", "/"] {
            assert!(!walked(path), "{path}");
        }
        let names = names_below(&root, "/tmp", 100, |name| name.starts_with('f')).unwrap();
        assert_eq!(names, ["file"]);
    }
}
