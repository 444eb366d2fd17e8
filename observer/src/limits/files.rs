//! Open files of a process against the limit that it runs under (`RLIMIT_NOFILE`, getrlimit(2)).

use rustix::fs::{CWD, Dir, Mode, OFlags, openat, stat};

use super::file;

/// Open files counted one by one, where the kernel does not tell their number: a process with more is past any usual
/// limit.
const MAX_COUNTED: usize = 1 << 20;

/// Open files, and the soft limit, `None` if unlimited; `None` if the process is gone or does not let us look.
pub(super) fn of(pid: u32) -> Option<(u64, Option<u64>)> {
    let limits = file::of_proc(&format!("/proc/{pid}/limits"), 4096).ok()?;
    Some((count(pid)?, soft_limit(&limits)?))
}

/// Since 6.2 the size of the folder is the number of open files; before, it is zero, as it is for who has none.
fn count(pid: u32) -> Option<u64> {
    let path = format!("/proc/{pid}/fd");
    let size = stat(path.as_str()).ok()?.st_size;
    if size > 0 {
        return u64::try_from(size).ok();
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat(CWD, path, flags, Mode::empty()).ok()?;
    // Two entries are the folder itself and the one above.
    Some(Dir::read_from(&folder).ok()?.take(MAX_COUNTED).count().saturating_sub(2) as u64)
}

/// The soft limit in `/proc/PID/limits`.
fn soft_limit(limits: &[u8]) -> Option<Option<u64>> {
    let text = str::from_utf8(limits).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft = line.split_ascii_whitespace().next()?;
    if soft == "unlimited" { Some(None) } else { soft.parse().ok().map(Some) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn open_files_of_this_process() {
        let own = std::process::id();
        let held: Vec<_> = (0..64).map(|_| File::open("/dev/null").unwrap()).collect();
        let (many, limit) = of(own).unwrap();
        let soft = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        assert_eq!(limit, soft);
        // Other tests of this process open files too.
        let listed = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        assert!(many >= 64 && many.abs_diff(listed) < 64, "{many} {listed}");
        drop(held);
        assert_eq!(of(u32::MAX), None);
    }

    #[test]
    fn limits_as_the_kernel_writes_them() {
        let check =
            |line: &str, expected| assert_eq!(soft_limit(line.as_bytes()), expected, "{line}");
        check(
            "Max processes 5 6 processes\nMax open files            1024                 524288               files     \n",
            Some(Some(1024)),
        );
        check(
            "Max open files            unlimited            unlimited            files\n",
            Some(None),
        );
        check("Max open files\n", None);
        check("", None);
    }
}
