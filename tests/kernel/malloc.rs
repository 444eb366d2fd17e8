//! The allocator of a process that a finding names: probed for some seconds, told, and let go of.

use std::fs;

use observer::{
    detect::{Finding, Level},
    signal::alloc::{MallocProbe, ProcessMemory},
    snapshot::Snapshot,
};
use observer_tests::{
    agent::Agent, cgroup::Cgroup, needs, otlp::int_of, program::Program, seconds, source::Source,
};

use crate::MIB;

const LIMIT: u64 = 256 * MIB;
/// It grows no more when a fifth of its limit is left.
const HELD_MIB: &str = "205";
const RATE_MIB: &str = "3";

/// A process that takes more and more of its control group's memory from malloc, and an agent that is to find it.
struct Hoard {
    agent: Agent,
    program: Program,
    _group: Cgroup,
    _source: Source,
    /// Probes and programs that the agent has when it probes nobody.
    at_rest: [usize; 2],
}

impl Hoard {
    fn start(test: &str, mode: &[&str], env: &[(&str, &str)]) -> Option<Self> {
        let Some(group) = Cgroup::with_memory_limit("hoard", LIMIT) else {
            needs::skip(test, "no memory controller");
            return None;
        };
        let source = Source::new("hoard.c", include_str!("../load/hoard.c"));
        let binary = source.compile_c("hoard");
        let own = [
            ("OBSERVER_ALLOC_MALLOC_PROBE", "true"),
            ("OBSERVER_SCHED_WATCH", "hoard"),
            ("OBSERVER_DETECT_MEMORY_FREE", "60"),
        ];
        let program = Program::start(group.command(binary).args([RATE_MIB, HELD_MIB]).args(mode));
        // It is in its group then, before anybody looks at it.
        program.wait_line(seconds(10), |line| (line == "growing").then_some(()));
        let agent = Agent::start(&[&own, env].concat());
        let at_rest = attached(agent.pid());
        Some(Self { agent, program, _group: group, _source: source, at_rest })
    }

    fn probe(&self, snapshot: &Snapshot) -> Option<MallocProbe> {
        memory_of(snapshot, self.program.pid())?.malloc
    }

    /// What the probing told, once it has names.
    fn probed(&self, what: &str) -> MallocProbe {
        self.agent.wait_snapshot(what, seconds(120), |snapshot| {
            let probe = self.probe(snapshot)?;
            let is_named = |frame: &String| !frame.starts_with("0x");
            let mut stacks = probe.stacks.iter();
            stacks.all(|stack| stack.frames.first().is_some_and(is_named)).then_some(probe)
        })
    }

    /// Nothing of it is left: neither a probe nor a program.
    fn assert_detached(&self) {
        assert_eq!(attached(self.agent.pid()), self.at_rest);
    }
}

/// How many probes and programs a process holds. A probe is a link where the kernel has such for it (5.15), else a perf event.
fn attached(pid: u32) -> [usize; 2] {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links: Vec<String> = files
        .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
        .map(|link| link.display().to_string())
        .collect();
    let count = |kinds: &[&str]| {
        links.iter().filter(|link| kinds.iter().any(|kind| link.contains(kind))).count()
    };
    [count(&["perf_event", "bpf_link", "bpf-link"]), count(&["bpf-prog"])]
}

fn memory_of(snapshot: &Snapshot, pid: u32) -> Option<ProcessMemory> {
    snapshot.alloc.processes.iter().find(|row| row.pid == pid).cloned()
}

