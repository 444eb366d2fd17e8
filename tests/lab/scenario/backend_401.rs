//! A collector that refuses with 401 for two minutes (I5, August 2014): the agent must keep everything, go on trying, and
//! deliver it. The event `delivered` compares item by item.

use std::time::Duration;

use observer_tests::{
    collector::Collector,
    redis::{self, Redis},
};
use serde_json::json;

use super::{Native, Needs, Scenario};
use crate::{stage::Stage, timeline::rounded};

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "backend-401",
    incident: "I5",
    shows: "the collector answers 401 for two minutes; nothing may be lost",
    culprit: "the collector",
    rate_unit: "connections to Redis a second",
    rate: 2.0,
    seconds: 240,
    needs: Needs {
        programs: &["redis-server"],
        guest_mib: 512,
        disk_iops: None,
        icount: super::SMALL,
        privileged: false,
        native: Native::Free,
    },
    ci: false,
    fault: |stage| run(stage, 401),
    twin: |stage| run(stage, 200),
};

const REFUSED: Duration = Duration::from_secs(120);
const REFUSED_IN_SMOKE: Duration = Duration::from_secs(2);

fn run(stage: &mut Stage, answer: u16) {
    let collector = Collector::start(stage.collector_port());
    let redis = Redis::on(stage.port(1));
    stage.culprit(&["otlp"], &[]);
    stage.begin();
    collector.answer(answer);
    let refused = if stage.is_smoke() { REFUSED_IN_SMOKE } else { REFUSED };
    let well_again = (refused.as_secs_f64() * stage.rate()) as u64;
    stage.at_rate(stage.rate(), |index| {
        if index == well_again {
            collector.answer(200);
        }
        if let Ok(client) = redis::Client::connect(redis.port) {
            client.close();
        }
    });
    let seen = collector.seen();
    let at_s = |ns: Option<u64>| ns.map(|ns| rounded(ns as f64 / 1e9));
    let values = json!({
        "requests_refused": seen.refused,
        "requests_taken": seen.lines.len(),
        "first_refused_s": at_s(seen.first_refused_ns),
        "taken_again_s": at_s(seen.taken_again_ns),
    });
    stage.tell("collector", values);
    stage.collected(&seen.lines);
}
