//! The allocator of a process that a finding names: probed for some seconds, told, and let go of.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use observer::{
    detect::{Finding, Level},
    identity::parse_stat,
    signal::alloc::{MallocProbe, ProcessMemory},
    snapshot::Snapshot,
};
use observer_tests::{
    agent::Agent,
    cgroup::Cgroup,
    needs,
    otlp::{Log, int_of},
    procfs,
    program::{Program, signal_pid},
    seconds,
    source::Source,
    wait_until,
};
use rustix::process::Signal;

use crate::MIB;

const LIMIT: u64 = 256 * MIB;
/// MiB a second, and at which it grows no more: when a fifth of its limit is left.
const SLOWLY: [&str; 2] = ["3", "205"];
/// It is found sooner, and grows for as long as it is probed.
const SWIFTLY: [&str; 2] = ["8", "230"];

/// A process that takes more and more of its control group's memory from malloc, and an agent that is to find it.
struct Hoard {
    agent: Agent,
    program: Program,
    _group: Cgroup,
    source: Source,
    /// Probes and programs that the agent has when it probes nobody.
    at_rest: [usize; 2],
}

impl Hoard {
    fn start(test: &str, arguments: &[&str], env: &[(&str, &str)]) -> Option<Self> {
        let source = Source::new("hoard.c", include_str!("../load/hoard.c"));
        let binary = source.compile_c("hoard");
        Self::start_program(test, source, |group| group.command(binary), arguments, env)
    }

    /// With a C library of its own, which is here.
    fn start_with_library(test: &str, arguments: &[&str]) -> Option<(Self, PathBuf)> {
        let source = Source::new("hoard.c", include_str!("../load/hoard.c"));
        let binary = source.compile_dynamic_c("hoard");
        let library = source.dir().join("libc.so.6");
        let cc = Command::new("cc").arg("-print-file-name=libc.so.6").output().unwrap();
        fs::copy(String::from_utf8(cc.stdout).unwrap().trim(), &library).unwrap();
        let place = format!("LD_LIBRARY_PATH={}", source.dir().display());
        let program = |group: &Cgroup| {
            let mut command = group.command("env");
            command.arg(place).arg(binary);
            command
        };
        Self::start_program(test, source, program, arguments, &[]).map(|hoard| (hoard, library))
    }

    fn start_program(
        test: &str,
        source: Source,
        command: impl FnOnce(&Cgroup) -> Command,
        arguments: &[&str],
        env: &[(&str, &str)],
    ) -> Option<Self> {
        let Some(group) = Cgroup::with_memory_limit("hoard", LIMIT) else {
            needs::skip(test, "no memory controller");
            return None;
        };
        let own = [("OBSERVER_SCHED_WATCH", "hoard"), ("OBSERVER_DETECT_MEMORY_FREE", "60")];
        let program = Program::start(command(&group).args(arguments));
        // It is in its group then, before anybody looks at it.
        program.wait_line(seconds(10), |line| (line == "growing").then_some(()));
        let agent = Agent::start(&[&own, env].concat());
        let at_rest = attached(agent.pid());
        Some(Self { agent, program, _group: group, source, at_rest })
    }

    /// Waits until all probes are in the process; gives the child that holds them.
    fn wait_probes(&self) -> u32 {
        self.agent.wait_snapshot("probes in the process", seconds(120), |_| {
            let [probes, programs] = attached(self.agent.pid());
            let is_probed = probes >= self.at_rest[0] + 7 && programs == self.at_rest[1] + 5;
            let holds = |pid: &u32| held(*pid)[0] >= 7;
            is_probed.then(|| children(self.agent.pid()).into_iter().find(holds)).flatten()
        })
    }

