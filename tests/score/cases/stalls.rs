//! Loops that do not turn, CPUs that are not to be had, tasks that sleep for ever, programs that start again and again, and
//! an agent that cannot send.

use observer::{signal::sched::BlockedTask, snapshot::Exporter};

use super::{
    Class, Kind, PRELUDE_S,
    base::{self, Base},
};
use crate::{
    rule::Family,
    world::{
        World,
        actor::{Block, Why},
        chance::{between, log_between, pick},
        heap::Heap,
        pool::{POSTGRES, Use},
    },
};

/// All of them.
pub(super) const ALL: &[Kind] = &[
    broken("loop-blocked-once", blocked_once),
    broken("loop-blocked-often", blocked_often),
    broken("cpu-starved", starved),
    broken("cpu-throttled", throttled),
    broken("cpu-stolen", stolen),
    broken("disk-gone", disk_gone),
    broken("disk-slow", disk_slow),
    broken("disk-hogged", disk_hogged),
    broken("crash-loop", crash_loop),
    broken("exporter-held", exporter_held),
    Kind { name: "files-exhausted", class: Class::PileUp, build: files },
];

const fn broken(name: &'static str, build: fn(&mut World, u64)) -> Kind {
    Kind { name, class: Class::Broken, build }
}

fn scene(world: &mut World, family: Family) -> (Base, u64) {
    let base = base::host(world, 0.4);
    let onset_s = world.rng.u64(PRELUDE_S);
    world.truth.onset_s = Some(onset_s);
    world.truth.family = Some(family);
    (base, onset_s)
}

fn block(world: &mut World, pid: u32, length_s: f64, why: Why) {
    let now_s = world.now_s as f64;
    if let Some(event_loop) = world.actor(pid).and_then(|actor| actor.event_loop.as_mut()) {
        event_loop.begin(Block { start_s: now_s - 0.5, length_s, why });
    }
}

/// One turn of 1.5 to 60 s on the CPU: a giant JSON. What is answered lies unread.
fn blocked_once(world: &mut World, _seconds: u64) {
    let (base, onset_s) = scene(world, Family::Loops);
    let pid = pick(&mut world.rng, &base.workers);
    let length_s = log_between(&mut world.rng, 1.5, 60.0);
    world.truth.culprits = vec![pid];
    world.each_second(move |world| {
        if world.now_s == onset_s {
            block(world, pid, length_s, Why::OnCpu);
        }
        let blocked = (onset_s..onset_s + length_s as u64).contains(&world.now_s);
        if blocked {
            world.pools.use_for(&world.snapshot.tcp, pid, POSTGRES.port, Use::Unread, |n| n < 3);
        } else if world.now_s == onset_s + length_s as u64 {
            world
                .pools
                .use_for(&world.snapshot.tcp, pid, POSTGRES.port, Use::Pooled(0.3), |n| n < 3);
        }
    });
}

/// Turns of 0.3 to 0.9 s, one after the other, as long as it goes on.
fn blocked_often(world: &mut World, _seconds: u64) {
    let (base, onset_s) = scene(world, Family::Loops);
    let pid = pick(&mut world.rng, &base.workers);
    let length_s = between(&mut world.rng, 0.3, 0.9);
    world.truth.culprits = vec![pid];
    world.each_second(move |world| {
        if world.now_s >= onset_s {
            block(world, pid, length_s, Why::OnCpu);
        }
    });
}

/// A hog of the real-time class takes the CPUs; everybody's loops wait.
fn starved(world: &mut World, _seconds: u64) {
    let (base, onset_s) = scene(world, Family::Cpu);
    let hog = between(&mut world.rng, 0.6, 0.95);
    let who = crate::world::people::Who::session("burn", "chrt -f 50 ./burn", (0, "root"));
    let pid = world.spawn(&who, Heap::Flat { bytes: 4e6 });
    world.truth.culprits = vec![pid];
    world.each_second(move |world| {
        if world.now_s >= onset_s {
            world.cpu.hog = hog;
            let cpus = f64::from(world.machine.cpus);
            if let Some(actor) = world.actor(pid) {
                (actor.cpu, actor.real_time) = (cpus, true);
            }
            for pid in &base.workers {
                let length_s = log_between(&mut world.rng, 0.2, 4.0);
                block(world, *pid, length_s, Why::Waiting);
            }
        }
    });
}

/// The application's control group has used up its quota in each period.
fn throttled(world: &mut World, _seconds: u64) {
    let (base, onset_s) = scene(world, Family::Cpu);
    let path = world.snapshot.processes[&base.workers[0]].cgroup.clone();
    let ratio = between(&mut world.rng, 0.5, 1.0);
    world.truth.name(&["pm2-deploy", "docker", base::APP]);
    world.truth.culprits.clone_from(&base.workers);
    world.truth.nobody = true;
    world.each_second(move |world| {
        if world.now_s >= onset_s {
            world.cpu.throttled = Some((path.clone(), ratio));
            for pid in &base.workers {
                block(world, *pid, 0.08, Why::Waiting);
            }
        }
    });
}

/// The hypervisor takes most of the CPUs: credits are spent.
fn stolen(world: &mut World, _seconds: u64) {
    let (_, onset_s) = scene(world, Family::Cpu);
    let share = between(&mut world.rng, 0.4, 0.85);
    world.truth.nobody = true;
    world.truth.name(&["steal", "hypervisor"]);
    world.each_second(move |world| {
        if world.now_s >= onset_s {
            world.cpu.steal = share + 0.1 * world.rng.f64();
        }
    });
}

