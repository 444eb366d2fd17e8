//! Limits: what fills them, as the programs themselves say it.

use std::{fs, process::Command};

use observer::{
    signal::limit::{Bound, Facts, Jvm, Redis},
    snapshot::Snapshot,
};
use observer_tests::{
    agent::Agent, cgroup::Cgroup, free_port, needs, node::Node, program::Program, seconds,
    source::Source,
};
use tempfile::TempDir;

use crate::MIB;

const OFTEN: (&str, &str) = ("OBSERVER_LIMIT_INTERVAL", "1s");

fn row(snapshot: &Snapshot, resource: &str, pid: u32) -> Option<Bound> {
    let mut rows = snapshot.limit.rows.iter();
    rows.find(|row| row.resource == resource && row.pid == pid).cloned()
}

fn jvm(snapshot: &Snapshot, pid: u32) -> Option<Jvm> {
    snapshot.limit.runtimes.iter().find_map(|runtime| match &runtime.facts {
        Facts::Jvm(jvm) if runtime.pid == pid => Some(jvm.clone()),
        _ => None,
    })
}

#[test]
fn a_jvm_tells_its_heap_and_class_space() {
    let test = "limit::a_jvm_tells_its_heap_and_class_space";
    let Some(_host) = needs::host(test, &["java"]) else { return };
    let source = Source::new("Fill.java", include_str!("../load/Fill.java"));
    let agent = Agent::start(&[OFTEN]);
    let mut command = Command::new("java");
    command.args(["-Xmx96m", "-XX:+UseSerialGC", "-XX:MaxMetaspaceSize=50m"]).arg(source.path());
    let mut program = Program::start(&mut command);
    let pid = program.pid();
    program.wait_line(seconds(60), |line| (line == "ready").then_some(()));
    let before =
        agent.wait_snapshot("the JVM's counters", seconds(20), |snapshot| jvm(snapshot, pid));
    assert_eq!(before.metaspace_max_bytes, Some(50 * MIB), "{before:?}");
    assert!(before.heap_max_bytes == 96 * MIB && !before.permgen, "{before:?}");

    // 40 MiB that live, and a collection after which the program says what it holds and how often it has collected.
    program.send("fill");
    let (used, full): (u64, u64) = program.wait_line(seconds(30), |line| {
        let mut numbers = line.strip_prefix("filled ")?.split(' ').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    let after = agent.wait_snapshot("the full collection", seconds(10), |snapshot| {
        jvm(snapshot, pid).filter(|jvm| jvm.full_collections == full)
    });
    assert!(full > before.full_collections && after.full_collection_ns > 0, "{after:?}");
    // It writes this at a collection only.
    assert!((MIB..50 * MIB).contains(&after.metaspace_used_bytes), "{after:?}");
    let floor = after.old_after_full_bytes.unwrap();
    assert!(floor.abs_diff(used) < 4 * MIB && floor > 40 * MIB, "{floor} of {used}");
    let bound = agent.wait_snapshot("the old generation's row", seconds(5), |snapshot| {
        row(snapshot, "jvm_old", pid)
    });
    assert_eq!(bound.limit, Some(after.old_max_bytes));
    assert!(bound.share().unwrap() > 0.5, "{bound:?}");
    agent.stop();
}

#[test]
fn node_and_its_files_have_limits() {
    let test = "limit::node_and_its_files_have_limits";
    let Some(_host) = needs::host(test, &["node"]) else { return };
    let script = "const fs = require('fs'); const held = [];
        for (let i = 0; i < 300; i++) held.push(fs.openSync('/dev/null'));
        console.log('files=' + fs.readdirSync('/proc/self/fd').length);
        setInterval(() => {}, 1000);";
    let agent = Agent::start(&[OFTEN]);
    let node = Node::start(script, &["--max-old-space-size=300"], &[]);
    let plain = Node::start(script, &[], &[("NODE_OPTIONS", "--max-old-space-size=200")]);
    let pid = node.program.pid();
    let told: u64 =
        node.program.wait_line(seconds(20), |line| line.strip_prefix("files=")?.parse().ok());
    let (files, heap, other) = agent.wait_snapshot("rows of Node", seconds(20), |snapshot| {
        let files = row(snapshot, "files", pid).filter(|row| row.used > 300)?;
        let other = row(snapshot, "node_heap", plain.program.pid())?;
        Some((files, row(snapshot, "node_heap", pid)?, other))
    });
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let soft = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let soft: u64 = soft.split_whitespace().nth(3).unwrap().parse().unwrap();
    let listed = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
    assert_eq!((files.used, files.limit), (listed, Some(soft)), "{files:?}");
    assert!(listed.abs_diff(told) <= 2, "{listed} {told}");
    assert_eq!((heap.limit, heap.source.as_str()), (Some(300 * MIB), "command_line"));
    assert_eq!((other.limit, other.source.as_str()), (Some(200 * MIB), "environment"));
    assert!(heap.upper_estimate && heap.used > MIB, "{heap:?}");
    agent.stop();
}

#[test]
fn redis_is_known_by_its_file() {
    let test = "limit::redis_is_known_by_its_file";
    let Some(_host) = needs::host(test, &["redis-server"]) else { return };
    let agent = Agent::start(&[OFTEN]);
    let check = |text: &str, expected: (Option<u64>, bool, &str)| {
        let (port, data) = (free_port(), TempDir::new().unwrap());
        let file = data.path().join("redis.conf");
        fs::write(&file, format!("port {port}\nbind 127.0.0.1\n{text}\n")).unwrap();
        let mut command = Command::new("redis-server");
        let program = Program::start(command.current_dir(data.path()).arg(&file));
        let pid = program.pid();
        let redis: Redis = agent.wait_snapshot("the server", seconds(20), |snapshot| {
            let runtime = snapshot.limit.runtimes.iter().find(|runtime| runtime.pid == pid)?;
            match &runtime.facts {
                Facts::Redis(redis) if redis.port == port => Some(redis.clone()),
                _ => None,
            }
        });
        let found = (redis.maxmemory_bytes, redis.save.unwrap(), redis.maxmemory_policy.as_str());
        assert!(redis.maxmemory_known && redis.config_file == file.to_str().unwrap(), "{redis:?}");
        assert_eq!(found, expected, "{text}");
    };
    check(
        "maxmemory 64mb\nsave \"\"\nmaxmemory-policy allkeys-lru",
        (Some(64 * MIB), false, "allkeys-lru"),
    );
    check("", (None, true, "noeviction"));
    agent.stop();
}

#[test]
fn a_control_group_tells_its_tasks() {
    let test = "limit::a_control_group_tells_its_tasks";
    let Some(_host) = needs::host(test, &["node"]) else { return };
    let Some(group) = Cgroup::with_task_limit("limit", 500) else {
        return needs::skip(test, "no controller of tasks");
    };
    let agent = Agent::start(&[OFTEN]);
    let script = "setInterval(() => {}, 1000); console.log('ready');";
    let node = Node::start(script, &[], &[]);
    node.program.wait_line(seconds(20), |line| (line == "ready").then_some(()));
    group.add(node.program.pid());
    let pid = node.program.pid();
    let wanted = agent.wait_snapshot("the group's row", seconds(20), |snapshot| {
        let mut rows = snapshot.limit.rows.iter();
        rows.find(|row| row.resource == "processes" && row.limit == Some(500)).cloned()
    });
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().count() as u64;
    assert_eq!((wanted.used, wanted.scope.as_str()), (threads, group.path.as_str()), "{wanted:?}");
    agent.stop();
}

#[test]
fn the_host_is_told_as_it_is_set() {
    let Some(_host) = needs::host("limit::the_host_is_told_as_it_is_set", &[]) else { return };
    let agent = Agent::start(&[OFTEN]);
    let view = agent.wait_snapshot("the host", seconds(10), |snapshot| {
        (snapshot.limit.read_unix_ns > 0).then(|| snapshot.limit.clone())
    });
    let number = |path: &str| fs::read_to_string(path).unwrap().trim().parse::<u64>().unwrap();
    let host = &view.host;
    assert_eq!(host.overcommit_memory, Some(number("/proc/sys/vm/overcommit_memory")));
    assert_eq!(host.min_free_bytes, Some(number("/proc/sys/vm/min_free_kbytes") << 10));
    assert_eq!(
        host.tcp_keepalive_time_seconds,
        Some(number("/proc/sys/net/ipv4/tcp_keepalive_time"))
    );
    for resource in ["host_files", "processes"] {
        let mut rows = view.rows.iter();
        assert!(rows.any(|row| row.resource == resource && row.used > 0), "{resource}");
    }
    agent.stop();
}
