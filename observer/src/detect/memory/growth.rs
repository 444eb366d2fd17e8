//! How all processes grow, followed once for the kinds that need it.

use super::{cgroup::Cgroups, exhaustion::Exhaustion, history::Histories, leak::Leak, probed};
use crate::{
    config::Config,
    detect::{Detector, Judgement, Seen},
};

/// Judges for `memory.exhaustion`, `memory.cgroup_exhaustion` and `memory.leak`.
pub(super) struct Growth {
    processes: Histories,
    exhaustion: Exhaustion,
    cgroups: Cgroups,
    leak: Leak,
}

impl Growth {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            processes: Histories::default(),
            exhaustion: Exhaustion::new(config),
            cgroups: Cgroups::new(config),
            leak: Leak::new(config),
        }
    }
}

impl Detector for Growth {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let before = found.len();
        self.processes.tick(seen.snapshot, seen.now_ns as f64 / 1e9);
        self.exhaustion.look(seen, &self.processes, found);
        self.cgroups.look(seen, &self.processes, found);
        self.leak.look(seen, &self.processes, found);
        found[before..].iter_mut().for_each(|judgement| probed::add(seen, judgement));
    }
}
