//! Allocations: how much, how fast, and from where, against what the kernel says of the same process.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use observer::{signal::alloc::ProcessMemory, snapshot::Snapshot};
use observer_tests::{
    POLL,
    agent::Agent,
    needs,
    node::Node,
    otlp::int_of,
    procfs::{self, Memory},
    program::Program,
    seconds,
    source::Source,
    unix_ns,
};

use crate::{MIB, assert_close};

const RATE_MIB: u64 = 20;
const GROW_C: &str = include_str!("../load/grow.c");

#[test]
fn growth_is_reported_as_proc_reports_it() {
    let Some(_host) = needs::host("alloc::growth_is_reported_as_proc_reports_it", &["cc"]) else {
        return;
    };
    let source = Source::new("grow.c", GROW_C);
    let binary = source.compile_c("grow");
    let agent = Agent::start(&[]);
    let program = Program::start(Command::new(binary).args([&RATE_MIB.to_string(), "400"]));
    let pid = program.pid();
    let measured = Sampler::start(pid);
    let expected = (RATE_MIB * MIB) as f64;
    let mut compared = 0;
    agent.wait_snapshot("a steady growth rate", seconds(20), |snapshot| {
        let row = memory_of(snapshot, pid)?;
        let then = measured.at(snapshot.time_unix_ns).filter(|memory| memory.anon > 50 * MIB);
        if let Some(memory) = then {
            assert_close("anon while it grows", row.anon_bytes, memory.anon, 0.05);
            compared += 1;
        }
        let steady = (row.growth_bytes_per_second - expected).abs() < expected * 0.1;
        (steady && row.anon_bytes > 11 * RATE_MIB * MIB).then_some(())
    });
    assert!(compared > 0, "no snapshot could be compared with /proc");
    agent.wait_snapshot("leak_upload_parts in the top stack", seconds(10), |snapshot| {
        let row = memory_of(snapshot, pid)?;
        let top = row.stacks.first()?;
        (has_frame(&top.frames, "leak_upload_parts") && top.share > 0.9).then_some(())
    });

    program.wait_line(seconds(20), |line| (line == "full").then_some(()));
    let still = agent.wait_snapshot("the end of the growth", seconds(15), |snapshot| {
        // Before 6.2 up to 64 pages of a thread are not counted yet.
        memory_of(snapshot, pid).filter(|row| row.anon_bytes + MIB / 2 >= 400 * MIB)
    });
    let memory = procfs::memory(pid).unwrap();
    for (what, reported, expected) in [
        ("rss", still.rss_bytes, memory.rss),
        ("anon", still.anon_bytes, memory.anon),
        ("file", still.file_bytes, memory.file),
        ("page tables", still.page_table_bytes, memory.page_tables),
    ] {
        assert_close(what, reported, expected, 0.05);
    }
    agent.stop();
}

fn memory_of(snapshot: &Snapshot, pid: u32) -> Option<ProcessMemory> {
    snapshot.alloc.processes.iter().find(|row| row.pid == pid).cloned()
}

fn has_frame(frames: &[String], name: &str) -> bool {
    frames.iter().any(|frame| frame.contains(name))
}

/// Reads `/proc/PID/status` all the time, so that a snapshot can be compared with what was true when it was taken.
struct Sampler {
    samples: Arc<std::sync::Mutex<Vec<(u64, Memory)>>>,
    ended: Arc<AtomicBool>,
}

impl Sampler {
    fn start(pid: u32) -> Self {
        let sampler = Self { samples: Arc::default(), ended: Arc::default() };
        let (samples, ended) = (Arc::clone(&sampler.samples), Arc::clone(&sampler.ended));
        std::thread::spawn(move || {
            while let (false, Some(memory)) = (ended.load(Ordering::Relaxed), procfs::memory(pid)) {
                samples.lock().unwrap().push((unix_ns(), memory));
                // sleep: the pace of the sampling thread
                std::thread::sleep(POLL);
            }
        });
        sampler
    }

