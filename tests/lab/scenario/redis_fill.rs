//! Redis without a bound, beside an API (incident of July 2022).

use std::{process::Command, time::Duration};

use observer_tests::{node::Node, procfs, program::Program, redis::Client, seconds, wait_until};
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
    needs: NEEDS,
    ci: false,
    fault: |stage| fill(stage, &[]),
    twin: |stage| fill(stage, &["--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"]),
};

/// The registry's second entry.
pub const SAVE: Scenario = Scenario {
    name: "redis-save",
    incident: "I2",
    shows: "a BGSAVE of a Redis whose values change meanwhile needs its memory twice",
    culprit: "redis-server",
    rate_unit: "MiB of changed values a second",
    rate: 16.0,
    seconds: 150,
    needs: Needs { native: Native::Never, ..NEEDS },
    ci: false,
    fault: |stage| save(stage, 42, true),
    twin: |stage| save(stage, 10, false),
};

const NEEDS: Needs = Needs {
    programs: &["redis-server", "node"],
    guest_mib: 512,
    disk_iops: None,
    icount: true,
    privileged: false,
    native: Native::MemoryMib(384),
};

const VALUE_BYTES: usize = 4096;
/// Values that go to Redis in one piece.
const BATCH: u64 = 16;

/// Knuth's multiplier of multiplicative hashing.
const SCATTER: u64 = 2_654_435_761;

struct Site {
    redis: Program,
    _api: Node,
    _data: TempDir,
    client: Client,
}

/// Starts both, and names the culprit.
fn site(stage: &mut Stage, options: &[&str]) -> Site {
    let data = TempDir::new().expect("a temporary directory");
    let port = stage.port(1);
    let mut command = Command::new("redis-server");
    command.current_dir(data.path()).args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
    let redis = Program::start(command.args(options));
    let client = wait_until("Redis answers", seconds(60), || Client::connect(port).ok());
    let env = [("PORT", stage.port(0).to_string()), ("REDIS_PORT", port.to_string())];
    let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
    let api = Node::start(include_str!("../load/api.js"), &[], &env);
    api.program.wait_line(Duration::from_secs(60), |line| (line == "listening").then_some(()));
    stage.culprit(&["redis-server"], &[redis.pid()]);
    Site { redis, _api: api, _data: data, client }
}

fn fill(stage: &mut Stage, options: &[&str]) {
    let mut site = site(stage, &[&["--save", "", "--appendonly", "no"], options].concat());
    stage.health(stage.port(0), "/health");
    stage.begin();
    set(stage, &mut site.client, u64::MAX);
}

/// Fills a share of the memory, saves, and changes the values while it saves. Huge pages are what an audit is to find:
/// before Linux 5.8 one changed value copied 2 MiB, since then the page is split and 4 KiB are copied.
fn save(stage: &mut Stage, percent: u64, huge: bool) {
    let always = "/sys/kernel/mm/transparent_hugepage/enabled";
    let always = huge && std::fs::write(always, "always").is_ok();
    stage.tell("huge_pages", json!({ "always": always }));
    let mut site = site(stage, &["--save", "", "--appendonly", "no", "--disable-thp", "no"]);
    let values = procfs::host_memory().0 / 100 * percent / VALUE_BYTES as u64;
    for first in (0..values).step_by(BATCH as usize) {
        put(&mut site.client, first, values).unwrap_or_else(|error| panic!("{error}"));
    }
    stage.health(stage.port(0), "/health");
    stage.begin();
    let answer = site.client.command(&["BGSAVE"]);
    let answer = answer.map(|line| String::from_utf8_lossy(&line).into_owned());
    stage.tell("bgsave", json!({ "answer": answer.ok() }));
    set(stage, &mut site.client, values);
    stage.tell("server", json!({ "log": site.redis.out.all().last() }));
}

/// Sets keys, `keys` of them in no order, at the stage's rate until the run is over or Redis refuses.
fn set(stage: &mut Stage, client: &mut Client, keys: u64) {
    let mut refused = None;
    let batches = stage.rate() * (1 << 20) as f64 / (VALUE_BYTES as u64 * BATCH) as f64;
    stage.at_rate(batches, |index| {
        if refused.is_none() {
            // A multiplier without a factor in common with most numbers: neighbours are changed at different times.
            refused = put(client, (index * BATCH).wrapping_mul(SCATTER) % keys, keys)
                .err()
                .map(|error| error.to_string());
        }
    });
    stage.tell("load", json!({ "refused": refused }));
}

/// Sets one batch of keys. What is compressed or shared would not fill memory, but Redis does neither.
fn put(client: &mut Client, first: u64, keys: u64) -> std::io::Result<()> {
    let value = "v".repeat(VALUE_BYTES);
    let mut message = String::with_capacity((VALUE_BYTES + 64) * BATCH as usize);
    for index in first..first + BATCH {
        let key = format!("session:{:020}", index % keys);
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
