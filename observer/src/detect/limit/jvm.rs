//! A Java virtual machine whose class space fills (incident I4), or that does nothing but collect garbage.

use std::{collections::BTreeMap, time::Duration};

use super::{duration, size};
use crate::{
    detect::{
        Detector, Judgement, Kind, Level, Quality, Seen, State, evidence, mean::Mean, party,
        trend::Trend,
    },
    signal::limit::{Facts, Jvm},
};

/// A JVM runs out of memory of its own.
pub static KIND: Kind = Kind {
    name: "limit.jvm",
    signal: "limit",
    help: "a Java virtual machine's class space or heap is as good as full",
    reason: "A heap is full before each collection, so only what a full collection leaves counts: nine tenths with a fifth of \
             the time spent collecting is where a JVM does no other work and soon dies (its own limit is 98 % of the time). \
             Class space does not shrink by itself, so nine tenths of it that still grow are WARN, and seven that rise at \
             three readings in a row and will be full within a minute: a leak of loaders may take no longer. A JVM counts its bytes \
             at collections only, which may be the last before its end; classes are counted at once, so in between it is \
             estimated from them.",
    raise: Duration::ZERO,
    clear: Duration::from_secs(30),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Machines::default()),
};

/// Machines followed.
const MAX_MACHINES: usize = 256;
/// Over about a minute.
const COLLECTING: Duration = Duration::from_secs(20);
/// Class space fills over hours.
const CLASSES: Duration = Duration::from_secs(120);
/// Unless something makes them without end.
const OF_LATE: Duration = Duration::from_secs(15);
/// Share of a bound.
const FILLS: f64 = 0.7;
const FULL: f64 = 0.9;
const ALMOST: f64 = 0.95;
const OVER: f64 = 0.97;
/// Share of time in full collections.
const COLLECTS: f64 = 0.05;
const DIES: f64 = 0.2;
/// What fills within this many seconds.
const SOON_S: f64 = 3600.0;
const NOW_S: f64 = 120.0;
const AT_ONCE_S: f64 = 60.0;

#[derive(Debug, Default)]
struct Machine {
    read_unix_ns: u64,
    stopped_ns: u64,
    collecting: Mean,
    /// Of Metaspace, and of compressed class space.
    classes: [Trend; 2],
    /// The same of the last seconds.
    of_late: [Trend; 2],
    /// Metaspace in use when it was counted last, and the classes that there were then.
    counted: Option<(u64, u64)>,
    /// Bytes of each class that was loaded between two counts; 0 if not known.
    class_bytes: f64,
    metaspace_bytes: u64,
    round: u32,
}

#[derive(Default)]
struct Machines {
    machines: BTreeMap<u32, Machine>,
    round: u32,
}

impl Machine {
    fn add(&mut self, jvm: &Jvm, read_unix_ns: u64) {
        if self.read_unix_ns == read_unix_ns {
            return;
        }
        if self.read_unix_ns != 0 && jvm.stopped_ns() >= self.stopped_ns {
            let elapsed_ns = read_unix_ns.saturating_sub(self.read_unix_ns);
            let spent_ns = jvm.stopped_ns() - self.stopped_ns;
            // Where the clock of the JVM is not known, a collection is added at its end, and may fill several readings.
            let share = if jvm.in_full_collection && spent_ns == 0 {
                1.0
            } else {
                spent_ns as f64 / elapsed_ns.max(1) as f64
            };
            self.collecting.add(share.min(1.0), elapsed_ns, COLLECTING);
        }
        self.stopped_ns = jvm.stopped_ns();
        self.read_unix_ns = read_unix_ns;
        self.metaspace_bytes = estimate(&mut self.counted, &mut self.class_bytes, jvm);
        let used = [self.metaspace_bytes as f64, jvm.class_space_used_bytes as f64];
        for (trends, constant) in [(&mut self.classes, CLASSES), (&mut self.of_late, OF_LATE)] {
            for (trend, used) in trends.iter_mut().zip(used) {
                trend.add(read_unix_ns, used, constant);
            }
        }
    }

    /// Whether full collections leave the heap full, and take the time; and what they leave, as a share, where it is known.
    fn heap(&self, jvm: &Jvm) -> Option<(Level, Option<f64>)> {
        let after = jvm.old_after_full_bytes.filter(|_| jvm.old_max_bytes > 0);
        let share = after.map(|after| after as f64 / jvm.old_max_bytes as f64);
        let is_full = share.is_some_and(|share| share >= FULL);
        let collecting = self.collecting.value();
        let level = match collecting {
            _ if is_full && collecting >= DIES => Level::Critical,
            _ if is_full && collecting >= COLLECTS || collecting >= 2.0 * DIES => Level::Warn,
            _ if is_full || collecting >= DIES => Level::Watch,
            _ => return None,
        };
        Some((level, share))
    }
}

/// Metaspace in use: as counted, and what the classes took that were loaded since.
fn estimate(counted: &mut Option<(u64, u64)>, class_bytes: &mut f64, jvm: &Jvm) -> u64 {
    let (used, classes) = (jvm.metaspace_used_bytes, jvm.loaded_classes);
    let (before, classes_before) = *counted.get_or_insert((used, classes));
    let more = classes.saturating_sub(classes_before) as f64;
    if used == before {
        return used.saturating_add((more * *class_bytes) as u64);
    }
    if more > 0.0 {
        *class_bytes = used.saturating_sub(before) as f64 / more;
    }
    *counted = Some((used, classes));
    used
}

