//! What the host itself has a bound for, and how it is set (sysctl(8), Documentation/admin-guide/sysctl).

use super::file;
use crate::signal::limit::{Bound, Host};

/// Bytes read of a file; /proc/meminfo has some 1,500.
const MAX_BYTES: usize = 16 * 1024;

/// A number near the largest one is the kernel's word for no limit.
const UNLIMITED: u64 = 1 << 62;

/// Open files, threads and followed connections of the host.
pub(super) fn rows() -> Vec<Bound> {
    let files = text("fs/file-nr").and_then(|text| file_row(&text));
    let threads = thread_row(
        &read("/proc/loadavg").unwrap_or_default(),
        number("kernel/threads-max"),
        number("kernel/pid_max"),
    );
    let conntrack = number("net/netfilter/nf_conntrack_count").map(|used| {
        row("conntrack", used, number("net/netfilter/nf_conntrack_max"), "connections")
    });
    [files, threads, conntrack].into_iter().flatten().collect()
}

/// How the host is set.
pub(super) fn settings() -> Host {
    let meminfo = read("/proc/meminfo").unwrap_or_default();
    let memory = |key: &str| kib(&meminfo, key).unwrap_or(0);
    let range = text("net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut range = range.split_ascii_whitespace().map(|word| word.parse().ok());
    let thp = |name: &str| {
        let path = format!("/sys/kernel/mm/transparent_hugepage/{name}");
        read(&path).map_or_else(String::new, |text| chosen(&text))
    };
    Host {
        overcommit_memory: number("vm/overcommit_memory"),
        overcommit_ratio_percent: number("vm/overcommit_ratio"),
        thp_enabled: thp("enabled"),
        thp_defrag: thp("defrag"),
        panic_on_oom: number("vm/panic_on_oom"),
        min_free_bytes: number("vm/min_free_kbytes").map(|kib| kib.saturating_mul(1024)),
        watermark_scale: number("vm/watermark_scale_factor"),
        swappiness: number("vm/swappiness"),
        cpus: std::thread::available_parallelism().map_or(0, |cpus| cpus.get() as u64),
        memory_total_bytes: memory("MemTotal:"),
        swap_total_bytes: memory("SwapTotal:"),
        commit_limit_bytes: memory("CommitLimit:"),
        tcp_keepalive_time_seconds: number("net/ipv4/tcp_keepalive_time"),
        tcp_retries2: number("net/ipv4/tcp_retries2"),
        somaxconn: number("net/core/somaxconn"),
        port_range_first: range.next().flatten(),
        port_range_last: range.next().flatten(),
        pid_max: number("kernel/pid_max"),
        threads_max: number("kernel/threads-max"),
        file_max: number("fs/file-max").filter(|max| *max < UNLIMITED),
        psi_available: read("/proc/pressure/memory").is_some(),
    }
}

/// A row of the host.
pub(super) fn row(resource: &str, used: u64, limit: Option<u64>, unit: &str) -> Bound {
    Bound {
        resource: resource.to_owned(),
        scope: "host".to_owned(),
        used,
        limit: limit.filter(|limit| *limit < UNLIMITED),
        unit: unit.to_owned(),
        source: "kernel".to_owned(),
        ..Bound::default()
    }
}

fn file_row(text: &str) -> Option<Bound> {
    let words: Vec<u64> =
        text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [open, free, max] = words[..] else { return None };
    Some(row("host_files", open.saturating_sub(free), Some(max), "files"))
}

/// A thread takes a pid, so the smaller of the two limits holds.
fn thread_row(loadavg: &str, threads_max: Option<u64>, pid_max: Option<u64>) -> Option<Bound> {
    let (_, threads) = loadavg.split_ascii_whitespace().nth(3)?.split_once('/')?;
    let limit = threads_max.into_iter().chain(pid_max).min();
    Some(row("processes", threads.parse().ok()?, limit, "threads"))
}

fn read(path: &str) -> Option<String> {
    String::from_utf8(file::of_proc(path, MAX_BYTES).ok()?).ok()
}

fn text(name: &str) -> Option<String> {
    read(&format!("/proc/sys/{name}"))
}

fn number(name: &str) -> Option<u64> {
    text(name)?.trim().parse().ok()
}

/// Bytes of a line `Key:   123 kB`.
fn kib(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The word in brackets, as in `always [madvise] never`.
fn chosen(text: &str) -> String {
    let word = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    word.map_or_else(String::new, |(word, _)| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_this_host() {
        let host = settings();
        assert!(host.memory_total_bytes > 1 << 20 && host.cpus > 0, "{host:?}");
        assert!(host.pid_max.is_some() && host.overcommit_memory.is_some(), "{host:?}");
        assert!(host.port_range_first < host.port_range_last, "{host:?}");
        let rows = rows();
        for resource in ["host_files", "processes"] {
            let row = rows.iter().find(|row| row.resource == resource).unwrap();
            assert!(row.used > 0 && row.limit.is_none_or(|limit| limit >= row.used), "{row:?}");
        }
    }

    #[test]
    fn files_as_the_kernel_writes_them() {
        let files = file_row("3328\t0\t9223372036854775807\n").unwrap();
        assert_eq!((files.used, files.limit), (3328, None));
        assert_eq!(file_row("9 2 100").unwrap().used, 7);
        assert_eq!(file_row("9 2"), None);
        let threads = thread_row("0.5 0.4 0.3 2/512 99\n", Some(8000), Some(4000)).unwrap();
        assert_eq!((threads.used, threads.limit), (512, Some(4000)));
        assert_eq!(thread_row("0.5", None, None), None);
        assert_eq!(chosen("always [madvise] never\n"), "madvise");
        assert_eq!(chosen("always"), "");
        assert_eq!(kib("MemFree: 1 kB\nMemTotal:   10 kB\n", "MemTotal:"), Some(10_240));
    }
}
