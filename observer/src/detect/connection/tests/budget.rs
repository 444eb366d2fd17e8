//! What servers take against what is open there.

use std::sync::Arc;

use super::{
    super::{
        budget::{BUDGET, REACH},
        testing::{host, idle, waiting},
    },
    pools::sessions,
};
use crate::{
    config::{Config, Sources, all_settings},
    detect::Detect,
    identity::{Pm2, Process},
    signal::{
        Output,
        limit::{Facts, Postgres, Redis, Runtime},
        tcp::Connection,
    },
    snapshot::Snapshot,
};

/// Workers of a PM2 app with so many connections each, to a server of this host.
fn workers(second: u64, pools: &[u64]) -> Snapshot {
    let mut rows = Vec::new();
    for (open, pid) in pools.iter().zip(1_u32..) {
        rows.extend((0..*open).map(|number| Connection {
            peer_address: "127.0.0.1".into(),
            local_address: "127.0.0.1".into(),
            ..idle(pid, (u64::from(pid) * 1000 + number) as u16, 5.0)
        }));
    }
    let mut snapshot = host(second, rows);
    for process in snapshot.processes.values_mut() {
        let pm2 = Some(Pm2 { app: "api".into(), home: "/h".into(), ..Pm2::default() });
        *process = Arc::new(Process { pm2, ..Process::clone(process) });
    }
    snapshot
}

fn with(mut snapshot: Snapshot, facts: Facts) -> Snapshot {
    snapshot.limit.runtimes.push(Runtime { pid: 99, facts, ..Runtime::default() });
    snapshot
}

fn postgres(max_connections: u64) -> Facts {
    let max_connections = Some(max_connections);
    Facts::Postgres(Postgres { port: 5432, max_connections, ..Postgres::default() })
}

/// What is told of both kinds within some seconds: `second LEVEL culprit` and `second clear`; and the last sentence.
fn told(set: &str, seconds: u64, at: impl Fn(u64) -> Snapshot) -> (Vec<String>, String) {
    let flags = vec![format!("detect.connection_budget={set}")];
    let config = Config::load(&all_settings(), &Sources { flags, ..Sources::default() });
    let mut detect = Detect::new(&config.unwrap());
    let (mut told, mut says) = (Vec::<String>::new(), String::new());
    for second in 0..seconds {
        detect.tick(&at(second), false, &mut Output::default());
        let kinds = [BUDGET.name, REACH.name];
        let findings = detect.view().findings.iter();
        let mut findings = findings.filter(|one| kinds.contains(&one.kind.as_str())).peekable();
        if findings.peek().is_none() && told.last().is_some_and(|last| !last.ends_with("clear")) {
            told.push(format!("{second} clear"));
        }
        for finding in findings {
            let culprit = finding.culprit.as_ref().map_or("nobody", |party| &party.title);
            let line = format!("{} {culprit}", finding.level.text());
            if !told.last().is_some_and(|last| last.ends_with(&line)) {
                told.push(format!("{second} {line}"));
            }
            says.clone_from(&finding.message);
        }
    }
    (told, says)
}

#[test]
fn a_server_is_told_before_it_is_full() {
    #[track_caller]
    fn check(facts: &Facts, open: impl Fn(u64) -> u64, expect: &[&str]) {
        let (told, says) =
            told("", 150, |second| with(workers(second, &[open(second)]), facts.clone()));
        assert_eq!(told, expect, "{says}");
    }
    let api = "node 1 (PM2 app api, worker 0)";
    let at = |second, level| format!("{second} {level} {api}");
    // Three of them are for superusers.
    let server = &postgres(103);
    check(server, |_| 79, &[]);
    check(server, |_| 80, &[&at(2, "WATCH")]);
    check(server, |_| 90, &[&at(2, "WARN")]);
    check(server, |_| 97, &[&at(2, "CRITICAL")]);
    let redis = Redis { port: 5432, max_clients: Some(90), ..Redis::default() };
    check(&Facts::Redis(redis), |_| 80, &[&at(2, "WATCH")]);
    // It fills by one in two seconds.
    let fills = |second: u64| 40 + second.min(110) / 2;
    check(server, fills, &[&at(62, "WARN"), &at(82, "CRITICAL")]);
    // A pool that is filled at its start, and rests.
    check(server, |second| (second * 15).min(75), &[]);
}

#[test]
fn a_server_elsewhere_has_a_limit_of_its_own() {
    let at = |second| host(second, (0..99).map(|port| idle(7, port, 5.0)).collect());
    assert_eq!(told("", 60, |second| with(at(second), postgres(103))).0, [""; 0]);
}

#[test]
fn pools_that_may_outgrow_the_server_are_a_hazard() {
    #[track_caller]
    fn check(pools: &[u64], expect: &str) {
        // Each was needed to its full size once.
        let open = |second, most: &u64| if second < 5 { *most } else { 2 };
        let at = |second| {
            let now: Vec<_> = pools.iter().map(|most| open(second, most)).collect();
            with(workers(second, &now), postgres(33))
        };
        assert_eq!(told("", 60, at).1, expect, "{pools:?}");
    }
    check(
        &[10, 4, 4, 4],
        "4 workers of PM2 app api hold up to 10 connections each to localhost:5432: with all others 40 of its 30",
    );
    check(&[7, 7, 7, 2], "");
    check(&[23], "");
}

