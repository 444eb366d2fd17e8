//! Chance, from a seed: the same seed gives the same host-day.

use fastrand::Rng;

/// A mebibyte.
pub(crate) const MIB: f64 = 1_048_576.0;
/// A gibibyte.
pub(crate) const GIB: f64 = 1024.0 * MIB;
/// A page.
pub(crate) const PAGE: f64 = 4096.0;

/// Evenly between two bounds.
pub(crate) fn between(rng: &mut Rng, low: f64, high: f64) -> f64 {
    low + (high - low) * rng.f64()
}

/// Evenly between two bounds by magnitude.
pub(crate) fn log_between(rng: &mut Rng, low: f64, high: f64) -> f64 {
    between(rng, low.ln(), high.ln()).exp()
}

/// Whether something of this probability happens.
pub(crate) fn happens(rng: &mut Rng, probability: f64) -> bool {
    rng.f64() < probability
}

/// A normal deviate (Box and Muller).
pub(crate) fn normal(rng: &mut Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.f64()).cos()
}

/// A factor of mean 1 and this spread (the deviation of its logarithm).
pub(crate) fn noise(rng: &mut Rng, spread: f64) -> f64 {
    (spread * normal(rng) - spread * spread / 2.0).exp()
}

/// One of several.
pub(crate) fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())]
}
