//! One round of reading: from the processes of interest to rows and runtimes.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    time::{Duration, Instant},
};

use rustix::io::Errno;

use super::{
    Candidate, MAX_CANDIDATES, Reading, Round, file, files, host, jvm, node,
    ports::{self, Ports},
    postgres, redis,
};
use crate::{
    host::cgroup::Bounds,
    identity::Process,
    proc::Diag,
    signal::limit::{Bound, Facts, Host, Jvm, Node, Pm2Daemon, Redis, Runtime},
};

/// How the host is set is read again after this time: somebody may have changed it.
const SETTINGS_EVERY: Duration = Duration::from_secs(120);
/// Where a JVM keeps its counters, if it does, is looked for again after this many rounds: it makes them at its start,
/// and may be told not to.
const LOOKS_EVERY: u64 = 6;
/// Bytes read of an environment: the kernel's limit of one variable (MAX_ARG_STRLEN, execve(2)), since PM2 in cluster
/// mode puts all into one.
const MAX_ENVIRON: usize = 128 * 1024;

/// A process, whose pid may be another's later.
type Key = (u32, u64);

/// What stays from one round to the next.
pub(super) struct Reader {
    groups: Bounds,
    diag: Option<Diag>,
    settings: Option<(Instant, Host)>,
    /// Where the counters of JVMs are; `None` if they were not found, in the round beside it.
    counters: HashMap<Key, (Option<String>, u64)>,
    nodes: HashMap<Key, Node>,
    round: u64,
}

/// What a runtime is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Jvm,
    Node,
    Redis,
    Postgres,
}

impl Reader {
    pub(super) fn open() -> Self {
        Self {
            groups: Bounds::open(Path::new("/proc")).unwrap_or_default(),
            diag: None,
            settings: None,
            counters: HashMap::new(),
            nodes: HashMap::new(),
            round: 0,
        }
    }

    pub(super) fn read(&mut self, round: &Round) -> Reading {
        self.round += 1;
        let candidates = &round.candidates[..round.candidates.len().min(MAX_CANDIDATES)];
        let mut reading = Reading { host: self.settings(), ..Reading::default() };
        let mut groups = BTreeSet::new();
        for candidate in candidates {
            let process = &*candidate.process;
            if let Some((used, limit)) = files::of(process.pid) {
                reading.rows.push(bound(process, "files", used, limit, "kernel"));
            }
            groups.extend(task_group(process.pid));
            let refused =
                matches!(file::folder(process.pid, "root"), Err(Errno::ACCESS | Errno::PERM));
            reading.unreadable += u64::from(refused);
            self.pm2(candidate, &mut reading);
            match kind(process, candidates) {
                Some(Kind::Jvm) => self.jvm(candidate, &mut reading),
                Some(Kind::Node) => self.node(candidate, round.memory_total_bytes, &mut reading),
                Some(Kind::Redis) => of_redis(candidate, redis::find(process), &mut reading),
                Some(Kind::Postgres) => {
                    let facts = Facts::Postgres(postgres::find(process));
                    reading.runtimes.push(runtime(process, facts));
                }
                None => {}
            }
        }
        let mut tasks: Vec<_> = groups.iter().filter_map(|path| self.groups.tasks(path)).collect();
        tasks.dedup_by(|one, other| one.path == other.path);
        reading.rows.extend(tasks.into_iter().map(|tasks| Bound {
            scope: tasks.path,
            ..host::row("processes", tasks.used, Some(tasks.limit), "threads")
        }));
        reading.rows.extend(host::rows());
        reading.rows.extend(ports::read(&mut self.diag).map(port_rows).unwrap_or_default());
        let live: BTreeSet<Key> = candidates.iter().map(|one| key(&one.process)).collect();
        self.counters.retain(|key, _| live.contains(key));
        self.nodes.retain(|key, _| live.contains(key));
        reading
    }

