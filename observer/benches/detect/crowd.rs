//! A host with 2,000 processes and 20,000 connections, second by second: calm, or with everything wrong at once. Detectors
//! see what the agent shows of it: 4,096 connections, chosen as the agent chooses them, and counts of all by process and
//! endpoint ([`View::of`]).
#![allow(
    clippy::needless_update,
    reason = "a row that is filled to the last field today has another tomorrow"
)]

use std::sync::Arc;

use observer::{
    identity::{Pm2, Process},
    signal::{
        alloc::{Failure, ProcessMemory},
        limit::Bound,
        oom::{MemoryCgroup, Pressure, Reclaimer},
        sched::{BlockedTask, CpuCgroup, EventLoop, Thread},
        tcp::{Activity, Connection, View},
    },
    snapshot::{Exporter, Loss, Program, Snapshot},
};

pub const PROCESSES: u32 = 2000;
pub const SOCKETS: u32 = 20_000;

const SECOND: u64 = 1_000_000_000;
const MIB: u64 = 1 << 20;
const FIRST_PID: u32 = 1000;
/// Processes of one PM2 application, or of one unit.
const WORKERS: u32 = 8;
/// Rows of things of which a host has fewer.
const SOME: u32 = 128;
/// What the connections go to.
const SERVERS: [(&str, u16); 2] = [("postgresql", 5432), ("redis", 6379)];

fn pids() -> impl Iterator<Item = u32> {
    FIRST_PID..FIRST_PID + PROCESSES
}

/// A host.
pub struct Crowd {
    /// What the agent shows of it.
    pub host: Snapshot,
    /// All connections.
    connections: Vec<Connection>,
    /// Since when everything is wrong.
    wrong_ns: Option<u64>,
}

/// The host at its first second.
pub fn start() -> Crowd {
    let connections = (0..SOCKETS).map(connection).collect();
    Crowd { host: host(), connections, wrong_ns: None }
}

impl Crowd {
    /// A second later. In `trouble` all of it gets worse; else it sways.
    pub fn next(&mut self, trouble: bool) {
        next(&mut self.host, trouble);
        let now_ns = self.host.uptime_ns;
        let since_ns = if trouble { Some(*self.wrong_ns.get_or_insert(now_ns)) } else { None };
        for (row, number) in self.connections.iter_mut().zip(0_u64..) {
            row.age_ns += SECOND;
            match since_ns {
                Some(since_ns) => stick(row, now_ns - since_ns + number % 10 * SECOND / 4),
                None => answer(row, (now_ns / SECOND + number * 7) % 20 * SECOND + SECOND / 10),
            }
        }
        self.host.tcp = View::of(self.connections.clone());
    }
}

/// It was answered as long ago.
fn answer(row: &mut Connection, for_ns: u64) {
    row.activity = if for_ns < SECOND { Activity::Active } else { Activity::Idle };
    row.activity_ns = for_ns;
    row.last_receive_ns = Some(for_ns);
    row.last_send_ns = Some(for_ns + SECOND / 200);
    row.sent_bytes += 100;
    row.received_bytes += 1000;
}

/// It stands still for as long, each application in its own way.
fn stick(row: &mut Connection, for_ns: u64) {
    let ways = [Activity::Unread, Activity::HalfOpen, Activity::ZeroWindow, Activity::Waiting];
    row.activity = ways[(row.pid / WORKERS) as usize % ways.len()];
    row.activity_ns = for_ns;
    let asked_last = row.activity != Activity::Unread;
    row.last_send_ns = Some(if asked_last { for_ns } else { for_ns + SECOND / 200 });
    row.last_receive_ns = Some(if asked_last { for_ns + SECOND / 2 } else { for_ns });
    row.retransmits += u64::from(row.activity == Activity::HalfOpen);
}

fn host() -> Snapshot {
    let mut host = Snapshot { uptime_ns: SECOND, ..Snapshot::default() };
    host.processes = pids().map(|pid| (pid, Arc::new(process(pid)))).collect();
    host.alloc.processes = pids().map(memory).collect();
    host.alloc.process_count = u64::from(PROCESSES);
    host.sched.threads = pids().map(thread).collect();
    host.oom.memory_total_bytes = 64 << 30;
    host.oom.pressure = ["memory", "io", "cpu"]
        .into_iter()
        .flat_map(|resource| ["some", "full"].map(|scope| (resource, scope)))
        .map(|(resource, scope)| Pressure {
            resource: resource.into(),
            scope: scope.into(),
            ..Pressure::default()
        })
        .collect();
    host.oom.cgroups = (0..SOME).map(cgroup).collect();
    host.limit.rows =
        pids().flat_map(|pid| ["files", "node_heap"].map(|what| bound(pid, what))).collect();
    host.health.programs = (0..30)
        .map(|number| Program { name: format!("program_{number}"), ..Program::default() })
        .collect();
    host.health.losses =
        (0..40).map(|number| Loss { stage: format!("stage.{number}"), count: 0 }).collect();
    let exporter =
        Exporter { destination: "c:4317".into(), state: "open".into(), ..Exporter::default() };
    host.health.exporters = vec![exporter];
    host
}

