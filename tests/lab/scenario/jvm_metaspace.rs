//! A JVM whose space for classes fills up: all else of the host, and its own heap, is healthy until it dies.

use std::{process::Command, time::Duration};

use observer_tests::{program::Program, source::Source};
use serde_json::json;

use super::{Native, Needs, Scenario};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "jvm-metaspace",
    incident: "I4",
    shows: "a JVM keeps its class loaders until Metaspace is full, and ends at once",
    culprit: "the JVM (java)",
    rate_unit: "class loaders a second",
    rate: 20.0,
    seconds: 180,
    needs: Needs {
        programs: &["java"],
        guest_mib: 768,
        disk_iops: None,
        icount: super::SMALL,
        privileged: false,
        native: Native::MemoryMib(768),
    },
    ci: false,
    fault: |stage| run(stage, "1"),
    twin: |stage| run(stage, "0"),
};

/// Of the space for classes, and of the heap: both are far below the memory of the host.
const LIMITS: [&str; 3] = ["-XX:MaxMetaspaceSize=64m", "-Xmx96m", "-XX:+UseSerialGC"];

/// Methods of the class that is loaded; it then takes some 80 KiB.
const METHODS: u32 = 300;

fn method(number: u32) -> String {
    format!("int method{number}(int x) {{ return x * {number} + \"m{number}\".length(); }}\n")
}

fn run(stage: &mut Stage, keep: &str) {
    let methods: String = (0..METHODS).map(method).collect();
    let program = include_str!("../load/ClassLeak.java").replace("// METHODS", &methods);
    let source = Source::new("ClassLeak.java", &program);
    let mut java = Command::new("java");
    java.args(LIMITS).arg("-XX:+ExitOnOutOfMemoryError").arg(source.path());
    java.env("PORT", stage.port(0).to_string());
    java.env("RATE", stage.rate().to_string()).env("KEEP", keep);
    let mut jvm = Program::start(&mut java);
    jvm.wait_line(Duration::from_secs(200), |line| (line == "listening").then_some(()));
    stage.culprit(&["java"], &[jvm.pid()]);
    stage.health(stage.port(0), "/health");
    stage.begin();
    jvm.send("go");
    while stage.pause(Duration::from_millis(200)) {
        if let Some(status) = jvm.wait(Duration::ZERO) {
            let out = [jvm.out.all(), jvm.err.all()].concat();
            let last = out.iter().find(|line| line.contains("OutOfMemoryError"));
            stage.tell("died", json!({ "status": status.code(), "said": last }));
            stage.pause(Duration::from_secs(5));
            return;
        }
    }
}
