//! The cache over a `/proc` made of files.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::*;

/// Boot time of the made host.
const BOOT: u64 = 1_700_000_000_000_000_000;
/// A clock tick.
const TICK: u64 = 10_000_000;

struct Host {
    root: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Host { root: tempfile::tempdir().unwrap() };
        fs::write(
            host.path("passwd"),
            "root:x:0:0::/root:/bin/sh\ndeploy:x:1000:1000::/home/deploy:/bin/sh\n",
        )
        .unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn process(&self, pid: u32, name: &str, start_ticks: u64, files: &[(&str, &str)]) {
        let directory = self.path(&pid.to_string());
        fs::create_dir_all(&directory).unwrap();
        let stat = format!(
            "{pid} ({name}) S 1 {pid} {pid} 0 -1 4194304 1 0 0 0 9 3 0 0 20 0 11 0 {start_ticks} 1 1"
        );
        fs::write(directory.join("stat"), stat).unwrap();
        for (file, content) in files {
            if *file == "exe" {
                if directory.join(file).is_symlink() {
                    fs::remove_file(directory.join(file)).unwrap();
                }
                symlink(content, directory.join(file)).unwrap();
            } else {
                fs::write(directory.join(file), content).unwrap();
            }
        }
    }

    fn end(&self, pid: u32) {
        fs::remove_dir_all(self.path(&pid.to_string())).unwrap();
    }

    fn identities(&self) -> Identities {
        Identities::new(self.root.path(), &self.path("passwd"), BOOT)
    }
}

const STATUS: &str = "Name:\tnode\nUid:\t1000\t1000\t1000\t1000\n";

#[test]
fn everything_is_read() {
    let host = Host::new();
    host.process(
        42,
        "node",
        1234,
        &[
            ("exe", "/usr/bin/node (deleted)"),
            ("cmdline", "node /srv/api/app.js\0\0\0"),
            ("status", STATUS),
            ("cgroup", "0::/system.slice/pm2-deploy.service\n"),
            ("environ", "PM2_HOME=/home/deploy/.pm2\0name=api\0pm_id=2\0"),
        ],
    );
    let expected = Process {
        pid: 42,
        start_unix_ns: BOOT + 1234 * TICK,
        parent_pid: 1,
        name: "node".to_owned(),
        executable: "/usr/bin/node".to_owned(),
        command_line: "node /srv/api/app.js".to_owned(),
        user_id: 1000,
        user_name: "deploy".to_owned(),
        cgroup: "/system.slice/pm2-deploy.service".to_owned(),
        unit: "pm2-deploy.service".to_owned(),
        pm2: Some(crate::identity::Pm2 {
            app: "api".to_owned(),
            worker: 2,
            home: "/home/deploy/.pm2".to_owned(),
            ..Default::default()
        }),
        service_name: "api".to_owned(),
        ..Process::default()
    };
    assert_eq!(*host.identities().get(42, None).unwrap(), expected);
}

#[test]
fn service_name_in_order() {
    #[track_caller]
    fn check(files: &[(&str, &str)], expected: &str) {
        let host = Host::new();
        host.process(5, "comm", 1, files);
        assert_eq!(host.identities().get(5, None).unwrap().service_name, expected, "{files:?}");
    }
    let unit = ("cgroup", "0::/system.slice/shop-api.service\n");
    let exe = ("exe", "/usr/bin/node");
    let app = "name=app\0pm_id=0\0";
    check(&[("environ", &format!("{app}OTEL_SERVICE_NAME=named\0")), unit, exe], "named");
    check(&[("environ", app), unit, exe], "app");
    check(&[("environ", "pm_id=0\0"), unit, exe], "shop-api");
    check(&[unit, exe], "shop-api");
    check(&[("cgroup", "0::/user.slice/user-0.slice/session-1.scope\n"), exe], "node");
    check(&[("cgroup", "0::/user.slice/user-0.slice/user@0.service/init.scope\n"), exe], "node");
    let container = format!("0::/system.slice/containerd.service/{}\n", "ab".repeat(32));
    check(&[("cgroup", &container), exe], "node");
    check(&[], "comm");
}

