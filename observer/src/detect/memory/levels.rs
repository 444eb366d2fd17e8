//! What the levels of running out of memory mean: settings that the host's clock and those of control groups share.

use std::time::Duration;

use crate::{
    config::{Config, Kind, Setting},
    detect::Level,
};

/// Time left at WATCH. The bounds of these four do not overlap, so that levels keep their order.
pub const WATCH: Setting = Setting {
    key: "detect.memory_watch",
    kind: Kind::Duration { min_ms: 1_800_000, max_ms: 86_400_000 },
    default: "45m",
    otel: &[],
    help: "time until memory is gone that is a WATCH, once less than 60 % is free",
};

/// Time left at WARN.
pub const WARN: Setting = Setting {
    key: "detect.memory_warn",
    kind: Kind::Duration { min_ms: 300_000, max_ms: 1_800_000 },
    default: "20m",
    otel: &[],
    help: "time until memory is gone that is a WARN; six times as long once less than a tenth is free",
};

/// Time left at CRITICAL.
pub const CRITICAL: Setting = Setting {
    key: "detect.memory_critical",
    kind: Kind::Duration { min_ms: 60_000, max_ms: 300_000 },
    default: "3m",
    otel: &[],
    help: "time until memory is gone that is CRITICAL if memory is short already; five times as long once less than a tenth is free",
};

/// Time left at EMERGENCY.
pub const EMERGENCY: Setting = Setting {
    key: "detect.memory_emergency",
    kind: Kind::Duration { min_ms: 5_000, max_ms: 60_000 },
    default: "30s",
    otel: &[],
    help: "time until memory is gone that is an EMERGENCY if memory is short already",
};

/// Free memory from which on a trend may be a WARN.
pub const FREE: Setting = Setting {
    key: "detect.memory_free",
    kind: Kind::Integer { min: 10, max: 60 },
    default: "35",
    otel: &[],
    help: "percent of the memory (of a control group: of its limit) below which a trend may be a WARN",
};

/// Free memory that is told without a trend.
pub const LITTLE: Setting = Setting {
    key: "detect.memory_little",
    kind: Kind::Integer { min: 1, max: 30 },
    default: "10",
    otel: &[],
    help: "percent of the memory that is little: WATCH, and WARN if somebody waits for memory; half of it, and short, is CRITICAL",
};

/// The settings, read.
#[derive(Debug, Clone, Copy)]
pub struct Levels {
    /// Seconds left at WATCH.
    pub watch_s: f64,
    /// At WARN.
    pub warn_s: f64,
    /// At CRITICAL.
    pub critical_s: f64,
    /// At EMERGENCY.
    pub emergency_s: f64,
    /// Share that must not be free any more at WARN.
    pub free_ratio: f64,
    /// Share that is little, whatever the trend.
    pub little_ratio: f64,
}

impl Levels {
    /// As configured.
    pub fn new(config: &Config) -> Self {
        let seconds = |setting| config.duration(setting).as_secs_f64();
        Self {
            watch_s: seconds(&WATCH),
            warn_s: seconds(&WARN),
            critical_s: seconds(&CRITICAL),
            emergency_s: seconds(&EMERGENCY),
            free_ratio: config.integer(&FREE) as f64 / 100.0,
            little_ratio: config.integer(&LITTLE) as f64 / 100.0,
        }
    }
}

/// The level that was told last: what was reached for a moment only was not, and must be reached in full again.
#[derive(Debug, Default)]
pub struct Told {
    level: Option<Level>,
    higher_since_s: Option<f64>,
    since_s: Option<f64>,
}

impl Told {
    /// The level.
    pub fn level(&self) -> Option<Level> {
        self.level
    }

    /// Since when there is one.
    pub fn since_s(&self) -> Option<f64> {
        self.since_s
    }

    /// Takes what is reached now; it is told once it has held for `raise`.
    pub fn next(&mut self, reached: Option<Level>, now_s: f64, raise: Duration) {
        let is_higher = reached > self.level;
        let since_s = *self.higher_since_s.get_or_insert(now_s);
        if !is_higher || now_s - since_s >= raise.as_secs_f64() {
            (self.level, self.higher_since_s) = (reached, None);
            self.since_s = reached.map(|_| self.since_s.unwrap_or(now_s));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reached_for_a_moment_is_not_told() {
        #[track_caller]
        fn check(reached: &[Option<Level>], expect: Option<Level>) {
            let mut told = Told::default();
            for (second, level) in reached.iter().enumerate() {
                told.next(*level, second as f64, Duration::from_secs(2));
            }
            assert_eq!(told.level(), expect, "{reached:?}");
        }
        let [watch, warn] = [Some(Level::Watch), Some(Level::Warn)];
        check(&[warn, warn], None);
        check(&[warn, None, warn, warn], None);
        check(&[warn, warn, warn], warn);
        check(&[watch, watch, watch, warn, warn], watch);
        check(&[warn, warn, warn, watch], watch);
        check(&[watch, watch, watch, None], None);
    }
}
