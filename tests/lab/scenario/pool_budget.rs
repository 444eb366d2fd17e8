//! Each worker has a pool of its own, and what fits one of them does not fit all (I1, I2). While little is asked, each keeps few
//! connections and nobody notices; when the load rises, all open as many as they may, and PostgreSQL refuses the rest: `sorry,
//! too many clients already` (53300). The twin has the same workers, the same pools and the same load, and a server for them.

use std::time::Duration;

use observer_tests::pm2::Pm2;
use serde_json::json;

use super::{
    Scenario,
    database::{self, Api, Database},
    shop::{Rate, Visitors},
};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "postgres-pool-budget",
    incident: "I2",
    shows: "the pools of four workers may grow to 40 connections, where the database takes 27; the load rises until it refuses",
    culprit: "the PM2 app api",
    rate_unit: "dashboards a second at the end",
    rate: 8.0,
    seconds: 90,
    needs: database::NEEDS,
    ci: false,
    fault: |stage| run(stage, 30),
    twin: |stage| run(stage, 100),
};

const WORKERS: u32 = 4;
/// The default of node-postgres.
const POOL: &str = "10";
/// Connections of each worker at first.
const WARM: &str = "2";

/// A dashboard has three reports, which are made at once; each takes about a second.
const REPORT: &str = "SELECT pg_sleep(0.2 + 1.6 * random())";

/// Dashboards a second at first, and how long it takes until all come.
const FEW: f64 = 0.5;
const RISE: Duration = Duration::from_secs(60);

fn run(stage: &mut Stage, max_connections: u32) {
    let mut database = Database::start(stage, max_connections);
    let mut pm2 = Pm2::new("nobody");
    let env = [("POOL", POOL), ("WARM", WARM), ("REPORT", REPORT)];
    Api { name: "api", port: 0, workers: Some(WORKERS), env: &env }.start(stage, &mut pm2);
    stage.culprit(&["api"], &pm2.pids("api"));
    stage.health(stage.port(0), "/catalogue");
    let quiet = Visitors::start(stage.port(0), "/dashboard", Rate::even(FEW));
    stage.begin();
    drop(quiet);
    let rise = Rate { from: FEW, to: stage.rate(), within: RISE };
    let visitors = Visitors::start(stage.port(0), "/dashboard", rise);
    while stage.pause(Duration::from_secs(4)) {
        database.tell(stage);
    }
    visitors.end(stage);
    stage.tell("server", json!({ "max_connections": max_connections }));
}
