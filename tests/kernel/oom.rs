//! OOM precursors: reclaim, limit hits and the kill of a memory cgroup, in the order in which they come.

use observer::{signal::oom::MemoryCgroup, snapshot::Snapshot};
use observer_tests::{
    agent::Agent,
    cgroup::Cgroup,
    needs,
    otlp::{Span, Telemetry, int_of},
    procfs,
    program::Program,
    seconds,
    source::Source,
};

use tempfile::TempDir;

use crate::{MIB, assert_close};

const LIMIT: u64 = 128 * MIB;

#[test]
fn a_cgroup_oom_kill_names_victim_sizes_and_trigger() {
    let test = "oom::a_cgroup_oom_kill_names_victim_sizes_and_trigger";
    let Some(_host) = needs::host(test, &["cc"]) else { return };
    let Some(group) = Cgroup::with_memory_limit("oom", LIMIT) else {
        return needs::skip(test, "no memory controller");
    };
    let source = Source::new("squeeze.c", include_str!("../load/squeeze.c"));
    let binary = source.compile_c("squeeze");
    // On the disk of the build: pages of a tmpfs could not be reclaimed.
    let disk = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = disk.path().join("pages");
    let agent = Agent::start(&[("OBSERVER_OOM_RECLAIM_THRESHOLD", "1ms")]);
    let mut command = group.command(binary);
    let mut program = Program::start(command.arg(file).arg("512"));
    let pid = program.pid();

    program.wait_line(seconds(30), |line| (line == "reclaimed").then_some(()));
    let hits = agent.wait_snapshot("reclaim and limit hits", seconds(10), |snapshot| {
        let reclaimer = snapshot.oom.reclaimers.iter().find(|row| row.pid == pid)?;
        (reclaimer.count > 0 && reclaimer.total_ns > 0 && reclaimer.pages > 0).then_some(())?;
        row(snapshot, &group).filter(|row| row.limit_hits > 0)
    });
    assert_eq!((hits.limit_bytes, hits.oom_kills), (Some(LIMIT), 0), "{hits:?}");
    assert_close("usage", hits.usage_bytes, LIMIT, 0.1);

    program.send("grow");
    assert!(program.wait(seconds(30)).is_some(), "the kernel kills it");
    let kill = agent.wait_snapshot("the kill", seconds(5), |snapshot| {
        snapshot.oom.kills.iter().find(|kill| kill.victim_pid == pid).cloned()
    });
    assert_eq!((kill.trigger_pid, kill.victim_name.as_str()), (pid, "squeeze"), "{kill:?}");
    assert!(kill.in_cgroup, "{kill:?}");
    check_sizes(kill.anon_bytes, kill.file_bytes, kill.page_table_bytes);
    agent.wait_snapshot("the kill in the group's row", seconds(5), |snapshot| {
        row(snapshot, &group).filter(|row| row.oom_kills == 1)
    });
    check_telemetry(&agent.stop(), pid);
}

fn row(snapshot: &Snapshot, group: &Cgroup) -> Option<MemoryCgroup> {
    snapshot.oom.cgroups.iter().find(|row| row.path == group.path).cloned()
}

/// The victim held nearly the whole limit as anonymous memory, and a page table entry for each page.
fn check_sizes(anon: u64, file: u64, page_tables: u64) {
    assert_close("anon", anon, LIMIT, 0.1);
    assert!(file < 8 * MIB, "file {file}");
    assert!((LIMIT / 512..4 * MIB).contains(&page_tables), "page tables {page_tables}");
}

fn check_telemetry(telemetry: &Telemetry, pid: u32) {
    let victim = i64::from(pid);
    let kills: Vec<_> = telemetry
        .logs_named("observer.oom.kill")
        .filter(|log| int_of(&log.attrs, "observer.oom.victim.pid") == victim)
        .collect();
    assert_eq!(kills.len(), 1, "one event a kill");
    let attr = |key: &str| int_of(&kills[0].attrs, key);
    assert_eq!((attr("process.pid"), attr("observer.oom.trigger.pid")), (victim, victim));
    let size = |name: &str| attr(&format!("observer.oom.{name}_bytes")).unsigned_abs();
    check_sizes(size("anon"), size("file"), size("page_table"));

    let reclaims: Vec<&Span> = telemetry
        .spans_named("memory.reclaim")
        .filter(|span| int_of(&span.attrs, "process.pid") == victim)
        .collect();
    let first = reclaims.iter().map(|span| span.start_unix_ns).min();
    assert!(
        first.is_some_and(|first| first < kills[0].time_unix_ns),
        "reclaim comes before: {reclaims:?}"
    );
    assert!(
        telemetry.logs_named("observer.memory.limit_hit").next().is_some(),
        "limit hits are events"
    );
}

#[test]
fn host_memory_is_as_proc_says() {
    let Some(_host) = needs::host("oom::host_memory_is_as_proc_says", &[]) else { return };
    let agent = Agent::start(&[]);
    let view = agent.wait_snapshot("memory", seconds(5), |snapshot| {
        (snapshot.oom.memory_total_bytes > 0).then(|| snapshot.oom.clone())
    });
    let (total, available) = procfs::host_memory();
    assert_eq!(view.memory_total_bytes, total);
    assert_close("available", view.memory_available_bytes, available, 0.05);
    assert!(view.headroom_bytes <= view.memory_available_bytes, "{view:?}");
    let expected: Vec<String> = ["cpu", "io", "memory"]
        .iter()
        .filter(|resource| std::fs::exists(format!("/proc/pressure/{resource}")).unwrap())
        .flat_map(|resource| ["full", "some"].map(|scope| format!("{resource} {scope}")))
        .collect();
    let mut rows: Vec<_> =
        view.pressure.iter().map(|row| format!("{} {}", row.resource, row.scope)).collect();
    rows.sort();
    // The kernel has no `full` for the CPU on old releases.
    rows.retain(|row| row != "cpu full");
    assert_eq!(rows, expected.into_iter().filter(|row| row != "cpu full").collect::<Vec<_>>());
    agent.stop();
}
