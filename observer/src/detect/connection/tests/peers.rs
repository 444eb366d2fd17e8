//! Peers that die, freeze or are slow, and healthy ones that look like it.

use super::super::testing::{DB, busy, check, host, idle, told, waiting};
use crate::{
    signal::tcp::{Activity, Connection, Transaction, View},
    snapshot::Snapshot,
};

/// The fault begins here in all tests.
const FAULT: u64 = 60;

fn half_open(row: Connection) -> Connection {
    Connection { activity: Activity::HalfOpen, retransmits: 3, ..row }
}

/// Seconds since the fault began.
fn since(second: u64) -> f64 {
    second.saturating_sub(FAULT) as f64
}

/// A pool of ten runs into a lock, one connection a second.
fn pile_up(second: u64) -> impl Iterator<Item = Connection> {
    (1..11_u64).map(move |port| match second >= FAULT + port {
        true => waiting(7, port as u16, (second - FAULT - port) as f64 + 0.3),
        false => idle(7, port as u16, 0.1),
    })
}

/// A pool of five whose packets are dropped from a fraction of a second before the fault's first look on.
fn black_hole(second: u64) -> Snapshot {
    let for_s = since(second) + 0.9;
    let rows = match second {
        ..FAULT => busy(7, 1..6),
        60..=61 => (1..6).map(|port| waiting(7, port, for_s)).collect(),
        _ => (1..6).map(|port| half_open(waiting(7, port, for_s))).collect(),
    };
    host(second, rows)
}

#[test]
fn a_dead_peer_is_named_within_seven_seconds_and_not_called_frozen() {
    check(
        FAULT + 30,
        black_hole,
        &["65 connection.dead_peer WARN 10.0.0.9", "77 connection.dead_peer CRITICAL 10.0.0.9"],
    );
}

#[test]
fn a_new_connection_that_is_not_answered_shows_it_too() {
    let at = |second: u64| {
        let connecting = |port| Connection {
            activity: Activity::Connecting,
            last_receive_ns: None,
            ..waiting(7, port, since(second))
        };
        let rows = if second < FAULT { Vec::new() } else { vec![connecting(1), connecting(2)] };
        host(second, rows)
    };
    check(FAULT + 40, at, &["63 connection.dead_peer WARN 10.0.0.9"]);
}

#[test]
fn a_brief_loss_is_no_dead_peer() {
    check(
        200,
        |second| {
            if second % 30 == 0 || second % 30 == 1 {
                host(second, (1..6).map(|port| half_open(waiting(7, port, 2.0))).collect())
            } else {
                host(second, busy(7, 1..6))
            }
        },
        &[],
    );
}

#[test]
fn one_dead_path_to_a_live_peer_is_no_dead_peer() {
    check(
        200,
        |second| {
            let mut rows = busy(7, 1..6);
            rows.push(half_open(waiting(7, 9, second as f64)));
            host(second, rows)
        },
        &[],
    );
}

#[test]
fn looks_that_are_a_minute_apart_find_a_dead_peer_at_once() {
    let at = |second| match second {
        ..600 => host(second, busy(7, 1..6)),
        _ => host(second, black_hole(second - 500).tcp.connections),
    };
    let found = told((0..1000).step_by(60), at);
    assert_eq!(
        found,
        ["600 connection.dead_peer WARN 10.0.0.9", "660 connection.dead_peer CRITICAL 10.0.0.9"]
    );
}

#[test]
fn a_frozen_server_is_told_from_a_dead_one() {
    let at = |second: u64| {
        if second < FAULT {
            return host(second, busy(7, 1..6));
        }
        let wait = |port| waiting(7, port, since(second) + 0.1 * f64::from(port));
        host(second, (1..6).map(wait).collect())
    };
    check(
        FAULT + 40,
        at,
        &[
            "65 connection.frozen_peer WARN 10.0.0.9:5432",
            "70 connection.saturation WARN 10.0.0.9:5432",
            "90 connection.frozen_peer CRITICAL 10.0.0.9:5432",
        ],
    );
}

#[test]
fn a_server_that_freezes_soon_after_the_start_is_not_taken_for_a_lock() {
    // A pool is opened at once, one connection is used, and ten seconds later all wait, one after the other.
    #[track_caller]
    fn check_after(opened: u64, pool: u16, expect: &[&str]) {
        let at = |second: u64| {
            let row = |port: u16| match (second, port) {
                (..FAULT, 1) => idle(7, port, 0.3),
                (..FAULT, _) => idle(7, port, (second - opened) as f64 + 0.1),
                (_, port) if port <= pool => {
                    waiting(7, port, since(second) + 0.2 * f64::from(port))
                }
                (_, _) => idle(7, port, (second - opened) as f64 + 0.1),
            };
            let rows = if second < opened { Vec::new() } else { (1..6).map(row).collect() };
            host(second, rows)
        };
        check(FAULT + 9, at, expect);
    }
    check_after(FAULT - 10, 5, &["65 connection.frozen_peer WARN 10.0.0.9:5432"]);
    // Two long questions of a program that has just begun.
    check_after(FAULT - 10, 2, &[]);
}

