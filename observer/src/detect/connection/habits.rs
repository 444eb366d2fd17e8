//! What is usual at an endpoint: how long answers take, for how long sessions are silent, whether it answers all the time, and
//! which connections wait for hours in good health.

use super::{SECOND, endpoint, is_client};
use crate::{
    detect::{
        Seen,
        key::{ByKey, key},
    },
    signal::tcp::{Activity, Connection},
};

/// Buckets of answer times, powers of two of microseconds: up to an hour.
const BUCKETS: usize = 32;
/// Answers before the median is believed.
const MIN_ANSWERS: u32 = 8;
/// Answers after which the older half of them is forgotten.
const MAX_ANSWERS: u32 = 2048;
/// Rows that are learned from at a look; more would say the same.
const MAX_LEARNED: usize = 256;
/// Pools, endpoints and waits remembered. Beyond it the longest unused go.
const MAX_KNOWN: usize = 4096;
/// Weight of the past in how busy an endpoint is.
const BUSY_NS: f64 = 60e9;
/// An endpoint is busy if answers came in at least this share of the looks.
const BUSY_SHARE: f64 = 0.3;
/// A lone wait of as long is a habit: a leader election, a replica's stream.
const HABIT_NS: u64 = 300 * SECOND;
/// A wait of as long that was there at the first look is one, too: nobody knows what was before.
const FIRST_NS: u64 = 5 * SECOND;

/// What happens to one session of a pool at so many looks, on a calm day, says nothing of it today.
const BY_CHANCE: f64 = 0.1;

/// Times of answers or of silences, of the last few thousand.
#[derive(Debug, Clone, Default)]
pub(super) struct Answers {
    counts: [u32; BUCKETS],
    sum: u32,
}

impl Answers {
    pub(super) fn add(&mut self, answer_ns: u64) {
        let bucket = (answer_ns / 1000).max(1).ilog2() as usize;
        if let Some(count) = self.counts.get_mut(bucket.min(BUCKETS - 1)) {
            *count += 1;
            self.sum += 1;
        }
        if self.sum >= MAX_ANSWERS {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.sum = self.counts.iter().sum();
        }
    }

    /// The upper edge of the bucket below which this share of the answers lies; `None` while there are few.
    pub(super) fn quantile_ns(&self, share: f64) -> Option<u64> {
        if self.sum < MIN_ANSWERS {
            return None;
        }
        let rank = (f64::from(self.sum) * share).ceil() as u32;
        let mut sum = 0;
        let bucket = self.counts.iter().position(|count| {
            sum += count;
            sum >= rank
        })?;
        Some(2000 << bucket)
    }

    /// The share in this range, if they are even within each bucket; `None` while there are few.
    fn share(&self, least_ns: u64, most_ns: u64) -> Option<f64> {
        if self.sum < MIN_ANSWERS {
            return None;
        }
        let inside = self.counts.iter().enumerate().map(|(bucket, count)| {
            let first_ns = if bucket == 0 { 0 } else { 1000_u64 << bucket };
            let next_ns = 2000_u64 << bucket;
            let touched_ns = most_ns.min(next_ns).saturating_sub(least_ns.max(first_ns));
            f64::from(*count) * touched_ns as f64 / (next_ns - first_ns) as f64
        });
        Some(inside.sum::<f64>() / f64::from(self.sum))
    }
}

#[derive(Debug, Default)]
struct Pool {
    answers: Answers,
    /// How long its sessions were silent at the looks at which nobody waited.
    silences: Answers,
    /// The median, and what one in twenty takes; `None` while too few were seen.
    usual_ns: Option<(u64, u64)>,
    used_ns: u64,
}

impl Pool {
    /// After which time an answer is late; `None` while too few were seen.
    fn late_after_ns(&self, least_ns: u64) -> Option<u64> {
        let (median_ns, slow_ns) = self.usual_ns?;
        Some(least_ns.max(median_ns.saturating_mul(20)).max(slow_ns.saturating_mul(3)))
    }
}

#[derive(Debug, Default)]
struct Known {
    /// When its first answer was seen.
    first_ns: u64,
    /// Share of the looks of the last minute at which answers had come; what was not seen counts as silence.
    busy_ratio: f64,
    used_ns: u64,
}

/// A connection that has been seen waiting.
#[derive(Debug)]
struct Wait {
    /// Its longest age.
    age_ns: u64,
    asked_ns: u64,
    habitual: bool,
    /// It waits in an incident: that is no habit.
    excused: bool,
    used_ns: u64,
}

/// A client that waits for an answer, and by what it is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) row: &'a Connection,
    /// Its endpoint.
    pub(super) at: u64,
    pool: u64,
    wait: u64,
}

impl<'a> Asking<'a> {
    /// All that have waited for as long.
    pub(super) fn all(seen: &Seen<'a>, least_ns: u64) -> Vec<Self> {
        let asks = |row: &&Connection| {
            matches!(row.activity, Activity::Waiting | Activity::ZeroWindow)
                && row.activity_ns >= least_ns
                && is_client(row)
        };
        seen.snapshot.tcp.connections.iter().filter(asks).map(Self::of).collect()
    }