    /// The sample nearest to a time, if it is near.
    fn at(&self, time_unix_ns: u64) -> Option<Memory> {
        let samples = self.samples.lock().unwrap();
        let distance = |(time, _): &&(u64, Memory)| time.abs_diff(time_unix_ns);
        let nearest = samples.iter().min_by_key(distance)?;
        (distance(&nearest) < 100_000_000).then_some(nearest.1)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_top_stack_of_node_names_the_function() {
    let Some(_host) = needs::host("alloc::the_top_stack_of_node_names_the_function", &["node"])
    else {
        return;
    };
    let agent = Agent::start(&[]);
    let script = include_str!("../load/grow.js");
    let options = ["--perf-basic-prof", "--interpreted-frames-native-stack"];
    let node = Node::start(script, &options, &[("MIB_PER_SECOND", "20"), ("MIB_MAX", "400")]);
    let pid = node.program.pid();
    agent.wait_snapshot("fillBuffersForever in the top stack", seconds(20), |snapshot| {
        let row = memory_of(snapshot, pid)?;
        has_frame(&row.stacks.first()?.frames, "fillBuffersForever").then_some(())
    });
    agent.stop();
    std::fs::remove_file(format!("/tmp/perf-{pid}.map")).unwrap();
}

#[test]
fn a_big_step_is_an_event() {
    check_step("alloc::a_big_step_is_an_event", "200", "500");
}

#[test]
fn a_big_step_of_a_new_process_is_an_event() {
    check_step("alloc::a_big_step_of_a_new_process_is_an_event", "5000", "200");
}

fn check_step(test: &str, mib_per_second: &str, mib: &str) {
    let Some(_host) = needs::host(test, &["cc"]) else { return };
    let source = Source::new("grow.c", GROW_C);
    let binary = source.compile_c("grow");
    let agent = Agent::start(&[]);
    let program = Program::start(Command::new(binary).args([mib_per_second, mib]));
    let pid = i64::from(program.pid());
    let log = agent.wait_telemetry("observer.memory.step", seconds(10), |telemetry| {
        let mut logs = telemetry.logs_named("observer.memory.step");
        logs.find(|log| int_of(&log.attrs, "process.pid") == pid).cloned()
    });
    let step = int_of(&log.attrs, "observer.memory.step_bytes").unsigned_abs();
    assert!((64 * MIB..=350 * MIB).contains(&step), "{log:?}");
    agent.stop();
}

#[test]
fn short_lived_processes_are_counted() {
    let Some(_host) = needs::host("alloc::short_lived_processes_are_counted", &[]) else { return };
    let agent = Agent::start(&[]);
    let before = agent.snapshot().alloc;
    for _ in 0..200 {
        assert!(Command::new("true").status().unwrap().success());
    }
    let after = agent.wait_snapshot("200 exits", seconds(5), |snapshot| {
        (snapshot.alloc.short_lived >= before.short_lived + 200).then(|| snapshot.alloc.clone())
    });
    for (what, count) in [
        ("forks", after.forks - before.forks),
        ("execs", after.execs - before.execs),
        ("exits", after.exits - before.exits),
    ] {
        assert!(count >= 200, "{count} {what}");
    }
    agent.stop();
}

#[test]
fn failures_are_told_with_what_they_ended_by() {
    let test = "alloc::failures_are_told_with_what_they_ended_by";
    let Some(_host) = needs::host(test, &["node"]) else { return };
    let agent = Agent::start(&[]);
    let check = |script: &str, code: Option<u32>, signal: Option<u32>| {
        let begin = unix_ns();
        let mut command = Command::new("node");
        let mut child = command.args(["-e", script]).spawn().unwrap();
        let pid = child.id();
        let status = child.wait().unwrap();
        let end = unix_ns();
        assert_eq!(
            (status.code(), status.signal()),
            (code.map(|code| code as i32), signal.map(|signal| signal as i32))
        );
        let row = agent.wait_snapshot("the failure", seconds(5), |snapshot| {
            snapshot.alloc.failures.iter().find(|row| row.pid == pid).cloned()
        });
        assert_eq!((row.exit_code, row.signal), (code, signal), "{row:?}");
        assert_eq!((row.name.as_str(), row.parent_pid), ("node", std::process::id()));
        assert!((begin..=end).contains(&row.time_unix_ns), "{row:?} {begin} {end}");
        assert!(row.lived_ns > 0 && row.lived_ns < end - begin, "{row:?}");
        // A start is known in clock ticks.
        assert!(row.start_unix_ns.abs_diff(begin) < 1_000_000_000, "{row:?} {begin}");
    };
    check("process.exit(7)", Some(7), None);
    check("throw new Error()", Some(1), None);
    check("process.kill(process.pid, 'SIGSEGV'); setTimeout(() => {}, 9999)", None, Some(11));
    check("process.kill(process.pid, 'SIGKILL'); setTimeout(() => {}, 9999)", None, Some(9));
    let status = Command::new("node").args(["-e", ""]).status().unwrap();
    assert!(status.success());
    let telemetry = agent.stop();
    assert!(
        telemetry.logs_named("observer.process.exit").next().is_none(),
        "nobody keeps these processes running"
    );
}
