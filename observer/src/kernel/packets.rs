//! Answers of name servers, as packets: a packet socket with a filter in the kernel, so that only UDP from port 53 is ever
//! copied.

use std::{
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
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

/// Both sockets.
pub struct Packets {
    v4: OwnedFd,
    v6: OwnedFd,
    buffer: Vec<u8>,
}

impl Packets {
    /// Opens them. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn open() -> io::Result<Self> {
        let v4 = socket(libc::ETH_P_IP, &IPV4)?;
        let v6 = socket(libc::ETH_P_IPV6, &IPV6)?;
        Ok(Self { v4, v6, buffer: vec![0; MAX_PACKET] })
    }

    /// Hands the UDP payload of every packet that has come to `take`.
    pub fn drain(&mut self, mut take: impl FnMut(&[u8])) {
        for socket in [&self.v4, &self.v6] {
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

fn socket(protocol: libc::c_int, filter: &[libc::sock_filter]) -> io::Result<OwnedFd> {
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
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the option's value is a sock_fprog that outlives the call, and the kernel only reads the filter.
    let set = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeroes is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = network_order;
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

#[cfg(test)]
mod tests {
    use super::*;

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