#[test]
fn those_who_wait_behind_a_migration_name_it() {
    let at = |second: u64| {
        let mut rows = vec![idle(200, 50, second as f64 + 10.0)];
        // The report hurts nobody; the migration that waits for it does.
        rows.push(waiting(150, 51, second as f64 + 20.0));
        if second >= FAULT {
            rows.push(waiting(170, 52, since(second) + 0.5));
        }
        rows.extend(pile_up(second));
        host(second, rows)
    };
    check(
        FAULT + 60,
        at,
        &[
            "65 connection.waiting_pile_up WARN psql 170",
            "80 connection.saturation WARN 10.0.0.9:5432",
            "94 connection.waiting_pile_up CRITICAL psql 170",
        ],
    );
}

#[test]
fn a_few_who_wait_are_few_also_where_the_others_are_not_shown() {
    let at = |second: u64| {
        let another = |number: u32| {
            let row = idle(1000 + number % 500, 9, if number < 3100 { 4000.0 } else { 0.1 });
            Connection { peer_address: "10.0.0.8".to_owned(), ..row }
        };
        let mut rows: Vec<_> = (0..4200).map(another).collect();
        rows.extend((1..41_u16).map(|port| match port {
            1..4 if second >= FAULT => waiting(7, port, since(second) + f64::from(port)),
            4..40 if second >= FAULT => idle(7, port, since(second) + 30.0),
            _ => idle(7, port, 0.05),
        }));
        let tcp = View::of(rows);
        let shown = tcp.connections.iter().filter(|row| row.pid == 7).count();
        assert_eq!(shown, if second >= FAULT { 4 } else { 40 });
        Snapshot { tcp, ..host(second, Vec::new()) }
    };
    check(FAULT + 20, at, &[]);
}

#[test]
fn the_one_that_fell_silent_before_the_others_began_to_wait_is_named() {
    let at = |second: u64| {
        // A busy session until second 60, and then none for as long as its program waits for somebody else.
        let mut rows = vec![idle(170, 52, since(second) + 0.1), idle(200, 50, second as f64 + 9.0)];
        rows.extend(pile_up(second));
        host(second, rows)
    };
    check(
        FAULT + 33,
        at,
        &[
            "65 connection.waiting_pile_up WARN psql 170",
            "80 connection.saturation WARN 10.0.0.9:5432",
            "92 connection.idle_in_transaction WARN psql 170",
        ],
    );
}

#[test]
fn who_rests_or_waits_by_habit_is_not_blamed_for_it() {
    #[track_caller]
    fn check_outsider(outsider: impl Fn(u64) -> Vec<Connection>, expect: &str) {
        let at = |second| host(second, pile_up(second).chain(outsider(second)).collect());
        let told = told(0..FAULT + 20, at);
        let told: Vec<_> = told.iter().filter(|line| line.contains("pile_up")).collect();
        assert_eq!(told, [expect]);
    }
    // Two sessions, each of which is used every twelve seconds: one of them fell silent just then.
    let resting = |second: u64| -> Vec<_> {
        let for_s = |port: u64| (second + port * 6) % 12;
        (0..2).map(|port| idle(150, 50 + port as u16, for_s(port) as f64 + 0.2)).collect()
    };
    let nobody = "65 connection.waiting_pile_up WARN 10.0.0.9:5432";
    check_outsider(resting, nobody);
    // One that is always at work.
    let at_work = |second: u64| vec![idle(150, 50, second.saturating_sub(FAULT) as f64 + 0.2)];
    let psql = "65 connection.waiting_pile_up WARN psql 150";
    check_outsider(at_work, psql);
    // Statements of a report, one after the other, each by a session of its own.
    let report = |second: u64| match second % 6 {
        0 => Connection { last_send_ns: Some(6_000_000_000), ..idle(150, 50, 0.1) },
        for_s => waiting(150, 50 + (second / 6) as u16, for_s as f64),
    };
    check_outsider(|second| vec![report(second)], nobody);
    // One that was quick until then.
    let migration = |second: u64| match second {
        ..FAULT => idle(150, 50, 0.1),
        _ => waiting(150, 50, (second - FAULT) as f64 + 0.2),
    };
    check_outsider(|second| vec![migration(second)], "64 connection.waiting_pile_up WARN psql 150");
}

/// Its server says so, this many seconds after the transaction began.
fn in_transaction(row: Connection, open_s: f64) -> Connection {
    let transaction_ns = Some((open_s * 1e9) as u64);
    Connection { transaction: Transaction::Open, transaction_ns, ..row }
}

#[test]
fn a_transaction_of_the_same_pool_is_named_when_its_server_says_so() {
    let at = |second: u64| {
        // One of the pool's own: the sockets alone would tell nothing.
        let mut rows = vec![in_transaction(idle(7, 52, since(second) + 0.1), since(second) + 0.2)];
        rows.extend((60..64).map(|port| outside(idle(7, port, since(second) + 0.1))));
        rows.extend(pile_up(second));
        host(second, rows)
    };
    let told = told(0..FAULT + 20, at);
    let named = told.iter().find(|line| line.contains("idle_in_transaction")).unwrap();
    assert_eq!(named, "66 connection.idle_in_transaction WARN node 7", "{told:?}");
    assert!(told.iter().any(|line| line.ends_with("waiting_pile_up WARN node 7")), "{told:?}");
}