#[test]
fn a_leak_is_told_with_who_asked_malloc_for_it() {
    let test = "malloc::a_leak_is_told_with_who_asked_malloc_for_it";
    let Some(_host) = needs::host(test, &["cc"]) else { return };
    let Some(hoard) = Hoard::start(test, &[], &[]) else { return };
    let pid = hoard.program.pid();
    hoard.agent.wait_snapshot("probes in the process", seconds(120), |_| {
        let [probes, programs] = attached(hoard.agent.pid());
        (probes >= hoard.at_rest[0] + 7 && programs == hoard.at_rest[1] + 5).then_some(())
    });
    let probe = hoard.probed("what malloc was asked for");
    hoard.assert_detached();
    assert!(probe.outcome.starts_with("probed for 1"), "{probe:?}");
    let top = &probe.stacks[0];
    assert!(top.frames[0].contains("malloc"), "{probe:?}");
    let asked = top.frames.iter().any(|frame| frame == "keep_session_parts");
    assert!(asked && top.share > 0.8, "{probe:?}");
    // At 3 MiB a second for ten seconds; what was freed is not told.
    let told_mib = probe.outstanding_bytes / MIB;
    assert!((15..=50).contains(&told_mib) && probe.lost == 0, "{told_mib} MiB: {probe:?}");
    let others = probe.stacks.iter().filter(|stack| has(&stack.frames, "give_back"));
    assert!(others.map(|stack| stack.share).sum::<f64>() < 0.1, "{probe:?}");

    let finding = hoard.agent.wait_snapshot("the stack in the finding", seconds(10), |snapshot| {
        finding_of(snapshot, pid).filter(|finding| finding.message.contains("malloc"))
    });
    assert!(finding.message.ends_with("was for touched"), "{finding:?}");
    let evidence = finding.evidence.iter().find(|of| of.name.starts_with("malloc stack "));
    let evidence = evidence.unwrap_or_else(|| panic!("{finding:?}"));
    assert!(evidence.name.contains("malloc < touched < keep_session_parts < main"), "{finding:?}");
    assert_eq!((&*evidence.source, &*evidence.unit), ("uprobe/malloc", "By"));
    let telemetry = hoard.agent.stop();
    let told: Vec<_> = telemetry.logs_named("observer.memory.malloc").collect();
    assert_eq!(told.len(), 1, "once in ten minutes");
    assert_eq!(int_of(&told[0].attrs, "process.pid"), i64::from(pid));
    assert!(int_of(&told[0].attrs, "observer.memory.malloc.samples") > 0, "{told:?}");
}

fn has(frames: &[String], name: &str) -> bool {
    frames.iter().any(|frame| frame == name)
}

fn finding_of(snapshot: &Snapshot, pid: u32) -> Option<Finding> {
    let about = |finding: &&std::sync::Arc<Finding>| {
        finding.kind == "memory.cgroup_exhaustion"
            && finding.culprit.as_ref().and_then(|party| party.pid) == Some(pid)
    };
    let finding = snapshot.detect.findings.iter().find(about)?;
    (finding.level >= Level::Warn).then(|| (**finding).clone())
}

#[test]
fn a_storm_of_calls_ends_the_probing() {
    let test = "malloc::a_storm_of_calls_ends_the_probing";
    let Some(_host) = needs::host(test, &["cc"]) else { return };
    let Some(hoard) = Hoard::start(test, &["storm"], &[]) else { return };
    let probe = hoard.probed("an early end");
    hoard.assert_detached();
    assert!(probe.outcome.contains("too many calls"), "{probe:?}");
    assert!(probe.probed_ns < 5_000_000_000, "{probe:?}");
    hoard.agent.stop();
}

#[test]
fn whoever_does_not_want_it_is_not_probed() {
    let test = "malloc::whoever_does_not_want_it_is_not_probed";
    let Some(_host) = needs::host(test, &["cc"]) else { return };
    let off = [("OBSERVER_ALLOC_MALLOC_PROBE", "false")];
    let Some(hoard) = Hoard::start(test, &[], &off) else { return };
    let pid = hoard.program.pid();
    hoard.agent.wait_snapshot("a finding", seconds(120), |snapshot| finding_of(snapshot, pid));
    let snapshot = hoard.agent.snapshot();
    assert!(snapshot.health.programs.iter().all(|row| row.name != "malloc_probe"));
    hoard.assert_detached();
    assert_eq!(hoard.probe(&snapshot), None);
    hoard.agent.stop();
}
