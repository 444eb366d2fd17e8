//! Redis saves: its child shares all pages with it, until somebody writes to them. Written all over, the data is there twice.
//!
//! Up to Linux 5.7 the first write to a shared huge page copied 2 MiB. Since then the page is split and 4 KiB are copied: what
//! huge pages still cost is memory of split pages that comes back only once the kernel reclaims.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use observer_tests::{node::Node, procfs, program::Program, redis::Client, wait_until};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::{Native, Needs, Scenario, shop::START_LIMIT};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "redis-save-thp",
    incident: "I2",
    shows: "Redis without maxmemory writes all over its data while it saves, with transparent huge pages",
    culprit: "Redis (redis-server) and the child that saves",
    rate_unit: "writes to any of the keys a second",
    rate: 3000.0,
    seconds: 150,
    needs: Needs {
        programs: &["redis-server", "node"],
        guest_mib: 768,
        disk_iops: None,
        icount: super::WEAK,
        privileged: true,
        native: Native::Never,
    },
    ci: false,
    fault: |stage| run(stage, "always", stage.rate()),
    twin: |stage| run(stage, "never", 20.0),
};

/// Setting of the host.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Part of the memory that the data has: once it is well, twice it is not.
const DATA_PERCENT: u64 = 45;
/// With what Redis puts before it, a page.
const VALUE_BYTES: usize = 4000;
const PAGE_BYTES: u64 = 4096;
/// Commands sent before the first answer is read.
const BATCH: usize = 50;

fn run(stage: &mut Stage, huge_pages: &str, writes_a_second: f64) {
    std::fs::write(HUGE_PAGES, huge_pages).expect("a guest's root chooses its huge pages");
    let folder = TempDir::new().expect("a temporary directory");
    let port = stage.port(1);
    let mut command = Command::new("redis-server");
    command.current_dir(folder.path()).args(["--port", &port.to_string(), "--save", ""]);
    // As Redis was before 6.2, which exempts itself.
    let redis = Program::start(command.args(["--bind", "127.0.0.1", "--disable-thp", "no"]));
    let mut client = wait_until("Redis answers", START_LIMIT, || Client::connect(port).ok());
    let keys = procfs::host_memory().0 * DATA_PERCENT / 100 / PAGE_BYTES;
    fill(&mut client, keys).expect("Redis takes its data");
    let own = stage.port(0).to_string();
    let env = [("PORT", own.as_str()), ("REDIS_PORT", &port.to_string())];
    let api = Node::start(include_str!("../load/api.js"), &[], &env);
    api.program.wait_line(START_LIMIT, |line| (line == "listening").then_some(()));
    // A Redis without bound that takes half of the memory in a minute would go on to the end at that pace, and is rightly
    // told. This one has had its data for long.
    stage.scene_is_set();
    stage.health(stage.port(0), "/health");
    stage.tell("victim", json!({ "pids": [api.program.pid()] }));
    stage.culprit(&["redis-server"], &[redis.pid()]);
    stage.begin();
    client.command(&["BGSAVE"]).expect("Redis forks");
    stage.culprit(&["redis-server"], &with_children(redis.pid()));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| write(port, keys, writes_a_second, &over));
        while stage.pause(Duration::from_secs(1)) {
            stage.tell("saving", json!(memory(redis.pid())));
        }
        over.store(true, Ordering::Relaxed);
    });
}

fn with_children(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    std::iter::once(pid).chain(children).collect()
}

fn fill(client: &mut Client, keys: u64) -> std::io::Result<()> {
    let value = incompressible(VALUE_BYTES);
    for first in (0..keys).step_by(BATCH) {
        let batch = first..keys.min(first + BATCH as u64);
        batch.clone().try_for_each(|key| client.send(&["SET", &key.to_string(), &value]))?;
        batch.clone().try_for_each(|_| client.receive().map(drop))?;
    }
    Ok(())
}

/// Text in which nothing comes twice, so that saving takes its time, as with images and tokens.
fn incompressible(length: usize) -> String {
    let mut state = 1_u64;
    let mut next = || {
        // A linear congruential generator; its upper bits are the random ones.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'0' + (state >> 58) as u8)
    };
    (0..length).map(|_| next()).collect()
}

/// Overwrites some bytes of keys all over the data, ten times a second as many as are due.
fn write(port: u16, keys: u64, rate: f64, over: &AtomicBool) {
    let Ok(mut client) = Client::connect(port) else { return };
    // Steps through all keys, far apart: a prime that does not divide their number.
    const STEP: u64 = 7_919;
    let mut key = 0;
    while !over.load(Ordering::Relaxed) {
        let due = (rate / 10.0) as usize;
        let mut batch = || -> std::io::Result<()> {
            for _ in 0..due {
                key = (key + STEP) % keys;
                client.send(&["SETRANGE", &key.to_string(), "100", "written"])?;
            }
            (0..due).try_for_each(|_| client.receive().map(drop))
        };
        if batch().is_err() {
            return;
        }
        // sleep: the pace of a load
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What the server has for itself, what it shares with its child, and what of it is huge (proc_pid_smaps_rollup(5)).
fn memory(pid: u32) -> Map<String, Value> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let wanted = [
        ("Private_Dirty:", "own_kb"),
        ("Shared_Dirty:", "shared_kb"),
        ("AnonHugePages:", "huge_kb"),
    ];
    let field = |start: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(start))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    wanted.iter().map(|(start, name)| ((*name).to_owned(), json!(field(start)))).collect()
}
