//! Functions of just-in-time compilers, from `/tmp/perf-PID.map` (kernel: tools/perf/Documentation/jit-interface.txt): Node
//! with `--perf-basic-prof`, the JVM with a perf-map agent.
//!
//! The file is read once from its start, and only the names of wanted addresses are kept, so that a map of hundreds of MiB
//! costs no memory. A later line wins, because a compiler uses the place of discarded code again.

use std::{
    fs::{File, read},
    io::{self, BufRead, BufReader, Read as _},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags, fstat, openat};

use super::trimmed;

/// Bytes read of a map.
const MAX_MAP: u64 = 512 * 1024 * 1024;

/// Bytes of a line; what is longer is cut into lines that make no sense and are skipped.
const MAX_LINE: u64 = 4096;

/// Names of sorted addresses; none if the process has no map.
///
/// Errors: there is a map, but it cannot be trusted or read.
pub(super) fn names(pid: u32, addresses: &[u64]) -> io::Result<Vec<Option<String>>> {
    let none = vec![None; addresses.len()];
    let Ok(status) = read(format!("/proc/{pid}/status")) else { return Ok(none) };
    let Some((user_id, own_pid)) = parse_status(&String::from_utf8_lossy(&status)) else {
        return Ok(none);
    };
    // As the process sees it: its own root, and its own pid, if it is in a container.
    let path = PathBuf::from(format!("/proc/{pid}/root/tmp/perf-{own_pid}.map"));
    let explained =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    match open(&path, user_id) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(none),
        opened => opened
            .and_then(|file| names_in(BufReader::new(file.take(MAX_MAP)), addresses))
            .map_err(explained),
    }
}

/// Opens a map. Anyone may put a file into `/tmp`, so it must be a plain file of the process's user or of root, as perf
/// demands too.
fn open(path: &Path, user_id: u32) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::empty())?;
    let state = fstat(&file)?;
    let plain =
        rustix::fs::FileType::from_raw_mode(state.st_mode) == rustix::fs::FileType::RegularFile;
    if !plain || (state.st_uid != user_id && state.st_uid != 0) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("not a plain file of user {user_id} or root"),
        ));
    }
    Ok(File::from(file))
}

/// Effective user id, and the pid in the innermost pid namespace.
fn parse_status(status: &str) -> Option<(u32, u32)> {
    let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
    let user_id = value("Uid:")?.split_ascii_whitespace().nth(1)?.parse().ok()?;
    let pid = value("NStgid:")
        .or_else(|| value("Tgid:"))?
        .split_ascii_whitespace()
        .next_back()?
        .parse()
        .ok()?;
    Some((user_id, pid))
}

fn names_in(mut lines: impl BufRead, addresses: &[u64]) -> io::Result<Vec<Option<String>>> {
    let mut names = vec![None; addresses.len()];
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(names);
        }
        let Some((start, size, name)) = parse_line(&line) else { continue };
        let first = addresses.partition_point(|&address| address < start);
        let inside =
            addresses[first..].iter().take_while(|&&address| address - start < size.max(1));
        for (slot, _) in names[first..].iter_mut().zip(inside) {
            *slot = Some(trimmed(&String::from_utf8_lossy(name)));
        }
    }
}

/// `START SIZE NAME`, both in hex, the name to the end of the line.
fn parse_line(line: &[u8]) -> Option<(u64, u64, &[u8])> {
    let mut fields = line.splitn(3, |&byte| byte == b' ');
    let mut hex = || {
        let text = str::from_utf8(fields.next()?).ok()?;
        u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
    };
    let (start, size) = (hex()?, hex()?);
    Some((start, size, fields.next()?.trim_ascii())).filter(|(_, _, name)| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_of_node_and_jvm() {
        let text = "3ef414c0 398 RegExp:[{(]\n\
            3ef418a0 398 Builtin:InterpreterEntry\n\
            7f2a10000000 100 LazyCompile:~upload /srv/api/app.js:10:5\n\
            7f2a10000000 100 JS:*upload /srv/api/app.js:10:5\n\
            0x7f35d0 0x20 Lcom/shop/Cart;::add\n\
            7f3600 0 stub\n\
            zz 10 broken\n\
            7f3700 10\n\
            7f2a1000";
        let addresses = [
            0x7f35ef,
            0x7f35f0,
            0x7f3600,
            0x7f3601,
            0x7f3705,
            0x3ef414c0,
            0x7f2a10000000,
            0x7f2a100000ff,
            0x7f2a10000100,
        ];
        let upload = Some("JS:*upload /srv/api/app.js:10:5");
        let expected = [
            Some("Lcom/shop/Cart;::add"),
            None,
            Some("stub"),
            None,
            None,
            Some("RegExp:[{(]"),
            upload,
            upload,
            None,
        ];
        let names = names_in(text.as_bytes(), &addresses).unwrap();
        assert_eq!(names.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn only_files_of_the_user_are_trusted() {
        let directory = tempfile::tempdir().unwrap();
        let (plain, link) = (directory.path().join("plain"), directory.path().join("link"));
        std::fs::write(&plain, "").unwrap();
        std::os::unix::fs::symlink(&plain, &link).unwrap();
        let me = rustix::process::geteuid().as_raw();
        assert!(open(&plain, me).is_ok());
        assert!(open(&link, me).is_err());
        assert_eq!(open(directory.path(), me).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(open(&plain, me + 1).is_ok(), me == 0);
    }

    #[test]
    fn status_of_a_container() {
        let status = "Name:\tnode\nTgid:\t900\nUid:\t0\t1000\t0\t0\nNStgid:\t900\t17\n";
        assert_eq!(parse_status(status), Some((1000, 17)));
        assert_eq!(parse_status(&status.replace("NStgid", "X")), Some((1000, 900)));
        assert_eq!(parse_status(""), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in "([0-9a-f]{1,17} [0-9a-f]{1,17} ?[a-zé ]{0,5}\n){0,5}", addresses in proptest::collection::vec(any::<u64>(), 0..4)) {
            let mut addresses = addresses;
            addresses.sort_unstable();
            prop_assert_eq!(names_in(text.as_bytes(), &addresses).unwrap().len(), addresses.len());
        }
    }
}
