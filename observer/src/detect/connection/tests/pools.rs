//! Pools: unread answers, saturation, leaks, duplicates, orphans.

use std::sync::Arc;

use super::super::{
    SECOND,
    testing::{busy, check, host, idle, waiting},
};
use crate::{
    identity::{Pm2, Process},
    signal::{
        alloc::ProcessMemory,
        limit::{Facts, Postgres, Runtime},
        sched::{EventLoop, Thread},
        tcp::{Activity, Connection, View},
    },
    snapshot::{MAX_ROWS, Snapshot},
};

fn unread(pid: u32, port: u16, for_s: f64) -> Connection {
    Connection { activity: Activity::Unread, ..idle(pid, port, for_s) }
}

/// The event loop of process 7 is in one turn for so long.
fn turning(mut snapshot: Snapshot, open_s: f64) -> Snapshot {
    let open_ns = (open_s * SECOND as f64) as u64;
    let event_loop = EventLoop { open_ns, open_on_cpu_ns: open_ns, ..EventLoop::default() };
    let event_loop = Some(event_loop);
    snapshot.sched.threads.push(Thread { pid: 7, tid: 7, event_loop, ..Thread::default() });
    snapshot
}

#[test]
fn we_are_the_culprit_if_our_loop_does_not_turn() {
    let at = |blocked: bool| {
        move |second: u64| {
            let for_s = second.saturating_sub(60) as f64;
            let rows = if second > 60 { vec![unread(7, 1, for_s)] } else { busy(7, 1..2) };
            turning(host(second, rows), if blocked { for_s } else { 0.0 })
        }
    };
    check(
        121,
        at(true),
        &["63 connection.unread WARN node 7", "120 connection.unread CRITICAL node 7"],
    );
    // A stream that is consumed slowly, on purpose.
    check(300, at(false), &[]);
}

#[test]
fn a_process_without_a_loop_must_leave_more_unread() {
    let at = |count: u16| {
        move |second: u64| {
            host(second, (0..count).map(|port| unread(7, port, second as f64)).collect())
        }
    };
    check(60, at(2), &[]);
    check(60, at(3), &["10 connection.unread WARN node 7"]);
}

/// Answers take 700 ms, so that no wait is late by itself.
fn in_use(pid: u32, port: u16) -> Connection {
    waiting(pid, port, 0.3)
}

#[test]
fn a_pool_with_nothing_free_is_told_unless_that_is_its_habit() {
    let at = |full: fn(u64) -> bool| {
        move |second: u64| {
            let row = |port| if full(second) { in_use(7, port) } else { idle(7, port, 0.1) };
            host(second, (1..6).map(row).collect())
        }
    };
    check(
        200,
        at(|second| second >= 120),
        &[
            "130 connection.saturation WARN 10.0.0.9:5432",
            "180 connection.saturation CRITICAL 10.0.0.9:5432",
        ],
    );
    check(600, at(|second| second % 20 != 0), &[]);
    check(600, at(|second| second % 20 < 8), &[]);
}

#[test]
fn a_pool_that_grows_is_not_saturated() {
    let at = |second: u64| {
        let open = 3 + second.saturating_sub(120).min(100) as u16 / 4;
        let row = |port| if second >= 120 { in_use(7, port) } else { idle(7, port, 0.1) };
        host(second, (0..open).map(row).collect())
    };
    check(200, at, &[]);
}

/// `open` connections of 7, of which those before the `last` few are idle since they were opened, a second apart.
fn opened(second: u64, open: u64, every_s: u64) -> Snapshot {
    let row = |number: u64| idle(7, number as u16, (second - number * every_s) as f64);
    host(second, (0..open).map(row).collect())
}

#[test]
fn connections_that_nobody_needs_are_a_leak() {
    check(200, |second| opened(second, second / 2 + 1, 2), &["48 connection.leak WARN node 7"]);
    check(1200, |second| opened(second, second / 20 + 1, 20), &["400 connection.leak WARN node 7"]);
}

#[test]
fn a_leak_is_found_among_more_connections_than_are_shown() {
    let at = |second: u64| {
        let mut rows = opened(second, second / 2 + 1, 2).tcp.connections;
        let others = 0..MAX_ROWS as u32;
        rows.extend(others.map(|number| idle(1000 + number % 500, 9, 4000.0)));
        Snapshot { tcp: View::of(rows), ..host(second, Vec::new()) }
    };
    check(80, at, &["48 connection.leak WARN node 7"]);
}

#[test]
fn a_leak_is_critical_when_the_server_is_nearly_full() {
    let at = |second: u64| {
        let mut rows = opened(second, second / 2 + 1, 2).tcp.connections;
        rows.iter_mut().for_each(|row| row.peer_address = row.local_address.clone());
        let mut snapshot = host(second, rows);
        let server = Postgres { port: 5432, max_connections: Some(50), ..Postgres::default() };
        let facts = Facts::Postgres(server);
        snapshot.limit.runtimes.push(Runtime { pid: 5, facts, ..Runtime::default() });
        snapshot
    };
    check(
        100,
        at,
        &[
            "48 connection.leak WARN node 7",
            "66 connection.budget WARN node 7",
            "76 connection.budget CRITICAL node 7",
            "88 connection.leak CRITICAL node 7",
        ],
    );
}

