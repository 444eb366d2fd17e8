//! Healthy days that look like trouble. Sizes are shares of the host's nominal memory.

use super::{
    Class, Kind,
    base::{self, APP, DEPLOY},
};
use crate::world::{
    World,
    chance::{MIB, between, happens, log_between, noise, pick},
    heap::Heap,
    people::Who,
    pool::{POSTGRES, REDIS, Use},
};

/// All of them.
pub(super) const ALL: &[Kind] = &[
    kind("v8-sawtooth", v8),
    kind("jvm-sawtooth", collected),
    kind("warm-up", warm_up),
    kind("nightly-batch", batch),
    kind("rolling-deploys", deploys),
    kind("scale-out", scale_out),
    kind("backup", backup),
    kind("redis-to-maxmemory", redis),
    kind("diurnal", diurnal),
    kind("build", build),
    kind("long-queries", long_queries),
    kind("blocking-waits", blocking_waits),
    kind("apt-upgrade", apt),
    kind("thp-compaction", compaction),
    kind("steal-noise", steal),
    kind("cron-jobs", cron),
    kind("network-blips", blips),
    kind("idle-pools", idle_pools),
    kind("mixture", mixture),
    Kind { name: "packed", class: Class::Packed, build: packed },
];

const fn kind(name: &'static str, build: fn(&mut World, u64)) -> Kind {
    Kind { name, class: Class::Healthy, build }
}

fn v8(world: &mut World, _seconds: u64) {
    base::host(world, 0.2);
    let count = world.rng.u32(2..=6);
    for worker in 0..count {
        let live = world.nominal * between(&mut world.rng, 0.05, 0.3) / f64::from(count);
        let heap = Heap::v8(&mut world.rng, live);
        world.spawn_server(&Who::pm2("reports", worker, DEPLOY), heap);
    }
}

fn collected(world: &mut World, _seconds: u64) {
    base::host(world, 0.2);
    let count = world.rng.u32(1..=3);
    for number in 0..count {
        let most = world.nominal * between(&mut world.rng, 0.2, 0.5) / f64::from(count);
        let period_s = log_between(&mut world.rng, 5.0, 1200.0);
        let heap = Heap::collected(&mut world.rng, most, period_s);
        let unit = format!("search-{number}.service");
        world.spawn(
            &Who::unit(&unit, "java", "java -XX:+UseZGC -jar search.jar", (997, "search")),
            heap,
        );
    }
}

fn warm_up(world: &mut World, seconds: u64) {
    base::host(world, 0.25);
    let mut last = None;
    let mut next_s = world.rng.u64(60..seconds / 8);
    world.each_second(move |world| {
        if world.now_s < next_s {
            return;
        }
        next_s = world.now_s + world.rng.u64(seconds / 6..seconds);
        world.end(&last.into_iter().collect::<Vec<u32>>());
        let plateau = world.nominal * between(&mut world.rng, 0.1, 0.35);
        let tau_s = log_between(&mut world.rng, 60.0, 3600.0);
        let heap = Heap::WarmUp { base: 30.0 * MIB, plateau, tau_s, age_s: 0.0 };
        last = Some(world.spawn(&Who::container(7, "catalogue", "/app/catalogue"), heap));
    });
}

fn batch(world: &mut World, seconds: u64) {
    base::host(world, 0.35);
    let who = Who::session("python3", "python3 /opt/etl/nightly.py", (1002, "etl"));
    job(world, seconds, who, 0.18, (60.0, 1200.0), (600, 3600));
}

/// Once or twice in the run, a process that grows to about this share, stays and ends.
fn job(
    world: &mut World,
    seconds: u64,
    who: Who,
    share: f64,
    ramp_s: (f64, f64),
    hold_s: (u64, u64),
) {
    let mut next_s = world.rng.u64(seconds / 10..seconds / 2);
    let mut running: Option<(u32, u64)> = None;
    world.each_second(move |world| {
        if let Some((pid, until_s)) = running {
            if world.now_s >= until_s {
                world.end(&[pid]);
                running = None;
            }
        } else if world.now_s >= next_s {
            let size = world.nominal * share * between(&mut world.rng, 0.7, 1.3);
            let ramp_s = log_between(&mut world.rng, ramp_s.0, ramp_s.1);
            let pid = world.spawn(&who, Heap::Ramp { base: 20.0 * MIB, size, ramp_s, age_s: 0.0 });
            world.actor(pid).expect("it was just started").cpu = 0.9;
            running = Some((pid, world.now_s + ramp_s as u64 + world.rng.u64(hold_s.0..hold_s.1)));
            next_s = world.now_s + world.rng.u64(seconds / 3..seconds);
        }
    });
}

