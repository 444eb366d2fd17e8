//! Answers of name servers, as packets: a packet socket with a filter in the kernel, so that only UDP from port 53 is ever
//! copied.

use std::{
    collections::BTreeSet,
    fs, io, mem,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// Bytes kept of a packet: the least that every resolver must accept over UDP is 512, EDNS answers stay below this.
const MAX_PACKET: usize = 4096;

/// Packets read at one drain.
const MAX_BURST: usize = 256;

const LDB_ABS: u16 = 0x30;
const LDH_ABS: u16 = 0x28;
const LDH_IND: u16 = 0x48;
const LDX_MSH: u16 = 0xb1;
const JEQ: u16 = 0x15;
const JSET: u16 = 0x45;
const RET: u16 = 0x06;
const UDP: u32 = 17;
const DNS_PORT: u32 = 53;

const fn op(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// From the IPv4 header on: not a later fragment, UDP, source port 53.
const IPV4: [libc::sock_filter; 9] = [
    op(LDB_ABS, 0, 0, 9),
    op(JEQ, 0, 6, UDP),
    op(LDH_ABS, 0, 0, 6),
    op(JSET, 4, 0, 0x1fff),
    op(LDX_MSH, 0, 0, 0),
    op(LDH_IND, 0, 0, 0),
    op(JEQ, 0, 1, DNS_PORT),
    op(RET, 0, 0, MAX_PACKET as u32),
    op(RET, 0, 0, 0),
];

/// From the IPv6 header on; UDP must follow at once.
const IPV6: [libc::sock_filter; 6] = [
    op(LDB_ABS, 0, 0, 6),
    op(JEQ, 0, 3, UDP),
    op(LDH_ABS, 0, 0, 40),
    op(JEQ, 0, 1, DNS_PORT),
    op(RET, 0, 0, MAX_PACKET as u32),
    op(RET, 0, 0, 0),
];

/// Interfaces listened on at once.
const MAX_INTERFACES: usize = 8;

/// Which interfaces are listened on. A packet socket costs each packet of its interface some tens of nanoseconds, and on
/// loopback that is the databases' own traffic; a resolver there has its answers from the network, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Those with a default route.
    Network,
    /// All, loopback included.
    All,
}

/// The sockets, two an interface.
pub struct Packets {
    scope: Scope,
    interfaces: BTreeSet<u32>,
    sockets: Vec<OwnedFd>,
    buffer: Vec<u8>,
}

impl Packets {
    /// Opens them. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn open(scope: Scope) -> io::Result<Self> {
        let mut packets = Self {
            scope,
            interfaces: BTreeSet::new(),
            sockets: Vec::new(),
            buffer: vec![0; MAX_PACKET],
        };
        // Shows at once whether it is allowed, also where no interface is up yet.
        drop(socket(libc::ETH_P_IP, ANY_INTERFACE, Filter::Classic(&IPV4))?);
        packets.follow_routes()?;
        Ok(packets)
    }

    /// Listens where the default routes lead now; to be called again now and then.
    ///
    /// # Errors
    /// What the system refuses. The sockets are then those before.
    pub fn follow_routes(&mut self) -> io::Result<()> {
        let interfaces = match self.scope {
            Scope::All => BTreeSet::from([ANY_INTERFACE]),
            Scope::Network => default_interfaces(),
        };
        if interfaces == self.interfaces {
            return Ok(());
        }
        let mut sockets = Vec::new();
        for interface in &interfaces {
            sockets.push(socket(libc::ETH_P_IP, *interface, Filter::Classic(&IPV4))?);
            sockets.push(socket(libc::ETH_P_IPV6, *interface, Filter::Classic(&IPV6))?);
        }
        (self.interfaces, self.sockets) = (interfaces, sockets);
        Ok(())
    }

    /// Hands the UDP payload of every packet that has come to `take`.
    pub fn drain(&mut self, mut take: impl FnMut(&[u8])) {
        for socket in &self.sockets {
            for _ in 0..MAX_BURST {
                let Ok((length, _)) =
                    rustix::net::recv(socket, &mut *self.buffer, rustix::net::RecvFlags::DONTWAIT)
                else {
                    break;
                };
                if let Some(payload) = payload(&self.buffer[..length.min(MAX_PACKET)]) {
                    take(payload);
                }
            }
        }
    }
}