#[test]
fn limits_of_servers_elsewhere_are_set() {
    #[track_caller]
    fn check(set: &str, expect: &[&str]) {
        let row = |port| Connection { peer_name: "db.example".into(), ..idle(7, port, 5.0) };
        let at = |second| host(second, (0..9).map(row).collect());
        assert_eq!(told(set, 9, at).0, expect, "{set}");
    }
    check("db.example:5432=10", &["2 WARN node 7"]);
    check("DB.example:5432=10", &["2 WARN node 7"]);
    check("10.0.0.9:5432=10", &["2 WARN node 7"]);
    check("db.example:5432=10,db.example:5432=20", &[]);
    check("db.example:5433=10,other.example:5432=10", &[]);
    check("", &[]);
}

/// The server of the sessions that [`sessions`] makes, and what it takes.
fn with_server(mut snapshot: Snapshot, max_connections: u64) -> Snapshot {
    let of_server = |process: &&mut Arc<Process>| process.name == "postgres";
    for process in snapshot.processes.values_mut().filter(of_server) {
        *process = Arc::new(Process { parent_pid: 99, ..Process::clone(process) });
    }
    with(snapshot, postgres(max_connections))
}

#[test]
fn sessions_of_the_dead_count_as_the_server_counts_them() {
    // Each worker has four connections; one dies every ten seconds, and its statements go on for as long as `goes_on_s`.
    fn at(second: u64, goes_on_s: u64) -> Snapshot {
        let ports = |life: u64| (life * 10 + 1..life * 10 + 5).map(|port| port as u16);
        let life = second / 10;
        let live = ports(life).map(|port| waiting(life as u32 + 1, port, 1.0)).collect();
        let oldest = second.saturating_sub(goes_on_s) / 10;
        let open: Vec<u16> = (oldest..=life).flat_map(ports).collect();
        with_server(sessions(second, live, &open), 23)
    }
    let (lines, says) = told("", 45, |second| at(second, 300));
    assert_eq!(
        lines,
        ["32 CRITICAL PM2 app api (4 processes)", "42 CRITICAL PM2 app api (5 processes)"],
        "{says}"
    );
    assert!(
        says.starts_with(
            "20 of the 20 connections that localhost:5432 takes are open, 100 % of them by PM2 app api (5 processes), 16 for clients that are gone; "
        ),
        "{says}"
    );
    // Their statements end soon: there are never more than eight.
    assert_eq!(told("", 200, |second| at(second, 9)).0, [""; 0]);
}

#[test]
fn sessions_that_came_by_a_unix_socket_count_and_are_nobodys() {
    let at = |second| {
        let mut snapshot = sessions(second, Vec::new(), &(1..20).collect::<Vec<_>>());
        for process in snapshot.processes.values_mut() {
            let command_line = "postgres: app shop [local] idle".to_owned();
            *process = Arc::new(Process { command_line, ..Process::clone(process) });
        }
        with_server(snapshot, 23)
    };
    assert_eq!(told("", 9, at).0, ["2 WARN nobody"]);
    // Of two servers at one port, in networks of their own, nobody knows whose sessions they are.
    let two = |second| with(at(second), postgres(23));
    assert_eq!(told("", 9, two).0, [""; 0]);
}

/// A program with some connections to a database elsewhere that rest, and questions asked at second 20, when they are
/// `asked_s` old, by one that dies at once.
fn asking(second: u64, resting: u16, asking: u16, asked_s: f64) -> Snapshot {
    let rest = (0..resting).map(|port| idle(7, port, 5.0));
    let asks = (1000..1000 + asking).map(|port| waiting(8, port, asked_s));
    host(second, rest.chain(asks.filter(|_| second == 20)).collect())
}

#[test]
fn questions_that_nobody_waits_for_any_more_count_at_a_server_elsewhere() {
    #[track_caller]
    fn check(limit: u64, at: impl Fn(u64) -> Snapshot, expect: &[&str]) -> String {
        let (told, says) = told(&format!("10.0.0.9:5432={limit}"), 100, at);
        assert_eq!(told, expect, "{says}");
        says
    }
    // For as long again as they had taken, which is also when the last one is told.
    let says = check(
        20,
        |second| asking(second, 10, 8, 30.0),
        &["22 WARN node (2 processes)", "70 clear"],
    );
    let expect = "18 of the 20 connections that 10.0.0.9:5432 takes are open, 100 % of them by node (2 processes), some 8 for clients that are gone";
    assert_eq!(says, expect);
    // As many as the server takes, at most; a guess alone is not critical.
    check(20, |second| asking(second, 10, 80, 30.0), &["22 WARN node 8", "70 clear"]);
    check(20, |second| asking(second, 10, 8, 0.9), &[]);
    check(40, |second| asking(second, 10, 8, 30.0), &[]);
    // The answer came, and then the connections were closed.
    let answered = |second| {
        let rows = (1000..1008).map(|port| match second {
            20..25 => waiting(8, port, 5.0),
            _ => idle(8, port, 0.5),
        });
        let rows = rows.filter(|_| (20..30).contains(&second));
        host(second, rows.chain((0..10).map(|port| idle(7, port, 5.0))).collect())
    };
    check(21, answered, &["22 WATCH node (2 processes)", "50 clear"]);
}
