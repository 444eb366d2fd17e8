//! A host that is made up: processes, memory, connections and threads, from a seed, one second after the other, shown as
//! the agent's own [`Snapshot`]. What is true of it (`truth`) is known from how it was made, never from what anybody says of
//! it.

pub(crate) mod actor;
pub(crate) mod chance;
pub(crate) mod disk;
pub(crate) mod heap;
pub(crate) mod host;
pub(crate) mod people;
pub(crate) mod pool;
mod show;

use std::sync::Arc;

use fastrand::Rng;
use observer::{
    signal::{
        alloc::{Failure, MAX_FAILURES},
        sched::BlockedTask,
    },
    snapshot::Snapshot,
};

use self::{
    actor::Actor,
    chance::{MIB, between, log_between},
    disk::Device,
    heap::Heap,
    host::{Demand, Ended, Machine, Memory},
    people::Who,
    pool::{Pools, Server, Use},
};
use crate::rule::Family;

/// When the first second of every run is.
const START_UNIX_NS: u64 = 1_750_000_000_000_000_000;
/// A second.
const SECOND_NS: u64 = 1_000_000_000;

/// What is true of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Truth {
    /// When the fault began, in seconds of the run. `None` of a healthy host.
    pub(crate) onset_s: Option<u64>,
    /// When it was too late: the hang, the kill, the limit.
    pub(crate) end_s: Option<u64>,
    /// What the fault is about; `None`: not known, and whatever names the culprit is right.
    pub(crate) family: Option<Family>,
    /// Who causes it.
    pub(crate) culprits: Vec<u32>,
    /// Names that are right where no process is to blame: a peer, a file system.
    pub(crate) names: Vec<String>,
    /// Nobody's process holds it; to blame nobody is right.
    pub(crate) nobody: bool,
}

/// A memory control group with a limit.
#[derive(Debug)]
pub(crate) struct Limited {
    pub(crate) path: String,
    pub(crate) limit: f64,
    pub(crate) hits: u64,
    pub(crate) kills: u64,
    /// File pages charged to it.
    file: f64,
}

/// What the CPUs do, besides what processes ask for.
#[derive(Debug, Default)]
pub(crate) struct Cpu {
    /// Cores wanted by what is not modelled as a process: a build's compilers.
    pub(crate) extra: f64,
    /// Share that the hypervisor takes.
    pub(crate) steal: f64,
    /// A control group with a quota, and the share of its periods that are throttled.
    pub(crate) throttled: Option<(String, f64)>,
    /// Share of a second that watched threads wait, whatever the load: a real-time hog.
    pub(crate) hog: f64,
    /// Tasks that do not wake up.
    pub(crate) blocked: Vec<BlockedTask>,
}

/// Something that happens in the course of a run, called each second.
pub(crate) type Act = Box<dyn FnMut(&mut World) + Send>;

/// The host.
pub(crate) struct World {
    /// Of what processes do.
    pub(crate) rng: Rng,
    /// For what processes do from second to second: how often they collect depends on how well they get on, and whoever comes
    /// later is to be the same in a rehearsal.
    steps: Rng,
    /// Of what the kernel and the network make of it, so that a rehearsal without them is the same life.
    shown: Rng,
    /// Seconds since the run began.
    pub(crate) now_s: u64,
    /// Second of the day at which it began.
    pub(crate) dawn_s: f64,
    /// RAM for which the processes were chosen; the machine's own may be smaller.
    pub(crate) nominal: f64,
    pub(crate) machine: Machine,
    pub(crate) memory: Option<Memory>,
    /// Share of free memory that is full of cold pages at the beginning.
    pub(crate) fill: f64,
    pub(crate) demand: Demand,
    pub(crate) actors: Vec<Actor>,
    pub(crate) limited: Vec<Limited>,
    pub(crate) pools: Pools,
    pub(crate) cpu: Cpu,
    pub(crate) device: Device,
    pub(crate) script: Vec<Act>,
    pub(crate) truth: Truth,
    pub(crate) snapshot: Snapshot,
    /// tmpfs and slab that nobody's process shows.
    pub(crate) shmem: f64,
    pub(crate) slab: f64,
    /// Factor on everybody's work: the time of day.
    pub(crate) work: f64,
    /// Megabytes a second on 4 GB, for a leak.
    pub(crate) rate: f64,
    next_pid: u32,
    order: Vec<usize>,
    /// Open files of processes that have more than the usual.
    pub(crate) files: Vec<(u32, f64)>,
}

impl Truth {
    /// These names are right.
    pub(crate) fn name(&mut self, names: &[&str]) {
        self.names =
            names.iter().filter(|name| !name.is_empty()).map(|name| (*name).to_owned()).collect();
    }
}

