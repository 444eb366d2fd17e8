//! Where ends of replies are looked for: packet sockets that receive nothing, for the sake of their filter.
//!
//! A packet socket sees its own network namespace only, as the rows of open connections do.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    ffi::CStr,
    io,
    net::IpAddr,
    os::fd::{BorrowedFd, OwnedFd},
    ptr,
};

use anyhow::{Context as _, Result};

use super::{
    packets::{Filter, socket},
    tables::Tables,
};

/// Interfaces that replies are looked for on at once: each costs all its packets some tens of nanoseconds.
const MAX_INTERFACES: usize = 8;

/// LOOPBACK_IFINDEX (include/net/flow.h): the first interface of each namespace.
const LOOPBACK: u32 = 1;

/// The sockets, two an interface, and the ports that their filter knows.
#[derive(Default)]
pub(super) struct Replies {
    ports: Vec<u16>,
    sockets: BTreeMap<u32, [OwnedFd; 2]>,
}

impl Replies {
    /// Looks at replies from these ports, on the interfaces that have these addresses, and nowhere else. What was known is
    /// forgotten when that is less than before: it may go on unseen.
    pub(super) fn watch(
        &mut self,
        filter: BorrowedFd<'_>,
        tables: &mut Tables,
        ports: &BTreeSet<u16>,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<()> {
        let wanted = interfaces(addresses).context("cannot list the addresses of this host")?;
        let before = self.sockets.len();
        self.sockets.retain(|interface, _| wanted.contains(interface));
        let is_less =
            self.sockets.len() < before || !self.ports.iter().all(|at| ports.contains(at));
        let ports: Vec<u16> = ports.iter().copied().collect();
        tables.set_reply_ports(&self.ports, &ports)?;
        self.ports = ports;
        for interface in wanted {
            if let Entry::Vacant(place) = self.sockets.entry(interface) {
                place.insert(on_interface(interface, filter)?);
            }
        }
        if is_less {
            tables.forget_replies();
        }
        Ok(())
    }
}

/// Packet sockets with a filter on what stays on this host.
pub(super) fn on_loopback(filter: BorrowedFd<'_>) -> Result<[OwnedFd; 2]> {
    on_interface(LOOPBACK, filter)
}

fn on_interface(interface: u32, filter: BorrowedFd<'_>) -> Result<[OwnedFd; 2]> {
    let open = |protocol| socket(protocol, interface, Filter::Program(filter));
    let both = [open(libc::ETH_P_IP), open(libc::ETH_P_IPV6)];
    let [v4, v6] = both.map(|opened| opened.context("cannot look at replies"));
    Ok([v4?, v6?])
}

/// Indices of the interfaces that have these addresses.
fn interfaces(addresses: &BTreeSet<IpAddr>) -> io::Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    if addresses.iter().any(IpAddr::is_loopback) {
        found.insert(LOOPBACK);
    }
    if addresses.iter().all(IpAddr::is_loopback) {
        return Ok(found);
    }
    let listed = own_addresses()?;
    found.extend(listed.iter().filter(|(_, at)| addresses.contains(at)).map(|(index, _)| *index));
    Ok(found.into_iter().take(MAX_INTERFACES).collect())
}

/// Every address of this network namespace, with the index of its interface.
fn own_addresses() -> io::Result<Vec<(u32, IpAddr)>> {
    let mut first: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: getifaddrs(3) writes one pointer, to a list that freeifaddrs(3) takes back below.
    if unsafe { libc::getifaddrs(&raw mut first) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut listed = Vec::new();
    let mut next = first;
    while !next.is_null() {
        // SAFETY: the list's entries live until it is freed.
        let entry = unsafe { &*next };
        // SAFETY: the name is a string that ends in zero, and the address null or as long as its family says (getifaddrs(3)).
        let (index, address) = unsafe {
            (libc::if_nametoindex(CStr::from_ptr(entry.ifa_name).as_ptr()), address(entry.ifa_addr))
        };
        listed.extend(address.filter(|_| index != 0).map(|address| (index, address)));
        next = entry.ifa_next;
    }
    // SAFETY: the list came from getifaddrs(3), and nothing of it is kept.
    unsafe { libc::freeifaddrs(first) };
    Ok(listed)
}

/// An IPv4 or IPv6 address.
///
/// # Safety
/// `address` is null, or a socket address as long as its family says.
unsafe fn address(address: *const libc::sockaddr) -> Option<IpAddr> {
    if address.is_null() {
        return None;
    }
    // SAFETY: as the caller says; the kernel's structures have no padding that is read.
    unsafe {
        match libc::c_int::from((*address).sa_family) {
            libc::AF_INET => {
                let v4 = ptr::read_unaligned(address.cast::<libc::sockaddr_in>());
                Some(IpAddr::from(v4.sin_addr.s_addr.to_ne_bytes()))
            }
            libc::AF_INET6 => {
                let v6 = ptr::read_unaligned(address.cast::<libc::sockaddr_in6>());
                Some(IpAddr::from(v6.sin6_addr.s6_addr))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_found_by_their_addresses() {
        let find = |text: &str| interfaces(&BTreeSet::from([text.parse().unwrap()])).unwrap();
        assert_eq!(find("127.0.0.1"), BTreeSet::from([LOOPBACK]));
        assert_eq!(find("::1"), BTreeSet::from([LOOPBACK]));
        assert_eq!(find("192.0.2.1"), BTreeSet::new(), "of nobody (RFC 5737)");
        assert!(own_addresses().unwrap().contains(&(LOOPBACK, "127.0.0.1".parse().unwrap())));
    }
}
