//! What somebody at a terminal would go through.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use observer_tests::monotonic_ns;
use serde_json::json;

use super::Ticks;
use crate::timeline::{Fixed, rounded};

/// The kernel may kill the shell like that of any user, and it waits for memory where the scenario does.
const SCRIPT: &str = r#"echo 0 >/proc/self/oom_score_adj
test -z "$1" || echo $$ >"$1/cgroup.procs"
ls / && date"#;

/// Runs a shell every second; while one takes longer, none starts.
pub(super) fn run(out: &mut Fixed, cgroup: Option<&Path>) {
    let mut ticks = Ticks::every_ms(1000);
    let mut command = Command::new("/bin/sh");
    command.args(["-c", SCRIPT, "sh"]).arg(cgroup.unwrap_or(Path::new("")));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    loop {
        ticks.wait();
        let started_ns = monotonic_ns();
        out.event("shell_start", json!({}));
        let ended = command.status();
        let latency_ns = monotonic_ns() - started_ns;
        out.event(
            "shell",
            json!({
                "started_s": rounded(started_ns as f64 / 1e9),
                "latency_s": rounded(latency_ns as f64 / 1e9),
                "status": ended.ok().and_then(|status| status.code()),
            }),
        );
    }
}
