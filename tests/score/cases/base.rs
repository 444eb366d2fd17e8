//! The host that every case begins with: the system's own services, a web server, a Node.js application under PM2 with a
//! pool of connections each, and on some hosts a cache and a JVM.

use fastrand::Rng;

use crate::world::{
    World,
    actor::{Block, Why},
    chance::{MIB, between, happens, log_between},
    heap::Heap,
    people::Who,
    pool::{POSTGRES, REDIS, Use},
};

/// The user of the application.
pub(crate) const DEPLOY: (u32, &str) = (1001, "deploy");
/// The application.
pub(crate) const APP: &str = "shop-api";

/// Who runs on it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Base {
    /// The application's workers.
    pub(crate) workers: Vec<u32>,
    /// The cache.
    pub(crate) redis: Option<u32>,
    /// A service in Java.
    pub(crate) jvm: Option<u32>,
}

/// A host that uses about this share of its nominal memory.
pub(crate) fn host(world: &mut World, share: f64) -> Base {
    system(world);
    let size = world.nominal * share;
    let mut base = Base::default();
    let (with_redis, with_jvm) = (happens(&mut world.rng, 0.6), happens(&mut world.rng, 0.4));
    let parts = 1.0 + f64::from(u8::from(with_redis)) * 0.4 + f64::from(u8::from(with_jvm));
    if with_redis {
        base.redis = Some(redis(world, size * 0.4 / parts));
    }
    if with_jvm {
        base.jvm = Some(jvm(world, size / parts));
    }
    world.spawn(&Who::pm2_daemon(DEPLOY), Heap::Flat { bytes: 45.0 * MIB });
    let count = (world.machine.cpus as usize).clamp(1, 8);
    for worker in 0..count {
        let heap = Heap::v8(&mut world.rng, size / parts / count as f64 * 0.6);
        base.workers.push(self::worker(world, worker as u32, heap));
    }
    world.each_second(pauses);
    base
}

/// A worker of the application, with its pools.
pub(crate) fn worker(world: &mut World, number: u32, heap: Heap) -> u32 {
    let pid = world.spawn_server(&Who::pm2(APP, number, DEPLOY), heap);
    let size = world.rng.usize(4..=10);
    let busy = log_between(&mut world.rng, 0.02, 0.9);
    world.connect(pid, &POSTGRES, size, Use::Pooled(busy));
    world.connect(pid, &REDIS, 1, Use::Pooled(0.95));
    pid
}

fn system(world: &mut World) {
    let root = (0, "root");
    for (unit, name, command, bytes) in [
        ("init.scope", "systemd", "/sbin/init", 9.0),
        ("systemd-journald.service", "systemd-journal", "/usr/lib/systemd/systemd-journald", 14.0),
        ("systemd-udevd.service", "systemd-udevd", "/usr/lib/systemd/systemd-udevd", 5.0),
        ("ssh.service", "sshd", "/usr/sbin/sshd -D", 3.0),
        ("cron.service", "cron", "/usr/sbin/cron -f", 1.0),
        ("containerd.service", "containerd", "/usr/bin/containerd", 28.0),
    ] {
        world.spawn(&Who::unit(unit, name, command, root), Heap::Flat { bytes: bytes * MIB });
    }
    for _ in 0..2 {
        let who = Who::unit("nginx.service", "nginx", "nginx: worker process", (33, "www-data"));
        world.spawn_server(&who, Heap::Flat { bytes: 8.0 * MIB });
    }
}

/// A cache that has what it holds.
pub(crate) fn redis(world: &mut World, bytes: f64) -> u32 {
    let command = "/usr/bin/redis-server 127.0.0.1:6379";
    let who = Who::unit("redis-server.service", "redis-server", command, (112, "redis"));
    world.spawn_server(&who, Heap::Flat { bytes: bytes.max(8.0 * MIB) })
}

/// A service in Java whose heap has been touched up to its maximum long ago.
pub(crate) fn jvm(world: &mut World, bytes: f64) -> u32 {
    let most = bytes.max(64.0 * MIB);
    let command = format!("java -Xmx{:.0}m -jar /opt/billing/billing.jar", most / MIB);
    let who = Who::unit("billing.service", "java", &command, (998, "billing"));
    let heap = if happens(&mut world.rng, 0.5) {
        Heap::Flat { bytes: most }
    } else {
        let period_s = log_between(&mut world.rng, 20.0, 600.0);
        Heap::collected(&mut world.rng, most, period_s)
    };
    let pid = world.spawn(&who, heap);
    world.connect(pid, &POSTGRES, 5, Use::Pooled(0.3));
    let cpu = between(&mut world.rng, 0.05, 0.5);
    let actor = world.actor(pid).expect("it was just started");
    (actor.threads, actor.cpu) = (4, cpu);
    pid
}

/// Collections and large requests hold up every loop for some tens of milliseconds now and then.
fn pauses(world: &mut World) {
    let (now_s, rng) = (world.now_s as f64, &mut world.rng);
    for actor in &mut world.actors {
        if let Some(event_loop) = &mut actor.event_loop
            && event_loop.block.is_none()
            && rng.f64() < 0.01
        {
            let length_s = pause(rng);
            let block = Block { start_s: now_s + rng.f64(), length_s, why: Why::OnCpu };
            event_loop.begin(block);
        }
    }
}

fn pause(rng: &mut Rng) -> f64 {
    log_between(rng, 0.01, 0.25)
}
