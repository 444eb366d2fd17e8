//! Two users of a host have PM2 run the same application, and nobody knows (incidents of 2022). Nothing fails: it is found
//! before it hurts, or after.

use observer_tests::pm2::Pm2;

use super::{
    Scenario,
    database::{self, Api, Database, SIZE},
    orders,
};
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
    needs: database::NEEDS,
    ci: false,
    fault: |stage| run(stage, true),
    twin: |stage| run(stage, false),
};

fn run(stage: &mut Stage, twice: bool) {
    let mut database = Database::start(stage, SIZE);
    let mut first = Pm2::new("nobody");
    Api { name: "api", port: 0, workers: None, env: &[] }.start(stage, &mut first);
    stage.health(stage.port(0), "/catalogue");
    database.tell(stage);
    stage.begin();
    let mut second = Pm2::new("www-data");
    if twice {
        Api { name: "api", port: 2, workers: None, env: &[] }.start(stage, &mut second);
        let pids: Vec<u32> = second.daemon().into_iter().chain(second.workers()).collect();
        stage.culprit(&["api"], &pids);
    } else {
        // Another application of the same daemon: as many processes, and as many connections.
        Api { name: "shop", port: 2, workers: None, env: &[] }.start(stage, &mut first);
        stage.culprit(&["api"], &first.workers());
    }
    let seen = orders::until_over(stage, stage.port(0), "/orders");
    database.tell(stage);
    stage.tell("customers", seen.told());
}