impl World {
    /// A host without processes.
    pub(crate) fn new(mut rng: Rng, nominal: f64) -> Self {
        let cores = (nominal / chance::GIB / 2.0 * log_between(&mut rng, 0.5, 2.0)).round();
        let disk_reads = chance::pick(&mut rng, &[3000.0, 3000.0, 3000.0, 6000.0, 16_000.0]);
        let machine = Machine {
            total: nominal,
            cpus: (cores as u32).clamp(1, 64),
            swap_total: 0.0,
            disk_reads,
            warm: nominal * between(&mut rng, 0.04, 0.15),
            // Without a cache, these reads alone would take a tenth to most of the disk, four pages each.
            warm_per_s: disk_reads * 4.0 * log_between(&mut rng, 0.1, 0.8),
            cold_per_s: log_between(&mut rng, 0.02, 1.0) * MIB,
        };
        // Of a seed of its own, so that whatever else a seed makes stays as it was.
        let device = Device::new(machine.warm.to_bits() ^ nominal.to_bits().rotate_left(17));
        let (dawn_s, fill) = (86_400.0 * rng.f64(), between(&mut rng, 0.2, 1.0));
        let mut world = Self {
            shown: rng.fork(),
            steps: rng.fork(),
            rng,
            now_s: 0,
            dawn_s,
            nominal,
            machine,
            memory: None,
            fill,
            demand: Demand::default(),
            actors: Vec::new(),
            limited: Vec::new(),
            pools: Pools::default(),
            cpu: Cpu::default(),
            device,
            script: Vec::new(),
            truth: Truth::default(),
            snapshot: show::empty(),
            shmem: 8.0 * MIB,
            slab: 0.0,
            work: 1.0,
            rate: 1.0,
            next_pid: 700,
            order: Vec::new(),
            files: Vec::new(),
        };
        world.snapshot.uptime_ns = 90_000 * SECOND_NS;
        world
    }

    /// Starts a process; its pid.
    pub(crate) fn spawn(&mut self, who: &Who, heap: Heap) -> u32 {
        self.next_pid =
            if self.next_pid > 4_000_000 { 700 } else { self.next_pid } + self.rng.u32(1..40);
        // What is there from the beginning has been there for a while.
        let age_s =
            if self.now_s == 0 { log_between(&mut self.rng, 3600.0, 80_000.0) } else { 0.0 };
        let start_unix_ns = self.unix_ns() - (age_s * 1e9) as u64;
        let actor = Actor::new(who, self.next_pid, start_unix_ns, heap);
        self.snapshot.processes.insert(actor.pid, Arc::clone(&actor.identity));
        self.snapshot.alloc.forks += 1;
        self.snapshot.alloc.execs += 1;
        self.actors.push(actor);
        self.next_pid
    }

    /// Starts a process that serves requests in an event loop.
    pub(crate) fn spawn_server(&mut self, who: &Who, heap: Heap) -> u32 {
        let pid = self.spawn(who, heap);
        let cpu = log_between(&mut self.rng, 0.02, 0.4);
        let actor = self.actor(pid).expect("it was just started");
        actor.threads = 1;
        actor.event_loop = Some(actor::Loop::default());
        actor.cpu = cpu;
        pid
    }

    /// Ends processes, with their connections.
    pub(crate) fn end(&mut self, pids: &[u32]) {
        let before = self.actors.len();
        self.actors.retain(|actor| !pids.contains(&actor.pid));
        self.snapshot.alloc.exits += (before - self.actors.len()) as u64;
        pids.iter().for_each(|pid| drop(self.snapshot.processes.remove(pid)));
        if self.snapshot.tcp.connections.iter().any(|row| pids.contains(&row.pid)) {
            self.pools.close(&mut self.snapshot.tcp, |pid, _, _| pids.contains(&pid));
        }
    }

    /// A process ends with an exit code or by a signal.
    pub(crate) fn fail(&mut self, pid: u32, exit_code: Option<u32>, signal: Option<u32>) {
        let Some(actor) = self.actors.iter().find(|actor| actor.pid == pid) else { return };
        let failure = Failure {
            time_unix_ns: self.unix_ns(),
            pid,
            name: actor.identity.name.clone(),
            exit_code,
            signal,
            lived_ns: self.unix_ns().saturating_sub(actor.identity.start_unix_ns),
            start_unix_ns: actor.identity.start_unix_ns,
            parent_pid: actor.identity.parent_pid,
            service_name: actor.identity.service_name.clone(),
        };
        let identity = Arc::clone(&actor.identity);
        self.end(&[pid]);
        // The identity of one that failed is kept with its row.
        self.snapshot.processes.insert(pid, identity);
        let failures = &mut self.snapshot.alloc.failures;
        failures.insert(0, failure);
        if let Some(oldest) = failures.split_off(failures.len().min(MAX_FAILURES)).first() {
            self.snapshot.processes.remove(&oldest.pid);
        }
    }

    /// A process by pid.
    pub(crate) fn actor(&mut self, pid: u32) -> Option<&mut Actor> {
        self.actors.iter_mut().find(|actor| actor.pid == pid)
    }

