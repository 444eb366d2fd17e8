//! A table that grows, exported as JSON inside one turn of the event loop, until V8 has no longer string for it
//! (incident of July 2022).

use std::time::Duration;

use observer_tests::{http, node::Node};
use serde_json::json;

use super::{Native, Needs, Scenario};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "json-giants",
    incident: "I2",
    shows: "JSON.stringify of a growing table blocks a Node.js server, and at half a gigabyte ends it",
    culprit: "the server (node)",
    rate_unit: "rows in the first export, in thousands",
    // Exports block for some 3.6 s and then 6 s and more: none so near the five seconds after which a request counts as
    // failed that chance decides which.
    rate: 11.0,
    seconds: 150,
    needs: Needs {
        programs: &["node"],
        guest_mib: 2048,
        disk_iops: None,
        icount: super::SMALL,
        privileged: false,
        native: Native::MemoryMib(2048),
    },
    ci: false,
    fault: |stage| run(stage, "0"),
    twin: |stage| run(stage, "1"),
};

/// The heap may grow as large as the longest string needs it: it is not the heap's limit that ends this process.
const OPTIONS: &[&str] = &["--max-old-space-size=1536"];

/// Between two exports.
const REST: Duration = Duration::from_secs(1);

fn run(stage: &mut Stage, paged: &str) {
    let port = stage.port(0).to_string();
    let script = include_str!("../load/export.js");
    let mut server = Node::start(script, OPTIONS, &[("PORT", &port), ("PAGED", paged)]);
    server.program.wait_line(Duration::from_secs(60), |line| (line == "listening").then_some(()));
    stage.culprit(&["node"], &[server.program.pid()]);
    stage.health(stage.port(0), "/health");
    stage.begin();
    let mut rows = (stage.rate() * 1000.0) as u64;
    while !stage.is_over() {
        stage.tell("export", json!({ "rows": rows }));
        let length = http::get(stage.port(0), &format!("/export?rows={rows}"));
        let length = length.ok().and_then(|body| body.trim().parse::<u64>().ok());
        stage.tell("export_end", json!({ "length_bytes": length }));
        if let Some(status) = server.program.wait(Duration::from_millis(500)) {
            let errors = server.program.err.all();
            let error = errors.iter().find(|line| line.contains("Error"));
            stage.tell("died", json!({ "status": status.code(), "said": error }));
            stage.pause(Duration::from_secs(5));
            return;
        }
        // A healthy table has the size that it has.
        rows *= if paged == "1" { 1 } else { 2 };
        stage.pause(REST);
    }
}
