//! Small files below `/proc/PID`: read into one buffer, parsed without allocation.

use std::fmt::Write as _;

use observer_abi::COMM_LEN;
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::{Errno, read},
};

/// Bytes read of a file; `status` has some 1,500.
const MAX_BYTES: usize = 4096;

/// Buffers that are used for one file after the other.
#[derive(Debug, Default)]
pub(super) struct Files {
    path: String,
    bytes: Vec<u8>,
}

impl Files {
    /// `/proc/PID/NAME`, or `/proc/PID/task/TID/NAME` of another thread than the first.
    pub(super) fn read(&mut self, pid: u32, tid: u32, name: &str) -> Result<&[u8], Errno> {
        self.path.clear();
        // A String takes everything.
        if pid == tid {
            write!(self.path, "/proc/{pid}/{name}").ok();
        } else {
            write!(self.path, "/proc/{pid}/task/{tid}/{name}").ok();
        }
        self.bytes.resize(MAX_BYTES, 0);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(CWD, self.path.as_str(), flags, Mode::empty())?;
        let length = read(&file, &mut self.bytes[..])?;
        Ok(&self.bytes[..length])
    }
}

/// What is taken of `stat` (proc(5)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) comm: [u8; COMM_LEN],
    pub(super) state: u8,
    pub(super) parent: u32,
    pub(super) flags: u64,
    /// Time on a CPU of all its threads, also of those that are gone.
    pub(super) own_ticks: u64,
    /// The same of children that it has waited for.
    pub(super) children_ticks: u64,
    pub(super) nice: i32,
    pub(super) threads: u32,
    pub(super) start_ticks: u64,
    pub(super) rt_priority: u32,
    /// SCHED_* (sched(7)).
    pub(super) policy: u32,
}

/// Reads `stat`. The name may hold anything, so fields are counted from the last `)`.
pub(super) fn stat(bytes: &[u8]) -> Option<Stat> {
    let open = bytes.iter().position(|&byte| byte == b'(')?;
    let close = bytes.iter().rposition(|&byte| byte == b')').filter(|&close| close > open)?;
    let mut stat = Stat::default();
    let name = &bytes[open + 1..close];
    let length = name.len().min(COMM_LEN - 1);
    stat.comm[..length].copy_from_slice(&name[..length]);
    let mut fields = words(&bytes[close + 1..]);
    // proc(5) numbers the fields from 1; the one after the name is the third.
    stat.state = *fields.next()?.first()?;
    stat.parent = number(fields.next()?)?;
    stat.flags = number(fields.nth(9 - 5)?)?;
    stat.own_ticks = sum(fields.nth(14 - 10)?, fields.next()?)?;
    stat.children_ticks = sum(fields.next()?, fields.next()?)?;
    stat.nice = number(fields.nth(19 - 18)?)?;
    stat.threads = number(fields.next()?)?;
    stat.start_ticks = number(fields.nth(22 - 21)?)?;
    stat.rt_priority = fields.nth(40 - 23).and_then(number).unwrap_or(0);
    stat.policy = fields.next().and_then(number).unwrap_or(0);
    Some(stat)
}

/// Resident and shared (file and shmem) pages of `statm`.
pub(super) fn statm(bytes: &[u8]) -> Option<(i64, i64)> {
    let mut fields = words(bytes);
    Some((number(fields.nth(1)?)?, number(fields.next()?)?))
}

/// Time on a CPU and waiting for one, of `schedstat`.
pub(super) fn schedstat(bytes: &[u8]) -> Option<(u64, u64)> {
    let mut fields = words(bytes);
    Some((number(fields.next()?)?, number(fields.next()?)?))
}

/// What is taken of `status`, in kibibytes; a kernel thread has none of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) shmem_kib: i64,
    pub(super) swap_kib: i64,
    pub(super) page_table_kib: u64,
    pub(super) voluntary_switches: u64,
    pub(super) involuntary_switches: u64,
}

/// Reads `status`.
pub(super) fn status(bytes: &[u8]) -> Status {
    let mut status = Status::default();
    for line in bytes.split(|&byte| byte == b'\n') {
        let mut fields = words(line);
        let (Some(key), Some(value)) = (fields.next(), fields.next()) else { continue };
        match key {
            b"RssShmem:" => status.shmem_kib = number(value).unwrap_or(0),
            b"VmSwap:" => status.swap_kib = number(value).unwrap_or(0),
            b"VmPTE:" => status.page_table_kib = number(value).unwrap_or(0),
            b"voluntary_ctxt_switches:" => status.voluntary_switches = number(value).unwrap_or(0),
            b"nonvoluntary_ctxt_switches:" => {
                status.involuntary_switches = number(value).unwrap_or(0);
            }
            _ => {}
        }
    }
    status
}

fn sum(user: &[u8], system: &[u8]) -> Option<u64> {
    Some(number::<u64>(user)?.saturating_add(number(system)?))
}

pub(super) fn words(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

pub(super) fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_this_process() {
        let pid = std::process::id();
        let mut files = Files::default();
        let own = stat(files.read(pid, pid, "stat").unwrap()).unwrap();
        assert!(own.threads >= 1 && own.start_ticks > 0 && own.parent > 0, "{own:?}");
        assert!(matches!(own.state, b'R' | b'S'), "{own:?}");
        let (resident, shared) = statm(files.read(pid, pid, "statm").unwrap()).unwrap();
        assert!(resident > shared && shared > 0, "{resident} {shared}");
        let found = status(files.read(pid, pid, "status").unwrap());
        assert!(found.page_table_kib > 0 && found.voluntary_switches > 0, "{found:?}");
        assert_eq!(files.read(pid, u32::MAX, "stat"), Err(Errno::NOENT));
    }

    #[test]
    fn fields_are_counted_from_the_last_bracket() {
        let line = b"7 (a) R 1 (b)) D 4 7 7 0 -1 2097216 1 0 0 0 9 3 5 1 20 -7 11 0 99 1 1 \
                     2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 50 1 0";
        let found = stat(line).unwrap();
        assert_eq!(&found.comm[..10], b"a) R 1 (b)");
        assert_eq!((found.state, found.parent, found.flags), (b'D', 4, 2_097_216));
        assert_eq!((found.own_ticks, found.children_ticks, found.nice), (12, 6, -7));
        assert_eq!((found.threads, found.start_ticks), (11, 99));
        assert_eq!((found.rt_priority, found.policy), (50, 1));
        assert_eq!(stat(b"7 (a) S 1"), None);
        assert_eq!(statm(b"100 30 20 1 0 40 0\n"), Some((30, 20)));
        assert_eq!(schedstat(b"123 45 6\n"), Some((123, 45)));
        let text = b"Name:\tVmSwap: 9 kB\nVmPTE:\t 8 kB\nRssShmem:\t 4 kB\nVmSwap:\t 12 kB\nvoluntary_ctxt_switches:\t5\n";
        let found = status(text);
        assert_eq!((found.shmem_kib, found.swap_kib, found.page_table_kib), (4, 12, 8));
        assert_eq!(found.voluntary_switches, 5);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "[0-9 ()a-zA-Z:\n]{0,200}") {
            for input in [&bytes[..], text.as_bytes()] {
                stat(input);
                statm(input);
                schedstat(input);
                status(input);
            }
        }
    }
}