    fn settings(&mut self) -> Host {
        let fresh = self.settings.take().filter(|(at, _)| at.elapsed() < SETTINGS_EVERY);
        let (at, host) = fresh.unwrap_or_else(|| (Instant::now(), host::settings()));
        self.settings = Some((at, host.clone()));
        host
    }

    fn jvm(&mut self, candidate: &Candidate, reading: &mut Reading) {
        let process = &*candidate.process;
        let (key, round) = (key(process), self.round);
        let Ok(root) = file::folder(process.pid, "root") else { return };
        let known =
            self.counters.get(&key).filter(|(path, at)| path.is_some() || round < at + LOOKS_EVERY);
        let path = match known {
            Some((path, _)) => path.clone(),
            None => {
                let path = jvm::find(&root, process);
                self.counters.insert(key, (path.clone(), round));
                path
            }
        };
        match path.and_then(|path| jvm::read(&root, &path, process.user_id)) {
            Some(jvm) => {
                reading.rows.extend(jvm_rows(process, &jvm));
                reading.runtimes.push(runtime(process, Facts::Jvm(jvm)));
            }
            // It keeps no counters (-XX:-UsePerfData, -XX:+PerfDisableSharedMem), or has just started.
            None => reading.rows.push(Bound {
                upper_estimate: true,
                ..bound(
                    process,
                    "jvm_heap",
                    candidate.anon_bytes,
                    jvm::option(&process.command_line, &["-Xmx"]),
                    "command_line",
                )
            }),
        }
    }

    fn node(&mut self, candidate: &Candidate, memory_total_bytes: u64, reading: &mut Reading) {
        let process = &*candidate.process;
        let groups = &self.groups;
        let node = self.nodes.entry(key(process)).or_insert_with(|| {
            let environ = file::of_proc(&format!("/proc/{}/environ", process.pid), MAX_ENVIRON);
            let limit = groups.memory_limit_bytes(&process.cgroup).unwrap_or(u64::MAX);
            node::limit(
                &process.command_line,
                &environ.unwrap_or_default(),
                limit.min(memory_total_bytes),
            )
        });
        reading.rows.push(Bound {
            upper_estimate: true,
            ..bound(
                process,
                "node_heap",
                candidate.anon_bytes,
                Some(node.heap_limit_bytes),
                &node.heap_limit_source,
            )
        });
        reading.runtimes.push(runtime(process, Facts::Node(node.clone())));
    }

    fn pm2(&self, candidate: &Candidate, reading: &mut Reading) {
        let process = &*candidate.process;
        if let Some(home) = &process.pm2_daemon_home {
            let daemon = Pm2Daemon {
                home: home.clone(),
                user_name: process.user_name.clone(),
                workers: candidate.children,
            };
            reading.runtimes.push(runtime(process, Facts::Pm2(daemon)));
        }
        let limit = process.pm2.as_ref().and_then(|pm2| pm2.max_memory_restart_bytes);
        if limit.is_some() {
            reading.rows.push(bound(
                process,
                "pm2_memory",
                candidate.rss_bytes,
                limit,
                "environment",
            ));
        }
    }
}

fn key(process: &Process) -> Key {
    (process.pid, process.start_unix_ns)
}

/// The control group that counts the tasks of a process now: that of the v1 controller, else v2's.
fn task_group(pid: u32) -> Option<String> {
    let text = file::of_proc(&format!("/proc/{pid}/cgroup"), 16 * 1024).ok()?;
    parse_task_group(&String::from_utf8_lossy(&text))
}

fn parse_task_group(text: &str) -> Option<String> {
    let lines = || text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let of_v1 = lines().find(|(names, _)| names.split(',').any(|name| name == "pids"));
    let (_, path) = of_v1.or_else(|| lines().find(|(names, _)| names.is_empty()))?;
    Some(path.to_owned())
}

