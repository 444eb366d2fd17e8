//! What a rule said of a run, held against what is true of it.

use std::{collections::HashMap, time::Instant};

use observer::{
    detect::{Group, Party},
    snapshot::Snapshot,
};

use crate::{
    rule::{Alarm, Level, Rule},
    world::Truth,
};

/// An alarm that comes again within this time is the same: the group interval of Prometheus's Alertmanager by default.
const SAME_S: u64 = 300;
/// Every so many ticks, a rule's time is taken.
const TIMED: u64 = 64;
/// Every so many seconds, a prediction is held against the truth.
const CALIBRATED: u64 = 10;

/// Number of levels.
const LEVELS: usize = Level::ALL.len();

/// What came of one rule in one run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verdict {
    /// Alarms by level, at that level or above, before the fault or without one.
    pub(crate) false_alarms: [u32; LEVELS],
    /// Of these, by kind and culprit's name, for those who want to know why.
    pub(crate) false_kinds: HashMap<(String, String), u32>,
    /// The first alarm about the fault at each level or above, in seconds of the run.
    pub(crate) warned_s: [Option<u64>; LEVELS],
    /// The same with the right culprit.
    pub(crate) named_s: [Option<u64>; LEVELS],
    /// Whether the first of WARN or above named the right one; `None` if it named nobody.
    pub(crate) first_named: Option<bool>,
    /// Whom it named instead.
    pub(crate) blamed: Option<String>,
    /// What was said at the beginning of each such alarm of WARN or above: second, kind, sentence.
    pub(crate) false_said: Vec<(u64, &'static str, String)>,
    /// Level, time left as told, and when.
    pub(crate) predictions: Vec<(Level, f64, u64)>,
    /// Nanoseconds of ticks that were timed.
    pub(crate) tick_ns: Vec<f64>,
}

/// One rule at work on one run.
pub(crate) struct Watcher {
    rule: Box<dyn Rule>,
    alarms: Vec<Alarm>,
    /// Last second of each alarm by kind and culprit, for each level.
    last: HashMap<(&'static str, Culprit), [Option<u64>; LEVELS]>,
    verdict: Verdict,
}

impl Watcher {
    /// Puts a rule to work.
    pub(crate) fn new(rule: Box<dyn Rule>) -> Self {
        Self { rule, alarms: Vec::new(), last: HashMap::new(), verdict: Verdict::default() }
    }

    /// The rule's name, and what came of it.
    pub(crate) fn into_verdict(self) -> (&'static str, Verdict) {
        (self.rule.name(), self.verdict)
    }

    /// The next second of the run.
    pub(crate) fn tick(&mut self, now_s: u64, snapshot: &Snapshot, truth: &Truth) {
        self.alarms.clear();
        if now_s.is_multiple_of(TIMED) {
            let start = Instant::now();
            self.rule.tick(snapshot, &mut self.alarms);
            self.verdict.tick_ns.push(start.elapsed().as_nanos() as f64);
        } else {
            self.rule.tick(snapshot, &mut self.alarms);
        }
        let alarms = std::mem::take(&mut self.alarms);
        for alarm in &alarms {
            match truth.onset_s {
                Some(onset_s) if now_s >= onset_s => self.after(now_s, alarm, truth),
                _ => self.before(now_s, alarm),
            }
        }
        self.alarms = alarms;
    }

    /// An alarm on a healthy host.
    fn before(&mut self, now_s: u64, alarm: &Alarm) {
        let culprit = alarm.culprit.as_ref();
        let last = self.last.entry((alarm.kind, identity(culprit))).or_default();
        for (at, level) in Level::ALL.into_iter().enumerate().filter(|(_, l)| *l <= alarm.level) {
            let same = last[at].replace(now_s).is_some_and(|last| now_s - last <= SAME_S);
            if same {
                continue;
            }
            self.verdict.false_alarms[at] += 1;
            if level == Level::Warn {
                let name = culprit.map_or("", |who| &who.name);
                let key = (alarm.kind.to_owned(), name.to_owned());
                *self.verdict.false_kinds.entry(key).or_default() += 1;
                self.verdict.false_said.push((now_s, alarm.kind, alarm.says.clone()));
            }
        }
    }

    /// An alarm while the fault goes on.
    fn after(&mut self, now_s: u64, alarm: &Alarm, truth: &Truth) {
        if truth.family.is_some_and(|family| family != alarm.family) {
            return;
        }
        let mut before = self.last.get_mut(&(alarm.kind, identity(alarm.culprit.as_ref())));
        let verdict = &mut self.verdict;
        let right = is_right(alarm, truth);
        for (at, _) in Level::ALL.into_iter().enumerate().filter(|(_, l)| *l <= alarm.level) {
            // What was said before the fault and goes on says nothing of the fault.
            if let Some(last) = before.as_mut().and_then(|levels| levels[at].as_mut())
                && now_s - *last <= SAME_S
            {
                *last = now_s;
                continue;
            }
            let warned = &mut verdict.warned_s[at];
            let is_first = *warned.get_or_insert(now_s) == now_s;
            if right == Some(true) {
                verdict.named_s[at].get_or_insert(now_s);
            }
            if Level::ALL[at] == Level::Warn && is_first && verdict.first_named != Some(true) {
                verdict.first_named = right;
                verdict.blamed = alarm.culprit.as_ref().map(|who| who.name.clone());
            }
        }
        if let Some(left_s) = alarm.time_left_s
            && now_s.is_multiple_of(CALIBRATED)
        {
            verdict.predictions.push((alarm.level, left_s, now_s));
        }
    }
}

/// Who is blamed: a process by its pid, a group by its name.
type Culprit = (u32, String);

fn identity(culprit: Option<&Party>) -> Culprit {
    match culprit {
        Some(party) if party.group == Group::Process => (party.pid.unwrap_or(0), String::new()),
        Some(party) => (0, party.name.clone()),
        None => (0, String::new()),
    }
}

/// Whether an alarm blames the right one; `None` if it blames nobody though somebody is to blame.
fn is_right(alarm: &Alarm, truth: &Truth) -> Option<bool> {
    match &alarm.culprit {
        None => truth.nobody.then_some(true),
        // A pid decides where there is one: an innocent process may have the culprit's name.
        Some(Party { pid: Some(pid), .. }) => Some(truth.culprits.contains(pid)),
        Some(party) => Some(truth.names.iter().any(|right| party.name.contains(right.as_str()))),
    }
}