/// The disk does not answer: one task after the other sleeps uninterruptibly.
fn disk_gone(world: &mut World, _seconds: u64) {
    let (base, onset_s) = scene(world, Family::Cpu);
    world.truth.nobody = true;
    world.truth.name(&["disk", "kernel"]);
    world.truth.culprits.clone_from(&base.workers);
    // They read a file, wait for the journal, or for a page of their program.
    let stack = pick(
        &mut world.rng,
        &[
            ["io_schedule", "folio_wait_bit_common", "filemap_read", "ext4_file_read_iter"],
            ["io_schedule", "wait_transaction_locked", "start_this_handle", "jbd2__journal_start"],
            ["io_schedule", "folio_wait_bit_common", "filemap_fault", "do_user_addr_fault"],
        ],
    );
    world.each_second(move |world| {
        if world.now_s < onset_s {
            return;
        }
        let for_s = world.now_s - onset_s;
        if for_s % 30 == 0 {
            base.workers.iter().for_each(|pid| block(world, *pid, 29.0, Why::Blocked));
        }
        let tasks = base.workers.iter().zip(0..=for_s);
        world.cpu.blocked = tasks
            .filter(|(_, number)| for_s > *number)
            .map(|(pid, number)| BlockedTask {
                pid: *pid,
                tid: *pid,
                name: "node".to_owned(),
                blocked_ns: (for_s - number) * 1_000_000_000,
                stack: stack.map(str::to_owned).to_vec(),
            })
            .collect();
    });
}

/// The disk answers later and later at the same load, in up to five minutes: credits are spent, or it dies.
fn disk_slow(world: &mut World, _seconds: u64) {
    let (_, onset_s) = scene(world, Family::Cpu);
    world.truth.nobody = true;
    world.truth.name(&["disk"]);
    world.device.commits = log_between(&mut world.rng, 2.0, 10.0);
    // Services wait all the time in the end.
    let slow = between(&mut world.rng, 1.5, 5.0) / world.device.commits / world.device.alone_s;
    let ramp_s = log_between(&mut world.rng, 1.0, 300.0);
    world.each_second(move |world| {
        if world.now_s >= onset_s {
            let done = ((world.now_s - onset_s) as f64 / ramp_s).min(1.0);
            world.device.slow = slow.max(1.0).powf(done);
        }
    });
}

/// A copy writes more than the disk takes, and has its requests before those of others.
fn disk_hogged(world: &mut World, _seconds: u64) {
    let (_, onset_s) = scene(world, Family::Cpu);
    world.device.commits = log_between(&mut world.rng, 2.0, 10.0);
    let waits_s = between(&mut world.rng, 1.5, 5.0) / world.device.commits;
    let who = crate::world::people::Who::session("cp", "cp -r /srv /backup", (1002, "etl"));
    let pid = world.spawn(&who, Heap::Flat { bytes: 4e6 });
    world.truth.culprits = vec![pid];
    let rate = between(&mut world.rng, 1.2, 3.0);
    world.each_second(move |world| {
        if world.now_s >= onset_s {
            world.device.hog(pid, rate, waits_s);
        }
    });
}

/// A worker exits after seconds, and PM2 starts it anew.
fn crash_loop(world: &mut World, _seconds: u64) {
    let (base, onset_s) = scene(world, Family::Restarts);
    let every_s = log_between(&mut world.rng, 1.5, 12.0) as u64;
    let mut pid = base.workers[0];
    world.truth.culprits = vec![pid];
    world.truth.name(&[base::APP]);
    world.each_second(move |world| {
        if world.now_s >= onset_s && (world.now_s - onset_s).is_multiple_of(every_s) {
            world.fail(pid, Some(1), None);
            let live = world.nominal * 0.02;
            let heap = Heap::WarmUp { base: 30e6, plateau: live, tau_s: 10.0, age_s: 0.0 };
            pid = base::worker(world, 0, heap);
            world.truth.culprits.push(pid);
        }
    });
}

/// One worker opens files and does not close them, until it may not open another.
fn files(world: &mut World, _seconds: u64) {
    let (base, onset_s) = scene(world, Family::Limits);
    let pid = pick(&mut world.rng, &base.workers);
    let rate = log_between(&mut world.rng, 1.5, 20.0);
    world.truth.culprits = vec![pid];
    world.each_second(move |world| {
        if world.now_s >= onset_s {
            let open = (world.now_s - onset_s) as f64 * rate;
            world.files = vec![(pid, open)];
            if open > 900.0 {
                world.truth.end_s.get_or_insert(world.now_s);
            }
        }
    });
}

/// The collector refuses: 401.
fn exporter_held(world: &mut World, _seconds: u64) {
    let (_, onset_s) = scene(world, Family::Agent);
    world.truth.nobody = true;
    world.truth.name(&["collector", "otlp"]);
    world.snapshot.health.exporters.push(Exporter {
        name: "otlp".to_owned(),
        destination: "http://collector:4318".to_owned(),
        state: "open".to_owned(),
        ..Exporter::default()
    });
    world.each_second(move |world| {
        let exporter = &mut world.snapshot.health.exporters[0];
        if world.now_s >= onset_s {
            (exporter.state, exporter.queued) = ("held".to_owned(), world.now_s - onset_s);
            exporter.reason = "401 Unauthorized".to_owned();
        } else {
            exporter.sent += 10;
        }
    });
}
