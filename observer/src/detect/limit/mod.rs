//! Bounds that come near, and settings that will hurt one day.

pub mod hazard;
pub mod jvm;
pub mod near;
pub mod runtime;
#[cfg(test)]
mod tests;

/// Bytes for people.
fn size(bytes: f64) -> String {
    let kib = bytes / 1024.0;
    match kib {
        _ if kib < 10_240.0 => format!("{kib:.0} KiB"),
        _ if kib < 10_240.0 * 1024.0 => format!("{:.0} MiB", kib / 1024.0),
        _ => format!("{:.1} GiB", kib / 1024.0 / 1024.0),
    }
}

/// A time for people.
fn duration(seconds: f64) -> String {
    match seconds {
        _ if seconds < 120.0 => format!("{seconds:.0} s"),
        _ if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.0} h", seconds / 3600.0),
    }
}