    /// A process connects `count` times.
    pub(crate) fn connect(&mut self, pid: u32, to: &Server, count: usize, used: Use) {
        let Some(actor) = self.actors.iter_mut().find(|actor| actor.pid == pid) else { return };
        actor.threads = actor.threads.max(1);
        let name = actor.identity.name.clone();
        for _ in 0..count {
            self.pools.connect(&mut self.snapshot.tcp, (pid, &name), to, used);
        }
    }

    /// Limits the control group of a process.
    pub(crate) fn limit(&mut self, path: &str, limit: f64) {
        let path = path.to_owned();
        self.limited.push(Limited { path, limit, hits: 0, kills: 0, file: 0.0 });
    }

    /// Adds what happens each second.
    pub(crate) fn each_second(&mut self, act: impl FnMut(&mut World) + Send + 'static) {
        self.script.push(Box::new(act));
    }

    /// Second of the day.
    pub(crate) fn day_s(&self) -> f64 {
        (self.dawn_s + self.now_s as f64) % 86_400.0
    }

    fn unix_ns(&self) -> u64 {
        START_UNIX_NS + self.now_s * SECOND_NS
    }

    /// Anonymous memory of a process's group and shared memory that count against a limit.
    fn charged(&self, path: &str) -> f64 {
        let inside = |actor: &&Actor| {
            actor
                .identity
                .cgroup
                .strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.actors
            .iter()
            .filter(inside)
            .map(|actor| actor.anon() - actor.shared + actor.shmem)
            .sum()
    }

    /// The next second, for real: it is shown in `snapshot`. `true` once it is over.
    pub(crate) fn step(&mut self) -> bool {
        self.live();
        let mut memory = self
            .memory
            .take()
            .unwrap_or_else(|| Memory::new(&self.machine, &self.demand, self.fill));
        let ended = memory.step(&self.machine, &self.demand, &mut self.shown);
        self.swap(&memory);
        self.memory = Some(memory);
        let killed = self.limits();
        self.pools.step(&mut self.snapshot.tcp, &mut self.shown);
        self.show();
        let over = killed || matches!(ended, Some(Ended::Hang | Ended::Kill));
        if over && self.truth.end_s.is_none() {
            self.truth.end_s = Some(self.now_s);
        }
        over
    }

    /// The next second of what processes want, without a host below them.
    pub(crate) fn live(&mut self) {
        self.now_s += 1;
        let mut script = std::mem::take(&mut self.script);
        script.iter_mut().for_each(|act| act(self));
        script.append(&mut self.script);
        self.script = script;
        let progress = self.memory.as_ref().map_or(1.0, |memory| memory.progress) * self.work;
        let day_s = self.day_s();
        let mut demand = Demand {
            shmem: self.shmem,
            slab: self.slab,
            cold_per_s: self.demand.cold_per_s,
            compactions: self.demand.compactions,
            ..Demand::default()
        };
        for actor in &mut self.actors {
            actor.step(day_s, progress, &mut self.steps);
            demand.anon += actor.private();
            demand.idle_anon += actor.idle_bytes();
            demand.shmem += actor.shmem;
            demand.page_tables += actor.page_tables();
        }
        self.demand = demand;
    }

    /// RAM such that this much of it is used when processes want what they want now at most.
    pub(crate) fn fit(&mut self, peak: f64, used_share: f64) {
        // The kernel's own share: see `Machine`.
        self.machine.total = (peak + 95.0 * MIB) / (used_share - 0.036);
        self.machine.warm = self.machine.warm.min(self.machine.total * 0.12);
    }

    /// What processes want now, in bytes.
    pub(crate) fn wanted(&self) -> f64 {
        let demand = &self.demand;
        demand.anon + demand.shmem + demand.page_tables + demand.slab
    }

    /// Spreads what is swapped over processes by what they do not use.
    fn swap(&mut self, memory: &Memory) {
        if self.machine.swap_total > 0.0 {
            let share = memory.swapped / self.demand.idle_anon.max(1.0);
            for actor in &mut self.actors {
                actor.swap = actor.idle_bytes() * share.min(1.0);
            }
        }
    }

    /// Whether a control group's limit killed somebody.
    fn limits(&mut self) -> bool {
        let mut killed = false;
        for at in 0..self.limited.len() {
            let charged = self.charged(&self.limited[at].path);
            let group = &mut self.limited[at];
            let room = (group.limit - charged).max(0.0);
            // Its file pages fill what is left, slowly, and are reclaimed when memory is wanted.
            let file = (group.file + 0.3 * MIB).min(group.limit * 0.3);
            group.hits += u64::from(file > room) * self.shown.u64(1..20);
            group.file = file.min(room);
            if room <= 0.0 {
                group.kills += 1;
                killed = true;
            }
        }
        killed
    }
}
