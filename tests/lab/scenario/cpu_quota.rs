//! A control group with too little CPU time: the host idles, and the server inside waits.

use std::time::Duration;

use observer_tests::cgroup::Cgroup;
use serde_json::{Map, Value, json};

use super::{
    Native, Needs, Scenario,
    shop::{Rate, Shop, Visitors},
};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "cpu-quota",
    incident: "I2",
    shows: "a server's visitors become more than its control group has CPU time for",
    culprit: "the server's own quota (node, its control group)",
    rate_unit: "percent of a CPU that the control group may use",
    rate: 10.0,
    seconds: 90,
    needs: Needs {
        programs: &["node"],
        guest_mib: 512,
        disk_iops: None,
        icount: super::WEAK,
        privileged: false,
        native: Native::Free,
    },
    ci: false,
    fault: |stage| run(stage, stage.rate() as u32, None),
    twin: |stage| run(stage, TWIN_PERCENT, Some("/order?ms=150")),
};

/// Nothing is short before the fault.
const WARM_PERCENT: u32 = 400;

/// Enough for all visitors; not for the twin's large orders, so that it is throttled now and then.
const TWIN_PERCENT: u32 = 70;
const LARGE_A_SECOND: f64 = 0.2;

/// Each visitor takes 10 ms of CPU time and what the server needs around it.
const VISITOR: &str = "/order?ms=10";
const GROWTH: Rate = Rate { from: 0.0, to: 20.0, within: Duration::from_secs(40) };

fn run(stage: &mut Stage, percent: u32, large: Option<&'static str>) {
    let group = Cgroup::with_cpu_quota("shop", WARM_PERCENT).expect("the CPU controller is there");
    let shop = Shop::open(stage, &[]);
    group.add(shop.pid());
    stage.culprit(&["node", &group.path], &[shop.pid()]);
    stage.health(shop.port, "/health");
    let first = Visitors::start(shop.port, VISITOR, Rate::even(1.0));
    let large = large.map(|path| Visitors::start(shop.port, path, Rate::even(LARGE_A_SECOND)));
    stage.begin();
    group.set_cpu_quota(Some(percent));
    let more = Visitors::start(shop.port, VISITOR, GROWTH);
    while stage.pause(Duration::from_secs(1)) {
        stage.tell("throttled", periods(&group));
    }
    for visitors in [Some(more), large, Some(first)].into_iter().flatten() {
        visitors.end(stage);
    }
    // What is throttled cannot end either.
    group.set_cpu_quota(None);
}

/// What the group's counters of throttling say.
fn periods(group: &Cgroup) -> Value {
    let text = group.read("cpu.stat");
    let fields = text.lines().filter_map(|line| line.split_once(' '));
    let wanted = fields.filter(|(name, _)| name.contains("throttled") || *name == "nr_periods");
    json!(
        wanted
            .map(|(name, value)| (name.to_owned(), json!(value.parse::<u64>().ok())))
            .collect::<Map<_, _>>()
    )
}
