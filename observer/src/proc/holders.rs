//! Who holds a socket: the links in `/proc/PID/fd`.

use std::collections::{BTreeMap, BTreeSet};

use observer_abi::{COMM_LEN, tcp::HolderRow};
use rustix::{
    fs::{CWD, Dir, Mode, OFlags, openat, readlinkat_raw},
    io::Errno,
};

use super::{
    file::{Files, stat},
    pids,
};

/// Sockets that are looked for, by inode; each with the row that lacks but its holder.
pub(super) type Wanted = BTreeMap<u32, HolderRow>;

/// A link of a socket is `socket:[4294967295]` at most.
const MAX_LINK: usize = 32;

/// A look through open files.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// What was found.
    pub(super) found: Vec<HolderRow>,
    /// Processes whose files could be looked through.
    pub(super) readable: u64,
    /// Processes whose files could not.
    pub(super) unreadable: u64,
}

/// Looks for the holders of `wanted`, first among `likely`; it ends when all are found.
pub(super) fn look(mut wanted: Wanted, likely: &BTreeSet<u32>) -> anyhow::Result<Look> {
    let mut look = Look::default();
    let mut files = Files::default();
    let all = pids()?;
    let rest = all.iter().filter(|pid| !likely.contains(pid));
    for pid in likely.intersection(&all).chain(rest) {
        if wanted.is_empty() {
            break;
        }
        match held(*pid, &mut wanted, &mut look.found, &mut files) {
            Ok(()) => look.readable += 1,
            Err(Errno::ACCESS | Errno::PERM) => look.unreadable += 1,
            // It has ended.
            Err(_) => {}
        }
    }
    Ok(look)
}

/// Moves what a process holds from `wanted` to `found`.
fn held(
    pid: u32,
    wanted: &mut Wanted,
    found: &mut Vec<HolderRow>,
    files: &mut Files,
) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, format!("/proc/{pid}/fd"), flags, Mode::empty())?;
    let mut comm = None;
    for entry in Dir::read_from(&directory)? {
        let Ok(entry) = entry else { continue };
        let mut link = [0; MAX_LINK];
        let Ok(length) = readlinkat_raw(&directory, entry.file_name(), &mut link) else { continue };
        let Some(row) = inode(&link[..length]).and_then(|inode| wanted.remove(&inode)) else {
            continue;
        };
        let comm = *comm.get_or_insert_with(|| name(pid, files));
        found.push(HolderRow { tgid: pid, comm, ..row });
    }
    Ok(())
}

/// The inode of `socket:[INODE]`.
fn inode(link: &[u8]) -> Option<u32> {
    let digits = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    str::from_utf8(digits).ok()?.parse().ok()
}

fn name(pid: u32, files: &mut Files) -> [u8; COMM_LEN] {
    files.read(pid, pid, "stat").ok().and_then(stat).unwrap_or_default().comm
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsRawFd as _};

    use zerocopy::FromZeros as _;

    use super::*;

    #[test]
    fn a_socket_of_ours_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        let inode = inode(link.to_str().unwrap().as_bytes()).unwrap();
        let row = HolderRow { key: 7, ..HolderRow::new_zeroed() };
        let wanted = Wanted::from([(inode, row)]);
        let pid = std::process::id();
        for likely in [BTreeSet::new(), BTreeSet::from([pid])] {
            let look = look(wanted.clone(), &likely).unwrap();
            let [found] = look.found.as_slice() else { panic!("{look:?}") };
            assert_eq!((found.key, found.tgid), (7, pid));
            assert!(found.comm[0] != 0 && look.readable > 0);
            assert!(likely.is_empty() || look.readable == 1, "the likely one comes first");
        }
    }

    #[test]
    fn links_of_sockets() {
        assert_eq!(inode(b"socket:[123]"), Some(123));
        for other in [&b"socket:[]"[..], b"socket:[1", b"pipe:[1]", b"socket:[99999999999]", b""] {
            assert_eq!(inode(other), None);
        }
    }
}
