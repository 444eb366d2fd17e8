//! Settings under which a small fault becomes a dead host: each was part of an incident. None of them is an event; what is
//! told is what to change, once.

mod heap;
mod host;
mod pm2;
mod redis;

use std::time::Duration;

use super::size;
use crate::detect::{Detector, Judgement, Kind, Seen};

/// A hazard is looked for by a function of the snapshot alone.
type Find = fn(&Seen<'_>, &mut Vec<Judgement>);

/// What was found at the last reading of limits, which is every few seconds; nothing is known before the first.
struct Look {
    find: Find,
    read_unix_ns: u64,
    found: Vec<Judgement>,
}

impl Detector for Look {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        if self.read_unix_ns != seen.snapshot.limit.read_unix_ns {
            self.read_unix_ns = seen.snapshot.limit.read_unix_ns;
            self.found.clear();
            if self.read_unix_ns != 0 {
                (self.find)(seen, &mut self.found);
            }
        }
        found.extend_from_slice(&self.found);
    }
}

/// The table: a kind, its name, what is set wrong, why that hurts, and who looks for it.
macro_rules! hazards {
    ($($kind:ident = $name:literal: $help:literal, $reason:literal, $find:path;)+) => {
        $(
            #[doc = $help]
            pub static $kind: Kind = Kind {
                name: $name,
                signal: "limit",
                help: $help,
                reason: $reason,
                raise: Duration::from_secs(30),
                clear: Duration::from_secs(30),
                hazard: true,
                settings: &[],
                detector: |_| Box::new(Look { find: $find, read_unix_ns: 0, found: Vec::new() }),
            };
        )+

        /// All of them, in the order of the docs.
        pub const ALL: &[&Kind] = &[$(&$kind),+];
    };
}

hazards! {
    REDIS_OVERCOMMIT = "hazard.redis_overcommit":
        "vm.overcommit_memory is 0 and a Redis saves by fork",
        "The fork counts as a second Redis; beyond what is free it fails, or its copies take the host's last memory. WARN \
         once Redis has more than is available.",
        redis::overcommit;
    REDIS_HUGE_PAGES = "hazard.redis_huge_pages":
        "transparent huge pages are always on and a Redis saves by fork",
        "Each write during a save then copies 2 MiB in place of 4 KiB.",
        redis::huge_pages;
    REDIS_MAXMEMORY = "hazard.redis_maxmemory":
        "a Redis has no maxmemory",
        "The host's memory is its limit then, and all others' too. WARN once it has half of it.",
        redis::maxmemory;
    HEAP_LIMITS = "hazard.heap_limits":
        "heaps may grow beyond the memory of the host, alone or together",
        "Each collector waits for its own limit before it works hard; if the host's comes first, it hangs. Limits that \
         nobody set count only alone.",
        heap::limits;
    PM2_MEMORY = "hazard.pm2_memory":
        "PM2 applications have no max_memory_restart, or one that RAM has no room for",
        "PM2 restarts what leaks only if it is told when; in the incident of 2022 it was not.",
        pm2::memory;
    WORKERS = "hazard.workers":
        "a PM2 application has more workers than the host has CPUs",
        "Event loops then wait for each other, and each keeps memory and connections of its own.",
        pm2::workers;
    FILES = "hazard.files":
        "a server may open 1,024 files at most, and uses a quarter of them",
        "That is the default for shells; each client costs one, and without another nobody is accepted.",
        host::files;
    NO_SWAP = "hazard.no_swap":
        "the host has no swap, and programs on it have no limit of memory",
        "Such a host does not run slowly before it hangs: with the last file pages gone it stands still, and nothing is \
         killed.",
        host::no_swap;
    MEMORY_LIMIT = "hazard.memory_limit":
        "a container or service has a quarter of memory and no limit of it",
        "With a limit the kernel ends it alone; without one its leak takes everything on the host along.",
        host::memory_limit;
    KEEPALIVE = "hazard.keepalive":
        "connections across the internet rest, and keepalives begin later than a NAT forgets",
        "AWS's NAT gateways and network load balancers drop a connection after 350 s of rest without a word; Linux asks \
         after two hours. The next request then waits for retransmissions, some 15 minutes.",
        host::keepalive;
}

/// Names in a message.
const MAX_NAMED: usize = 4;

fn memory_total(seen: &Seen<'_>) -> f64 {
    let total =
        seen.snapshot.limit.host.memory_total_bytes.max(seen.snapshot.oom.memory_total_bytes);
    total as f64
}
