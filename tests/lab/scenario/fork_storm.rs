//! Processes that end as soon as they have begun: loops that try again at once, more and more of them.

use std::{process::Command, time::Duration};

use observer_tests::source::Source;
use serde_json::json;

use super::{
    Native, Needs, Scenario,
    jobs::Jobs,
    shop::{Rate, Shop, Visitors, stay_on_one_cpu},
};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "fork-storm",
    incident: "I2",
    shows: "scripts that try again without a pause start thousands of processes",
    culprit: "the scripts (retry.sh)",
    rate_unit: "scripts that begin a second, up to 64",
    rate: 0.5,
    seconds: 90,
    needs: Needs {
        programs: &["node", "cc"],
        guest_mib: 512,
        disk_iops: None,
        icount: super::WEAK,
        privileged: false,
        native: Native::Free,
    },
    ci: false,
    fault: |stage| run(stage, "retry.sh", RETRY, MOST),
    twin: |stage| run(stage, "build.sh", BUILD, BUILDERS),
};

const MOST: u32 = 64;
const BUILDERS: u32 = 2;

/// A check that fails, and a script that does not wait before it checks again.
const RETRY: &str = "#!/bin/sh\nuntil /bin/false; do :; done\n";

/// What a build does: some processes at a time, of which each has work.
const BUILD: &str = r#"#!/bin/sh
cd "$(mktemp -d "$(dirname "$0")/XXXXXX")" || exit
i=0
while [ $i -lt 300 ]; do echo "int f$i(int a) { return a % ($i + 2) ? a * $i : a - $i; }"; i=$((i + 1)); done >file.c
while cc -O1 -c file.c; do :; done
"#;

fn run(stage: &mut Stage, name: &'static str, text: &str, most: u32) {
    stay_on_one_cpu();
    let script = Source::new(name, text);
    let shop = Shop::open(stage, &[]);
    stage.health(shop.port, "/health");
    stage.tell("victim", json!({ "pids": [shop.pid()] }));
    let visitors = Visitors::start(shop.port, "/order?ms=10", Rate::even(5.0));
    stage.begin();
    let mut jobs = Jobs::default();
    let every = Duration::from_secs_f64(1.0 / stage.rate());
    let forks = forks();
    for _ in 0..most {
        jobs.start(Command::new("sh").arg(script.path()));
        stage.culprit(&["retry.sh"], &jobs.pids());
        if !stage.pause(every) {
            break;
        }
    }
    stage.wait();
    drop(jobs);
    stage.tell("forks", json!({ "count": self::forks() - forks }));
    visitors.end(stage);
}

/// Processes and threads that were made since the boot (proc_stat(5)).
fn forks() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let count = stat.lines().find_map(|line| line.strip_prefix("processes "));
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}