fn deploys(world: &mut World, seconds: u64) {
    let mut workers = base::host(world, 0.45).workers;
    let every_s = world.rng.u64(seconds / 12..seconds / 3);
    let mut queue: Vec<usize> = Vec::new();
    let mut old: Option<(u32, u64)> = None;
    let live = world.nominal * 0.2 / workers.len() as f64;
    world.each_second(move |world| {
        if world.now_s.is_multiple_of(every_s) {
            queue = (0..workers.len()).collect();
        }
        if let Some((pid, until_s)) = old {
            if world.now_s >= until_s {
                world.end(&[pid]);
                old = None;
            }
        } else if let Some(number) = queue.pop() {
            let tau_s = log_between(&mut world.rng, 20.0, 900.0);
            let heap = Heap::WarmUp { base: 40.0 * MIB, plateau: live, tau_s, age_s: 0.0 };
            let fresh = base::worker(world, number as u32, heap);
            let gone = std::mem::replace(&mut workers[number], fresh);
            old = Some((gone, world.now_s + world.rng.u64(5..30)));
        }
    });
}

fn scale_out(world: &mut World, seconds: u64) {
    base::host(world, 0.3);
    let mut more: Vec<u32> = Vec::new();
    let most = world.rng.usize(4..=10);
    let (from_s, until_s) =
        (world.rng.u64(seconds / 10..seconds / 3), world.rng.u64(seconds / 2..seconds));
    let step_s = world.rng.u64(30..240);
    world.each_second(move |world| {
        let grows = (from_s..until_s).contains(&world.now_s);
        if world.now_s.is_multiple_of(step_s) {
            if grows && more.len() < most {
                let live = world.nominal * 0.25 / most as f64;
                let heap = Heap::v8(&mut world.rng, live);
                more.push(base::worker(world, 20 + more.len() as u32, heap));
            } else if !grows && let Some(pid) = more.pop() {
                world.end(&[pid]);
            }
        }
    });
}

fn backup(world: &mut World, seconds: u64) {
    base::host(world, 0.45);
    let who = Who::session("restic", "restic backup /srv", (0, "root"));
    let heap = Heap::Flat { bytes: world.nominal * 0.02 };
    let rate = log_between(&mut world.rng, 30.0, 400.0) * MIB;
    let mut next_s = world.rng.u64(seconds / 20..seconds / 4);
    let mut running: Option<(u32, u64)> = None;
    world.each_second(move |world| {
        world.demand.cold_per_s = 0.0;
        match running {
            Some((pid, until_s)) if world.now_s >= until_s => {
                world.end(&[pid]);
                running = None;
            }
            Some(_) => world.demand.cold_per_s = rate * noise(&mut world.rng, 0.3),
            None if world.now_s >= next_s => {
                let pid = world.spawn(&who, heap.clone());
                running = Some((pid, world.now_s + world.rng.u64(600..3600)));
                next_s = world.now_s + world.rng.u64(seconds / 4..seconds);
            }
            None => {}
        }
    });
}

fn redis(world: &mut World, seconds: u64) {
    base::host(world, 0.3);
    let most = world.nominal * between(&mut world.rng, 0.1, 0.3);
    let rate = most / (seconds as f64 * between(&mut world.rng, 0.1, 0.6));
    let heap = Heap::Fill { bytes: most * 0.1, rate, most };
    let command = "/usr/bin/redis-server 127.0.0.1:6380";
    let who = Who::unit("redis-cache.service", "redis-server", command, (112, "redis"));
    let pid = world.spawn_server(&who, heap);
    save(world, who, pid, 3600, (0.02, 0.15));
}

/// Redis saves: a child that shares its parent's memory, and copies some of it as it changes.
pub(super) fn save(world: &mut World, who: Who, parent: u32, every_s: u64, changed: (f64, f64)) {
    let mut child: Option<(u32, u64)> = None;
    world.each_second(move |world| {
        if let Some((pid, until_s)) = child {
            if world.now_s >= until_s {
                world.end(&[pid]);
                child = None;
            }
        } else if world.now_s.is_multiple_of(every_s) {
            let Some(bytes) = world.actor(parent).map(|parent| parent.anon()) else { return };
            let took_s = world.rng.u64(15..120);
            let size = bytes * between(&mut world.rng, changed.0, changed.1);
            let heap = Heap::Ramp { base: 1.0 * MIB, size, ramp_s: took_s as f64, age_s: 0.0 };
            let pid = world.spawn(&who, heap);
            world.actor(pid).expect("it was just started").shared = bytes;
            child = Some((pid, world.now_s + took_s));
        }
    });
}