/// By the executable, since a process may give itself another name; by the name, where the executable is a common one of
/// several programs, or cannot be seen. Of a PostgreSQL server the first process counts, which no other one started.
fn kind(process: &Process, all: &[Candidate]) -> Option<Kind> {
    let executable = process.executable.rsplit('/').next().unwrap_or_default();
    let is = |names: &[&str]| names.contains(&executable) || names.contains(&process.name.as_str());
    if is(&["java", "jsvc"]) {
        Some(Kind::Jvm)
    } else if is(&["node", "nodejs"]) {
        Some(Kind::Node)
    } else if is(&["redis-server", "valkey-server", "keydb-server"]) {
        Some(Kind::Redis)
    } else if is(&["postgres", "postmaster"]) {
        let parent = all.iter().find(|other| other.process.pid == process.parent_pid);
        let is_child = parent.is_some_and(|parent| parent.process.executable == process.executable);
        let titled = process.command_line.starts_with("postgres: ");
        (!is_child && !titled).then_some(Kind::Postgres)
    } else {
        None
    }
}

fn runtime(process: &Process, facts: Facts) -> Runtime {
    Runtime { pid: process.pid, name: process.name.clone(), facts }
}

fn bound(process: &Process, resource: &str, used: u64, limit: Option<u64>, source: &str) -> Bound {
    let unit = if resource == "files" { "files" } else { "bytes" };
    Bound {
        resource: resource.to_owned(),
        pid: process.pid,
        name: process.name.clone(),
        scope: "process".to_owned(),
        used,
        limit,
        unit: unit.to_owned(),
        source: source.to_owned(),
        upper_estimate: false,
    }
}

fn jvm_rows(process: &Process, jvm: &Jvm) -> Vec<Bound> {
    let row = |resource, used, limit: Option<u64>, source| {
        bound(process, resource, used, limit.filter(|limit| *limit > 0), source)
    };
    let (metaspace, source) = match (jvm.permgen, jvm.metaspace_max_bytes) {
        (true, _) => ("jvm_permgen", "counters"),
        (false, Some(_)) => ("jvm_metaspace", "command_line"),
        (false, None) => ("jvm_metaspace", "default"),
    };
    let mut rows = vec![
        row("jvm_heap", jvm.heap_used_bytes, Some(jvm.heap_max_bytes), "counters"),
        row("jvm_old", jvm.old_used_bytes, Some(jvm.old_max_bytes), "counters"),
        row(metaspace, jvm.metaspace_used_bytes, jvm.metaspace_max_bytes, source),
    ];
    if jvm.class_space_max_bytes > 0 {
        rows.push(row(
            "jvm_class_space",
            jvm.class_space_used_bytes,
            Some(jvm.class_space_max_bytes),
            "counters",
        ));
    }
    rows
}

fn of_redis(candidate: &Candidate, redis: Redis, reading: &mut Reading) {
    let process = &*candidate.process;
    let source = match (redis.maxmemory_known, redis.config_file.is_empty()) {
        (false, _) => "unknown",
        (true, true) => "command_line",
        (true, false) => "config_file",
    };
    reading.rows.push(bound(
        process,
        "redis_memory",
        candidate.rss_bytes,
        redis.maxmemory_bytes,
        source,
    ));
    reading.runtimes.push(runtime(process, Facts::Redis(redis)));
}

