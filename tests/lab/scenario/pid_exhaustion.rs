//! Child processes that never end, until a task limit lets no more start. The limit is that of a control group, as systemd
//! sets it (`TasksMax`); no other program of the host feels it.

use observer_tests::{
    cgroup::Cgroup,
    program::{Program, signal_pid},
    source::Source,
};
use rustix::process::Signal;

use super::{Native, Needs, Scenario, database::READY, orders};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "pid-exhaustion",
    incident: "I1",
    shows: "a server starts a program for each order, and those never end, until its task limit is reached",
    culprit: "the server (node thumbnails.js)",
    rate_unit: "orders a second",
    rate: 5.0,
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
    fault: |stage| run(stage, "86400"),
    twin: |stage| run(stage, "4"),
};

const LIMIT: u32 = 128;

fn run(stage: &mut Stage, convert_s: &str) {
    let group = Cgroup::with_task_limit("pids", LIMIT).expect("this kernel limits tasks");
    let source = Source::new("thumbnails.js", include_str!("../load/thumbnails.js"));
    let mut command = group.command("node");
    command.arg(source.path()).env("PORT", stage.port(0).to_string());
    let server = Program::start(command.env("CONVERT_S", convert_s));
    server.wait_line(READY, |line| (line == "listening").then_some(()));
    stage.culprit(&["thumbnails.js", &group.path], &[server.pid()]);
    stage.health(stage.port(0), "/catalogue");
    stage.begin();
    let seen = orders::until_over(stage, stage.port(0), "/orders");
    let tasks = group.read("pids.current");
    let refused = group.read("pids.events");
    let values =
        serde_json::json!({ "tasks": tasks.trim(), "limit": LIMIT, "refused": refused.trim() });
    stage.tell("tasks", values);
    stage.tell("customers", seen.told());
    drop(server);
    let left = group.read("cgroup.procs");
    left.lines().filter_map(|pid| pid.parse().ok()).for_each(|pid| signal_pid(pid, Signal::KILL));
}
