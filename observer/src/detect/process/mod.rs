//! Processes that come and go: those that die again and again, those that become too many, and managers that are one too
//! many.

pub mod crash_loop;
pub mod duplicate_managers;
pub mod fork_storm;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::{Party, Seen, party};

/// The parents of most of these processes, or they themselves where nobody is known who started them: a program that starts
/// too many is to blame, not the many.
pub(super) fn starters<'a>(
    seen: &Seen<'_>,
    processes: impl Iterator<Item = &'a crate::identity::Process>,
) -> Option<Party> {
    let mut counts: BTreeMap<u32, f64> = BTreeMap::new();
    for process in processes {
        let parent =
            Some(process.parent_pid).filter(|pid| *pid > 2 && seen.process(*pid).is_some());
        *counts.entry(parent.unwrap_or(process.pid)).or_default() += 1.0;
    }
    let causes: Vec<_> = counts.into_iter().map(|(pid, count)| (pid, "", count)).collect();
    party::culprit(seen.snapshot, &causes)
}
