//! What a tick of our detectors costs on a large host: 2,000 processes and 20,000 sockets, of which a snapshot shows 4,096.

use fastrand::Rng;
use observer::snapshot::MAX_ROWS;
use rustix::time::{ClockId, clock_gettime};

use crate::{
    cases::base,
    ours::Ours,
    rule::Rule as _,
    statistics::{quantile, sorted},
    world::{
        World,
        chance::{GIB, MIB},
        heap::Heap,
        people::Who,
        pool::{POSTGRES, REDIS, Use},
    },
};

/// Processes of the large host.
const PROCESSES: usize = 2000;
/// Seconds that are played, and of these, left out while histories fill.
const SECONDS: (usize, usize) = (900, 300);

/// Milliseconds of CPU of a tick: median, and 99th of a hundred.
pub(crate) fn large_host() -> (f64, f64) {
    let mut world = World::new(Rng::with_seed(7), 64.0 * GIB);
    base::host(&mut world, 0.2);
    for number in 0..PROCESSES - world.actors.len() {
        let heap = Heap::v8(&mut world.rng, 8.0 * MIB);
        let who = Who::container(number as u64 / 4, "node", "node /app/main.js");
        let pid = world.spawn_server(&who, heap);
        let server = if number % 2 == 0 { &POSTGRES } else { &REDIS };
        // Endpoints are counted over all sockets; rows end at the bound.
        if world.snapshot.tcp.connections.len() + 2 < MAX_ROWS {
            world.connect(pid, server, 2, Use::Pooled(0.3));
        }
    }
    let peak = 16.0 * GIB;
    world.fit(peak, 0.5);
    let (mut ours, mut alarms, mut took_ms) = (Ours::new(), Vec::new(), Vec::new());
    for second in 0..SECONDS.0 {
        world.step();
        let start_ms = cpu_ms();
        ours.tick(&world.snapshot, &mut alarms);
        if second >= SECONDS.1 {
            took_ms.push(cpu_ms() - start_ms);
        }
        alarms.clear();
    }
    let took_ms = sorted(took_ms);
    (quantile(&took_ms, 0.5).unwrap_or(0.0), quantile(&took_ms, 0.99).unwrap_or(0.0))
}

/// CPU time of this thread, which others on the machine do not change.
fn cpu_ms() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}
