//! `observer top`, in a real terminal and as JSON.

use observer::snapshot::VERSION;
use observer_tests::{
    agent::{self, Agent},
    needs,
    node::Blocker,
    procfs,
    redis::{self, Redis},
    seconds,
    terminal::Terminal,
};
use tempfile::TempDir;

#[test]
fn top_shows_all_panes_in_a_terminal() {
    let test = "top::top_shows_all_panes_in_a_terminal";
    let Some(_host) = needs::host(test, &["tmux", "redis-server", "node"]) else { return };
    let (redis, blocker) = (Redis::start(), Blocker::start());
    let agent = Agent::watching(&[redis.port]);
    let _client = redis::Client::connect(redis.port).unwrap();
    blocker.block("spin", 200);
    let terminal = Terminal::start(&agent::command(agent.state_dir(), &["top"]));
    let panes = ["findings", "alloc", "oom", "tcp", "sched"];
    terminal.wait_for(&panes, seconds(10));
    terminal.wait_for(&["redis", &redis.port.to_string(), "node"], seconds(10));
    terminal.press(&["q"]);
    observer_tests::wait_until("top ends at q", seconds(2), || {
        (!terminal.is_running()).then_some(())
    });
    agent.stop();
}

#[test]
fn one_json_snapshot_agrees_with_proc() {
    let Some(_host) = needs::host("top::one_json_snapshot_agrees_with_proc", &[]) else { return };
    let agent = Agent::start(&[]);
    let snapshot = agent.wait_snapshot("processes", seconds(5), |snapshot| {
        (snapshot.alloc.process_count > 0).then(|| snapshot.clone())
    });
    assert_eq!(snapshot.version, VERSION);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(
        (snapshot.kernel.as_str(), snapshot.host_name.as_str()),
        (release.trim(), host.trim())
    );
    let count = procfs::process_count() as u64;
    assert!(
        snapshot.alloc.process_count.abs_diff(count) <= 20,
        "{} {count}",
        snapshot.alloc.process_count
    );
    for row in &snapshot.alloc.processes {
        assert!(snapshot.processes.contains_key(&row.pid), "no identity for {row:?}");
    }
    let own = snapshot.processes.get(&std::process::id()).expect("this test is a process");
    let exe = std::env::current_exe().unwrap();
    assert_eq!(own.executable, exe.to_string_lossy());
    agent.stop();
}

#[test]
fn top_runs_the_probes_itself_when_no_agent_runs() {
    let test = "top::top_runs_the_probes_itself_when_no_agent_runs";
    let Some(_host) = needs::host(test, &[]) else { return };
    let state = TempDir::new().unwrap();
    let output = agent::output(state.path(), &["top", "--once", "--json"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let snapshot: observer::snapshot::Snapshot = serde_json::from_slice(&output.stdout).unwrap();
    assert!(snapshot.alloc.process_count > 0 && !snapshot.health.programs.is_empty(), "{errors}");
}