/// Class memory that has a bound: what it is called, in use, its bound.
fn bounds(jvm: &Jvm, metaspace_bytes: u64) -> [Option<(&'static str, u64, u64)>; 2] {
    let name = if jvm.permgen { "PermGen" } else { "Metaspace" };
    [
        jvm.metaspace_max_bytes.map(|max| (name, metaspace_bytes.min(max), max)),
        Some(("compressed class space", jvm.class_space_used_bytes, jvm.class_space_max_bytes)),
    ]
    .map(|bound| bound.filter(|(_, _, max)| *max > 0))
}

/// `left`: seconds at the rate of minutes; `soon`: at that of the last seconds, if it fills all the time.
fn class_level(share: f64, left: Option<f64>, soon: Option<f64>) -> Option<Level> {
    let within = |seconds: f64| left.is_some_and(|left| left < seconds);
    let at_once = soon.is_some_and(|left| left < AT_ONCE_S);
    Some(match share {
        _ if share >= OVER && within(NOW_S) || share >= 0.99 => Level::Critical,
        _ if share >= ALMOST || share >= FULL && within(SOON_S) || share >= FILLS && at_once => {
            Level::Warn
        }
        _ if share >= FULL || share >= FILLS && within(NOW_S) => Level::Watch,
        _ => return None,
    })
}

impl Machines {
    fn judge(
        &mut self,
        pid: u32,
        name: &str,
        jvm: &Jvm,
        seen: &Seen<'_>,
        found: &mut Vec<Judgement>,
    ) {
        if self.machines.len() >= MAX_MACHINES && !self.machines.contains_key(&pid) {
            return;
        }
        let machine = self.machines.entry(pid).or_default();
        machine.round = self.round;
        machine.add(jvm, seen.snapshot.limit.read_unix_ns);
        let own = party::process(seen.snapshot, pid, name, 1.0);
        let bounds = bounds(jvm, machine.metaspace_bytes);
        let trends = machine.classes.into_iter().zip(machine.of_late);
        for (bound, (trend, of_late)) in bounds.into_iter().zip(trends) {
            let Some((what, used, max)) = bound else { continue };
            let is_counted = [jvm.metaspace_used_bytes, jvm.class_space_used_bytes].contains(&used);
            let quality = if is_counted { Quality::Exact } else { Quality::Estimated };
            let share = used as f64 / max as f64;
            let room = max.saturating_sub(used) as f64;
            let left = trend.seconds_left(room);
            let soon = of_late.seconds_left(room).filter(|_| of_late.rises());
            let Some(level) = class_level(share, left, soon) else { continue };
            let (trend, left) =
                if soon < left && soon.is_some() { (of_late, soon) } else { (trend, left) };
            let grows = left.map_or_else(String::new, |left| {
                format!(", grows by {}/s and is full in {}", size(trend.rate()), duration(left))
            });
            found.push(Judgement {
                subject: format!("{what} of {name} {pid}"),
                state: State::Firing(level),
                culprit: Some(own.clone()),
                evidence: vec![
                    evidence("used", used as f64, "By", "hsperfdata").with(quality),
                    evidence("limit", max as f64, "By", "hsperfdata"),
                    evidence("growth", trend.rate(), "By/s", "hsperfdata"),
                ],
                time_left_seconds: left,
                message: format!(
                    "{what} of {} is {:.0} % full ({} of {}){grows}; when it is, no class can be loaded",
                    own.title,
                    share * 100.0,
                    size(used as f64),
                    size(max as f64)
                ),
                advice: "find which class loaders are kept (jcmd PID GC.class_stats, VM.classloaders); restart it at a time \
                         of your choice, and raise the bound (-XX:MaxMetaspaceSize, -XX:CompressedClassSpaceSize)"
                    .to_owned(),
                ..Judgement::default()
            });
        }
        let Some((level, share)) = machine.heap(jvm) else { return };
        let collecting = machine.collecting.value();
        let mut numbers = vec![evidence("time_in_full_collections", collecting, "1", "hsperfdata")];
        let mut message = format!(
            "{} stands still {:.0} % of its time to collect garbage",
            own.title,
            collecting * 100.0
        );
        if let Some(share) = share {
            numbers.push(evidence("old_after_full_collection", share, "1", "hsperfdata"));
            message +=
                &format!(", and its old generation is {:.0} % full afterwards", share * 100.0);
        }
        found.push(Judgement {
            subject: format!("heap of {name} {pid}"),
            state: State::Firing(level),
            evidence: numbers,
            message,
            advice: "take a heap dump (jcmd PID GC.heap_dump) and restart it; raise -Xmx only if what it keeps is needed"
                .to_owned(),
            culprit: Some(own),
            ..Judgement::default()
        });
    }
}

impl Detector for Machines {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        self.round = self.round.wrapping_add(1);
        for runtime in &seen.snapshot.limit.runtimes {
            if let Facts::Jvm(jvm) = &runtime.facts {
                self.judge(runtime.pid, &runtime.name, jvm, seen, found);
            }
        }
        let round = self.round;
        self.machines.retain(|_, machine| machine.round == round);
    }
}
