//! A connection for each request: every closed one keeps its local port for a minute (TIME_WAIT), until there is none left
//! towards that server.

use std::{fs, process::Command};

use observer_tests::{node::Node, redis::Redis};
use serde_json::json;

use super::{Native, Needs, Scenario, database::READY, orders};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "port-exhaustion",
    incident: "I1",
    shows: "an API opens a connection to Redis for each request; the local ports towards it run out",
    culprit: "the API (node visits.js)",
    rate_unit: "orders a second",
    rate: 10.0,
    seconds: 45,
    needs: Needs {
        programs: &["node", "redis-server", "ss", "unshare"],
        guest_mib: 512,
        disk_iops: None,
        icount: super::SMALL,
        privileged: true,
        native: Native::OwnNetwork,
    },
    ci: false,
    fault: |stage| run(stage, "0"),
    twin: |stage| run(stage, "1"),
};

/// A hundredth of what hosts have, so that it takes seconds and not minutes; and as between two hosts: over loopback, Linux
/// would use a port again after a second.
const NETWORK: &[(&str, &str)] = &[("ip_local_port_range", "20000 20255"), ("tcp_tw_reuse", "0")];

fn run(stage: &mut Stage, pooled: &str) {
    for (name, value) in NETWORK {
        let path = format!("/proc/sys/net/ipv4/{name}");
        fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    let redis = Redis::on(stage.port(1));
    let (port, redis_port) = (stage.port(0).to_string(), redis.port.to_string());
    let env = [("PORT", &*port), ("REDIS", &*redis_port), ("POOLED", pooled)];
    let api = Node::named("visits.js", include_str!("../load/visits.js"), &[], &env);
    api.program.wait_line(READY, |line| (line == "listening").then_some(()));
    stage.culprit(&["visits.js"], &[api.program.pid()]);
    stage.health(stage.port(0), "/catalogue");
    stage.begin();
    let seen = orders::until_over(stage, stage.port(0), "/orders");
    let filter = format!("dport = :{redis_port}");
    let ss = Command::new("ss").args(["-tanH", "state", "time-wait", &filter]).output();
    let waiting = ss.map_or(0, |done| String::from_utf8_lossy(&done.stdout).lines().count());
    stage.tell("ports", json!({ "in_time_wait": waiting, "all": 256 }));
    stage.tell("customers", seen.told());
}
