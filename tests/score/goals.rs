//! What the figures are to reach, and whether they do: the bounds that CI holds them to.

use crate::{
    play::Outcome,
    rule::Level,
    sum::{self, Runs},
};

/// A fault that fails requests at once can only be told after it: within so many seconds.
const AT_ONCE_S: u64 = 7;

/// Whoever is to blame is to be named so soon after the first WARN.
const NAMED_S: f64 = 10.0;

/// Longer than any run of the laboratory: where nothing fails, to be named at all is enough.
const RUN_S: f64 = 3600.0;

/// What a figure must be.
#[derive(Debug, Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// A figure with its bound.
#[derive(Debug)]
pub(crate) struct Goal {
    what: String,
    bound: Bound,
    /// NaN if nothing was played that could tell.
    reached: f64,
}

impl Goal {
    fn at_least(what: impl Into<String>, least: f64, reached: f64) -> Self {
        Self { what: what.into(), bound: Bound::AtLeast(least), reached }
    }

    fn at_most(what: impl Into<String>, most: f64, reached: f64) -> Self {
        Self { what: what.into(), bound: Bound::AtMost(most), reached }
    }

    /// Whether the figure is within its bound. One that nothing tells is not.
    pub(crate) fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtLeast(least) => self.reached >= least,
            Bound::AtMost(most) => self.reached <= most,
        }
    }

    /// The figure, its bound, and what came of it.
    pub(crate) fn cells(&self) -> [String; 4] {
        let bound = match self.bound {
            Bound::AtLeast(least) => format!("at least {least:.2}"),
            Bound::AtMost(most) => format!("at most {most:.2}"),
        };
        let verdict = if self.is_met() { "met" } else { "MISSED" };
        [self.what.clone(), bound, format!("{:.2}", self.reached), verdict.to_owned()]
    }
}

/// Goals of what is made up.
pub(crate) fn of_cases(results: &[Outcome], least_days: f64) -> Vec<Goal> {
    let listed = sum::runs(results, 0, sum::is_listed);
    let squeezed = sum::runs(results, 0, |outcome| sum::is_listed(outcome) && outcome.squeezed);
    let a_day = |runs: &Runs<'_>, level| sum::false_alarms(runs, level).1;
    let mut goals =
        vec![Goal::at_least("healthy host-days", least_days, sum::healthy_days(&listed))];
    goals.extend(of_leaks(results));
    for (which, runs) in [("", &listed), (", squeezed hosts", &squeezed)] {
        let what = |level| format!("false {level} a host-day{which}");
        goals.push(Goal::at_most(what("WARN"), 0.5, a_day(runs, Level::Warn)));
        goals.push(Goal::at_most(what("CRITICAL"), 0.05, a_day(runs, Level::Critical)));
    }
    for (name, runs) in sum::broken(results) {
        let delays = sum::delays(&runs);
        let told = percent(Some((delays.len(), runs.len())));
        goals.push(Goal::at_least(format!("{name}: told, %"), 95.0, told));
        goals.push(Goal::at_least(
            format!("{name}: right culprit, %"),
            95.0,
            percent(sum::first_right(&runs)),
        ));
        let most_s = match name {
            "black-holed-peer" => AT_ONCE_S as f64,
            "loop-blocked-once" => 1.0,
            _ => continue,
        };
        let slowest_s = delays.last().copied().unwrap_or(f64::NAN);
        goals.push(Goal::at_most(format!("{name}: told after, s"), most_s, slowest_s));
    }
    goals
}

/// Goals of hosts whose memory runs out slowly: figures of their own, and no rule of others that does better.
fn of_leaks(results: &[Outcome]) -> Vec<Goal> {
    let recall = |rule, least_s| {
        let runs = sum::runs(results, rule, sum::is_slow_leak);
        percent(Some(sum::recall(&sum::leads(&runs, Level::Warn), least_s)))
    };
    let ours = sum::runs(results, 0, sum::is_slow_leak);
    let warned = ours.iter().filter(|(_, v)| v.warned_s[Level::Warn as usize].is_some()).count();
    let soon = sum::naming(&ours).iter().filter(|after_s| **after_s <= NAMED_S).count();
    let rules = results.first().map_or(0, |outcome| outcome.verdicts.len());
    let best = |least_s| (1..rules).map(|rule| recall(rule, least_s)).fold(f64::NAN, f64::max);
    vec![
        Goal::at_least("slow leaks told 30 s before, %", 95.0, recall(0, 30.0)),
        Goal::at_least("slow leaks told 2 min before, %", 80.0, recall(0, 120.0)),
        Goal::at_least("the same, as the best of other rules, %", best(120.0), recall(0, 120.0)),
        Goal::at_least("slow leaks: right culprit, %", 95.0, percent(sum::first_right(&ours))),
        Goal::at_least("slow leaks: named 10 s after WARN, %", 95.0, percent(Some((soon, warned)))),
    ]
}

/// Goals of runs of the laboratory: nobody is blamed on a healthy host; who fails is named, before the first failure where
/// there is time for it.
pub(crate) fn of_runs(runs: &[(String, Outcome)]) -> Vec<Goal> {
    let warn = Level::Warn as usize;
    let goals = runs.iter().flat_map(|(name, outcome)| {
        let ours = &outcome.verdicts[0].1;
        let alarms = f64::from(ours.false_alarms[warn]);
        let silent = Goal::at_most(format!("{name}: false alarms"), 0.0, alarms);
        let named = outcome.truth.onset_s.map(|onset_s| {
            let named_s = ours.named_s[warn].map_or(f64::INFINITY, |at| (at - onset_s) as f64);
            let most_s = match outcome.truth.end_s.map(|end_s| end_s - onset_s) {
                Some(fails_s) if fails_s > AT_ONCE_S => fails_s as f64,
                Some(fails_s) => (fails_s + AT_ONCE_S) as f64,
                None => RUN_S,
            };
            Goal::at_most(format!("{name}: named after, s"), most_s, named_s)
        });
        [Some(silent), named]
    });
    goals.flatten().collect()
}

fn percent(hits: Option<(usize, usize)>) -> f64 {
    hits.map_or(f64::NAN, |(hits, of)| hits as f64 / of as f64 * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cases::{self, QUICK},
        play,
    };

    #[test]
    fn a_bound_holds_up_to_itself_and_nothing_known_is_missed() {
        let check = |goal: Goal, met| assert_eq!(goal.is_met(), met, "{goal:?}");
        check(Goal::at_least("", 95.0, 95.0), true);
        check(Goal::at_least("", 95.0, 94.9), false);
        check(Goal::at_least("", 95.0, f64::NAN), false);
        check(Goal::at_most("", 7.0, 7.0), true);
        check(Goal::at_most("", 7.0, 7.1), false);
        check(Goal::at_most("", 7.0, f64::NAN), false);
        check(Goal::at_most("", f64::MAX, f64::INFINITY), false);
    }

    #[test]
    fn what_was_not_played_is_missed() {
        let results = play::all(&cases::all(QUICK, 1, "loop-blocked-once"));
        let missed = |what: &str| {
            let goals = of_cases(&results, 60.0);
            let found = goals.iter().find(|goal| goal.what.starts_with(what));
            !found.expect("a goal of this name").is_met()
        };
        assert!(missed("healthy host-days"));
        assert!(missed("slow leaks told 30 s before"));
        assert!(!missed("loop-blocked-once: told, %"));
    }
}
