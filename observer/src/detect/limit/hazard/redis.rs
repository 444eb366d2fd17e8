//! Settings of and around Redis.

use super::{memory_total, size};
use crate::{
    detect::{Judgement, Level, Seen, State, evidence, party},
    signal::limit::{Facts, Redis, Runtime},
};

/// What a Redis must have to matter, as a share of RAM.
const MATTERS: f64 = 0.02;

/// Redis servers, and what each has in memory.
pub(super) fn redises<'a>(
    seen: &'a Seen<'_>,
) -> impl Iterator<Item = (&'a Runtime, &'a Redis, u64)> {
    let limit = &seen.snapshot.limit;
    limit.runtimes.iter().filter_map(move |runtime| {
        let Facts::Redis(redis) = &runtime.facts else { return None };
        let row =
            limit.rows.iter().find(|row| row.pid == runtime.pid && row.resource == "redis_memory");
        Some((runtime, redis, row.map_or(0, |row| row.used)))
    })
}

fn forks(redis: &Redis) -> bool {
    redis.save == Some(true) || redis.append_only == Some(true)
}

/// A finding about one process.
fn of_process(
    runtime: &Runtime,
    level: Level,
    message: String,
    advice: &str,
    seen: &Seen<'_>,
) -> Judgement {
    Judgement {
        subject: format!("{} {}", runtime.name, runtime.pid),
        state: State::Firing(level),
        culprit: Some(party::process(seen.snapshot, runtime.pid, &runtime.name, 1.0)),
        message,
        advice: advice.to_owned(),
        ..Judgement::default()
    }
}

pub(super) fn overcommit(seen: &Seen<'_>, found: &mut Vec<Judgement>) {
    if seen.snapshot.limit.host.overcommit_memory != Some(0) {
        return;
    }
    for (runtime, redis, used) in redises(seen).filter(|(_, redis, _)| forks(redis)) {
        let available = seen.snapshot.oom.memory_available_bytes;
        let refused =
            used as f64 > MATTERS * memory_total(seen) && available > 0 && used > available;
        found.push(Judgement {
            evidence: vec![
                evidence("resident", used as f64, "By", "iter/task"),
                evidence("memory_available", available as f64, "By", "/proc/meminfo"),
                evidence("save", f64::from(u8::from(redis.save == Some(true))), "1", redis.config_file.clone()),
            ],
            ..of_process(
                runtime,
                if refused { Level::Warn } else { Level::Watch },
                format!(
                    "Redis {} saves by fork, and vm.overcommit_memory is 0: with {} in use and {} available the fork may be \
                     refused, or take the last memory",
                    runtime.pid,
                    size(used as f64),
                    size(available as f64)
                ),
                "sysctl vm.overcommit_memory=1, and maxmemory below half of RAM; or save \"\" if nothing needs it",
                seen,
            )
        });
    }
}

pub(super) fn huge_pages(seen: &Seen<'_>, found: &mut Vec<Judgement>) {
    if seen.snapshot.limit.host.thp_enabled != "always" {
        return;
    }
    for (runtime, ..) in redises(seen).filter(|(_, redis, _)| forks(redis)) {
        found.push(of_process(
            runtime,
            Level::Watch,
            format!(
                "Redis {} saves by fork while transparent huge pages are always on: each write then copies 2 MiB",
                runtime.pid
            ),
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
            seen,
        ));
    }
}

pub(super) fn maxmemory(seen: &Seen<'_>, found: &mut Vec<Judgement>) {
    let unlimited = |redis: &Redis| redis.maxmemory_known && redis.maxmemory_bytes.is_none();
    for (runtime, _, used) in redises(seen).filter(|(_, redis, _)| unlimited(redis)) {
        let share = used as f64 / memory_total(seen).max(1.0);
        found.push(Judgement {
            evidence: vec![evidence("share_of_memory", share, "1", "iter/task")],
            ..of_process(
                runtime,
                if share >= 0.5 { Level::Warn } else { Level::Watch },
                format!(
                    "Redis {} has no maxmemory and uses {} ({:.0} % of RAM)",
                    runtime.pid,
                    size(used as f64),
                    share * 100.0
                ),
                "set maxmemory, and a maxmemory-policy that evicts if it is a cache",
                seen,
            )
        });
    }
}
