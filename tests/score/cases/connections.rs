//! Connections that go wrong: leaks, pile-ups, peers that are gone or frozen, pools that are there twice.

use super::{
    Class, Kind, PRELUDE_S,
    base::{self, APP, Base},
};
use crate::{
    rule::Family,
    world::{
        World,
        chance::{log_between, pick},
        heap::Heap,
        people::Who,
        pool::{PEER, POSTGRES, Server, Use},
    },
};

/// All of them.
pub(super) const ALL: &[Kind] = &[
    Kind { name: "connection-leak", class: Class::PileUp, build: leak },
    Kind { name: "idle-in-transaction", class: Class::PileUp, build: idle_in_transaction },
    Kind { name: "lock-pile-up", class: Class::PileUp, build: locks },
    Kind { name: "black-holed-peer", class: Class::Broken, build: black_hole },
    Kind { name: "frozen-peer", class: Class::Broken, build: frozen },
    Kind { name: "duplicate-pools", class: Class::Broken, build: duplicate },
];

/// Connections that a PostgreSQL server takes by default.
const SERVER_LIMIT: usize = 100;

fn scene(world: &mut World) -> (Base, u64) {
    let base = base::host(world, 0.4);
    let onset_s = world.rng.u64(PRELUDE_S);
    world.truth.onset_s = Some(onset_s);
    world.truth.family = Some(Family::Connections);
    (base, onset_s)
}

fn to(world: &World, server: &Server) -> usize {
    world.snapshot.tcp.connections.iter().filter(|row| row.peer_port == server.port).count()
}

/// One connection more every few seconds, which nobody gives back, until the server refuses.
fn leak(world: &mut World, _seconds: u64) {
    let (base, onset_s) = scene(world);
    let pid = pick(&mut world.rng, &base.workers);
    world.truth.culprits = vec![pid];
    let every_s = log_between(&mut world.rng, 1.5, 12.0) as u64;
    world.each_second(move |world| {
        if world.now_s >= onset_s && world.now_s.is_multiple_of(every_s) {
            if to(world, &POSTGRES) < SERVER_LIMIT {
                world.connect(pid, &POSTGRES, 1, Use::Unused);
            } else {
                world.truth.end_s.get_or_insert(world.now_s);
            }
        }
    });
}

/// One transaction is left open and holds a lock; one connection after the other waits for it, until none is free.
fn idle_in_transaction(world: &mut World, _seconds: u64) {
    pile_up(world, (2.0, 20.0), 1);
}

/// A lock on what everybody needs.
fn locks(world: &mut World, _seconds: u64) {
    pile_up(world, (0.3, 2.0), usize::MAX);
}

fn pile_up(world: &mut World, every_s: (f64, f64), of: usize) {
    let (base, onset_s) = scene(world);
    let every_s = log_between(&mut world.rng, every_s.0, every_s.1);
    let workers: Vec<u32> = base.workers.into_iter().take(of).collect();
    world.truth.culprits.clone_from(&workers);
    // From outside, the database is where they wait, whoever began.
    world.truth.name(&[POSTGRES.name, POSTGRES.address, POSTGRES.system]);
    world.truth.nobody = true;
    world.each_second(move |world| {
        if world.now_s < onset_s {
            return;
        }
        let stuck = ((world.now_s - onset_s) as f64 / every_s) as usize;
        for (at, pid) in workers.iter().enumerate() {
            // The first of the first worker has the lock, and is idle.
            let holder = usize::from(at == 0);
            let waits = move |n: usize| (holder..stuck / workers_or_one(of) + holder).contains(&n);
            let asks = Use::Asks(f64::INFINITY);
            world.pools.use_for(&world.snapshot.tcp, *pid, POSTGRES.port, asks, waits);
            if at == 0 {
                world
                    .pools
                    .use_for(&world.snapshot.tcp, *pid, POSTGRES.port, Use::Unused, |n| n == 0);
            }
        }
        if stuck >= 10 * workers_or_one(of) {
            world.truth.end_s.get_or_insert(world.now_s);
        }
    });
}

/// All workers pile up together, or one alone.
fn workers_or_one(of: usize) -> usize {
    of.min(4)
}

fn black_hole(world: &mut World, _seconds: u64) {
    silent(world, Use::Dead);
}

fn frozen(world: &mut World, _seconds: u64) {
    silent(world, Use::Frozen);
}

/// All connections to one server become silent, each when it is used next.
fn silent(world: &mut World, used: Use) {
    let (base, onset_s) = scene(world);
    let server = pick(&mut world.rng, &[POSTGRES, PEER]);
    if server == PEER {
        for pid in &base.workers {
            world.connect(*pid, &PEER, 2, Use::Pooled(0.9));
        }
    }
    world.truth.name(&[server.address, server.system, server.name]);
    world.truth.culprits.clone_from(&base.workers);
    world.each_second(move |world| {
        if world.now_s < onset_s {
            return;
        }
        for pid in &base.workers {
            // Those that are in use notice first.
            let late = (world.now_s - onset_s) as usize;
            let notices = |n: usize| n <= late * 2;
            world.pools.use_for(&world.snapshot.tcp, *pid, server.port, used, notices);
        }
    });
}

/// A second PM2 daemon, of another user, starts the same application: twice the pools.
fn duplicate(world: &mut World, _seconds: u64) {
    let (base, onset_s) = scene(world);
    let count = base.workers.len();
    world.truth.culprits = base.workers;
    world.truth.name(&[APP, "PM2"]);
    world.each_second(move |world| {
        if world.now_s == onset_s {
            let user = (1005, "jenkins");
            let daemon = world.spawn(&Who::pm2_daemon(user), Heap::Flat { bytes: 45e6 });
            world.truth.culprits.push(daemon);
            for worker in 0..count {
                let live = world.nominal * 0.02 / count as f64;
                let heap = Heap::v8(&mut world.rng, live);
                let pid = world.spawn_server(&Who::pm2(APP, worker as u32, user), heap);
                world.connect(pid, &POSTGRES, 10, Use::Pooled(0.02));
                world.truth.culprits.push(pid);
            }
        }
    });
}