    fn of(row: &'a Connection) -> Self {
        let at = key(endpoint(row));
        Self { row, at, pool: pool_key(row, at), wait: wait_key(row, at) }
    }
}

/// What was learned.
#[derive(Debug, Default)]
pub(super) struct Habits {
    /// By program and endpoint: the workers of an application have the same habits, and so has the next one.
    pools: ByKey<u64, Pool>,
    endpoints: ByKey<u64, Known>,
    waits: ByKey<u64, Wait>,
    begun: bool,
    turn: usize,
}

impl Habits {
    /// Learns from a look.
    pub(super) fn learn(&mut self, seen: &Seen<'_>, asking: &[Asking<'_>]) {
        let rows = &seen.snapshot.tcp.connections;
        // No first look is fresh: what was received before it may be of any age.
        let fresh_ns = seen.elapsed_ns;
        let step = rows.len() / MAX_LEARNED + 1;
        self.turn = (self.turn + 1) % step;
        let weight = 1.0 - (-(seen.elapsed_ns as f64) / BUSY_NS).exp();
        for row in rows.iter().skip(self.turn).step_by(step).filter(|row| is_client(row)) {
            let Some(received_ns) = row.last_receive_ns.filter(|ns| *ns < fresh_ns) else {
                continue;
            };
            let at = key(endpoint(row));
            if let Some(answer_ns) = row.last_send_ns.and_then(|ns| ns.checked_sub(received_ns)) {
                let pool = self.pools.entry(pool_key(row, at)).or_default();
                pool.used_ns = seen.now_ns;
                pool.answers.add(answer_ns);
                let [median_ns, slow_ns] = [0.5, 0.95].map(|share| pool.answers.quantile_ns(share));
                pool.usual_ns = median_ns.zip(slow_ns);
            }
            let known = self.endpoints.entry(at).or_default();
            if known.used_ns != seen.now_ns {
                let dark_ns = seen.now_ns.saturating_sub(known.used_ns) as f64;
                // What no answer was seen in counts as silence, all of it but the last look.
                let silent_ns = (dark_ns - seen.elapsed_ns as f64).max(0.0);
                if known.first_ns == 0 {
                    known.first_ns = seen.now_ns.saturating_sub(seen.elapsed_ns);
                }
                known.busy_ratio *= (-silent_ns / BUSY_NS).exp();
                known.busy_ratio += (1.0 - known.busy_ratio) * weight;
                known.used_ns = seen.now_ns;
            }
        }
        self.learn_waits(seen, asking);
        forget(&mut self.pools, |pool| pool.used_ns);
        forget(&mut self.endpoints, |known| known.used_ns);
        forget(&mut self.waits, |wait| wait.used_ns);
        self.begun = true;
    }

    fn learn_waits(&mut self, seen: &Seen<'_>, asking: &[Asking<'_>]) {
        let first = !self.begun;
        for Asking { row, wait, .. } in asking {
            if row.activity != Activity::Waiting || row.activity_ns < SECOND {
                continue;
            }
            let asked_ns = seen.now_ns.saturating_sub(row.activity_ns);
            let wait = self.waits.entry(*wait).or_insert(Wait {
                age_ns: 0,
                asked_ns,
                habitual: first && row.activity_ns >= FIRST_NS,
                excused: false,
                used_ns: 0,
            });
            // Another question than before: the last one was answered after a long time, and nobody minded.
            let again = asked_ns.saturating_sub(wait.asked_ns) >= SECOND;
            let habit = again && wait.age_ns >= FIRST_NS || row.activity_ns >= HABIT_NS;
            wait.habitual |= habit && !wait.excused;
            wait.excused &= !again;
            (wait.asked_ns, wait.age_ns, wait.used_ns) = (asked_ns, row.activity_ns, seen.now_ns);
        }
    }

    /// Learns how long sessions are silent, from endpoints where nobody is late.
    pub(super) fn learn_silences(&mut self, seen: &Seen<'_>, is_late: impl Fn(u64) -> bool) {
        let rows = &seen.snapshot.tcp.connections;
        let rests = |row: &&Connection| {
            is_client(row) && matches!(row.activity, Activity::Idle | Activity::Active)
        };
        let step = rows.len() / MAX_LEARNED + 1;
        let rows = rows.iter().skip(self.turn).step_by(step).filter(rests);
        for row in rows {
            let at = key(endpoint(row));
            if is_late(at) {
                continue;
            }
            let pool = self.pools.entry(pool_key(row, at)).or_default();
            pool.used_ns = seen.now_ns;
            pool.silences.add(row.activity_ns);
        }
    }

    /// Whether one of so many sessions of a pool is silent for a time in this range every now and then.
    pub(super) fn is_often_silent(
        &self,
        row: &Connection,
        range_ns: (u64, u64),
        sessions: usize,
    ) -> bool {
        let pool = self.pools.get(&pool_key(row, key(endpoint(row))));
        let share = pool.and_then(|pool| pool.silences.share(range_ns.0, range_ns.1));
        share.is_some_and(|share| share * sessions as f64 > BY_CHANCE)
    }

    /// These wait because of an incident, not by habit.
    pub(super) fn excuse(&mut self, asking: &[Asking<'_>]) {
        for Asking { wait, .. } in asking {
            if let Some(wait) = self.waits.get_mut(wait) {
                wait.excused = true;
            }
        }
    }

    /// An answer that takes longer than usual, and at least as long. Of a program whose answers were not seen yet, nothing
    /// can be said.
    pub(super) fn is_late(&self, asking: &Asking<'_>, least_ns: u64) -> bool {
        let Asking { row, pool, wait, .. } = asking;
        let late_ns = self.pools.get(pool).and_then(|pool| pool.late_after_ns(least_ns));
        late_ns.is_some_and(|late_ns| row.activity_ns >= late_ns)
            && !self.waits.get(wait).is_some_and(|wait| wait.habitual)
    }

    /// Whether a connection waits for long in good health.
    pub(super) fn is_habit(&self, row: &Connection) -> bool {
        let wait = wait_key(row, key(endpoint(row)));
        self.waits.get(&wait).is_some_and(|wait| wait.habitual)
    }

    /// After which time an answer is late; `None` while too few were seen.
    pub(super) fn late_after_ns(&self, row: &Connection, least_ns: u64) -> Option<u64> {
        self.pools.get(&pool_key(row, key(endpoint(row))))?.late_after_ns(least_ns)
    }

    /// Whether it waits no longer than its program is used to.
    pub(super) fn is_usual(&self, row: &Connection) -> bool {
        self.late_after_ns(row, 0).is_some_and(|late_ns| row.activity_ns < late_ns)
    }

    /// The median of a pool's answers.
    pub(super) fn usual_ns(&self, row: &Connection) -> Option<u64> {
        Some(self.pools.get(&pool_key(row, key(endpoint(row))))?.usual_ns?.0)
    }

    /// Whether answers came all the time until this instant, and for how long at least.
    pub(super) fn was_busy(&self, row: &Connection, until_ns: u64, least_ns: u64) -> bool {
        let Some(known) = self.endpoints.get(&key(endpoint(row))) else { return false };
        let known_ns = until_ns.saturating_sub(known.first_ns);
        let silent_ns = until_ns.saturating_sub(known.used_ns) as f64;
        let seen_ratio = -(-(known_ns as f64) / BUSY_NS).exp_m1();
        let busy_ratio = known.busy_ratio * (-silent_ns / BUSY_NS).exp();
        known_ns >= least_ns && busy_ratio >= BUSY_SHARE * seen_ratio
    }
}

