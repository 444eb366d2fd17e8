//! Another program's processes take the CPU: a job of which each run begins before the last has ended.

use std::{process::Command, time::Duration};

use serde_json::json;

use super::{
    Native, Needs, Scenario,
    jobs::Jobs,
    shop::{Rate, Shop, Visitors, stay_on_one_cpu},
};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "cpu-neighbours",
    incident: "I2",
    shows: "compressions that nobody waits for pile up and take the server's CPU",
    culprit: "the compressions (gzip)",
    rate_unit: "compressions that begin a second, up to 64",
    rate: 2.0,
    seconds: 90,
    needs: Needs {
        programs: &["node", "gzip", "chrt"],
        guest_mib: 512,
        disk_iops: None,
        icount: super::WEAK,
        privileged: false,
        native: Native::Free,
    },
    ci: false,
    fault: |stage| run(stage, &["gzip"]),
    // As many, who take only what nobody else wants.
    twin: |stage| run(stage, &["chrt", "--idle", "0", "gzip"]),
};

const MOST: u32 = 64;

/// About a quarter of the CPU.
const VISITS: Rate = Rate { from: 10.0, to: 10.0, within: Duration::from_secs(1) };

fn run(stage: &mut Stage, command: &[&str]) {
    stay_on_one_cpu();
    let shop = Shop::open(stage, &[]);
    stage.health(shop.port, "/health");
    stage.tell("victim", json!({ "pids": [shop.pid()] }));
    let visitors = Visitors::start(shop.port, "/order?ms=10", VISITS);
    stage.begin();
    let mut jobs = Jobs::default();
    let every = Duration::from_secs_f64(1.0 / stage.rate());
    for _ in 0..MOST {
        let mut job = Command::new(command[0]);
        jobs.start(job.args(&command[1..]).args(["-c", "/dev/zero"]));
        stage.culprit(&["gzip"], &jobs.pids());
        if !stage.pause(every) {
            break;
        }
    }
    stage.wait();
    drop(jobs);
    visitors.end(stage);
}
