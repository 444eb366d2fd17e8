//! Limits of heaps.

use super::{MAX_NAMED, memory_total, size};
use crate::{
    detect::{Judgement, Level, Seen, State, evidence},
    signal::limit::{Facts, Runtime},
};

/// Heaps with their limits: process, name, bytes, and whether somebody set it.
fn heaps<'a>(seen: &'a Seen<'_>) -> impl Iterator<Item = (&'a Runtime, u64, bool)> {
    seen.snapshot.limit.runtimes.iter().filter_map(|runtime| match &runtime.facts {
        Facts::Node(node) => {
            Some((runtime, node.heap_limit_bytes, node.heap_limit_source != "default"))
        }
        Facts::Jvm(jvm) => {
            let command = seen.process(runtime.pid).map_or("", |process| &process.command_line);
            Some((
                runtime,
                jvm.heap_max_bytes,
                command.contains("-Xmx") || command.contains("MaxHeapSize"),
            ))
        }
        _ => None,
    })
}

pub(super) fn limits(seen: &Seen<'_>, found: &mut Vec<Judgement>) {
    let total = memory_total(seen);
    if total <= 0.0 {
        return;
    }
    let mut heaps: Vec<_> = heaps(seen).filter(|(_, bytes, _)| *bytes > 0).collect();
    heaps.sort_by_key(|(_, bytes, _)| std::cmp::Reverse(*bytes));
    let set: f64 = heaps.iter().filter(|(.., set)| *set).map(|(_, bytes, _)| *bytes as f64).sum();
    let largest = heaps.first().map_or(0.0, |(_, bytes, _)| *bytes as f64);
    if set <= total && largest <= total {
        return;
    }
    let named =
        heaps.iter().filter(|(_, bytes, set)| *set || *bytes as f64 > total).take(MAX_NAMED);
    let named: Vec<_> = named
        .map(|(runtime, bytes, _)| {
            format!("{} {} {}", runtime.name, runtime.pid, size(*bytes as f64))
        })
        .collect();
    found.push(Judgement {
        subject: "host".to_owned(),
        state: State::Firing(Level::Watch),
        evidence: vec![
            evidence("sum_of_heap_limits", set.max(largest), "By", "command line"),
            evidence("memory_total", total, "By", "/proc/meminfo"),
        ],
        message: format!(
            "heaps may grow to {}, and the host has {}: {}",
            size(set.max(largest)),
            size(total),
            named.join(", ")
        ),
        advice:
            "lower -Xmx and --max-old-space-size, so that all of them and what else runs have room"
                .to_owned(),
        ..Judgement::default()
    });
}
