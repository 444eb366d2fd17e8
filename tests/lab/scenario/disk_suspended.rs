//! A disk that stops answering for a while: who waits for it cannot even be killed, and all others are well.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::{Value, json};

use super::{
    Native, Needs, Scenario,
    disk::{self, Disk},
    jobs::Jobs,
    shop::{Rate, Shop, Visitors, answer_s},
};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "disk-suspended",
    incident: "I2",
    shows: "a disk answers nothing for 25 s: requests that save a file hang, the others do not",
    culprit: "the disk (device-mapper), not the server that waits for it",
    rate_unit: "files saved a second",
    rate: 5.0,
    seconds: 60,
    needs: Needs {
        programs: disk::PROGRAMS,
        guest_mib: 768,
        disk_iops: None,
        icount: None,
        privileged: true,
        native: Native::Never,
    },
    ci: false,
    fault: |stage| run(stage, suspend),
    twin: |stage| run(stage, write_much),
};

const DISK_MIB: u64 = 512;
const SUSPENDED: Duration = Duration::from_secs(25);
const LOOK: Duration = Duration::from_secs(1);

fn run(stage: &mut Stage, act: fn(&mut Stage, &Disk, u16)) {
    let disk = Disk::make(DISK_MIB);
    let folder = disk.mounted().to_string_lossy().into_owned();
    let shop = Shop::open(stage, &[("FOLDER", &folder)]);
    stage.health(shop.port, "/save");
    stage.tell("victim", json!({ "pids": [shop.pid()] }));
    let rate = Rate::even(stage.rate());
    let visitors = Visitors::start(shop.port, "/save", rate);
    stage.culprit(&["disk dm-0"], &[]);
    stage.begin();
    act(stage, &disk, shop.port);
    visitors.end(stage);
}

fn suspend(stage: &mut Stage, disk: &Disk, port: u16) {
    disk.suspend();
    look(stage, port, SUSPENDED);
    disk.resume();
    stage.tell("resumed", json!({}));
    look(stage, port, Duration::from_secs(600));
}

/// The healthy twin: the disk has as much to do as it can, and does it.
fn write_much(stage: &mut Stage, disk: &Disk, port: u16) {
    let mut jobs = Jobs::default();
    let script = "while :; do dd if=/dev/zero of=\"$0\" bs=256k count=400 oflag=dsync; done";
    jobs.start(Command::new("sh").args(["-c", script]).arg(disk.mounted().join("much")));
    look(stage, port, Duration::from_secs(600));
}

/// Once a second: how the other requests do, and who waits for the disk.
fn look(stage: &mut Stage, port: u16, time: Duration) {
    for _ in 0..time.as_secs() {
        if !stage.pause(LOOK) {
            return;
        }
        let other_s = answer_s(port, "/health", Duration::from_secs(5));
        stage.tell("others", json!({ "health_s": other_s, "uninterruptible": uninterruptible() }));
    }
}

/// Names of the threads in state D (proc_pid_stat(5)).
fn uninterruptible() -> Value {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let tasks = entries(Path::new("/proc")).flat_map(|entry| {
        entries(&entry.path().join("task")).map(|task| task.path()).collect::<Vec<_>>()
    });
    let waiting = tasks.filter_map(|task| {
        let stat = fs::read_to_string(task.join("stat")).ok()?;
        let (head, rest) = stat.rsplit_once(") ")?;
        rest.starts_with('D').then(|| json!(head.split_once(" (").map(|(_, name)| name)))
    });
    waiting.collect()
}
