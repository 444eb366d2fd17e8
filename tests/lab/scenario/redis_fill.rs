//! Redis without a bound, beside an API (incident of July 2022).

use std::process::Command;

use observer_tests::{node::Node, program::Program, redis::Client, seconds, wait_until};
use serde_json::json;
use tempfile::TempDir;

use super::{Native, Needs, Scenario};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "redis-fill",
    incident: "I2",
    shows: "Redis without maxmemory takes all memory of the host that it shares with an API",
    culprit: "redis-server",
    rate_unit: "MiB of new values a second",
    rate: 12.0,
    seconds: 150,
    needs: Needs {
        programs: &["redis-server", "node"],
        guest_mib: 512,
        disk_iops: None,
        icount: super::SMALL,
        privileged: false,
        native: Native::MemoryMib(384),
    },
    ci: false,
    fault: |stage| fill(stage, &[]),
    twin: |stage| fill(stage, &["--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"]),
};

const VALUE_BYTES: usize = 4096;
/// Values that go to Redis in one piece.
const BATCH: u64 = 16;

fn fill(stage: &mut Stage, options: &[&str]) {
    let data = TempDir::new().expect("a temporary directory");
    let port = stage.port(1);
    let mut command = Command::new("redis-server");
    command.current_dir(data.path()).args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
    let redis = Program::start(command.args(["--save", "", "--appendonly", "no"]).args(options));
    let mut client = wait_until("Redis answers", seconds(60), || Client::connect(port).ok());
    let env = [("PORT", stage.port(0).to_string()), ("REDIS_PORT", port.to_string())];
    let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
    let api = Node::start(include_str!("../load/api.js"), &[], &env);
    api.program.wait_line(seconds(60), |line| (line == "listening").then_some(()));
    stage.culprit(&["redis-server"], &[redis.pid()]);
    stage.health(stage.port(0), "/health");
    stage.begin();
    set(stage, &mut client);
}

/// Sets new keys at the stage's rate until the run is over or Redis refuses.
fn set(stage: &mut Stage, client: &mut Client) {
    let mut refused = None;
    let batches = stage.rate() * (1 << 20) as f64 / (VALUE_BYTES as u64 * BATCH) as f64;
    stage.at_rate(batches, |index| {
        if refused.is_none() {
            refused = put(client, index * BATCH).err().map(|error| error.to_string());
        }
    });
    stage.tell("load", json!({ "refused": refused }));
}

/// Sets one batch of keys. What is compressed or shared would not fill memory, but Redis does neither.
fn put(client: &mut Client, first: u64) -> std::io::Result<()> {
    let value = "v".repeat(VALUE_BYTES);
    let mut message = String::with_capacity((VALUE_BYTES + 64) * BATCH as usize);
    for index in first..first + BATCH {
        let key = format!("session:{index:020}");
        message +=
            &format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${VALUE_BYTES}\r\n{value}\r\n", key.len());
    }
    client.wire.write(message.as_bytes())?;
    let expected = "+OK\r\n".repeat(BATCH as usize);
    let answer = client.wire.read(expected.len())?;
    if answer == expected.as_bytes() {
        return Ok(());
    }
    Err(std::io::Error::other(String::from_utf8_lossy(&answer).into_owned()))
}
