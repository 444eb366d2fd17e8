//! What differs where a kernel has neither type information nor a ring buffer: fields are found by the formats of classic
//! tracepoints, and records go through a queue of slots of one size.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{alloc::Exit, oom, tcp};

/// Words of a slot: room for the longest record, a closed connection.
pub const SLOT_WORDS: usize = 25;

/// Records that wait between two drains, four a second. Takes 832 KiB of kernel memory.
pub const MAX_QUEUED: u32 = 4096;

/// Threads whose begin is known, for the lifetime of a process; the least recent goes first.
pub const MAX_BIRTHS: u32 = 16384;

/// Threads inside exit(2) at one instant.
pub const MAX_EXITING: u32 = 4096;

/// Processes of which the exit is told.
pub const MAX_WATCHED: u32 = 4096;

/// One record in the queue.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Slot {
    /// Bytes of the record; what follows is left from others.
    pub used: u64,
    /// The record.
    pub words: [u64; SLOT_WORDS],
}

const _: () = assert!(
    size_of::<tcp::Closed>() <= SLOT_WORDS * 8
        && size_of::<tcp::Listening>() <= SLOT_WORDS * 8
        && size_of::<oom::Kill>() <= SLOT_WORDS * 8
        && size_of::<oom::Reclaim>() <= SLOT_WORDS * 8
        && size_of::<Exit>() <= SLOT_WORDS * 8,
    "a record is longer than a slot"
);

/// Where a tracepoint's record keeps a number.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Place {
    /// From the begin of the record, in bytes.
    pub offset: u32,
    /// In bytes; 0 where this kernel has no such field.
    pub bytes: u32,
}

impl Place {
    /// No such field.
    pub const NONE: Self = Self { offset: 0, bytes: 0 };
}

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $event:literal . $field:literal),+ $(,)?) => {
        /// Places of what the programs read, given to them as constants.
        #[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct Fields {
            $($(#[$doc])* pub $name: Place,)+
        }

        /// Tracepoint and name of each field of [`Fields`], in order.
        pub const FIELDS: &[(&str, &str)] = &[$(($event, $field)),+];

        impl Fields {
            /// None is there.
            pub const NONE: Self = Self { $($name: Place::NONE),+ };
        }
    };
}

fields! {
    /// Pages that a direct reclaim freed.
    direct_reclaimed = "vmscan/mm_vmscan_direct_reclaim_end"."nr_reclaimed",
    /// Pages that a reclaim for a memory cgroup freed.
    memcg_reclaimed = "vmscan/mm_vmscan_memcg_reclaim_end"."nr_reclaimed",
    /// How long a reclaim was throttled, microseconds.
    throttled_us = "vmscan/mm_vmscan_throttled"."usec_delayed",
    /// Process that is killed.
    victim_pid = "oom/mark_victim"."pid",
    /// Its command name: offset in the low half, length in the high one (6.9).
    victim_comm = "oom/mark_victim"."comm",
    /// Its anonymous memory, KiB (6.9).
    victim_anon_kib = "oom/mark_victim"."anon_rss",
    /// Its file memory, KiB (6.9).
    victim_file_kib = "oom/mark_victim"."file_rss",
    /// Its shared memory, KiB (6.9).
    victim_shmem_kib = "oom/mark_victim"."shmem_rss",
    /// Its page tables, KiB (6.9).
    victim_page_tables_kib = "oom/mark_victim"."pgtables",
    /// Its oom_score_adj (6.9).
    victim_score_adj = "oom/mark_victim"."oom_score_adj",
    /// Thread that is made.
    child_pid = "sched/sched_process_fork"."child_pid",
    /// Whether the last thread of a process exits (6.17).
    group_dead = "sched/sched_process_exit"."group_dead",
    /// Kernel socket.
    socket = "sock/inet_sock_set_state"."skaddr",
    /// State before.
    old_state = "sock/inet_sock_set_state"."oldstate",
    /// State after.
    new_state = "sock/inet_sock_set_state"."newstate",
    /// Local port, host order.
    local_port = "sock/inet_sock_set_state"."sport",
    /// Peer port, host order.
    peer_port = "sock/inet_sock_set_state"."dport",
    /// AF_INET or AF_INET6.
    family = "sock/inet_sock_set_state"."family",
    /// Protocol number; one byte before 5.6.
    protocol = "sock/inet_sock_set_state"."protocol",
    /// Local address, IPv4 mapped into IPv6.
    local_address = "sock/inet_sock_set_state"."saddr_v6",
    /// Peer address, IPv4 mapped into IPv6.
    peer_address = "sock/inet_sock_set_state"."daddr_v6",
}