/// Its server says that it is in no transaction.
fn outside(row: Connection) -> Connection {
    Connection { transaction: Transaction::No, ..row }
}

#[test]
fn who_is_in_no_transaction_holds_nobody() {
    let at = |second: u64| {
        let mut rows = vec![outside(idle(170, 52, since(second) + 0.1))];
        rows.extend(pile_up(second));
        host(second, rows)
    };
    let told = told(0..FAULT + 33, at);
    assert!(told.iter().any(|line| line.contains("waiting_pile_up WARN")), "{told:?}");
    assert!(!told.iter().any(|line| line.contains("psql 170")), "{told:?}");
}

#[test]
fn a_transaction_that_nobody_waits_for_is_told_after_minutes() {
    let transaction = |rows: fn(f64) -> Connection| {
        move |second: u64| {
            let mut all = busy(7, 1..9);
            all.push(rows(second as f64));
            host(second, all)
        }
    };
    let open = transaction(|for_s| in_transaction(idle(170, 52, for_s), for_s + 1.0));
    check(400, open, &["302 connection.idle_in_transaction WARN psql 170"]);
    // It has failed, and its server has let go of everything.
    let failed = transaction(|for_s| Connection {
        transaction: Transaction::Failed,
        ..in_transaction(idle(170, 52, for_s), for_s)
    });
    check(400, failed, &[]);
    // At work: each statement comes some seconds after the last.
    let at_work = transaction(|for_s| in_transaction(idle(170, 52, for_s % 8.0), for_s));
    check(400, at_work, &[]);
}

#[test]
fn long_queries_of_a_report_are_healthy() {
    let at = |second: u64| {
        let mut rows = busy(7, 1..9);
        rows.push(waiting(7, 20, second as f64));
        rows.push(waiting(150, 21, second as f64));
        if second > 100 {
            // Four statements of a nightly report, started together.
            rows.extend((30..34).map(|port| waiting(7, port, (second - 100) as f64)));
        }
        host(second, rows)
    };
    check(700, at, &[]);
}

#[test]
fn those_who_wait_for_events_are_healthy() {
    let at = |second: u64| {
        let redis = |row: Connection| Connection { system: "redis".into(), peer_port: 6379, ..row };
        // Busy by day; at second 60 the queues are empty, and all consumers wait.
        let rows = (1..9).map(|pid| {
            redis(match second >= FAULT {
                true => waiting(pid, pid as u16, since(second) + 0.2),
                false => idle(pid, pid as u16, 0.1),
            })
        });
        host(second, rows.collect())
    };
    check(900, at, &[]);
}

#[test]
fn a_redis_in_one_command_is_frozen() {
    let at = |second: u64| {
        let local = |row: Connection| Connection {
            system: "redis".into(),
            peer_port: 6379,
            peer_address: "127.0.0.1".into(),
            ..row
        };
        let fault = second >= FAULT;
        let row = |port| if fault { waiting(7, port, since(second)) } else { idle(7, port, 0.1) };
        let mut snapshot = host(second, (1..4).map(|port| local(row(port))).collect());
        let redis = crate::identity::Process {
            pid: 99,
            name: "redis-server".into(),
            ..crate::identity::Process::default()
        };
        snapshot.processes.insert(99, redis.into());
        let open_ns = if fault { second.saturating_sub(FAULT) * super::super::SECOND } else { 0 };
        let turn = crate::signal::sched::EventLoop { open_ns, ..Default::default() };
        snapshot.sched.threads.push(crate::signal::sched::Thread {
            pid: 99,
            tid: 99,
            event_loop: Some(turn),
            ..Default::default()
        });
        snapshot
    };
    check(FAULT + 20, at, &["65 connection.frozen_peer WARN redis-server 99"]);
}

#[test]
fn slow_answers_that_are_usual_are_healthy() {
    let at = |second: u64| {
        let answered =
            |port| Connection { last_send_ns: Some(1_100_000_000), ..idle(7, port, 0.1) };
        let mut rows: Vec<_> = (1..4).map(answered).collect();
        rows.extend((4..6).map(|port| waiting(7, port, 0.2 * f64::from(port))));
        rows.push(waiting(7, 9, 1.0 + (second % 2) as f64));
        host(second, rows)
    };
    check(300, at, &[]);
}

#[test]
fn the_peer_is_named_as_dns_names_it() {
    let at = |second: u64| {
        let mut snapshot = black_hole(second);
        for row in &mut snapshot.tcp.connections {
            row.peer_name = "db.example".to_owned();
        }
        snapshot
    };
    check(FAULT + 6, at, &[&format!("65 connection.dead_peer WARN db.example ({DB})")]);
}