fn diurnal(world: &mut World, seconds: u64) {
    base::host(world, 0.25);
    let count = world.rng.u32(2..=5);
    for worker in 0..count {
        let size = world.nominal * between(&mut world.rng, 0.1, 0.3) / f64::from(count);
        // A shorter run has a shorter day.
        let phase_s = world.rng.f64() * 86_400.0;
        let heap = Heap::Diurnal { base: size * 0.5, amplitude: size, phase_s, wander: 0.0 };
        world.spawn_server(&Who::pm2("web", worker, DEPLOY), heap);
    }
    let day = 86_400.0 / seconds as f64;
    world.each_second(move |world| {
        let angle = world.day_s() * day / 86_400.0 * std::f64::consts::TAU;
        world.work = 1.0 + 0.5 * angle.sin();
    });
}

fn build(world: &mut World, seconds: u64) {
    base::host(world, 0.3);
    let (mut until_s, mut next_s) = (0, world.rng.u64(60..seconds / 6));
    let mut running: Vec<(u32, u64)> = Vec::new();
    world.each_second(move |world| {
        let over: Vec<u32> = running
            .iter()
            .filter(|(_, end_s)| world.now_s >= *end_s)
            .map(|(pid, _)| *pid)
            .collect();
        world.end(&over);
        world.snapshot.alloc.short_lived += over.len() as u64 / 3;
        running.retain(|(pid, _)| !over.contains(pid));
        if world.now_s >= next_s {
            until_s = world.now_s + world.rng.u64(120..2400);
            next_s = until_s + world.rng.u64(seconds / 12..seconds / 3);
        }
        let cpus = world.machine.cpus as usize;
        let jobs = if world.now_s < until_s { (cpus * 3 / 2).clamp(2, 48) } else { 0 };
        while running.len() < jobs {
            let who = Who::session("cc1plus", "/usr/lib/gcc/cc1plus -O2 unit.cc", (1003, "ci"));
            let size = world.nominal * log_between(&mut world.rng, 0.01, 0.25) / jobs as f64;
            let heap = Heap::Ramp { base: 10.0 * MIB, size, ramp_s: 8.0, age_s: 0.0 };
            let pid = world.spawn(&who, heap);
            world.actor(pid).expect("it was just started").cpu = 1.0;
            running.push((pid, world.now_s + world.rng.u64(1..30)));
        }
        world.cpu.extra = if jobs > 0 { cpus as f64 * 0.4 } else { 0.0 };
    });
}

fn long_queries(world: &mut World, _seconds: u64) {
    let workers = base::host(world, 0.4).workers;
    let mut until_s = 0;
    world.each_second(move |world| {
        if world.now_s >= until_s {
            let pid = pick(&mut world.rng, &workers);
            let takes_s = log_between(&mut world.rng, 60.0, 1800.0);
            world
                .pools
                .use_for(&world.snapshot.tcp, pid, POSTGRES.port, Use::Asks(takes_s), |n| n == 0);
            until_s = world.now_s + takes_s as u64 + world.rng.u64(10..600);
        }
    });
}

fn blocking_waits(world: &mut World, _seconds: u64) {
    let workers = base::host(world, 0.4).workers;
    for (number, pid) in workers.iter().enumerate() {
        // A queue that stays empty, and one that is asked again every five seconds.
        world.connect(*pid, &REDIS, 1, Use::Asks(f64::INFINITY));
        world.connect(*pid, &REDIS, 1, if number % 2 == 0 { Use::Asks(5.0) } else { Use::Unused });
        world.connect(*pid, &POSTGRES, 1, Use::Unused);
    }
    world.each_second(move |world| {
        for pid in &workers {
            if world.now_s % 6 == 0 {
                world
                    .pools
                    .use_for(&world.snapshot.tcp, *pid, REDIS.port, Use::Asks(5.0), |n| n == 2);
            }
        }
    });
}

fn apt(world: &mut World, seconds: u64) {
    let base = base::host(world, 0.4);
    let who = Who::unit(
        "apt-daily-upgrade.service",
        "unattended-upgr",
        "/usr/bin/python3 /usr/bin/unattended-upgrade",
        (0, "root"),
    );
    job(world, seconds, who, 0.06, (20.0, 60.0), (120, 600));
    let mut redis = base.redis;
    world.each_second(move |world| {
        let upgrades = world.actors.iter().any(|actor| actor.identity.name == "unattended-upgr");
        let rate = if upgrades { 40.0 * MIB * world.rng.f64() } else { 0.0 };
        world.demand.cold_per_s = rate;
        // A service is started anew in the course of it.
        if upgrades
            && happens(&mut world.rng, 0.005)
            && let Some(pid) = redis.take()
        {
            let bytes = world.actor(pid).map_or(0.0, |actor| actor.anon());
            world.end(&[pid]);
            base::redis(world, bytes);
        }
    });
}