fn next(host: &mut Snapshot, trouble: bool) {
    host.uptime_ns += SECOND;
    host.time_unix_ns = 1_700_000_000 * SECOND + host.uptime_ns;
    let second = host.uptime_ns / SECOND;
    let sway = second % 30;
    for (row, number) in host.alloc.processes.iter_mut().zip(0..) {
        let growth = if trouble { MIB / 8 * (1 + number % 5) } else { 0 };
        row.growth_bytes_per_second = growth as f64;
        row.anon_bytes = 20 * MIB + sway * MIB / 4 + growth * second;
        row.rss_bytes = row.anon_bytes + row.file_bytes;
    }
    let used: u64 = host.alloc.processes.iter().map(|row| row.rss_bytes).sum();
    host.oom.memory_available_bytes = host.oom.memory_total_bytes.saturating_sub(used);
    host.oom.headroom_bytes = host.oom.memory_available_bytes;
    for row in &mut host.sched.threads {
        row.on_cpu_ratio = if trouble { 0.9 } else { 0.05 };
        row.run_delay_ratio = if trouble { 0.5 } else { 0.01 };
        if let Some(turns) = &mut row.event_loop {
            turns.turns += if trouble { 0 } else { 100 };
            turns.gaps += u64::from(trouble);
            turns.open_ns = if trouble { second * SECOND } else { 0 };
            turns.open_on_cpu_ns = turns.open_ns;
        }
    }
    for row in &mut host.limit.rows {
        row.used = if trouble { row.limit.unwrap_or(0) * 99 / 100 } else { 50 + sway };
    }
    if trouble {
        worsen(host, second);
    }
}

/// What a calm host has no rows of.
fn worsen(host: &mut Snapshot, second: u64) {
    host.health.exporters.iter_mut().for_each(|row| row.state = "held".into());
    host.health.losses.iter_mut().for_each(|row| row.count += 1);
    for row in &mut host.oom.pressure {
        row.avg10_percent = 50.0;
        row.total_ns += SECOND / 2;
    }
    for row in &mut host.oom.cgroups {
        row.usage_bytes = row.limit_bytes.unwrap_or(0);
        row.limit_hits += 1;
    }
    host.oom.refault_per_second = 20_000.0;
    host.oom.refault_ratio = 0.5;
    host.oom.direct_reclaims += 100;
    host.oom.direct_reclaim_ns += SECOND;
    host.sched.steal_ratio = 0.3;
    host.sched.busy_ratio = 1.0;
    let some = || pids().take(SOME as usize);
    host.oom.reclaimers = some()
        .map(|pid| Reclaimer {
            pid,
            name: "node".into(),
            count: 9,
            total_ns: SECOND,
            max_ns: SECOND,
            pages: 9,
        })
        .collect();
    host.sched.blocked = some()
        .map(|pid| BlockedTask {
            pid,
            tid: pid,
            name: "node".into(),
            blocked_ns: second * SECOND,
            stack: vec!["io_schedule".into(), "folio_wait_bit_common".into()],
            ..BlockedTask::default()
        })
        .collect();
    host.sched.throttled = (0..SOME)
        .map(|number| CpuCgroup {
            path: format!("/system.slice/unit-{number}.service"),
            throttled_periods: second * 9,
            throttled_ns: second * SECOND / 2,
            throttled_ratio: 0.5,
            ..CpuCgroup::default()
        })
        .collect();
    host.alloc.failures = some()
        .map(|pid| Failure {
            time_unix_ns: host.time_unix_ns,
            pid,
            name: "node".into(),
            exit_code: Some(1),
            ..Failure::default()
        })
        .collect();
}

fn process(pid: u32) -> Process {
    let app = pid / WORKERS;
    let managed = app.is_multiple_of(2);
    Process {
        pid,
        name: "node".into(),
        executable: "/usr/bin/node".into(),
        pm2: managed.then(|| Pm2 {
            app: format!("app-{app}"),
            worker: pid % WORKERS,
            home: "/home/app/.pm2".into(),
            ..Pm2::default()
        }),
        unit: if managed { String::new() } else { format!("unit-{app}.service") },
        cgroup: match managed {
            true => "/user.slice/user-1000.slice/session-1.scope".into(),
            false => format!("/system.slice/unit-{app}.service"),
        },
        ..Process::default()
    }
}

fn memory(pid: u32) -> ProcessMemory {
    ProcessMemory { pid, name: "node".into(), file_bytes: 5 * MIB, ..ProcessMemory::default() }
}

/// Each process has as many to each server.
fn connection(number: u32) -> Connection {
    let pid = FIRST_PID + number % PROCESSES;
    let (system, peer_port) = SERVERS[(number / PROCESSES) as usize % SERVERS.len()];
    let app = pid / WORKERS;
    Connection {
        pid,
        name: "node".into(),
        role: "client".into(),
        system: system.into(),
        peer_address: format!("10.0.{}.{}", app % 4, app % 60),
        peer_port,
        local_address: "10.0.9.9".into(),
        local_port: 32_768 + number as u16,
        state: "ESTABLISHED".into(),
        srtt_ns: SECOND / 1000,
        ..Connection::default()
    }
}

fn thread(pid: u32) -> Thread {
    let event_loop = Some(EventLoop::default());
    Thread { pid, tid: pid, name: "node".into(), event_loop, ..Thread::default() }
}

fn cgroup(number: u32) -> MemoryCgroup {
    MemoryCgroup {
        path: format!("/system.slice/unit-{}.service", (FIRST_PID / WORKERS) + number * 2),
        usage_bytes: 100 * MIB,
        limit_bytes: Some(512 * MIB),
        ..MemoryCgroup::default()
    }
}

fn bound(pid: u32, resource: &str) -> Bound {
    Bound {
        resource: resource.into(),
        pid,
        name: "node".into(),
        scope: "process".into(),
        limit: Some(1024),
        unit: "files".into(),
        source: "kernel".into(),
        ..Bound::default()
    }
}
