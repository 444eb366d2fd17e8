//! Memory that runs out. Rates are `world.rate` megabytes a second on a host of 4 GB, and in proportion on others. Around the
//! leak, the host is a healthy one with its collected heaps.

use super::{
    Class, Kind, PRELUDE_S,
    base::{self, Base},
    healthy,
};
use crate::{
    rule::Family,
    world::{
        World,
        actor::{Leak, Shape},
        chance::{GIB, MIB, between, happens, log_between, pick},
        heap::Heap,
        people::Who,
    },
};

/// All of them.
pub(super) const ALL: &[Kind] = &[
    leak("leak-node-worker", node_worker),
    leak("leak-pm2-app", pm2_app),
    leak("leak-jvm-native", jvm_native),
    leak("leak-container", container),
    leak("leak-redis-fill", redis_fill),
    leak("leak-tmpfs", tmpfs),
    leak("leak-slab", slab),
    leak("leak-in-cgroup", in_cgroup),
    Kind { name: "redis-fork", class: Class::FastLeak, build: redis_fork },
    Kind { name: "spike", class: Class::Spike, build: spike },
];

const fn leak(name: &'static str, build: fn(&mut World, u64)) -> Kind {
    Kind { name, class: Class::SlowLeak, build }
}

/// A host with a mixture of services that collect garbage, and the instant at which the fault begins.
fn scene(world: &mut World) -> (Base, u64) {
    let base = base::host(world, 0.4);
    if happens(&mut world.rng, 0.5) {
        let most = world.nominal * between(&mut world.rng, 0.05, 0.15);
        let period_s = log_between(&mut world.rng, 5.0, 600.0);
        let heap = Heap::collected(&mut world.rng, most, period_s);
        world.spawn(&Who::container(9, "search", "java -XX:+UseZGC -jar search.jar"), heap);
    }
    let onset_s = world.rng.u64(PRELUDE_S);
    world.truth.onset_s = Some(onset_s);
    world.truth.family = Some(Family::Memory);
    (base, onset_s)
}

/// Bytes a second on this host.
fn rate(world: &World) -> f64 {
    world.rate * MIB * world.machine.total / (4.0 * GIB)
}

fn shape(world: &mut World) -> Shape {
    let choice = world.rng.u8(..10);
    match choice {
        0..6 => Shape::Even,
        6..8 => Shape::Doubling(log_between(&mut world.rng, 200.0, 2000.0)),
        _ => Shape::Bursts(log_between(&mut world.rng, 3.0, 30.0)),
    }
}

/// These leak from the onset on, each its share.
fn begin(world: &mut World, pids: Vec<u32>, onset_s: u64) {
    let shape = shape(world);
    world.truth.culprits.clone_from(&pids);
    world.each_second(move |world| {
        if world.now_s == onset_s {
            let rate = rate(world) / pids.len() as f64;
            for pid in &pids {
                if let Some(actor) = world.actor(*pid) {
                    actor.leak = Some(Leak::new(rate, shape));
                }
            }
        }
    });
}

fn node_worker(world: &mut World, _seconds: u64) {
    let (base, onset_s) = scene(world);
    let pid = pick(&mut world.rng, &base.workers);
    begin(world, vec![pid], onset_s);
}

fn pm2_app(world: &mut World, _seconds: u64) {
    let (base, onset_s) = scene(world);
    begin(world, base.workers, onset_s);
}

fn jvm_native(world: &mut World, _seconds: u64) {
    let (base, onset_s) = scene(world);
    let size = world.nominal * 0.1;
    let pid = base.jvm.unwrap_or_else(|| base::jvm(world, size));
    begin(world, vec![pid], onset_s);
}

fn container(world: &mut World, _seconds: u64) {
    let (_, onset_s) = scene(world);
    let live = world.nominal * 0.05;
    let who = Who::container(11, "gunicorn", "gunicorn app:api");
    let pids: Vec<u32> = (0..world.rng.u32(1..5))
        .map(|_| {
            let heap = Heap::v8(&mut world.rng, live / 4.0);
            world.spawn_server(&who, heap)
        })
        .collect();
    begin(world, pids, onset_s);
}

