//! A transaction that stays open while its program waits for somebody else: its row lock stops orders of one item, and those take the
//! pool's connections from all others (I1).

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use observer_tests::{node::Node, pm2};

use super::{
    Scenario,
    database::{self, Database, SIZE},
    orders,
};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "postgres-idle-in-transaction",
    incident: "I1",
    shows: "a transaction is left open while its program waits for a third party; orders wait for its row lock until none of the pool's connections is left",
    culprit: "the billing program (node billing.js)",
    rate_unit: "orders a second",
    rate: 5.0,
    seconds: 40,
    needs: database::NEEDS,
    ci: false,
    fault: |stage| run(stage, true),
    twin: |stage| run(stage, false),
};

const POOL: u32 = 10;

/// What the payment provider takes for an answer.
const CHARGE: Duration = Duration::from_millis(50);

fn run(stage: &mut Stage, stalls: bool) {
    let mut database = Database::start(stage, SIZE);
    let silent = provider(stage.port(2));
    let modules = pm2::node_modules().expect("node-postgres is installed beside PM2");
    let env = [
        ("PGPORT", &*database.server.port.to_string()),
        ("PROVIDER", &stage.port(2).to_string()),
        ("PAUSE_MS", "500"),
        ("NODE_PATH", &modules.to_string_lossy()),
    ];
    let billing = Node::named("billing.js", include_str!("../load/billing.js"), &[], &env);
    billing.program.wait_line(database::READY, |line| (line == "billing").then_some(()));
    let _api = database::start_api(stage, "127.0.0.1", POOL, database::CATALOGUE);
    stage.culprit(&["billing.js"], &[billing.program.pid()]);
    stage.health(stage.port(0), "/catalogue");
    stage.begin();
    silent.store(stalls, Ordering::Relaxed);
    let seen = orders::until_over(stage, stage.port(0), "/orders");
    database.tell(stage);
    stage.tell("customers", seen.told());
}

/// A payment provider that answers, until it is told to be silent: then it takes requests and never answers.
fn provider(port: u16) -> Arc<AtomicBool> {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    let silent = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&silent);
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for mut stream in listener.incoming().flatten() {
            if told.load(Ordering::Relaxed) {
                held.push(stream);
                continue;
            }
            let head = BufReader::new(&stream).lines().map_while(Result::ok);
            head.take_while(|line| !line.is_empty()).for_each(drop);
            // sleep: what the provider takes
            std::thread::sleep(CHARGE);
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").ok();
        }
    });
    silent
}