#[test]
fn pm2_daemons() {
    #[track_caller]
    fn check(name: &str, command_line: &str, environ: &str, expected: Option<&str>) {
        let host = Host::new();
        host.process(5, name, 1, &[("cmdline", command_line), ("environ", environ)]);
        let process = host.identities().get(5, None).unwrap();
        assert_eq!(process.pm2_daemon_home.as_deref(), expected, "{command_line}");
        assert!(process.pm2.is_none() || expected.is_none());
    }
    let title = "PM2 v6.0.14: God Daemon (/home/x/.pm2)\0\0";
    check("PM2 v6.0.14: Go", title, "PM2_HOME=/home/x/.pm2\0", Some("/home/x/.pm2"));
    check("PM2 v5.3.0: God", title, "", Some("/home/x/.pm2"));
    check(
        "PM2 v6.0.14: Go",
        "PM2 v6.0.14: God Daemon (/home/a-very-long\0",
        "HOME=/root\0",
        Some("/root/.pm2"),
    );
    check("PM2 v6.0.14: Go", title, "pm_id=3\0name=deployer\0", Some("/home/x/.pm2"));
    check("node", "node\0/usr/local/bin/pm2-runtime\0app.js\0", "HOME=/root\0", Some("/root/.pm2"));
    check("node", "node\0/srv/app.js\0", "PM2_HOME=/home/x/.pm2\0pm_id=3\0", None);
    check("PM2 v6", "PM2 v6\0", "", None);
}

#[test]
fn a_reused_pid_is_another_process() {
    let host = Host::new();
    let mut identities = host.identities();
    host.process(7, "old", 100, &[]);
    let old = identities.get(7, Some(100 * TICK + 9_999_999)).unwrap();
    assert_eq!(old.name, "old");
    host.process(7, "new", 200, &[]);
    assert!(
        Arc::ptr_eq(&old, &identities.get(7, Some(100 * TICK)).unwrap()),
        "still known by its start"
    );
    assert_eq!(identities.get(7, Some(200 * TICK)).unwrap().name, "new");
    assert_eq!(identities.get(7, Some(150 * TICK)), None, "neither of them");
    assert_eq!(identities.get(7, None).unwrap().name, "new");
    assert_eq!(identities.len(), 2);
}

#[test]
fn without_a_start_the_pid_of_a_dead_process_is_looked_up_again() {
    let host = Host::new();
    let mut identities = host.identities();
    host.process(7, "old", 100, &[]);
    identities.get(7, None).unwrap();
    host.process(7, "new", 200, &[]);
    identities.forget_dead([]);
    identities.forget_dead([]);
    assert_eq!(identities.get(7, None).unwrap().name, "new");
    host.end(7);
    identities.forget_dead([]);
    identities.forget_dead([]);
    assert_eq!(identities.get(7, None).unwrap().name, "new", "the last that was known");
}

#[test]
fn dead_processes_go_after_a_while() {
    let host = Host::new();
    let mut identities = host.identities();
    host.process(1, "lives", 100, &[]);
    host.process(2, "dies", 100, &[]);
    identities.get(1, None).unwrap();
    identities.get(2, None).unwrap();
    host.end(2);
    for _ in 0..ROUNDS_AFTER_DEATH {
        identities.forget_dead([(1, 100 * TICK, b"lives".as_slice())]);
        assert_eq!(identities.get(2, Some(100 * TICK)).unwrap().name, "dies");
    }
    identities.forget_dead([(1, 100 * TICK, b"lives".as_slice())]);
    assert_eq!(identities.get(2, Some(100 * TICK)), None);
    assert_eq!((identities.len(), identities.evicted()), (1, 0));
}