#[test]
fn pools_that_grow_are_no_leak() {
    // With the load: all of them are used.
    let used = |second: u64| host(second, busy(7, 0..(second / 4) as u16));
    check(600, used, &[]);
    // To the cap within a minute, and idle ever after.
    let capped = |second: u64| {
        let row = |number: u64| idle(7, number as u16, second.saturating_sub(number * 3) as f64);
        host(second, (0..(second / 3 + 1).min(15)).map(row).collect())
    };
    check(900, capped, &[]);
    // With the bursts of a day; what is idle is closed.
    let waves = |second: u64| {
        let open = 5 + second % 120 / 5;
        let row = |number: u64| idle(7, number as u16, if number < 5 { 60.0 } else { 0.5 });
        host(second, (0..open).map(row).collect())
    };
    check(3000, waves, &[]);
}

fn pm2_worker(snapshot: &mut Snapshot, pid: u32, app: &str, home: &str) {
    let process = Process {
        pid,
        name: "node".into(),
        user_name: home.into(),
        start_unix_ns: u64::from(pid),
        pm2: Some(Pm2 { app: app.into(), home: format!("/{home}"), ..Pm2::default() }),
        ..Process::default()
    };
    snapshot.processes.insert(pid, Arc::new(process));
}

fn pm2_daemon(snapshot: &mut Snapshot, pid: u32, home: &str) {
    let process = Process {
        pid,
        name: "PM2".into(),
        user_name: home.into(),
        start_unix_ns: u64::from(pid),
        pm2_daemon_home: Some(format!("/{home}")),
        ..Process::default()
    };
    snapshot.processes.insert(pid, Arc::new(process));
}

/// Daemons 31 and 32; workers 1 and 2 of the first, 3 of the second, which runs `app` from second 60 on.
fn daemons(app: &'static str, home: &'static str) -> impl Fn(u64) -> Snapshot {
    move |second| {
        let mut rows = [busy(1, 0..10), busy(2, 10..20)].concat();
        let second_runs = second >= 60;
        rows.extend(if second_runs { busy(3, 20..30) } else { Vec::new() });
        let mut snapshot = host(second, rows);
        pm2_daemon(&mut snapshot, 31, "deploy");
        pm2_worker(&mut snapshot, 1, "api", "deploy");
        pm2_worker(&mut snapshot, 2, "api", "deploy");
        if second_runs {
            pm2_daemon(&mut snapshot, 32, home);
            pm2_worker(&mut snapshot, 3, app, home);
        }
        snapshot
    }
}

#[test]
fn an_app_under_two_daemons_has_its_pools_twice() {
    check(
        200,
        daemons("api", "jenkins"),
        &["70 connection.duplicate_pools WARN PM2 app api of jenkins (/jenkins)"],
    );
    check(200, daemons("shop", "jenkins"), &[]);
    check(200, daemons("shop", "deploy"), &[]);
}

/// PostgreSQL's sessions of the clients on these ports, beside the live clients' connections.
pub(super) fn sessions(second: u64, live: Vec<Connection>, ports: &[u16]) -> Snapshot {
    let local = |row: Connection| Connection {
        peer_address: "127.0.0.1".into(),
        local_address: "127.0.0.1".into(),
        ..row
    };
    let mut snapshot = host(second, live.into_iter().map(local).collect());
    for pid in snapshot.processes.keys().copied().collect::<Vec<_>>() {
        pm2_worker(&mut snapshot, pid, "api", "deploy");
    }
    for (pid, port) in (500..).zip(ports) {
        let process = Process {
            pid,
            name: "postgres".into(),
            command_line: format!("postgres: app shop 127.0.0.1({port}) SELECT"),
            ..Process::default()
        };
        snapshot.processes.insert(pid, Arc::new(process));
        let memory = ProcessMemory { pid, name: "postgres".into(), ..ProcessMemory::default() };
        snapshot.alloc.processes.push(memory);
    }
    snapshot
}

#[test]
fn sessions_of_crashed_workers_are_orphans() {
    // A worker dies every 20 s; the statements of its four connections go on for a minute.
    let at = |second: u64| {
        let crashes = second / 20;
        let ports = |crash: u64| (crash * 10 + 1..crash * 10 + 5).map(|port| port as u16);
        let live = ports(crashes).map(|port| waiting(crashes as u32 + 1, port, 1.0)).collect();
        let open: Vec<u16> = (crashes.saturating_sub(3)..=crashes).flat_map(ports).collect();
        sessions(second, live, &open)
    };
    check(
        60,
        at,
        &[
            "27 connection.orphans WARN node 1 (PM2 app api, worker 0)",
            "42 connection.orphans WARN PM2 app api (2 processes)",
        ],
    );
}

#[test]
fn sessions_of_the_living_and_of_other_hosts_are_none() {
    let at = |second: u64| {
        let mut snapshot = sessions(second, busy(7, 1..6), &[1, 2, 3, 4, 5, 91, 92, 93, 94, 95]);
        snapshot.tcp.connections.swap(0, 4);
        snapshot
    };
    check(200, at, &[]);
}
