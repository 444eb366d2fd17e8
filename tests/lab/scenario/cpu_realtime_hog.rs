//! A real-time program that works more and more, until nobody below it gets the CPU but for what the kernel keeps back.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    Native, Needs, Scenario,
    jobs::{Jobs, Own},
    shop::{Rate, Shop, Visitors, stay_on_one_cpu},
};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "cpu-realtime-hog",
    incident: "I2",
    shows: "a program of the class SCHED_FIFO works a twentieth more every second, until it never sleeps",
    culprit: "the real-time program (poller)",
    rate_unit: "percent of the CPU that it takes more every second",
    rate: 5.0,
    seconds: 60,
    needs: Needs {
        programs: &["node", "chrt"],
        guest_mib: 512,
        disk_iops: None,
        icount: super::WEAK,
        privileged: true,
        native: Native::Never,
    },
    ci: false,
    fault: |stage| run(stage, stage.rate()),
    twin: |stage| run(stage, 0.0),
};

/// Percent of the CPU that it takes from the start on.
const FIRST_PERCENT: f64 = 20.0;

/// How often it works.
const PERIOD: Duration = Duration::from_millis(100);

/// Below the witness.
const PRIORITY: &str = "10";

fn run(stage: &mut Stage, percent_a_second: f64) {
    stay_on_one_cpu();
    let shop = Shop::open(stage, &[]);
    stage.health(shop.port, "/health");
    stage.tell("victim", json!({ "pids": [shop.pid()] }));
    let visitors = Visitors::start(shop.port, "/order?ms=10", Rate::even(5.0));
    stage.begin();
    let program = Own::named("poller");
    let mut poller = Command::new("chrt");
    poller.args(["--fifo", PRIORITY]).arg(program.path());
    let mut jobs = Jobs::default();
    jobs.start(poller.args(["load", "poll", &percent_a_second.to_string()]));
    stage.culprit(&["poller"], &jobs.pids());
    stage.wait();
    drop(jobs);
    visitors.end(stage);
}

/// The program: works for its part of each period.
pub fn poll(percent_a_second: f64) -> ! {
    let start = Instant::now();
    loop {
        let began = Instant::now();
        let percent = FIRST_PERCENT + percent_a_second * start.elapsed().as_secs_f64();
        let work = PERIOD.mul_f64(percent.min(100.0) / 100.0);
        while began.elapsed() < work {
            std::hint::black_box(());
        }
        // sleep: what is left of the period
        std::thread::sleep(PERIOD.saturating_sub(began.elapsed()));
    }
}
