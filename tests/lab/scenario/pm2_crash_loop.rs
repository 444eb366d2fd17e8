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

use observer_tests::{http, pm2::Pm2};
use serde_json::json;

use super::{
    Scenario,
    database::{self, Api, Database},
};
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
    needs: database::NEEDS,
    ci: false,
    fault: |stage| run(stage, true),
    twin: |stage| run(stage, false),
};

const WORKERS: u32 = 2;
const POOL: &str = "5";

/// Longest wait for the answer to an export.
const PATIENCE: Duration = Duration::from_secs(2);

/// Three of them are for superusers.
const MAX_CONNECTIONS: u32 = 30;

fn run(stage: &mut Stage, crashes: bool) {
    let mut database = Database::start(stage, MAX_CONNECTIONS);
    let mut pm2 = Pm2::new("nobody");
    // What the witness asks, in which nothing is wrong. It closes idle connections at once, so it needs new ones.
    let neighbour = [("POOL", "2"), ("IDLE_MS", "100")];
    Api { name: "shop", port: 0, workers: None, env: &neighbour }.start(stage, &mut pm2);
    let (bug, report_s) = if crashes { ("1", "60") } else { ("0", "1") };
    let env = [("POOL", POOL), ("BUG", bug), ("REPORT_S", report_s)];
    Api { name: "api", port: 2, workers: Some(WORKERS), env: &env }.start(stage, &mut pm2);
    stage.culprit(&["api"], &pm2.pids("api"));
    stage.health(stage.port(0), "/catalogue");
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
        database.tell(stage);
    }
    stage.tell("pm2", json!({ "restarts": pm2.restarts("api") }));
}