    /// What is told of the process once it is no longer probed.
    fn told(&self) -> Log {
        let pid = i64::from(self.program.pid());
        self.agent.wait_telemetry("what became of the probing", seconds(60), |telemetry| {
            let mut logs = telemetry.logs_named("observer.memory.malloc");
            logs.find(|log| int_of(&log.attrs, "process.pid") == pid).cloned()
        })
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

/// How many probes and programs a process and its children hold.
fn attached(pid: u32) -> [usize; 2] {
    let all = children(pid).into_iter().chain([pid]).map(held);
    all.fold([0, 0], |[probes, programs], of| [probes + of[0], programs + of[1]])
}

fn children(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap();
    let stats = entries.filter_map(|entry| fs::read(entry.ok()?.path().join("stat")).ok());
    let stats = stats.filter_map(|text| parse_stat(&text));
    stats.filter(|stat| stat.parent_pid == pid).map(|stat| stat.pid).collect()
}

/// Probes and programs of one process, none if it is gone. A probe is a link where the kernel has such for it (5.15), else a
/// perf event.
fn held(pid: u32) -> [usize; 2] {
    let files = fs::read_dir(format!("/proc/{pid}/fd"));
    let links: Vec<String> = files
        .into_iter()
        .flatten()
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
    let Some(hoard) = Hoard::start(test, &SLOWLY, &[]) else { return };
    let pid = hoard.program.pid();
    hoard.wait_probes();
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
    let Some(hoard) = Hoard::start(test, &[SLOWLY[0], SLOWLY[1], "storm"], &[]) else { return };
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
    let Some(hoard) = Hoard::start(test, &SLOWLY, &off) else { return };
    let pid = hoard.program.pid();
    hoard.agent.wait_snapshot("a finding", seconds(120), |snapshot| finding_of(snapshot, pid));
    let snapshot = hoard.agent.snapshot();
    assert!(snapshot.health.programs.iter().all(|row| row.name != "malloc_probe"));
    hoard.assert_detached();
    assert_eq!(hoard.probe(&snapshot), None);
    hoard.agent.stop();
}

#[test]
fn an_agent_that_ends_while_it_probes_is_in_time() {
    let test = "malloc::an_agent_that_ends_while_it_probes_is_in_time";
    let Some(_host) = needs::host(test, &["cc"]) else { return };
    let Some(hoard) = Hoard::start(test, &SWIFTLY, &[]) else { return };
    let child = hoard.wait_probes();
    let telemetry = hoard.agent.stop();
    assert!(!telemetry.points.is_empty(), "the last metrics are there");
    wait_until("nothing is attached", seconds(10), || (held(child) == [0, 0]).then_some(()));
    let program = fs::read_link(format!("/proc/{}/exe", hoard.program.pid()));
    assert!(program.is_ok(), "nothing happened to the process");
}

#[test]
fn a_process_that_executes_another_program_is_let_go_of() {
    let test = "malloc::a_process_that_executes_another_program_is_let_go_of";
    let Some(_host) = needs::host(test, &["cc"]) else { return };
    let Some(hoard) = Hoard::start(test, &SWIFTLY, &[]) else { return };
    hoard.wait_probes();
    signal_pid(hoard.program.pid(), Signal::USR1);
    let log = hoard.told();
    hoard.assert_detached();
    assert!(log.body.contains("the process executes another program now"), "{log:?}");
    let probe = hoard.probe(&hoard.agent.snapshot()).expect("its row says so as well");
    assert!(probe.stacks.is_empty() && probe.outstanding_bytes == 0, "{probe:?}");
    hoard.agent.stop();
}

#[test]
fn a_process_that_dies_is_let_go_of() {
    let test = "malloc::a_process_that_dies_is_let_go_of";
    let Some(_host) = needs::host(test, &["cc"]) else { return };
    let Some(hoard) = Hoard::start(test, &SWIFTLY, &[]) else { return };
    hoard.wait_probes();
    signal_pid(hoard.program.pid(), Signal::KILL);
    let log = hoard.told();
    hoard.assert_detached();
    assert!(log.body.contains("malloc of hoard"), "{log:?}");
    assert!(log.body.ends_with("the process has ended"), "{log:?}");
    hoard.agent.stop();
}

#[test]
fn what_a_child_keeps_is_not_its_parents() {
    let test = "malloc::what_a_child_keeps_is_not_its_parents";
    let Some(_host) = needs::host(test, &["cc"]) else { return };
    let Some(hoard) = Hoard::start(test, &SWIFTLY, &[]) else { return };
    hoard.wait_probes();
    signal_pid(hoard.program.pid(), Signal::USR2);
    let probe = hoard.probed("what malloc was asked for");
    hoard.assert_detached();
    // With breakpoints in the memory that it has from its parent.
    hoard.program.wait_line(seconds(10), |line| (line == "child ended with 0").then_some(()));
    assert!(probe.outcome.starts_with("probed for 1"), "{probe:?}");
    assert!(has(&probe.stacks[0].frames, "keep_session_parts"), "{probe:?}");
    assert!(probe.stacks.iter().all(|stack| !has(&stack.frames, "keep_in_child")), "{probe:?}");
    hoard.agent.stop();
}

#[test]
fn a_library_that_was_replaced_is_probed_all_the_same() {
    let test = "malloc::a_library_that_was_replaced_is_probed_all_the_same";
    let Some(_host) = needs::host(test, &["cc"]) else { return };
    let Some((hoard, library)) = Hoard::start_with_library(test, &SWIFTLY) else { return };
    // As a package's upgrade does it.
    let other = hoard.source.dir().join("libc.so.6.new");
    fs::copy(&library, &other).unwrap();
    fs::rename(&other, &library).unwrap();
    assert!(maps_deleted(hoard.program.pid(), &library));
    hoard.wait_probes();
    fs::remove_file(&library).unwrap();
    let probe = hoard.probed("what malloc was asked for");
    hoard.assert_detached();
    assert!(probe.outcome.starts_with("probed for 1"), "{probe:?}");
    assert!(has(&probe.stacks[0].frames, "keep_session_parts"), "{probe:?}");
    hoard.agent.stop();
}

fn maps_deleted(pid: u32, file: &Path) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.lines().any(|line| line.ends_with(&format!("{} (deleted)", file.display())))
}

/// Its programs are loaded at the start, to see whether the kernel takes them. What that needs is given back, as the agent is
/// to be small on small hosts.
#[test]
fn an_agent_that_only_might_probe_is_small() {
    const MOST_BYTES: u64 = 12 * MIB;
    let test = "malloc::an_agent_that_only_might_probe_is_small";
    let Some(_host) = needs::host(test, &[]) else { return };
    let agent = Agent::start(&[]);
    let rows = agent.snapshot().health.programs;
    assert!(rows.iter().any(|row| row.name == "malloc_probe"), "{rows:?}");
    let memory = procfs::memory(agent.pid()).expect("it runs");
    assert!(memory.anon < MOST_BYTES, "{memory:?}");
    agent.stop();
}