/// `at`: its endpoint.
fn pool_key(row: &Connection, at: u64) -> u64 {
    key((&row.name, at))
}

/// Likewise.
fn wait_key(row: &Connection, at: u64) -> u64 {
    key((row.pid, &row.local_address, row.local_port, at))
}

/// Keeps the bound: the older half goes, so that the search for them is paid for once in a while.
fn forget<T>(known: &mut ByKey<u64, T>, used_ns: impl Fn(&T) -> u64) {
    if known.len() <= MAX_KNOWN {
        return;
    }
    let mut times: Vec<u64> = known.values().map(&used_ns).collect();
    times.sort_unstable();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    let mut left = MAX_KNOWN;
    known.retain(|_, value| {
        let keep = used_ns(value) > middle && left > 0;
        left -= usize::from(keep);
        keep
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_upper_edge_of_its_bucket() {
        let mut answers = Answers::default();
        for _ in 0..7 {
            answers.add(1_500_000);
        }
        assert_eq!(answers.quantile_ns(0.5), None, "too few");
        answers.add(u64::MAX);
        assert_eq!(answers.quantile_ns(0.5), Some(2_048_000));
        assert_eq!(answers.quantile_ns(0.95), Some(2000 << 31));
        answers.add(0);
        for _ in 0..10_000 {
            answers.add(100_000_000);
        }
        assert_eq!(answers.quantile_ns(0.95), Some(131_072_000), "the old is forgotten");
    }

    #[test]
    fn a_share_is_even_within_a_bucket() {
        let mut silences = Answers::default();
        (0..7).for_each(|_| silences.add(1));
        assert_eq!(silences.share(0, u64::MAX), None, "too few");
        // Between 8.388608 and 16.777216 s.
        silences.add(10 * SECOND);
        #[track_caller]
        fn check(silences: &Answers, range_ns: (u64, u64), expect: f64) {
            assert_eq!(silences.share(range_ns.0, range_ns.1), Some(expect), "{range_ns:?}");
        }
        check(&silences, (0, u64::MAX), 1.0);
        check(&silences, (0, SECOND), 0.875);
        check(&silences, (8_388_608_000, 12_582_912_000), 0.0625);
        check(&silences, (20 * SECOND, 3600 * SECOND), 0.0);
        check(&silences, (u64::MAX, 0), 0.0);
    }
}
