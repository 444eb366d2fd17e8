//! When the host's memory is gone, and who takes it.

use std::time::Duration;

use super::{
    bytes,
    envelope::Envelope,
    growth::Growth,
    history::Histories,
    levels::{self, Levels, Told},
    outlook::{Outlook, Pool},
    pressure::{self, Pressure},
    room::Room,
    seconds,
};
use crate::{
    config::Config,
    detect::{Judgement, Kind, Level, Quality, Seen, State, evidence},
};

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
    settings: &[
        levels::WATCH,
        levels::WARN,
        levels::CRITICAL,
        levels::EMERGENCY,
        levels::FREE,
        levels::LITTLE,
        pressure::STALL,
    ],
    detector: |config| Box::new(Growth::new(config)),
};

/// Who grew in the last ten minutes is asked where there is no trend.
const LATELY_S: f64 = 600.0;
/// History needed before it can be said that nothing is wrong.
const MIN_HISTORY_S: f64 = 10.0;

pub(super) struct Exhaustion {
    levels: Levels,
    usage: Envelope,
    shmem: Envelope,
    slab: Envelope,
    page_tables: Envelope,
    pressure: Pressure,
    first_s: Option<f64>,
    told: Told,
}

impl Exhaustion {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            levels: Levels::new(config),
            usage: Envelope::default(),
            shmem: Envelope::default(),
            slab: Envelope::default(),
            page_tables: Envelope::default(),
            pressure: Pressure::new(config),
            first_s: None,
            told: Told::default(),
        }
    }

    fn take(&mut self, seen: &Seen<'_>, now_s: f64) -> Room {
        let view = &seen.snapshot.oom;
        let room = Room::of(view);
        self.usage.add(now_s, (room.usable - room.free).max(0.0));
        self.shmem.add(now_s, view.shmem_bytes as f64);
        self.slab.add(now_s, view.slab_unreclaimable_bytes as f64);
        self.page_tables.add(now_s, view.page_table_bytes as f64);
        self.pressure.tick(seen);
        room
    }

    /// How little is left, whatever the trend. Swap is no help to who waits for memory already.
    fn little(&self, room: &Room) -> Option<Level> {
        let free_ratio = room.free / room.usable;
        let little = self.levels.little_ratio;
        let stalled = self.pressure.is_stuck() && room.available_ratio < little / 2.0;
        match self.pressure.is_on() {
            true if free_ratio < little / 2.0 => Some(Level::Critical),
            true if free_ratio < little || stalled => Some(Level::Warn),
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
            levels: self.levels,
            parts: &[
                ("shared memory and tmpfs", &self.shmem),
                ("kernel slab", &self.slab),
                ("page tables", &self.page_tables),
            ],
            first_s,
            told_s: self.told.since_s(),
            now_s,
        };
        let judged = pool.judge(self.told.level());
        let level = judged.map(|(level, _)| level);
        self.told.next(level, now_s, KIND.raise);
        let Some(level) = level.max(self.little(&room)) else { return };
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
