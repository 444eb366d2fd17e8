//! `bench agent`: what an agent takes while the host is idle.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    bpf,
    servers::remove,
    subject::{Subject, state_folder},
    table::markdown,
};
use crate::{
    command::{command, output},
    run::BINARY,
};

/// Time for what an agent does once, at its start.
const SETTLE: Duration = Duration::from_secs(5);

/// Measures one after the other, and prints the table.
pub(super) fn agent(seconds: u64, subjects: &[Subject]) -> Result<()> {
    let rows = subjects.iter().map(|subject| row(*subject, seconds)).collect::<Result<Vec<_>>>()?;
    remove(&state_folder());
    let heading = ["agent", "CPU of a core", "resident", "peak", "BPF maps", "programs"];
    print!("\n{}", markdown(&heading, &rows));
    Ok(())
}

fn row(subject: Subject, seconds: u64) -> Result<Vec<String>> {
    println!("{}: {seconds} s", subject.name());
    let running = subject.start()?.context("there is nothing to look at")?;
    let pid = running.pid();
    thread::sleep(SETTLE);
    let (start, before) = (Instant::now(), cpu(pid)?);
    thread::sleep(Duration::from_secs(seconds));
    let used = (cpu(pid)? - before).as_secs_f64() / start.elapsed().as_secs_f64();
    if subject == Subject::Observer {
        print_health();
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(vec![
        subject.name().to_owned(),
        format!("{:.3} %", used * 100.0),
        mebibytes(size(&status, "VmRSS")),
        mebibytes(size(&status, "VmHWM")),
        mebibytes(bpf::map_bytes(pid)),
        bpf::held_by(pid).len().to_string(),
    ])
}

/// Time on a CPU of all threads. `/proc/PID/stat` would not do: it is sampled by the timer tick, with which an agent that
/// wakes by a timer is in step.
fn cpu(pid: u32) -> Result<Duration> {
    let mut nanos = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/task")).context("the agent has ended")? {
        let path = entry?.path().join("schedstat");
        // A thread may end in between.
        let text = fs::read_to_string(&path).unwrap_or_default();
        nanos += on_cpu_ns(&text).unwrap_or_default();
    }
    Ok(Duration::from_nanos(nanos))
}

/// The first field (Documentation/scheduler/sched-stats.rst).
fn on_cpu_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

fn size(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or_default() * 1024
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// What the agent says of itself; a part of it must agree with what the kernel says.
fn print_health() {
    let mut top = command(&[BINARY, "top", "--once", "--json"]);
    let health = output(top.env("OBSERVER_STATE_DIR", state_folder()))
        .and_then(|text| Ok(serde_json::from_str::<Value>(&text)?["health"].take()));
    match health {
        Ok(health) => {
            let lost: u64 = health["losses"]
                .as_array()
                .map_or(0, |losses| losses.iter().filter_map(|loss| loss["count"].as_u64()).sum());
            println!(
                "the agent says: CPU {}, resident {} B, BPF maps {} B, lost {lost}",
                health["cpu_ratio"], health["rss_bytes"], health["bpf_map_bytes"]
            );
        }
        Err(error) => println!("warning: the agent does not say: {error:#}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_on_a_cpu_is_the_first_field() {
        assert_eq!(on_cpu_ns("42 7 3\n"), Some(42));
        assert_eq!(on_cpu_ns(""), None);
    }

    #[test]
    fn sizes_are_in_bytes() {
        let status = "VmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(size(status, "VmRSS"), 1 << 20);
        assert_eq!(size(status, "VmSwap"), 0);
        assert_eq!(mebibytes(3 << 19), "1.5 MiB");
    }
}
