//! How the memory of one process moves while it is healthy. A leak comes on top.

use fastrand::Rng;

use super::chance::{MIB, between, noise, normal};

/// The course of a process's anonymous memory, in bytes and seconds.
#[derive(Debug, Clone)]
pub(crate) enum Heap {
    /// It stays.
    Flat { bytes: f64 },
    /// V8: garbage up to a limit that the collector chooses anew each time, then back to what lives.
    V8 { live: f64, used: f64, limit: f64, rate: f64 },
    /// G1, ZGC, Go: up to a share of the maximum, then back; `period_s` from seconds to many minutes.
    Collected { live: f64, top: f64, used: f64, period_s: f64 },
    /// A cache or a compiler that fills: `base + plateau * (1 - e^(-t/tau))`.
    WarmUp { base: f64, plateau: f64, tau_s: f64, age_s: f64 },
    /// Grows to a maximum and stays there (Redis with maxmemory).
    Fill { bytes: f64, rate: f64, most: f64 },
    /// Follows the day, and the requests.
    Diurnal { base: f64, amplitude: f64, phase_s: f64, wander: f64 },
    /// Up to a size within a time, and then stays: a batch, a build.
    Ramp { base: f64, size: f64, ramp_s: f64, age_s: f64 },
}

impl Heap {
    /// A Node.js heap around this size.
    pub(crate) fn v8(rng: &mut Rng, live: f64) -> Self {
        let limit = live * between(rng, 1.3, 2.0) + 16.0 * MIB;
        let rate = live.max(20.0 * MIB) * between(rng, 0.002, 0.05);
        Self::V8 { live, used: between(rng, live, limit), limit, rate }
    }

    /// A collected heap that rises to nine tenths of its maximum.
    pub(crate) fn collected(rng: &mut Rng, most: f64, period_s: f64) -> Self {
        let live = most * between(rng, 0.25, 0.45);
        Self::Collected { live, top: most * 0.9, used: between(rng, live, most * 0.9), period_s }
    }

    /// The next second; `progress` is how much of its work the process gets done, `load` the time of day's factor.
    pub(crate) fn step(&mut self, day_s: f64, progress: f64, rng: &mut Rng) -> f64 {
        match self {
            Self::Flat { bytes } => *bytes,
            Self::V8 { live, used, limit, rate } => {
                *used += *rate * noise(rng, 0.8) * progress;
                if used > limit {
                    *used = *live * (1.0 + 0.04 * normal(rng)).max(0.8);
                    *limit = *live * between(rng, 1.3, 2.0) + 16.0 * MIB;
                }
                *used
            }
            Self::Collected { live, top, used, period_s } => {
                *used += (*top - *live) / *period_s * noise(rng, 0.4) * progress;
                if used > top {
                    *used = *live * (1.0 + 0.05 * normal(rng)).max(0.8);
                }
                *used
            }
            Self::WarmUp { base, plateau, tau_s, age_s } => {
                *age_s += progress;
                *base + *plateau * (1.0 - (-*age_s / *tau_s).exp())
            }
            Self::Fill { bytes, rate, most } => {
                *bytes = (*bytes + *rate * noise(rng, 0.3) * progress).min(*most);
                *bytes * (1.0 + 0.002 * rng.f64())
            }
            Self::Diurnal { base, amplitude, phase_s, wander } => {
                *wander = 0.999 * *wander + 0.01 * normal(rng);
                let angle = (day_s - *phase_s) / 86_400.0 * std::f64::consts::TAU;
                (*base + *amplitude * (0.5 + 0.5 * angle.sin() + 0.3 * *wander)).max(*base * 0.5)
            }
            Self::Ramp { base, size, ramp_s, age_s } => {
                *age_s += progress;
                *base + *size * (*age_s / *ramp_s).min(1.0)
            }
        }
    }
}
