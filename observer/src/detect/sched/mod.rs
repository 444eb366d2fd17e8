//! Stalls: loops that do not turn, threads that get no CPU, tasks that cannot even be killed.

mod blame;
pub mod blocked;
mod credits;
pub mod event_loop;
pub mod responsiveness;
mod stack;
pub mod starvation;
pub mod steal;
#[cfg(test)]
mod tests;
pub mod throttled;
mod turn;

/// A second.
const SECOND_NS: u64 = 1_000_000_000;

/// Seconds, for people.
fn seconds(ns: u64) -> f64 {
    ns as f64 / SECOND_NS as f64
}

/// Percent, for people.
fn percent(ratio: f64) -> f64 {
    (ratio * 100.0).round()
}

/// Whether memory is short: little is left, or pages of files are read again and again.
pub fn is_memory_short(snapshot: &crate::snapshot::Snapshot) -> bool {
    let oom = &snapshot.oom;
    let little = oom.memory_total_bytes > 0
        && (oom.memory_available_bytes as f64) < 0.1 * oom.memory_total_bytes as f64;
    little || oom.refault_ratio >= 0.1
}
