//! What there is of the host's memory.

use crate::signal::oom::View;

/// Share of the memory that a host does not get to before it hangs: without swap they hung with 0 to 2 % available
/// (signals.md, section 0).
const FLOOR: f64 = 0.01;

/// Room of the host, in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Room {
    /// Memory and swap.
    pub usable: f64,
    /// What is available of both.
    pub free: f64,
    /// What may be used until the host hangs.
    pub capacity: f64,
    /// Share of the memory, without swap, that is available.
    pub available_ratio: f64,
}

impl Room {
    /// As the signal shows it.
    pub fn of(view: &View) -> Self {
        let (total, swap) = (view.memory_total_bytes as f64, view.swap_total_bytes as f64);
        let available = view.memory_available_bytes as f64;
        Self {
            usable: total + swap,
            free: available + (view.swap_free_bytes as f64).min(swap),
            capacity: total * (1.0 - FLOOR) + swap,
            available_ratio: available / total.max(1.0),
        }
    }

    /// What is left until the host hangs.
    pub fn left(&self) -> f64 {
        (self.capacity - (self.usable - self.free)).max(0.0)
    }
}
