//! A server that opens files and does not close them, until it may open none.

use std::process::Command;

use observer_tests::{program::Program, source::Source};

use super::{Native, Needs, Scenario, database::READY, orders};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "fd-exhaustion",
    incident: "I1",
    shows: "a server leaks a file descriptor with each order until its limit is reached",
    culprit: "the server (node files.js)",
    rate_unit: "orders a second",
    rate: 10.0,
    seconds: 45,
    needs: Needs {
        programs: &["node"],
        guest_mib: 512,
        disk_iops: None,
        icount: super::SMALL,
        privileged: false,
        native: Native::Free,
    },
    ci: false,
    fault: |stage| run(stage, true),
    twin: |stage| run(stage, false),
};

const LIMIT: u32 = 256;

fn run(stage: &mut Stage, leaks: bool) {
    let source = Source::new("files.js", include_str!("../load/files.js"));
    let mut command = Command::new("sh");
    // Node.js raises the soft limit to the hard one: this sets both.
    command.args(["-c", &format!("ulimit -n {LIMIT} && exec node \"$0\"")]).arg(source.path());
    command.env("PORT", stage.port(0).to_string()).env("LEAK", if leaks { "1" } else { "0" });
    let server = Program::start(&mut command);
    server.wait_line(READY, |line| (line == "listening").then_some(()));
    stage.culprit(&["files.js"], &[server.pid()]);
    stage.health(stage.port(0), "/catalogue");
    stage.begin();
    let seen = orders::until_over(stage, stage.port(0), "/orders");
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).map_or(0, Iterator::count);
    stage.tell("descriptors", serde_json::json!({ "open": open, "limit": LIMIT }));
    stage.tell("customers", seen.told());
}