#[test]
fn a_process_is_read_again_when_its_name_changes_and_once_settled() {
    let host = Host::new();
    let mut identities = host.identities();
    let tick = |identities: &mut Identities, name: &[u8]| {
        identities.forget_dead([(3, 100 * TICK, name)]);
    };
    let start = Some(100 * TICK);
    host.process(3, "sh", 100, &[("exe", "/bin/sh")]);
    let first = identities.get(3, start).unwrap();
    // It runs exec.
    host.process(3, "node", 100, &[("exe", "/bin/node")]);
    tick(&mut identities, b"sh");
    assert!(Arc::ptr_eq(&first, &identities.get(3, start).unwrap()));
    tick(&mut identities, b"node");
    assert_eq!(identities.get(3, start).unwrap().name, "node");
    // What is not UTF-8 is no change.
    fs::write(host.path("3/stat"), b"3 (\xff) S 1 3 3 0 -1 0 1 0 0 0 9 3 0 0 20 0 11 0 100 1 1")
        .unwrap();
    tick(&mut identities, b"\xff");
    let odd = identities.get(3, start).unwrap();
    assert_eq!(odd.name, "\u{fffd}");
    tick(&mut identities, b"\xff");
    assert!(Arc::ptr_eq(&odd, &identities.get(3, start).unwrap()));

    host.process(4, "node", 100, &[("exe", "/bin/node")]);
    identities.get(4, start).unwrap();
    host.process(4, "node", 100, &[("exe", "/bin/node"), ("cmdline", "node /srv/api.js")]);
    for _ in 0..ROUNDS_TO_SETTLE {
        assert_eq!(identities.get(4, start).unwrap().command_line, "");
        identities.forget_dead([(4, 100 * TICK, b"node".as_slice())]);
    }
    assert_eq!(identities.get(4, start).unwrap().command_line, "node /srv/api.js");
}

#[test]
fn a_zombie_keeps_what_was_known() {
    let host = Host::new();
    let mut identities = host.identities();
    host.process(3, "node", 100, &[("exe", "/bin/node")]);
    let known = identities.get(3, None).unwrap();
    fs::remove_file(host.path("3/exe")).unwrap();
    identities.forget_dead([(3, 100 * TICK, b"other".as_slice())]);
    assert_eq!(identities.get(3, None).unwrap(), known);
    host.end(3);
    identities.forget_dead([(3, 100 * TICK, b"other".as_slice())]);
    assert_eq!(identities.get(3, None).unwrap(), known);
}

#[test]
fn a_process_that_was_never_read_has_the_name_of_its_record() {
    let host = Host::new();
    let mut identities = host.identities();
    let gone = identities.get_or_name(9, Some(300 * TICK), "cron");
    assert_eq!((gone.name.as_str(), gone.start_unix_ns), ("cron", BOOT + 300 * TICK));
    assert!(Arc::ptr_eq(&gone, &identities.get_or_name(9, Some(300 * TICK), "other")));
    assert_eq!(identities.get_or_name(8, None, "x").start_unix_ns, 0);
    assert_eq!(identities.len(), 1, "without a start it is not an identity");
    assert_eq!(identities.start_unix_ns(300 * TICK + 5), gone.start_unix_ns);
}

#[test]
fn a_full_cache_forgets_the_least_recently_used() {
    let host = Host::new();
    let mut identities = host.identities();
    identities.capacity = 32;
    for pid in 0..32 {
        identities.get_or_name(pid, Some(0), "p");
    }
    identities.get_or_name(0, Some(0), "p");
    identities.get_or_name(99, Some(0), "p");
    assert!(identities.len() <= 32);
    assert!(identities.evicted() > 0);
    assert_eq!(identities.len() as u64 + identities.evicted(), 33);
    for (pid, known) in [(0, true), (1, false), (31, true), (99, true)] {
        assert_eq!(identities.get(pid, Some(0)).is_some(), known, "{pid}");
    }
    identities.retain(|process| process.pid != 99);
    assert_eq!(identities.get(99, Some(0)), None);
}

#[test]
fn this_very_process() {
    let mut identities = Identities::new(Path::new("/proc"), Path::new("/etc/passwd"), BOOT);
    let process = identities.get(std::process::id(), None).unwrap();
    assert_eq!(process.executable, std::env::current_exe().unwrap().to_str().unwrap());
    assert_eq!(process.user_id, rustix::process::geteuid().as_raw());
    assert!(process.start_unix_ns > BOOT && process.start_unix_ns < BOOT * 2);
    assert_eq!(identities.get(u32::MAX, None), None);
}
