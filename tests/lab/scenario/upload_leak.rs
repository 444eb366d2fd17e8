//! Uploaded images that stay in memory (incident of August 2023).

use std::time::Duration;

use observer_tests::node::Node;
use serde_json::json;

use super::{Native, Needs, Scenario, load};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "upload-leak",
    incident: "I3",
    shows: "a Node.js server keeps every uploaded file in memory until the host has none left",
    culprit: "the server (node)",
    rate_unit: "uploads of 1 MB a second",
    rate: 12.0,
    seconds: 150,
    needs: Needs {
        programs: &["node"],
        guest_mib: 512,
        disk_iops: None,
        icount: super::SMALL,
        privileged: false,
        native: Native::MemoryMib(512),
    },
    ci: true,
    fault: |stage| run(stage, true),
    twin: |stage| run(stage, false),
};

/// Connections of the client; a real one has several, too.
const CLIENTS: usize = 4;

fn run(stage: &mut Stage, keeps: bool) {
    let port = stage.port(0).to_string();
    let keep = if keeps { "1" } else { "0" };
    let server =
        Node::start(include_str!("../load/upload.js"), &[], &[("PORT", &port), ("KEEP", keep)]);
    server.program.wait_line(Duration::from_secs(60), |line| (line == "listening").then_some(()));
    stage.culprit(&["node"], &[server.program.pid()]);
    stage.health(stage.port(0), "/health");
    stage.begin();
    let sent = load::post(stage, stage.port(0), "/upload", 1_000_000, CLIENTS);
    stage.tell("load", json!({ "uploads": sent.done, "failed": sent.failed }));
}
