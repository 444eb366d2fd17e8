//! Workers that die of an exception while their queries run, and PM2 that starts them again (incidents of 2022).
//!
//! How a connection outlives its worker: the kernel closes the socket of a dead process, and PostgreSQL ends an idle backend
//! at once. A backend that runs a query does not look at its socket before it has an answer
//! (`client_connection_check_interval` is 0 unless set), so it goes on, and counts against `max_connections`, for as long as
//! the query takes. The next worker opens a pool of its own beside it.
//! Nothing else holds it: Node.js opens its sockets close-on-exec, so no child inherits them, and PM2's daemon shares only the
//! listening one.
//!
//! The witness asks an innocent neighbour. The crashing application itself loses requests before: the primary process of a
//! Node.js cluster may hand a connection to a worker that is about to die, and then nobody answers it.

use std::time::{Duration, Instant};

use observer_tests::{
    http,
    pm2::{App, Pm2},
    postgres::{Client, Settings},
};
use serde_json::json;

use super::{Native, Needs, Scenario, database};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "pm2-crash-loop",
    incident: "I2",
    shows: "workers crash and PM2 restarts them; queries of dead workers hold connections until the database has none left",
    culprit: "the PM2 app api",
    rate_unit: "crashes a second",
    rate: 0.25,
    seconds: 90,
    needs: Needs {
        programs: &["node", "pm2", "postgres"],
        guest_mib: 1024,
        disk_iops: None,
        icount: super::SMALL,
        privileged: false,
        native: Native::Free,
    },
    ci: false,
    fault: |stage| run(stage, true),
    twin: |stage| run(stage, false),
};

const WORKERS: u32 = 2;
const POOL: u32 = 5;

/// Longest wait for the answer to an export.
const PATIENCE: Duration = Duration::from_secs(2);

/// Three of them are for superusers.
const MAX_CONNECTIONS: u32 = 30;

fn run(stage: &mut Stage, crashes: bool) {
    let settings = Settings { max_connections: MAX_CONNECTIONS, ..Settings::default() };
    let server = database::start(stage, settings);
    let pg_port = server.port.to_string();
    let mut pm2 = Pm2::new("nobody");
    start_neighbour(&mut pm2, &stage.port(0).to_string(), &pg_port);
    let (port, pool) = (stage.port(2).to_string(), POOL.to_string());
    let (bug, report_s) = if crashes { ("1", "60") } else { ("0", "1") };
    let env = [
        ("PORT", &*port),
        ("PGPORT", &*pg_port),
        ("POOL", &*pool),
        ("BUG", bug),
        ("REPORT_S", report_s),
    ];
    pm2.start(&App { name: "api", script: database::API, workers: Some(WORKERS), env: &env });
    stage.culprit(&["api"], &pm2.pids("api"));
    stage.health(stage.port(0), "/catalogue");
    let mut client = Client::connect(server.port).expect("superusers always get a connection");
    stage.begin();
    let period = Duration::from_secs_f64(1.0 / stage.rate());
    let mut round = 0;
    loop {
        let next = Instant::now() + period;
        // With the bug, the worker dies of it.
        http::status(stage.port(2), "/export", PATIENCE).ok();
        if !crashes && round % 5 == 4 {
            // A deployment: each worker ends by itself when the next one is ready.
            pm2.command(["reload", "api"]);
        }
        round += 1;
        if !stage.pause(next.saturating_duration_since(Instant::now())) {
            break;
        }
        // Those who crash next have just been started.
        stage.culprit(&["api"], &pm2.pids("api"));
        let [all, active, _] = database::connections(&mut client);
        stage.tell("connections", json!({ "all": all, "active": active }));
    }
    stage.tell("pm2", json!({ "restarts": pm2.restarts("api") }));
}

/// The application that the witness asks, in which nothing is wrong. It closes idle connections at once, so it needs new ones.
fn start_neighbour(pm2: &mut Pm2, port: &str, pg_port: &str) {
    let env = [("PORT", port), ("PGPORT", pg_port), ("POOL", "2"), ("IDLE_MS", "100")];
    pm2.start(&App { name: "shop", script: database::API, workers: None, env: &env });
}
