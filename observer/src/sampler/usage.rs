//! What the agent itself costs.

use std::collections::VecDeque;

/// The agent's own cost.
#[derive(Default)]
pub(super) struct Usage {
    readings: VecDeque<(u64, u64)>,
    pub(super) rss_bytes: u64,
}

impl Usage {
    pub(super) fn add(&mut self, ktime_ns: u64, usage: &crate::host::Usage) {
        self.rss_bytes = usage.rss_bytes;
        self.readings.push_back((ktime_ns, usage.cpu_ns));
        if self.readings.len() > 11 {
            self.readings.pop_front();
        }
    }

    /// Cores used over the last ten seconds.
    pub(super) fn cpu_ratio(&self) -> f64 {
        match (self.readings.front(), self.readings.back()) {
            (Some((from, before)), Some((to, after))) if to > from => {
                after.saturating_sub(*before) as f64 / (to - from) as f64
            }
            _ => 0.0,
        }
    }
}