/// `sll_ifindex` for every interface (packet(7)).
const ANY_INTERFACE: u32 = 0;

/// Interfaces that a default route of IPv4 or IPv6 uses, loopback never.
fn default_interfaces() -> BTreeSet<u32> {
    let v4 = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let index = |name: &str| {
        fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()?.trim().parse().ok()
    };
    let names = v4.lines().filter_map(default_v4).chain(v6.lines().filter_map(default_v6));
    names.filter(|name| *name != "lo").filter_map(index).take(MAX_INTERFACES).collect()
}

/// `Iface Destination ...`, the destination in hex (net/ipv4/fib_trie.c, fib_route_seq_show).
fn default_v4(line: &str) -> Option<&str> {
    let mut fields = line.split_whitespace();
    let name = fields.next()?;
    (fields.next()? == "00000000").then_some(name)
}

/// `destination prefix source prefix gateway metric references uses flags device` (net/ipv6/route.c, rt6_info_route).
fn default_v6(line: &str) -> Option<&str> {
    let mut fields = line.split_whitespace();
    let whole = fields.next()?.bytes().all(|digit| digit == b'0') && fields.next()? == "00";
    whole.then(|| fields.last())?
}

/// Behind the IP and UDP headers.
fn payload(packet: &[u8]) -> Option<&[u8]> {
    const UDP_HEADER: usize = 8;
    let header = match packet.first()? >> 4 {
        4 => usize::from(packet[0] & 0xf) * 4,
        6 => 40,
        _ => return None,
    };
    packet.get(header + UDP_HEADER..)
}

/// What a packet socket asks of each packet.
#[derive(Clone, Copy)]
pub(super) enum Filter<'a> {
    /// A classic program.
    Classic(&'a [libc::sock_filter]),
    /// A loaded BPF program.
    Program(BorrowedFd<'a>),
}

/// Opens a packet socket that gives packets of one protocol (ETH_P_*) from their IP header on.
pub(super) fn socket(
    protocol: libc::c_int,
    interface: u32,
    filter: Filter<'_>,
) -> io::Result<OwnedFd> {
    let network_order = (protocol as u16).to_be();
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // Protocol 0 receives nothing, so that no packet comes before the filter is set.
    // SAFETY: socket(2) takes no pointer.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was opened here and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    match filter {
        Filter::Classic(filter) => {
            let (len, filter) = (filter.len() as u16, filter.as_ptr().cast_mut());
            option(&fd, libc::SO_ATTACH_FILTER, &libc::sock_fprog { len, filter })?;
        }
        Filter::Program(program) => option(&fd, libc::SO_ATTACH_BPF, &program.as_raw_fd())?,
    }
    // SAFETY: all zeroes is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = network_order;
    address.sll_ifindex = i32::try_from(interface).map_err(io::Error::other)?;
    // SAFETY: the address is a sockaddr_ll of the size given and outlives the call.
    let bound = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(fd) }
}

/// Sets an option of a socket; `value` is what the kernel takes for `name`.
fn option<T>(socket: &OwnedFd, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the value outlives the call, and so does the filter that it may point to; the kernel only reads them.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_name_their_interface() {
        assert_eq!(
            default_v4("eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0"),
            Some("eth0")
        );
        assert_eq!(default_v4("eth0\t0000A8C0\t00000000\t0001"), None);
        assert_eq!(default_v4("Iface\tDestination\tGateway"), None);
        let zero = "0".repeat(32);
        let gateway = "fe80000000000000000000000000001";
        let line =
            format!("{zero} 00 {zero} 00 {gateway} 00000400 00000001 00000000 00000003     ens5");
        assert_eq!(default_v6(&line), Some("ens5"));
        assert_eq!(default_v6(&line.replacen(" 00 ", " 40 ", 1)), None);
        assert_eq!(default_v6(""), None);
    }

    #[test]
    fn payload_lies_behind_both_headers() {
        let mut packet = vec![0x46_u8; 24 + 8];
        packet.extend(b"dns");
        assert_eq!(payload(&packet), Some(&b"dns"[..]));
        let mut packet = vec![0x60_u8; 40 + 8];
        packet.extend(b"dns");
        assert_eq!(payload(&packet), Some(&b"dns"[..]));
        assert_eq!(payload(&[0x45; 10]), None);
        assert_eq!(payload(&[]), None);
    }
}
