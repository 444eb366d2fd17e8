//! The pools of processes, walked once for all kinds that follow each of them.

use std::collections::hash_map::Entry;

use super::{
    is_cut,
    leak::{self, Counts},
    saturation::{self, Full},
};
use crate::detect::{
    Detector, Judgement, Seen,
    key::{ByKey, key},
};

/// Pools followed.
const MAX_POOLS: usize = 4096;

/// Judges for `connection.saturation` and `connection.leak`.
#[derive(Debug, Default)]
pub(super) struct Pools {
    pools: ByKey<u64, Pool>,
}

/// Connections of a process to a database.
#[derive(Debug, Default)]
struct Pool {
    saturation: saturation::Pool,
    leak: leak::Pool,
    seen_ns: u64,
}

impl Pools {
    /// What is known of a pool; `None` if it is one too many.
    fn get(&mut self, pid: u32, address: &str, port: u16, now_ns: u64) -> Option<&mut Pool> {
        let len = self.pools.len();
        let pool = match self.pools.entry(key((pid, address, port))) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if len >= MAX_POOLS => return None,
            Entry::Vacant(new) => new.insert(Pool::default()),
        };
        pool.seen_ns = now_ns;
        Some(pool)
    }
}

impl Detector for Pools {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let tcp = &seen.snapshot.tcp;
        let is_cut = is_cut(tcp);
        let (mut full, mut leaking) = (Vec::<Full<'_>>::new(), Vec::new());
        for row in tcp.endpoints.iter().filter(|row| row.pid != 0 && row.role != "server") {
            let Some(pool) = self.get(row.pid, &row.address, row.port, seen.now_ns) else {
                continue;
            };
            full.extend(pool.saturation.follow(row, seen));
            if is_cut {
                leaking.extend(pool.leak.follow(Counts::of(row), seen.now_ns));
            }
        }
        if !is_cut {
            for counts in leak::counts(seen).into_values() {
                let pool = self.get(counts.pid, counts.address, counts.port, seen.now_ns);
                leaking.extend(pool.and_then(|pool| pool.leak.follow(counts, seen.now_ns)));
            }
        }
        self.pools.retain(|_, pool| pool.seen_ns == seen.now_ns);
        saturation::tell(full, seen, found);
        leak::tell(leaking, seen, found);
    }
}