fn compaction(world: &mut World, _seconds: u64) {
    base::host(world, 0.5);
    let mut until_s = 0;
    world.each_second(move |world| {
        if happens(&mut world.rng, 1.0 / 1200.0) {
            until_s = world.now_s + world.rng.u64(5..120);
        }
        let bursts = world.now_s < until_s;
        world.demand.compactions = if bursts { world.rng.u64(1..60) } else { 0 };
    });
}

fn steal(world: &mut World, _seconds: u64) {
    base::host(world, 0.4);
    let mut until_s = 0;
    world.each_second(move |world| {
        if happens(&mut world.rng, 1.0 / 900.0) {
            until_s = world.now_s + world.rng.u64(10..300);
        }
        let most = if world.now_s < until_s { 0.15 } else { 0.02 };
        world.cpu.steal = most * world.rng.f64();
    });
}

fn cron(world: &mut World, _seconds: u64) {
    base::host(world, 0.4);
    let mut running: Vec<(u32, u64)> = Vec::new();
    world.each_second(move |world| {
        let over: Vec<u32> = running
            .iter()
            .filter(|(_, end_s)| world.now_s >= *end_s)
            .map(|(pid, _)| *pid)
            .collect();
        world.end(&over);
        running.retain(|(pid, _)| !over.contains(pid));
        if world.now_s.is_multiple_of(60) {
            for _ in 0..world.rng.u32(1..4) {
                let who = Who::session("php", "php /srv/app/cron.php", (33, "www-data"));
                let size = log_between(&mut world.rng, 10.0 * MIB, world.nominal * 0.06);
                let ramp_s = log_between(&mut world.rng, 1.0, 20.0);
                let pid =
                    world.spawn(&who, Heap::Ramp { base: 8.0 * MIB, size, ramp_s, age_s: 0.0 });
                running.push((pid, world.now_s + world.rng.u64(2..55)));
            }
        }
    });
}

fn blips(world: &mut World, _seconds: u64) {
    let workers = base::host(world, 0.4).workers;
    world.each_second(move |world| {
        if happens(&mut world.rng, 1.0 / 600.0) {
            let lost_s = between(&mut world.rng, 1.0, 3.0);
            world.pools.retransmit(&mut world.snapshot.tcp, 3, &mut world.rng);
            for pid in &workers {
                let ask = Use::Asks(lost_s);
                world.pools.use_for(&world.snapshot.tcp, *pid, POSTGRES.port, ask, |_| true);
            }
        }
    });
}

fn idle_pools(world: &mut World, _seconds: u64) {
    let base = base::host(world, 0.4);
    for pid in base.workers {
        world.pools.use_for(&world.snapshot.tcp, pid, POSTGRES.port, Use::Unused, |_| true);
        world.connect(pid, &POSTGRES, 4, Use::Pooled(1.0 / 3600.0));
    }
    let who = Who::unit("worker.service", "python3", "python3 worker.py", (1004, "worker"));
    let heap = Heap::Flat { bytes: world.nominal * 0.05 };
    let pid = world.spawn(&who, heap);
    world.connect(pid, &POSTGRES, 20, Use::Unused);
}

/// A database that has been given nearly all memory, and keeps to it.
fn packed(world: &mut World, _seconds: u64) {
    base::host(world, 0.1);
    let size = world.nominal * 0.7;
    base::redis(world, size);
}

/// Several at once, as real hosts have them.
fn mixture(world: &mut World, seconds: u64) {
    base::host(world, 0.2);
    let most = world.nominal * between(&mut world.rng, 0.1, 0.2);
    let period_s = log_between(&mut world.rng, 5.0, 1200.0);
    let heap = Heap::collected(&mut world.rng, most, period_s);
    world.spawn(&Who::container(9, "search", "java -Xmx1g -jar search.jar"), heap);
    let etl = Who::session("python3", "python3 /opt/etl/nightly.py", (1002, "etl"));
    job(world, seconds, etl, 0.1, (60.0, 1200.0), (600, 3600));
    let tau_s = log_between(&mut world.rng, 60.0, 3600.0);
    let plateau = world.nominal * 0.08;
    let heap = Heap::WarmUp { base: 30.0 * MIB, plateau, tau_s, age_s: 0.0 };
    world.spawn(&Who::container(8, "catalogue", "/app/catalogue"), heap);
    let live = world.nominal * 0.05;
    let heap = Heap::v8(&mut world.rng, live);
    let pid = world.spawn_server(&Who::pm2(&format!("{APP}-admin"), 0, DEPLOY), heap);
    world.connect(pid, &POSTGRES, 5, Use::Pooled(0.05));
}
