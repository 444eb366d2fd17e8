//! A host with 2,000 processes and 20,000 connections, second by second: calm, or with everything wrong at once.
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
        tcp::{Activity, Connection, Endpoint},
    },
    snapshot::{Exporter, Loss, MAX_ROWS, Program, Snapshot},
};

pub const PROCESSES: u32 = 2000;
pub const SOCKETS: u64 = 20_000;

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

/// The host at its first second.
pub fn start() -> Snapshot {
    let mut host = Snapshot { uptime_ns: SECOND, ..Snapshot::default() };
    host.processes = pids().map(|pid| (pid, Arc::new(process(pid)))).collect();
    host.alloc.processes = pids().map(memory).collect();
    host.alloc.process_count = u64::from(PROCESSES);
    host.tcp.connections = (0..MAX_ROWS as u32).map(connection).collect();
    host.tcp.connection_count = SOCKETS;
    host.tcp.endpoints =
        pids().flat_map(|pid| SERVERS.map(|server| endpoint(pid, server))).collect();
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

/// A second later. In `trouble` all of it gets worse; else it sways.
pub fn next(host: &mut Snapshot, trouble: bool) {
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
    for (row, number) in host.tcp.connections.iter_mut().zip(0_u64..) {
        row.age_ns += SECOND;
        let stuck = [Activity::Unread, Activity::HalfOpen, Activity::ZeroWindow, Activity::Waiting];
        row.activity = if trouble { stuck[number as usize % 4] } else { Activity::Idle };
        row.activity_ns = if trouble { second } else { (second + number) % 20 } * SECOND;
        row.sent_bytes += if trouble { 0 } else { 100 };
        row.received_bytes += if trouble { 0 } else { 1000 };
        row.retransmits += u64::from(trouble);
    }
    for row in &mut host.tcp.endpoints {
        let open = if trouble { 5 + second } else { 5 };
        let stuck = if trouble { open / 3 } else { 0 };
        (row.open, row.waiting, row.unread, row.stuck, row.idle) = (open, stuck, stuck, stuck, 2);
        row.longest_wait_ns = if trouble { second * SECOND } else { SECOND / 100 };
    }
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
        ..Process::default()
    }
}

fn memory(pid: u32) -> ProcessMemory {
    ProcessMemory { pid, name: "node".into(), file_bytes: 5 * MIB, ..ProcessMemory::default() }
}

fn connection(number: u32) -> Connection {
    let (system, peer_port) = SERVERS[number as usize % SERVERS.len()];
    Connection {
        pid: FIRST_PID + number % PROCESSES,
        name: "node".into(),
        role: "client".into(),
        system: system.into(),
        peer_address: format!("10.0.{}.{}", number % 4, number % 60),
        peer_port,
        local_address: "10.0.9.9".into(),
        local_port: 32_768 + (number % 20_000) as u16,
        state: "ESTABLISHED".into(),
        srtt_ns: SECOND / 1000,
        ..Connection::default()
    }
}

fn endpoint(pid: u32, (system, port): (&str, u16)) -> Endpoint {
    Endpoint {
        pid,
        name: "node".into(),
        role: "client".into(),
        system: system.into(),
        address: format!("10.0.{}.{}", pid % 4, pid % 60),
        port,
        ..Endpoint::default()
    }
}

fn thread(pid: u32) -> Thread {
    let event_loop = Some(EventLoop::default());
    Thread { pid, tid: pid, name: "node".into(), event_loop, ..Thread::default() }
}

fn cgroup(number: u32) -> MemoryCgroup {
    MemoryCgroup {
        path: format!("/system.slice/unit-{number}.service"),
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
