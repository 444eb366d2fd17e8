//! The host of a virtual machine gives its CPU to others: the guest's programs count as running, and do not run.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    time::Duration,
};

use serde_json::json;

use super::{
    Native, Needs, Scenario,
    shop::{Rate, Shop, Visitors},
};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "cpu-steal",
    incident: "I2",
    shows: "more and more neighbours of a virtual machine compete for its host's CPU",
    culprit: "the host below (steal)",
    rate_unit: "neighbours that come a minute, up to 16",
    rate: 12.0,
    seconds: 120,
    needs: Needs {
        programs: &["node"],
        guest_mib: 512,
        disk_iops: None,
        icount: None,
        privileged: true,
        native: Native::Nested,
    },
    ci: false,
    fault: |stage| run(stage, MOST),
    twin: |stage| run(stage, 0),
};

const MOST: u32 = 16;

/// The host below reads the console (xtask/src/vm/nested.sh).
const CONSOLE: &str = "/dev/ttyS0";

/// Linux on KVM has this clock, and with it the accounting of stolen time.
const CLOCKS: &str = "/sys/devices/system/clocksource/clocksource0/available_clocksource";

fn run(stage: &mut Stage, most: u32) {
    let clocks = fs::read_to_string(CLOCKS).unwrap_or_default();
    assert!(clocks.contains("kvm-clock"), "needs a guest inside a guest: xtask vm --nested");
    let shop = Shop::open(stage, &[]);
    stage.health(shop.port, "/health");
    stage.tell("victim", json!({ "pids": [shop.pid()] }));
    let visitors = Visitors::start(shop.port, "/order?ms=10", Rate::even(5.0));
    stage.culprit(&["hypervisor (steal)"], &[]);
    stage.begin();
    let every = 60.0 / stage.rate();
    let mut before = ticks();
    for second in 0_u32.. {
        let wanted = (f64::from(second) / every) as u32 + 1;
        if wanted <= most && (f64::from(second) % every) < 1.0 {
            ask_for(wanted);
        }
        if !stage.pause(Duration::from_secs(1)) {
            break;
        }
        let now = ticks();
        let (all, stolen) = (now.0 - before.0, now.1 - before.1);
        before = now;
        let percent = 100.0 * stolen as f64 / all.max(1) as f64;
        stage.tell("stolen", json!({ "percent": percent.round(), "neighbours": wanted.min(most) }));
    }
    visitors.end(stage);
}

/// Has the host below start as many neighbours.
fn ask_for(neighbours: u32) {
    let console = OpenOptions::new().write(true).open(CONSOLE);
    let asked = console.and_then(|mut console| writeln!(console, "VM-NEIGHBOURS {neighbours}"));
    asked.expect("a guest has a console");
}

/// Time since the boot, and the stolen part of it, in ticks (proc_stat(5)).
fn ticks() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    // Of the ten, guest and guest_nice are part of user and nice.
    let ticks: Vec<u64> = fields.take(8).filter_map(|field| field.parse().ok()).collect();
    (ticks.iter().sum(), ticks.last().copied().unwrap_or(0))
}
