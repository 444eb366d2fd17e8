//! A slow leak beside a server whose files are larger than what is left: the page cache thrashes long before the host
//! counts as out of memory, and MemAvailable says nothing.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::symlink,
    process::Command,
    time::Duration,
};

use observer_tests::{node::Node, procfs, program::Program};
use serde_json::json;
use tempfile::TempDir;

use super::{Native, Needs, Scenario};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "cache-thrash",
    incident: "I2",
    shows: "a slow leak takes the page cache of files in use, on a disk of 300 operations a second",
    culprit: "the program that leaks (leaker)",
    rate_unit: "MiB leaked a second",
    rate: 8.0,
    seconds: 150,
    needs: Needs {
        programs: &["node"],
        guest_mib: 512,
        disk_iops: Some(300),
        icount: None,
        privileged: false,
        native: Native::Never,
    },
    ci: false,
    fault: |stage| run(stage, stage.rate()),
    // As much as fits: a sixteenth of the memory, then no more.
    twin: |stage| run(stage, 0.0),
};

/// Part of the memory that the files in use have: they fit while nothing leaks.
const FILES_PART: u64 = 3;

fn run(stage: &mut Stage, leak: f64) {
    let files = TempDir::new().expect("a temporary directory");
    let (memory, _) = procfs::host_memory();
    let hot = files.path().join("hot");
    fill(&hot, memory / FILES_PART);
    let own = std::env::current_exe().expect("this program has a path");
    // Programs have the names of their files.
    let named = |name: &str| {
        let path = files.path().join(name);
        symlink(&own, &path).expect("a temporary directory takes links");
        Command::new(path)
    };
    let scan = Program::start(named("scanner").args(["load", "scan"]).arg(&hot));
    let port = stage.port(0).to_string();
    let api = Node::start(include_str!("../load/api.js"), &[], &[("PORT", &port)]);
    api.program.wait_line(Duration::from_secs(60), |line| (line == "listening").then_some(()));
    scan.wait_line(Duration::from_secs(120), |line| (line == "warm").then_some(()));
    stage.health(stage.port(0), "/health");
    stage.tell("victim", json!({ "pids": [scan.pid(), api.program.pid()] }));
    stage.begin();
    let most = if leak > 0.0 { u64::MAX } else { memory >> 24 };
    let mut command = named("leaker");
    command.args(["load", "grow", &leak.max(8.0).to_string(), &most.to_string()]);
    let leaker = Program::start(&mut command);
    stage.culprit(&["leaker"], &[leaker.pid()]);
    stage.wait();
}

fn fill(path: &std::path::Path, bytes: u64) {
    let mut file = File::create(path).expect("a temporary file can be made");
    let block = vec![b'x'; 1 << 20];
    for _ in 0..bytes >> 20 {
        file.write_all(&block).expect("the disk has room");
    }
    file.sync_all().expect("a file can be synced");
    drop(file);
    assert!(fs::metadata(path).is_ok_and(|meta| meta.len() >= bytes >> 20 << 20));
}
