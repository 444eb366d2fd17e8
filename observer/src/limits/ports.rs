//! Connections to each destination against the ports that there are: a connection needs a local port that no other one
//! to the same address and port has, also for the minute that it stays in TIME_WAIT.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::{Ipv6Addr, SocketAddr},
};

use super::file;
use crate::proc::Diag;

/// The kernel's short count of sockets opens the way to the long list: no destination can have more than all together.
const GATE: f64 = 0.1;
/// Destinations told.
pub(super) const MAX_DESTINATIONS: usize = 8;
/// Destinations counted at once; a host that talks to more has no trouble with one.
const MAX_COUNTED: usize = 65536;

/// Ports in use and ports there are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ports {
    /// TCP sockets of the host, TIME_WAIT included: no destination has more.
    pub(super) sockets: u64,
    /// Ports of the range.
    pub(super) range: u64,
    /// Destinations with the most connections, the first the fullest; empty below the gate.
    pub(super) destinations: Vec<(String, u64)>,
}

/// Counts, in the network namespace of the agent.
pub(super) fn read(diag: &mut Option<Diag>) -> Option<Ports> {
    let range = file::of_proc("/proc/sys/net/ipv4/ip_local_port_range", 64).ok()?;
    let (first, last) = range_of(&range)?;
    let sockets = ["/proc/net/sockstat", "/proc/net/sockstat6"]
        .iter()
        .filter_map(|path| tcp_sockets(&file::of_proc(path, 4096).ok()?))
        .fold(0, u64::saturating_add);
    let mut ports = Ports { sockets, range: u64::from(last - first) + 1, destinations: Vec::new() };
    if sockets as f64 >= ports.range as f64 * GATE {
        if diag.is_none() {
            *diag = Diag::open().ok();
        }
        if let Some(open) = diag {
            ports.destinations = count(open, first, last).map(fullest).unwrap_or_default();
        }
    }
    Some(ports)
}

/// Connections from ports of the range, by destination.
type Counts = HashMap<([u8; 16], u16), u64>;

fn count(diag: &mut Diag, first: u16, last: u16) -> anyhow::Result<Counts> {
    let mut counts = Counts::new();
    diag.each_bound(|local_port, address, port| {
        let has_room = counts.len() < MAX_COUNTED || counts.contains_key(&(address, port));
        if (first..=last).contains(&local_port) && has_room {
            *counts.entry((address, port)).or_default() += 1;
        }
    })?;
    Ok(counts)
}

fn fullest(counts: Counts) -> Vec<(String, u64)> {
    let mut all: Vec<_> = counts.into_iter().collect();
    all.sort_unstable_by_key(|(to, count)| (Reverse(*count), *to));
    all.truncate(MAX_DESTINATIONS);
    let named = |((address, port), count)| {
        let address = Ipv6Addr::from(address).to_canonical();
        (SocketAddr::new(address, port).to_string(), count)
    };
    all.into_iter().map(named).collect()
}

fn range_of(text: &[u8]) -> Option<(u16, u16)> {
    let mut words = str::from_utf8(text).ok()?.split_ascii_whitespace();
    let (first, last) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (first <= last).then_some((first, last))
}

/// Sockets in use and in TIME_WAIT of `/proc/net/sockstat`; the IPv6 file has only the first.
fn tcp_sockets(text: &[u8]) -> Option<u64> {
    let text = str::from_utf8(text).ok()?;
    let line = text.lines().find(|line| line.starts_with("TCP:") || line.starts_with("TCP6:"))?;
    let words: Vec<_> = line.split_ascii_whitespace().collect();
    let value = |key: &str| -> Option<u64> {
        words.iter().skip_while(|word| **word != key).nth(1)?.parse().ok()
    };
    Some(value("inuse")?.saturating_add(value("tw").unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn files_as_the_kernel_writes_them() {
        assert_eq!(range_of(b"32768\t60999\n"), Some((32768, 60999)));
        assert_eq!((range_of(b"9 8"), range_of(b"x")), (None, None));
        let text =
            b"sockets: used 9\nTCP: inuse 5 orphan 0 tw 12 alloc 7 mem 1\nUDP: inuse 1 mem 0\n";
        assert_eq!(tcp_sockets(text), Some(17));
        assert_eq!(tcp_sockets(b"TCP6: inuse 3\n"), Some(3));
        assert_eq!(tcp_sockets(b"UDP: inuse 3\n"), None);
    }

    #[test]
    fn connections_of_ours_are_counted_by_destination() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let mut held = Vec::new();
        for _ in 0..30 {
            held.push((TcpStream::connect(to).unwrap(), listener.accept().unwrap()));
        }
        // One that has ended stays in TIME_WAIT: the side that closes first.
        let (ended, other) = held.pop().unwrap();
        drop(ended);
        drop(other);
        let range = file::of_proc("/proc/sys/net/ipv4/ip_local_port_range", 64).unwrap();
        let (first, last) = range_of(&range).unwrap();
        let mut counts = count(&mut Diag::open().unwrap(), first, last).unwrap();
        let address = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];
        counts.retain(|key, _| *key == (address, to.port()));
        assert_eq!(fullest(counts), [(to.to_string(), 30)]);
        let ports = read(&mut None).unwrap();
        assert!(ports.sockets >= 60 && ports.range == u64::from(last - first) + 1, "{ports:?}");
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "TCP: [a-z0-9 ]{0,60}") {
            range_of(&bytes);
            tcp_sockets(&bytes);
            tcp_sockets(text.as_bytes());
        }
    }
}
