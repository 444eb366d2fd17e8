//! The pools of processes, walked once for all kinds that follow each of them.

use super::{
    is_cut,
    leak::{self, Counts},
    saturation::{self, Full},
};
use crate::detect::{Detector, Judgement, Seen, key::key, rows::Rows};

/// Pools followed.
const MAX_POOLS: usize = 4096;

/// Judges for `connection.saturation` and `connection.leak`.
#[derive(Debug, Default)]
pub(super) struct Pools {
    pools: Rows<Pool>,
}

/// Connections of a process to a database.
#[derive(Debug, Default)]
struct Pool {
    saturation: saturation::Pool,
    leak: leak::Pool,
}

impl Pools {
    /// What is known of a pool; `None` if it is one too many.
    fn get(&mut self, pid: u32, address: &str, port: u16) -> Option<&mut Pool> {
        self.pools.get(key((pid, address, port)), MAX_POOLS)
    }
}

impl Detector for Pools {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let tcp = &seen.snapshot.tcp;
        let is_cut = is_cut(tcp);
        let (mut full, mut leaking) = (Vec::<Full<'_>>::new(), Vec::new());
        for row in tcp.endpoints.iter().filter(|row| row.pid != 0 && row.role != "server") {
            let Some(pool) = self.get(row.pid, &row.address, row.port) else { continue };
            full.extend(pool.saturation.follow(row, seen));
            if is_cut {
                leaking.extend(pool.leak.follow(Counts::of(row), seen.now_ns));
            }
        }
        if !is_cut {
            for counts in leak::counts(seen).into_values() {
                let pool = self.get(counts.pid, counts.address, counts.port);
                leaking.extend(pool.and_then(|pool| pool.leak.follow(counts, seen.now_ns)));
            }
        }
        self.pools.end();
        saturation::tell(full, seen, found);
        leak::tell(leaking, seen, found);
    }
}
