//! When the host's memory is gone, and who takes it.

use std::time::Duration;

use super::{
    bytes,
    envelope::Envelope,
    growth::Growth,
    history::Histories,
    outlook::{Outlook, Pool},
    pressure::Pressure,
    seconds,
};
use crate::detect::{Judgement, Kind, Level, Quality, Seen, State, evidence};

/// The kind.
pub static KIND: Kind = Kind {
    name: "memory.exhaustion",
    signal: "oom",
    help: "memory will be gone soon: how soon, and who takes it",
    reason: "A trend is believed for four times as long as it was seen, so a fifth of the room must be gone first, and it must \
             lead where the process, or another of its program, has not been: teeth of collected heaps, restarts and caches \
             that fill come back to where they were. Trends alone reach WARN; CRITICAL needs that memory is short already.",
    raise: Duration::from_secs(2),
    clear: Duration::from_secs(60),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Growth::default()),
};

/// Of swap, this share is no room: a host that fills the last of it is as good as gone (oomd: 10 %, lmkd: 10 to 20 %).
const SWAP_KEPT: f64 = 0.1;
/// Where hosts without swap were seen to hang (signals.md, section 0), as a share of the memory.
const FLOOR: f64 = 0.025;
/// A floor that is learned from thrashing goes no higher.
const MAX_FLOOR: f64 = 0.08;
/// So little is left that it is told without a trend: a tenth (earlyoom's first threshold), and half of that.
const LITTLE: [f64; 2] = [0.1, 0.05];
/// Who grew in the last ten minutes is asked where there is no trend.
const LATELY_S: f64 = 600.0;
/// File pages read back a second, as a share of the file LRU, at which the working set no longer fits.
const THRASH: f64 = 0.1;
/// History needed before it can be said that nothing is wrong.
const MIN_HISTORY_S: f64 = 10.0;

#[derive(Default)]
pub(super) struct Exhaustion {
    usage: Envelope,
    shmem: Envelope,
    slab: Envelope,
    page_tables: Envelope,
    pressure: Pressure,
    first_s: Option<f64>,
    /// What was available when the host last began to thrash, as a share.
    thrashed: f64,
    level: Option<Level>,
}

/// What there is of memory, in bytes.
struct Room {
    usable: f64,
    free: f64,
    capacity: f64,
}

impl Exhaustion {
    fn take(&mut self, seen: &Seen<'_>, now_s: f64) -> Room {
        let view = &seen.snapshot.oom;
        let (total, swap) = (view.memory_total_bytes as f64, view.swap_total_bytes as f64);
        let usable = total + swap * (1.0 - SWAP_KEPT);
        let free_swap = (view.swap_free_bytes as f64 - swap * SWAP_KEPT).max(0.0);
        let free = view.memory_available_bytes as f64 + free_swap;
        self.usage.add(now_s, (usable - free).max(0.0));
        self.shmem.add(now_s, view.shmem_bytes as f64);
        self.slab.add(now_s, view.slab_unreclaimable_bytes as f64);
        self.page_tables.add(now_s, view.page_table_bytes as f64);
        self.pressure.tick(seen);
        if self.pressure.refault_ratio >= THRASH && self.pressure.is_stalled() && swap == 0.0 {
            self.thrashed = (free / total).clamp(self.thrashed, MAX_FLOOR.max(self.thrashed));
        }
        Room { usable, free, capacity: usable - total * self.thrashed.max(FLOOR) }
    }

    /// How little is left, whatever the trend.
    fn little(&self, free_ratio: f64) -> Option<Level> {
        let [little, least] = LITTLE;
        match self.pressure.is_on() {
            true if free_ratio < least => Some(Level::Critical),
            true if free_ratio < little => Some(Level::Warn),
            false if free_ratio < little => Some(Level::Watch),
            _ => None,
        }
    }

    fn judgement(
        &self,
        seen: &Seen<'_>,
        pool: &Pool<'_>,
        level: Level,
        outlook: Option<&Outlook>,
    ) -> Judgement {
        let available = seen.snapshot.oom.memory_available_bytes as f64;
        let mut numbers = vec![evidence("memory_available", available, "By", "/proc/meminfo")];
        let culprit;
        let mut message;
        if let Some(outlook) = outlook {
            culprit = pool.culprit(seen.snapshot, outlook);
            message = format!("memory is gone in {}", seconds(outlook.left_s));
            if let Some(party) = &culprit {
                message += &format!(
                    ": {} grows by {}/s, {:.0} % of the host's growth",
                    party.title,
                    bytes(outlook.rate * party.share_ratio),
                    party.share_ratio * 100.0
                );
            }
            let rows = [("growth", outlook.rate, "By/s"), ("room_taken", outlook.eaten, "1")];
            numbers.extend(rows.map(|(name, value, unit)| {
                evidence(name, value, unit, "/proc/meminfo").with(Quality::Estimated)
            }));
        } else {
            culprit = pool.grower(seen.snapshot, pool.now_s - LATELY_S);
            message = format!("{:.0} % of the memory is left", pool.free_ratio * 100.0);
            if let Some(party) = &culprit {
                message += &format!("; {} grew most in ten minutes", party.title);
            }
        }
        numbers.extend(self.pressure.evidence());
        Judgement {
            subject: "host".to_owned(),
            state: State::Firing(level),
            culprit,
            evidence: numbers,
            time_left_seconds: outlook.map(|outlook| outlook.left_s),
            message,
            advice: "restart what grows, or give it a limit (MemoryMax=, --max-old-space-size, \
                     -Xmx) below what the host can spare"
                .to_owned(),
            ..Judgement::default()
        }
    }
}

impl Exhaustion {
    pub(super) fn look(
        &mut self,
        seen: &Seen<'_>,
        processes: &Histories,
        found: &mut Vec<Judgement>,
    ) {
        if seen.snapshot.oom.memory_total_bytes == 0 {
            found.push(undecided("the host's memory could not be read"));
            return;
        }
        let now_s = seen.now_ns as f64 / 1e9;
        let first_s = *self.first_s.get_or_insert(now_s);
        let room = self.take(seen, now_s);
        if now_s - first_s < MIN_HISTORY_S {
            found.push(undecided("it has been watched for less than ten seconds"));
            return;
        }
        let pool = Pool {
            usage: &self.usage,
            capacity: room.capacity,
            free_ratio: room.free / room.usable,
            pressed: self.pressure.is_on(),
            processes,
            is_member: &|_| true,
            parts: &[
                ("shared memory and tmpfs", &self.shmem),
                ("kernel slab", &self.slab),
                ("page tables", &self.page_tables),
            ],
            first_s,
            now_s,
        };
        let judged = pool.judge(self.level);
        self.level = judged.map(|(level, _)| level);
        let little = self.little(pool.free_ratio);
        let Some(level) = self.level.max(little) else { return };
        let outlook = judged.as_ref().map(|(_, outlook)| outlook);
        found.push(self.judgement(seen, &pool, level, outlook));
    }
}

fn undecided(why: &'static str) -> Judgement {
    Judgement {
        subject: "host".to_owned(),
        state: State::Undecided(why.into()),
        ..Judgement::default()
    }
}

#[cfg(test)]
mod tests;
