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

/// Length of the kernel's unit in `/proc/PID/stat` (`USER_HZ` is 100 on every Linux that we know).
const TICK: Duration = Duration::from_millis(10);

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

/// User and system time of all threads, also of those that ended.
fn cpu(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the agent has ended")?;
    let ticks = ticks(&stat).context("/proc/PID/stat is malformed")?;
    Ok(TICK * ticks)
}

/// Fields 14 and 15 of proc_pid_stat(5). The name in parentheses may hold spaces.
fn ticks(stat: &str) -> Option<u32> {
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u32>().ok()? + fields.get(12)?.parse::<u32>().ok()?)
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
    fn ticks_are_found_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 1 0 0 0 30 12 0 0 20 0 1 0 5 6 7\n";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("nonsense"), None);
    }

    #[test]
    fn sizes_are_in_bytes() {
        let status = "VmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(size(status, "VmRSS"), 1 << 20);
        assert_eq!(size(status, "VmSwap"), 0);
        assert_eq!(mebibytes(3 << 19), "1.5 MiB");
    }
}
