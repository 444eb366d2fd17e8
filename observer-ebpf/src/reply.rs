//! Ends of replies of databases.
//!
//! Hooks: socket filter of packet sockets, on incoming IPv4 and IPv6 of the interfaces that PostgreSQL is reached through, for
//! as long as there are connections to it.
//! Yields: REPLIES; no packet is ever queued, copied or kept back.
//! Misses: what is encrypted; interfaces of other network namespaces than the agent's; a reply whose end is cut in two by the
//! end of a segment; what else but a reply came last (NotificationResponse); what came before the first connection to
//! PostgreSQL was seen, within a second. All of these are told as unknown.
//! Cost: 48 ns a packet with data from PostgreSQL, 22 ns a bare acknowledgement, 17 ns any other; with the kernel's way to a
//! packet socket 119 ns and 93 ns a packet of a loopback ping-pong (docs/measurements.md). No counter of the kernel has this,
//! hence a hook on a frequent path; for its price it is on no interface that does not need it.
//!
//! Safety: loads go through a helper that checks bounds, also of packets that lie in pages.

use aya_ebpf::{
    helpers::{bpf_jiffies64, bpf_skb_load_bytes},
    macros::{map, socket_filter},
    maps::{Array, LruHashMap},
    programs::SkBuffContext,
};
use observer_abi::{
    reply::{Ends, MAX_REPLIES, Packet, Reply, segment},
    tcp::PORT_WORDS,
};
use zerocopy::FromBytes;

/// By connection; what is told of one that falls out is "unknown".
#[map]
static REPLIES: LruHashMap<Ends, Reply> = LruHashMap::with_max_entries(MAX_REPLIES, 0);

/// Bit per port whose replies are looked at.
#[map]
static REPLY_PORTS: Array<u64> = Array::with_max_entries(PORT_WORDS, 0);

/// ETH_P_IP (include/uapi/linux/if_ether.h), as it stands in a packet.
const IPV4: u32 = 0x0800_u16.to_be() as u32;

/// A packet socket of kind SOCK_DGRAM gives packets from their IP header on.
struct Incoming<'a>(&'a SkBuffContext);

impl Packet for Incoming<'_> {
    #[inline(always)]
    fn load<T: FromBytes + Copy>(&self, at: u32) -> Option<T> {
        let mut value = core::mem::MaybeUninit::<T>::uninit();
        let to = value.as_mut_ptr().cast();
        let skb = self.0.skb.skb.cast_const().cast();
        let refused = unsafe { bpf_skb_load_bytes(skb, at, to, size_of::<T>() as u32) };
        (refused == 0).then(|| unsafe { value.assume_init() })
    }

    #[inline(always)]
    fn bytes(&self) -> u32 {
        self.0.len()
    }
}

#[socket_filter]
fn reply_ends(ctx: SkBuffContext) -> i64 {
    let is_ipv4 = unsafe { (*ctx.skb.skb).protocol } == IPV4;
    if let Some(segment) = segment(&Incoming(&ctx), is_ipv4, is_server) {
        let now = unsafe { bpf_jiffies64() };
        match REPLIES.get_ptr_mut(&segment.ends) {
            Some(reply) => unsafe { (*reply).follow(&segment, now) },
            // Fails only if all are being written to; the connection is then unknown.
            None => drop(REPLIES.insert(&segment.ends, &Reply::begin(&segment, now), 0)),
        }
    }
    0
}

#[inline(always)]
fn is_server(port: u16) -> bool {
    REPLY_PORTS.get(u32::from(port >> 6)).is_some_and(|word| word >> (port & 63) & 1 != 0)
}
