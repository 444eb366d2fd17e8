//! At most one log line in a while, however often a destination changes its mind.

use std::time::{Duration, Instant};

/// Shortest time between two lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// Decides whether a line may be logged.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    last: Option<Instant>,
}

impl Throttle {
    /// Whether a line may be logged now; if so, it counts as logged.
    pub(super) fn allows(&mut self) -> bool {
        let now = Instant::now();
        let allowed = self.last.is_none_or(|last| now.duration_since(last) >= INTERVAL);
        if allowed {
            self.last = Some(now);
        }
        allowed
    }
}
