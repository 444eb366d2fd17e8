//! From the last reading of limits to rows in order, and what two readings together tell of a JVM.

use std::collections::HashMap;

use super::{Bound, Facts, Jvm, Runtime, USAGE, View};
use crate::{
    signal::{Now, Output, Readings, Who},
    snapshot::MAX_ROWS,
    telemetry::{Number, Point, Subject, attr},
};

/// Rows exported as metrics, the fullest first.
const MAX_EXPORTED: usize = 64;

/// Full collections of a JVM that are over, and what its old generation held after the last of them.
type Collected = (u64, Option<u64>);

/// State of the signal.
#[derive(Debug, Default)]
pub struct Limit {
    view: View,
    /// By pid.
    pub(super) collected: HashMap<u32, Collected>,
}

impl Limit {
    /// What the snapshot shows.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Folds one tick: nothing changes but with a new reading.
    pub fn tick(&mut self, readings: &Readings<'_>) {
        let Some(reading) = readings.limits else { return };
        let mut rows = reading.rows.clone();
        rows.sort_by(|one, other| {
            let share = |row: &Bound| row.share().unwrap_or(-1.0);
            share(other).total_cmp(&share(one))
        });
        let more_rows = rows.len().saturating_sub(MAX_ROWS) as u64;
        rows.truncate(MAX_ROWS);
        let mut runtimes = reading.runtimes.clone();
        runtimes.truncate(MAX_ROWS);
        for runtime in &mut runtimes {
            if let Facts::Jvm(jvm) = &mut runtime.facts {
                jvm.old_after_full_bytes = self.after_full(runtime.pid, jvm);
            }
        }
        self.collected.retain(|pid, _| runtimes.iter().any(|runtime| is_jvm(runtime, *pid)));
        let Now { unix_ns, .. } = readings.now;
        self.view =
            View { read_unix_ns: unix_ns, rows, more_rows, runtimes, host: reading.host.clone() };
    }

    /// What the old generation held after the last full collection. What it holds now stands for that, if the collection
    /// was since the last reading and is over: it is counted at its beginning, and what it leaves at its end.
    fn after_full(&mut self, pid: u32, jvm: &Jvm) -> Option<u64> {
        let over = jvm.full_collections.saturating_sub(u64::from(jvm.in_full_collection));
        let (count, after) = self.collected.entry(pid).or_insert((over, None));
        if over < *count {
            // Another JVM that has the pid.
            *after = None;
        } else if over > *count {
            *after = Some(jvm.old_used_bytes);
        }
        *count = over;
        *after
    }

    /// Metric points of the present view.
    pub fn points(&self, start_unix_ns: u64, who: &mut dyn Who, out: &mut Output) {
        let full = self.view.rows.iter().filter_map(|row| Some((row, row.share()?)));
        for (row, share) in full.take(MAX_EXPORTED) {
            let subject = match row.pid {
                0 => Subject::Host,
                pid => Subject::Process(who.process(pid, None, &row.name)),
            };
            let attrs = vec![
                attr("observer.limit.resource", row.resource.clone()),
                attr("observer.limit.scope", row.scope.clone()),
            ];
            out.point(Point {
                metric: &USAGE,
                attrs,
                number: Number::Float(share),
                start_unix_ns,
                subject,
            });
        }
    }
}

fn is_jvm(runtime: &Runtime, pid: u32) -> bool {
    runtime.pid == pid && matches!(runtime.facts, Facts::Jvm(_))
}
