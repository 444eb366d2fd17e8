//! An event loop that stands still (incident of April 2022): every signal of the host is healthy.

use std::time::Duration;

use observer_tests::{http, node::Node};
use serde_json::json;

use super::{Native, Needs, Scenario};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "event-loop-block",
    incident: "I1",
    shows: "a Node.js server computes 0.5, 3 and 8 s inside one turn of its event loop",
    culprit: "the server (node)",
    rate_unit: "computations a second, of twins",
    rate: 5.0,
    seconds: 40,
    needs: Needs {
        programs: &["node"],
        guest_mib: 512,
        disk_iops: None,
        icount: super::SMALL,
        privileged: false,
        native: Native::Free,
    },
    ci: true,
    fault: block,
    twin: short_turns,
};

/// Lengths of the blocks, with some rest behind each.
const BLOCKS_MS: [u64; 3] = [500, 3000, 8000];
const REST: Duration = Duration::from_secs(2);
/// A turn that nobody minds.
const SHORT_MS: u64 = 20;

fn block(stage: &mut Stage) {
    let _server = begin(stage);
    let blocks = if stage.is_smoke() { 1 } else { BLOCKS_MS.len() };
    for ms in &BLOCKS_MS[..blocks] {
        if !compute(stage, *ms) || !stage.pause(REST) {
            return;
        }
    }
    stage.wait();
}

fn short_turns(stage: &mut Stage) {
    let _server = begin(stage);
    let (port, mut failed) = (stage.port(0), 0);
    stage.at_rate(stage.rate(), |_| {
        failed += u32::from(http::get(port, &format!("/compute?ms={SHORT_MS}")).is_err());
    });
    stage.tell("load", json!({ "failed": failed }));
}

fn begin(stage: &mut Stage) -> Node {
    let port = stage.port(0).to_string();
    let server = Node::start(include_str!("../load/compute.js"), &[], &[("PORT", &port)]);
    server.program.wait_line(Duration::from_secs(60), |line| (line == "listening").then_some(()));
    stage.culprit(&["node"], &[server.program.pid()]);
    stage.health(stage.port(0), "/health");
    stage.begin();
    server
}

/// Blocks the loop, and tells what Node measured.
fn compute(stage: &mut Stage, ms: u64) -> bool {
    stage.tell("block", json!({ "asked_ms": ms }));
    let measured = http::get(stage.port(0), &format!("/compute?ms={ms}"));
    let took_ms = measured.ok().and_then(|body| body.trim().parse::<f64>().ok());
    stage.tell("block_end", json!({ "took_ms": took_ms }));
    took_ms.is_some() && !stage.is_over()
}
