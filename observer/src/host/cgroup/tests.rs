//! Control groups made of files, and those of this host.

use std::{fs, path::PathBuf};

use super::*;

struct Host {
    root: tempfile::TempDir,
}

impl Host {
    /// A host with these mounts: (point, type, options).
    fn new(mounts: &[(&str, &str, &str)]) -> Self {
        let host = Host { root: tempfile::tempdir().unwrap() };
        let line = |(point, kind, options): &(&str, &str, &str)| {
            format!("1 1 0:1 / {} rw - {kind} {kind} {options}\n", host.path(point).display())
        };
        host.write("self/mountinfo", &mounts.iter().map(line).collect::<String>());
        host
    }

    fn unified() -> Self {
        Host::new(&[("cg", "cgroup2", "rw")])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn group(&self, directory: &str, files: &[(&str, &str)]) {
        for (name, text) in files {
            self.write(&format!("{directory}/{name}"), text);
        }
    }

    fn cgroups(&self) -> Cgroups {
        Cgroups::open(self.root.path()).unwrap()
    }
}

const V2_FILES: [(&str, &str); 5] = [
    ("memory.current", "104857600\n"),
    ("memory.max", "209715200\n"),
    ("memory.events", "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"),
    ("cpu.max", "50000 100000\n"),
    (
        "cpu.stat",
        "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 40\nnr_throttled 7\nthrottled_usec 2500\nnr_bursts 0\n",
    ),
];

const V2_MEMORY: Memory =
    Memory { usage_bytes: 104857600, limit_bytes: Some(209715200), limit_hits: 12, oom_kills: 2 };

#[test]
fn version_2() {
    let host = Host::unified();
    host.group("cg/system.slice/api.service", &V2_FILES);
    let mut cgroups = host.cgroups();
    cgroups.watch(["/system.slice/api.service"]);
    let [watched] = cgroups.read() else { panic!("one is watched") };
    assert_eq!(watched.memory, Some(V2_MEMORY));
    assert_eq!(
        watched.throttling,
        Some(Throttling { periods: 40, throttled_periods: 7, throttled_ns: 2_500_000 })
    );
    assert_eq!(watched.memory_path, "/system.slice/api.service");

    host.group(
        "cg/system.slice/api.service",
        &[("memory.max", "max\n"), ("memory.current", "5\n")],
    );
    let [watched] = cgroups.read() else { panic!("one is watched") };
    assert_eq!(watched.memory, Some(Memory { usage_bytes: 5, limit_bytes: None, ..V2_MEMORY }));
    assert!(!watched.removed);
}

#[test]
fn version_1_and_hybrid() {
    let host = Host::new(&[
        ("m", "cgroup", "rw,memory"),
        ("c", "cgroup", "rw,cpu,cpuacct"),
        ("u", "cgroup2", "rw"),
    ]);
    host.group(
        "m/docker/1",
        &[
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.limit_in_bytes", "8192\n"),
            ("memory.failcnt", "9\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
        ],
    );
    host.group(
        "c/docker/1",
        &[("cpu.stat", "nr_periods 3\nnr_throttled 2\nthrottled_time 1000\n")],
    );
    let mut cgroups = host.cgroups();
    cgroups.watch(["/docker/1"]);
    let [watched] = cgroups.read() else { panic!("one is watched") };
    assert_eq!(
        watched.memory,
        Some(Memory { usage_bytes: 4096, limit_bytes: Some(8192), limit_hits: 9, oom_kills: 4 })
    );
    assert_eq!(
        watched.throttling,
        Some(Throttling { periods: 3, throttled_periods: 2, throttled_ns: 1000 })
    );

    host.group("m/docker/1", &[("memory.limit_in_bytes", "9223372036854771712\n")]);
    assert_eq!(cgroups.read()[0].memory.unwrap().limit_bytes, None);
}

#[test]
fn numbers_come_from_the_nearest_that_has_them() {
    let host = Host::unified();
    host.group("cg/user.slice", &V2_FILES);
    host.group("cg/user.slice/session-1.scope", &[("cpu.stat", "usage_usec 9\n")]);
    host.group("cg", &[("cpu.stat", "usage_usec 9\n")]);
    let mut cgroups = host.cgroups();
    cgroups.watch(["/user.slice/session-1.scope", "/other.slice", "/"]);
    let [session, other, root] = cgroups.read() else { panic!("three are watched") };
    assert_eq!((session.memory, session.memory_path.as_str()), (Some(V2_MEMORY), "/user.slice"));
    assert_eq!(session.throttling.unwrap().periods, 40);
    for host_only in [other, root] {
        assert_eq!(
            (host_only.memory, host_only.throttling, host_only.removed),
            (None, None, false)
        );
    }
}

#[test]
fn watching_is_bounded_and_follows_the_wish() {
    let host = Host::unified();
    host.group("cg/a", &V2_FILES);
    let mut cgroups = host.cgroups();
    let many: Vec<String> = (0..MAX_CGROUPS + 3).map(|number| format!("/g{number}")).collect();
    cgroups.watch(["/a", "/a"]);
    assert_eq!((cgroups.watched.len(), cgroups.refused()), (1, 0));
    cgroups.watch(["/a"].into_iter().chain(many.iter().map(String::as_str)));
    assert_eq!((cgroups.watched.len(), cgroups.refused()), (MAX_CGROUPS, 4));
    assert_eq!(cgroups.read()[0].memory, Some(V2_MEMORY), "one already watched stays");
    cgroups.watch(["/g1"]);
    assert_eq!(cgroups.watched.len(), 1);
}

#[test]
fn hosts_without_control_groups() {
    let host = Host::new(&[("x", "ext4", "rw")]);
    let error = Cgroups::open(host.root.path()).unwrap_err();
    assert!(error.to_string().contains("/sys/fs/cgroup"), "{error}");
    assert!(Cgroups::open(Path::new("/nowhere")).is_err());
}

/// On this host, if it lets us make a control group: real numbers, and a removed one is told.
#[test]
fn of_this_host() {
    let Ok(mut cgroups) = Cgroups::open(Path::new("/proc")) else {
        println!("skipped: no control groups here");
        return;
    };
    let name = format!("/observer-test-{}", std::process::id());
    let Some(directory) =
        cgroups.mounts.memory.as_ref().map(|hierarchy| hierarchy.directory(&name))
    else {
        return;
    };
    if let Err(error) = fs::create_dir(&directory) {
        println!("skipped: {}: {error}", directory.display());
        return;
    }
    cgroups.watch([name.as_str()]);
    let before = (cgroups.read()[0].memory, cgroups.read()[0].removed);
    fs::remove_dir(&directory).unwrap();
    let removed = cgroups.read()[0].removed;
    if let (Some(memory), removed_before) = before {
        assert_eq!((memory.limit_bytes, memory.oom_kills, removed_before), (None, 0, false));
        assert!(removed);
    }
    cgroups.watch([name.as_str()]);
    assert_eq!(cgroups.read()[0].memory, None, "it is looked for anew");
}
