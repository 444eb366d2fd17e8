//! A Java service whose live objects have almost its whole heap: it collects garbage all the time and finds none.

use std::{process::Command, time::Duration};

use observer_tests::{program::Program, source::Source, wait_until};
use serde_json::json;

use super::{
    Native, Needs, Scenario,
    shop::{Rate, START_LIMIT, Shop, Visitors, answer_s},
};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "jvm-gc-thrash",
    incident: "I4",
    shows: "a cache fills the heap of a JVM, which then collects garbage all the time",
    culprit: "the JVM (java)",
    rate_unit: "percent of the heap that the cache takes",
    rate: 97.0,
    seconds: 120,
    needs: Needs {
        programs: &["node", "java"],
        guest_mib: 768,
        disk_iops: None,
        icount: super::WEAK,
        privileged: false,
        native: Native::Free,
    },
    ci: false,
    fault: |stage| run(stage, stage.rate()),
    // As much garbage, and room for it: the heap looks like a saw.
    twin: |stage| run(stage, 40.0),
};

const FILL: Duration = Duration::from_secs(30);

/// A cold JVM takes longer.
const WARM: Duration = Duration::from_millis(500);

fn run(stage: &mut Stage, cache_percent: f64) {
    let source = Source::new("Heap.java", include_str!("../load/Heap.java"));
    let port = stage.port(1).to_string();
    let mut command = Command::new("java");
    command.args(["-Xms64m", "-Xmx64m", "-XX:+UseSerialGC", "-Xlog:gc"]).arg(source.path());
    command.args([&port, &cache_percent.to_string(), &FILL.as_secs().to_string()]);
    let mut java = Program::start(&mut command);
    java.wait_line(START_LIMIT, |line| (line == "listening").then_some(()));
    let shop = Shop::open(stage, &[("BACKEND", &port)]);
    stage.culprit(&["java"], &[java.pid()]);
    wait_until("the service is warm", START_LIMIT, || {
        answer_s(shop.port, "/report", WARM).filter(|took_s| *took_s < WARM.as_secs_f64())
    });
    let visitors = Visitors::start(shop.port, "/report", Rate::even(2.0));
    stage.health(shop.port, "/report");
    stage.begin();
    java.send("fill");
    while stage.pause(Duration::from_secs(1)) {
        stage.tell("gc", collections(&java));
    }
    visitors.end(stage);
}

/// Collections so far, and what they left of the heap, as the JVM says itself.
fn collections(java: &Program) -> serde_json::Value {
    let lines = java.out.all();
    let pauses: Vec<_> = lines.iter().filter(|line| line.contains("Pause")).collect();
    let full = pauses.iter().filter(|line| line.contains("Pause Full")).count();
    let ms = |line: &&&String| line.rsplit(' ').next()?.strip_suffix("ms")?.parse::<f64>().ok();
    let pause_ms: f64 = pauses.iter().filter_map(|line| ms(&line)).sum();
    json!({ "count": pauses.len(), "full": full, "pause_ms": pause_ms.round(), "last": pauses.last() })
}