/// Destinations; where they are not counted, all sockets of the host, which no destination has more than.
fn port_rows(ports: Ports) -> Vec<Bound> {
    let row = |used, scope| Bound { scope, ..host::row("ports", used, Some(ports.range), "ports") };
    if ports.destinations.is_empty() {
        let all = row(ports.sockets, "host".to_owned());
        return vec![Bound { upper_estimate: true, ..all }];
    }
    ports.destinations.into_iter().map(|(to, used)| row(used, to)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn candidate(process: Process) -> Candidate {
        Candidate {
            process: Arc::new(process),
            rss_bytes: 30 << 20,
            anon_bytes: 20 << 20,
            children: 3,
        }
    }

    #[test]
    fn this_process_has_files_and_the_host_its_rows() {
        let process = Process { pid: std::process::id(), name: "me".into(), ..Process::default() };
        let round = Round { candidates: vec![candidate(process)], memory_total_bytes: 4 << 30 };
        let reading = Reader::open().read(&round);
        let files = reading.rows.iter().find(|row| row.resource == "files").unwrap();
        assert_eq!(
            (files.pid, files.name.as_str(), files.unit.as_str()),
            (std::process::id(), "me", "files")
        );
        assert!(files.share().unwrap() > 0.0);
        for resource in ["host_files", "processes"] {
            assert!(
                reading.rows.iter().any(|row| row.resource == resource && row.scope == "host"),
                "{resource}"
            );
        }
        assert!(reading.rows.iter().any(|row| row.resource == "ports"));
        assert!(reading.runtimes.is_empty());
    }

    #[test]
    fn a_process_that_is_gone_leaves_no_trace() {
        for name in ["java", "redis-server", "postgres", "node"] {
            let process = Process { pid: u32::MAX, name: name.into(), ..Process::default() };
            let round = Round { candidates: vec![candidate(process)], memory_total_bytes: 4 << 30 };
            let mut reader = Reader::open();
            let reading = reader.read(&round);
            assert!(
                reading
                    .rows
                    .iter()
                    .all(|row| row.pid == 0 || row.upper_estimate || row.limit.is_none()),
                "{reading:?}"
            );
            reader.read(&Round::default());
            assert!(reader.counters.is_empty() && reader.nodes.is_empty());
        }
    }

    #[test]
    fn runtimes_by_executable_and_name() {
        let process = |pid, name: &str, executable: &str, parent_pid, command_line: &str| Process {
            pid,
            name: name.into(),
            executable: executable.into(),
            parent_pid,
            command_line: command_line.into(),
            ..Process::default()
        };
        let all = [candidate(process(1, "postgres", "/usr/bin/postgres", 0, "postgres -D /d"))];
        let check =
            |process: Process, expected| assert_eq!(kind(&process, &all), expected, "{process:?}");
        check(process(2, "node /srv/app/i", "/usr/bin/node", 0, ""), Some(Kind::Node));
        check(process(2, "redis-server", "/usr/bin/redis-check-rdb", 0, ""), Some(Kind::Redis));
        check(process(2, "java", "", 0, ""), Some(Kind::Jvm));
        check(process(1, "postgres", "/usr/bin/postgres", 0, ""), Some(Kind::Postgres));
        check(process(2, "postgres", "/usr/bin/postgres", 1, ""), None);
        check(process(2, "postgres", "/usr/bin/postgres", 9, "postgres: walwriter"), None);
        check(process(2, "bash", "/bin/bash", 0, ""), None);
    }

    #[test]
    fn groups_of_tasks() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(parse_task_group(text).as_deref(), expected, "{text}");
        };
        check("0::/a.slice/b:c\n", Some("/a.slice/b:c"));
        check("9:memory:/m\n8:pids:/p\n0::/u\n", Some("/p"));
        check("9:cpu,pids:/p\n", Some("/p"));
        check("9:memory:/m\n", None);
        check("", None);
    }

    #[test]
    fn pm2_tells_its_daemons_and_limits() {
        let daemon =
            Process { pid: u32::MAX, pm2_daemon_home: Some("/h".into()), ..Process::default() };
        let pm2 =
            crate::identity::Pm2 { max_memory_restart_bytes: Some(64 << 20), ..Default::default() };
        let worker = Process { pid: u32::MAX - 1, pm2: Some(pm2), ..Process::default() };
        let round =
            Round { candidates: vec![candidate(daemon), candidate(worker)], memory_total_bytes: 1 };
        let reading = Reader::open().read(&round);
        let [Runtime { facts: Facts::Pm2(daemon), .. }] = reading.runtimes.as_slice() else {
            panic!("{reading:?}")
        };
        assert_eq!((daemon.home.as_str(), daemon.workers), ("/h", 3));
        let row = reading.rows.iter().find(|row| row.resource == "pm2_memory").unwrap();
        assert_eq!((row.used, row.limit), (30 << 20, Some(64 << 20)));
    }
}
