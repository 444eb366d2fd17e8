//! From the verdicts of all runs to the figures of one rule.

use std::collections::BTreeMap;

use crate::{
    cases::Class,
    judge::Verdict,
    play::Outcome,
    rule::Level,
    statistics::{poisson_interval, quantile, sorted},
};

/// Seconds of a day.
const DAY_S: f64 = 86_400.0;

/// Runs of one rule.
pub(crate) type Runs<'a> = Vec<(&'a Outcome, &'a Verdict)>;

/// Verdicts of the rule at this place, of the outcomes that `which` takes.
pub(crate) fn runs<'a>(
    results: &'a [Outcome],
    rule: usize,
    which: impl Fn(&Outcome) -> bool,
) -> Runs<'a> {
    let chosen = results.iter().filter(|outcome| which(outcome));
    chosen.map(|outcome| (outcome, &outcome.verdicts[rule].1)).collect()
}

/// Whether memory of the host itself runs out at a rate that leaves time.
pub(crate) fn is_slow_leak(outcome: &Outcome) -> bool {
    outcome.class == Class::SlowLeak && outcome.name != "leak-in-cgroup"
}

/// Whether the run's healthy time counts: packed hosts are a row of their own.
pub(crate) fn is_listed(outcome: &Outcome) -> bool {
    outcome.class != Class::Packed
}

/// Our runs with what is broken, or piles up, by fault.
pub(crate) fn broken(results: &[Outcome]) -> BTreeMap<&'static str, Runs<'_>> {
    let mut faults: BTreeMap<_, Runs<'_>> = BTreeMap::new();
    let which = |outcome: &Outcome| matches!(outcome.class, Class::Broken | Class::PileUp);
    for run in runs(results, 0, which) {
        faults.entry(run.0.name).or_default().push(run);
    }
    faults
}

/// Leads at a level: from the first alarm about the fault to its end, none if it was not told, in order.
pub(crate) fn leads(runs: &Runs<'_>, level: Level) -> Vec<f64> {
    let lead = |(outcome, verdict): &(&Outcome, &Verdict)| {
        let end_s = outcome.truth.end_s?;
        Some(verdict.warned_s[level as usize].map_or(0.0, |at| (end_s - at) as f64))
    };
    sorted(runs.iter().filter_map(lead).collect())
}

/// Leads of alarms of WARN or above that named the right one.
pub(crate) fn named_leads(runs: &Runs<'_>) -> Vec<f64> {
    let lead = |(outcome, verdict): &(&Outcome, &Verdict)| {
        let end_s = outcome.truth.end_s?;
        Some(verdict.named_s[Level::Warn as usize].map_or(0.0, |at| (end_s - at) as f64))
    };
    sorted(runs.iter().filter_map(lead).collect())
}

/// Share of leads of at least so many seconds.
pub(crate) fn recall(leads: &[f64], least_s: f64) -> (usize, usize) {
    (leads.iter().filter(|lead| **lead >= least_s).count(), leads.len())
}

/// Days on which nothing was wrong.
pub(crate) fn healthy_days(runs: &Runs<'_>) -> f64 {
    runs.iter().map(|(outcome, _)| outcome.healthy_s as f64).sum::<f64>() / DAY_S
}

/// False alarms of a level or above: how many, a day, and the 95 % interval of that.
pub(crate) fn false_alarms(runs: &Runs<'_>, level: Level) -> (u32, f64, (f64, f64)) {
    let count = runs.iter().map(|(_, verdict)| verdict.false_alarms[level as usize]).sum();
    let days = healthy_days(runs).max(f64::MIN_POSITIVE);
    let (low, high) = poisson_interval(count);
    (count, f64::from(count) / days, (low / days, high / days))
}

/// Of the runs in which it warned: how often the first warning named the right one. `None` if it never names anybody.
pub(crate) fn first_right(runs: &Runs<'_>) -> Option<(usize, usize)> {
    let names = runs.iter().any(|(_, verdict)| verdict.first_named.is_some());
    let warned = runs.iter().filter(|(_, v)| v.warned_s[Level::Warn as usize].is_some());
    let (mut right, mut all) = (0, 0);
    for (_, verdict) in warned {
        all += 1;
        right += usize::from(verdict.first_named == Some(true));
    }
    (names && all > 0).then_some((right, all))
}

/// Seconds from the first warning to the right name, in order.
pub(crate) fn naming(runs: &Runs<'_>) -> Vec<f64> {
    let warn = Level::Warn as usize;
    let times = runs
        .iter()
        .filter_map(|(_, verdict)| Some((verdict.named_s[warn]? - verdict.warned_s[warn]?) as f64));
    sorted(times.collect())
}

/// Seconds from the onset to the first warning, in order, of those in which there was one.
pub(crate) fn delays(runs: &Runs<'_>) -> Vec<f64> {
    let delay = |(outcome, verdict): &(&Outcome, &Verdict)| {
        Some((verdict.warned_s[Level::Warn as usize]? - outcome.truth.onset_s?) as f64)
    };
    sorted(runs.iter().filter_map(delay).collect())
}

/// Time left as told and as it was, in seconds, while levels of `which` were told.
pub(crate) fn predictions(runs: &Runs<'_>, which: impl Fn(Level) -> bool) -> Vec<(f64, f64)> {
    let mut pairs = Vec::new();
    for (outcome, verdict) in runs {
        let Some(end_s) = outcome.truth.end_s else { continue };
        let told =
            verdict.predictions.iter().filter(|(level, _, at_s)| which(*level) && *at_s < end_s);
        pairs.extend(told.map(|(_, told_s, at_s)| (told_s.max(1.0), (end_s - at_s) as f64)));
    }
    pairs
}

/// Median of |log(time left as told / as it was)|.
pub(crate) fn calibration(pairs: &[(f64, f64)]) -> Option<f64> {
    quantile(
        &sorted(pairs.iter().map(|(told_s, left_s)| (told_s / left_s).ln().abs()).collect()),
        0.5,
    )
}

/// Nanoseconds of a tick: median and 99th of a hundred.
pub(crate) fn cost_ns(runs: &Runs<'_>) -> (f64, f64) {
    let all = sorted(runs.iter().flat_map(|(_, verdict)| &verdict.tick_ns).copied().collect());
    (quantile(&all, 0.5).unwrap_or(0.0), quantile(&all, 0.99).unwrap_or(0.0))
}

/// False alarms of WARN or above by kind, blamed name and case, the most frequent first.
pub(crate) fn false_kinds(runs: &Runs<'_>) -> Vec<(String, u32)> {
    let mut sums: BTreeMap<String, u32> = BTreeMap::new();
    for (outcome, verdict) in runs {
        for ((kind, blamed), count) in &verdict.false_kinds {
            let blamed = if blamed.is_empty() { "nobody" } else { blamed };
            *sums.entry(format!("{kind} blames {blamed} in {}", outcome.name)).or_default() +=
                count;
        }
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    sums
}
