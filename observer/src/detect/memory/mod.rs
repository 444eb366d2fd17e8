//! Memory: when it is gone and who takes it, before the host or a control group hangs.
//!
//! `envelope`, `slope` and `history` say how something moved, `growth` follows all processes once; the other files are one
//! kind each.

pub mod cgroup;
mod envelope;
pub mod exhaustion;
mod growth;
mod history;
pub mod kill;
pub mod leak;
mod levels;
mod outlook;
mod pressure;
mod probed;
mod room;
mod slope;
pub mod spike;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod thrash;

pub use self::probed::growing_processes;

/// A size for a person.
fn bytes(amount: f64) -> String {
    const UNITS: [&str; 4] = ["KB", "MB", "GB", "TB"];
    let mut amount = amount.max(0.0) / 1e3;
    for unit in UNITS {
        if amount < 1000.0 || unit == "TB" {
            return if amount < 10.0 {
                format!("{amount:.1} {unit}")
            } else {
                format!("{amount:.0} {unit}")
            };
        }
        amount /= 1e3;
    }
    String::new()
}

/// A time for a person.
fn seconds(amount: f64) -> String {
    match amount {
        amount if amount < 180.0 => format!("{amount:.0} s"),
        amount if amount < 7200.0 => format!("{:.0} min", amount / 60.0),
        amount => format!("{:.0} h", amount / 3600.0),
    }
}
