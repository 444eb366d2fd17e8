//! Two users of a host have PM2 run the same application, and nobody knows (incidents of 2022). Nothing fails: it is found
//! before it hurts, or after.

use observer_tests::{
    pm2::{App, Pm2},
    postgres::{Client, Settings},
};
use serde_json::json;

use super::{Native, Needs, Scenario, database, orders};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "pm2-two-daemons",
    incident: "I1",
    shows: "the daemons of two users run the same application: two pools of 10 at the database",
    culprit: "the second PM2 daemon and its app",
    rate_unit: "orders a second",
    rate: 10.0,
    seconds: 45,
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

fn run(stage: &mut Stage, twice: bool) {
    let server = database::start(stage, Settings::default());
    let pg_port = server.port.to_string();
    let (port, other_port) = (stage.port(0).to_string(), stage.port(2).to_string());
    let start = |pm2: &mut Pm2, name: &str, port: &str| {
        let env = [("PORT", port), ("PGPORT", &*pg_port)];
        pm2.start(&App { name, script: database::API, workers: None, env: &env });
    };
    let mut first = Pm2::new("nobody");
    start(&mut first, "api", &port);
    stage.health(stage.port(0), "/catalogue");
    let mut client = Client::connect(server.port).expect("the server answers");
    let mut tell = |stage: &mut Stage| {
        let [all, ..] = database::connections(&mut client);
        stage.tell("connections", json!({ "all": all }));
    };
    tell(stage);
    stage.begin();
    let mut second = Pm2::new("www-data");
    if twice {
        start(&mut second, "api", &other_port);
        let pids: Vec<u32> = second.daemon().into_iter().chain(second.workers()).collect();
        stage.culprit(&["api"], &pids);
    } else {
        // Another application of the same daemon: as many processes, and as many connections.
        start(&mut first, "shop", &other_port);
        stage.culprit(&["api"], &first.workers());
    }
    let seen = orders::until_over(stage, stage.port(0), "/orders");
    tell(stage);
    stage.tell("customers", seen.told());
}