fn redis_fill(world: &mut World, _seconds: u64) {
    let (base, onset_s) = scene(world);
    let size = world.nominal * 0.05;
    let pid = base.redis.unwrap_or_else(|| base::redis(world, size));
    begin(world, vec![pid], onset_s);
}

/// Files in memory: their writer does not show them.
fn tmpfs(world: &mut World, _seconds: u64) {
    let (_, onset_s) = scene(world);
    world.truth.nobody = true;
    world.truth.name(&["tmpfs", "shmem", "shared memory"]);
    world.each_second(move |world| {
        if world.now_s >= onset_s {
            let progress = world.memory.as_ref().map_or(1.0, |memory| memory.progress);
            world.shmem += rate(world) * progress * world.rng.f64() * 2.0;
        }
    });
}

fn slab(world: &mut World, _seconds: u64) {
    let (_, onset_s) = scene(world);
    world.truth.nobody = true;
    world.truth.name(&["slab", "kernel"]);
    world.each_second(move |world| {
        if world.now_s >= onset_s {
            let progress = world.memory.as_ref().map_or(1.0, |memory| memory.progress);
            world.slab += rate(world) * progress * world.rng.f64() * 2.0;
        }
    });
}

/// A service with a limit: the kernel kills it when the limit is reached, and the host has memory to spare.
fn in_cgroup(world: &mut World, _seconds: u64) {
    let (_, onset_s) = scene(world);
    let limit = world.nominal * between(&mut world.rng, 0.1, 0.3);
    let who = Who::container(12, "python3", "python3 -m app.worker");
    let heap = Heap::v8(&mut world.rng, limit * 0.3);
    let pid = world.spawn_server(&who, heap);
    world.limit(who.cgroup(), limit);
    // At the host's rate it would be there at once.
    world.rate *= limit / world.nominal;
    begin(world, vec![pid], onset_s);
}

/// Redis saves while its values change faster than the disk takes them: what it shared is copied.
fn redis_fork(world: &mut World, _seconds: u64) {
    let (_, onset_s) = scene(world);
    let bytes = world.nominal * between(&mut world.rng, 0.3, 0.5);
    let pid = base::redis(world, bytes);
    let command = "/usr/bin/redis-server 127.0.0.1:6379";
    let who = Who::unit("redis-server.service", "redis-server", command, (112, "redis"));
    let took_s = log_between(&mut world.rng, 20.0, 200.0);
    world.truth.culprits = vec![pid];
    healthy::save(world, who.clone(), pid, 700, (0.02, 0.05));
    world.each_second(move |world| {
        if world.now_s == onset_s {
            // As much as there is, and more.
            let size = (bytes * 0.95).max(world.machine.total);
            let heap = Heap::Ramp { base: MIB, size, ramp_s: took_s * size / bytes, age_s: 0.0 };
            let child = world.spawn(&who, heap);
            world.actor(child).expect("it was just started").shared = bytes;
            world.truth.culprits.push(child);
        }
    });
}

/// Giant strings: each request builds one of 0.3 to 1 GB (of 4), and more of them come at once, until it does not fit.
fn spike(world: &mut World, _seconds: u64) {
    let (base, onset_s) = scene(world);
    let pid = pick(&mut world.rng, &base.workers);
    world.truth.culprits = vec![pid];
    let share = log_between(&mut world.rng, 0.075, 0.25);
    let lasts_s = world.rng.u64(2..8);
    let mut number = 0.0;
    world.each_second(move |world| {
        if world.now_s < onset_s {
            return;
        }
        let phase = (world.now_s - onset_s) % 60;
        let size = world.machine.total * share;
        let wanted = if phase == 0 {
            number += 1.0;
            size * number
        } else if phase < lasts_s {
            return;
        } else {
            0.0
        };
        if let Some(actor) = world.actor(pid) {
            actor.leaked = wanted;
        }
    });
}
