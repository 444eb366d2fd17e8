//! OOM precursors: how much memory is left and for how long, who reclaims, which limits are near, who was killed.

use super::{group, joined, level, named, plain, toned};
use crate::{
    signal::oom::{MemoryCgroup, OomKill, Pressure, Reclaimer, View},
    snapshot::Snapshot,
    top::{
        Cell, Table, Tone,
        format::{bytes, count, duration, percent, seconds},
    },
};

/// Stalled share of the last ten seconds, in percent, for `some`: work is held up.
const SOME_WARN_PERCENT: f64 = 10.0;

/// The same, when most work is held up.
const SOME_BAD_PERCENT: f64 = 40.0;

/// For `full`, where nothing runs at all, less is already bad.
const FULL_WARN_PERCENT: f64 = 2.0;

/// Here a host is close to a livelock.
const FULL_BAD_PERCENT: f64 = 10.0;

/// Usage of a cgroup against its limit at which reclaim inside it begins to hurt.
const CGROUP_WARN: f64 = 0.90;

/// Usage right below the limit.
const CGROUP_BAD: f64 = 0.97;

/// A direct reclaim this long is felt by a request.
const RECLAIM_WARN_NS: u64 = 10_000_000;

/// A direct reclaim this long is a stall.
const RECLAIM_BAD_NS: u64 = 200_000_000;

/// An OOM kill stays red for this long.
const KILL_RECENT_NS: u64 = 600_000_000_000;

const COLUMNS: &[(&str, u16)] = &[("WHAT", 11), ("WHO", 24), (" VALUE", 7), ("DETAIL", 0)];

/// The pane of OOM precursors: kills, pressure, cgroups, then who reclaimed.
pub fn table(snapshot: &Snapshot) -> Table {
    let view = &snapshot.oom;
    let kills = view.kills.iter().map(|kill| kill_row(snapshot, kill));
    let pressure = view.pressure.iter().map(pressure_row);
    let cgroups = view.cgroups.iter().map(cgroup_row);
    let reclaimers = view.reclaimers.iter().map(|reclaimer| reclaimer_row(snapshot, reclaimer));
    let rows = kills.chain(pressure).chain(cgroups).chain(reclaimers).collect();
    Table { summary: summary(snapshot), columns: COLUMNS, rows }
}

fn summary(snapshot: &Snapshot) -> String {
    let view = &snapshot.oom;
    let left = match view.exhaustion_seconds {
        Some(left) => format!("gone in {}{}", seconds(left), culprit(snapshot)),
        None => "not running out".to_owned(),
    };
    let swap = match view.swap_total_bytes {
        0 => "no swap".to_owned(),
        total => format!("swap {} free of {}", bytes(view.swap_free_bytes), bytes(total)),
    };
    format!(
        "{} available of {}, headroom {} {left}; {swap}; kswapd {}; {}",
        bytes(view.memory_available_bytes),
        bytes(view.memory_total_bytes),
        bytes(view.headroom_bytes),
        if view.kswapd_awake { "awake" } else { "asleep" },
        signs(view),
    )
}

fn culprit(snapshot: &Snapshot) -> String {
    let Some(pid) = snapshot.oom.culprit_pid else { return String::new() };
    let name = snapshot.processes.get(&pid).map_or("", |process| &process.name);
    format!(" by {}", named(name, pid))
}

/// What the kernel does about memory, without what it does not do.
fn signs(view: &View) -> String {
    let mut signs = vec![format!("refaults {:.0}/s", view.refault_per_second)];
    if view.direct_reclaims > 0 {
        let reclaims = count(view.direct_reclaims, "direct reclaim", "direct reclaims");
        signs.push(format!("{reclaims} ({})", duration(view.direct_reclaim_ns)));
    }
    for (number, one, many) in [
        (view.compactions, "compaction", "compactions"),
        (view.throttles, "throttle", "throttles"),
        (view.oom_retries, "OOM retry", "OOM retries"),
    ] {
        if number > 0 {
            signs.push(count(number, one, many));
        }
    }
    signs.join(", ")
}

fn kill_row(snapshot: &Snapshot, kill: &OomKill) -> Vec<Cell> {
    let age_ns = snapshot.time_unix_ns.saturating_sub(kill.time_unix_ns);
    let tone = if age_ns < KILL_RECENT_NS { Tone::Bad } else { Tone::Warn };
    let whose = if kill.in_cgroup { "its cgroup's limit" } else { "the host's memory" };
    let trigger = named(&kill.trigger_name, kill.trigger_pid);
    vec![
        toned("OOM kill", tone),
        toned(named(&kill.victim_name, kill.victim_pid), tone),
        plain(bytes(
            kill.anon_bytes.saturating_add(kill.file_bytes).saturating_add(kill.shmem_bytes),
        )),
        plain(format!("{} ago, {whose}, set off by {trigger}", duration(age_ns))),
    ]
}

fn pressure_row(pressure: &Pressure) -> Vec<Cell> {
    let (warn, bad) = match pressure.scope.as_str() {
        "full" => (FULL_WARN_PERCENT, FULL_BAD_PERCENT),
        _ => (SOME_WARN_PERCENT, SOME_BAD_PERCENT),
    };
    let stalled = percent(pressure.avg10_percent / 100.0);
    vec![
        plain(format!("{} {}", pressure.resource, pressure.scope)),
        plain("host"),
        toned(stalled, level(pressure.avg10_percent, warn, bad)),
        plain(format!(
            "of the last 10s stalled, {} since boot, {}",
            duration(pressure.total_ns),
            count(pressure.triggers, "trigger", "triggers")
        )),
    ]
}

fn cgroup_row(cgroup: &MemoryCgroup) -> Vec<Cell> {
    let (limit, tone) = match cgroup.limit_bytes {
        Some(limit) => {
            let share = cgroup.usage_bytes as f64 / limit.max(1) as f64;
            (
                format!("{} of {}", percent(share), bytes(limit)),
                level(share, CGROUP_WARN, CGROUP_BAD),
            )
        }
        None => ("no limit".to_owned(), Tone::Plain),
    };
    let mut detail = format!("{limit}, limit hit {}", count(cgroup.limit_hits, "time", "times"));
    if cgroup.oom_kills > 0 {
        detail += &format!(", {}", count(cgroup.oom_kills, "OOM kill", "OOM kills"));
    }
    vec![
        plain("cgroup"),
        plain(tail(&cgroup.path)),
        toned(bytes(cgroup.usage_bytes), tone),
        plain(detail),
    ]
}

/// The end of a path tells cgroups apart, the beginning rarely does.
fn tail(path: &str) -> String {
    let width = usize::from(COLUMNS[1].1);
    let length = path.chars().count();
    if length <= width {
        return path.to_owned();
    }
    std::iter::once('…').chain(path.chars().skip(length - width + 1)).collect()
}

fn reclaimer_row(snapshot: &Snapshot, reclaimer: &Reclaimer) -> Vec<Cell> {
    let detail = format!(
        "{}, longest {}, {} pages freed",
        count(reclaimer.count, "time", "times"),
        duration(reclaimer.max_ns),
        reclaimer.pages
    );
    vec![
        plain("reclaim"),
        plain(named(&reclaimer.name, reclaimer.pid)),
        plain(duration(reclaimer.total_ns)),
        toned(
            joined(&detail, &group(snapshot, reclaimer.pid)),
            level(reclaimer.max_ns, RECLAIM_WARN_NS, RECLAIM_BAD_NS),
        ),
    ]
}
