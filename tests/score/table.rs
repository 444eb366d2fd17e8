//! The page of the report: what the figures are, and whose.

use std::time::Duration;

use crate::{
    Options,
    cases::Class,
    goals::Goal,
    play::Outcome,
    rule::Level,
    statistics::{quantile, share_interval, sorted},
    sum,
};

/// False alarms shown by kind.
const SHOWN_KINDS: usize = 12;

/// The whole page.
pub(crate) fn page(
    results: &[Outcome],
    runs: &[(String, Outcome)],
    goals: &[Goal],
    options: &Options,
    cost_ms: (f64, f64),
    took: Duration,
) -> String {
    let recordings = recordings(runs);
    if results.is_empty() {
        return recordings;
    }
    let names: Vec<&str> = results[0].verdicts.iter().map(|(name, _)| *name).collect();
    let all = sum::runs(results, 0, sum::is_listed);
    let days = sum::healthy_days(&all);
    let faults = results.iter().filter(|outcome| outcome.truth.onset_s.is_some()).count();
    let mut page = format!(
        "# How early, how often wrong, and whom it blames\n\n\
         Made by `cargo xtask lab score{} --seed {}`: {days:.1} healthy host-days and {faults} faults through every rule, in {:.0} s. [score.md](../score.md) says what is played and how it is counted.\n",
        if options.quick { " --quick" } else { "" },
        options.seed,
        took.as_secs_f64(),
    );
    page += "\n## Goals\n\n";
    page += &goal_table(goals);
    page += "\n## Hosts whose memory runs out, at most 5 MB/s on 4 GB\n\n";
    page += &main_table(results, &names);
    page += "\n## Time left, as told by observer and as it was\n\n";
    page += &calibration_table(results);
    page += "\n## False alarms\n\n";
    page += &alarm_table(results, &names);
    page += "\n## Other ways for memory to run out\n\n";
    page += &class_table(results, &names);
    page += "\n## What is broken, or piles up (observer alone; no other rule here looks at it)\n\n";
    page += &broken_table(results);
    page += "\n## False alarms by look-alike (WARN or above)\n\n";
    page += &look_alike_table(results, &names);
    page += &kinds(results);
    page += &format!(
        "\n## Cost\n\nAll detectors of observer, a tick on a host of 2,000 processes and 4,096 rows of sockets (the bound of a \
         snapshot): {:.2} ms of CPU, {:.2} ms in one of a hundred.\n",
        cost_ms.0, cost_ms.1
    );
    page += &recordings;
    page
}

/// Runs of the laboratory: how each rule did.
fn recordings(runs: &[(String, Outcome)]) -> String {
    let Some((_, first)) = runs.first() else { return String::new() };
    let mut heading = vec!["run", "failed after", "observer: right name", "false alarms"];
    heading.extend(first.verdicts.iter().map(|(name, _)| *name));
    let rows = runs.iter().map(|(name, outcome)| {
        let truth = &outcome.truth;
        let after = |at: Option<u64>| match (at, truth.onset_s) {
            (Some(at), Some(onset_s)) => format!("{} s", at.saturating_sub(onset_s)),
            _ => "-".to_owned(),
        };
        let lead = |at: Option<u64>| match (at, truth.end_s) {
            (Some(at), Some(end_s)) => format!("{} s", end_s as i64 - at as i64),
            (Some(_), None) => after(at) + " on",
            _ => "-".to_owned(),
        };
        let warn = Level::Warn as usize;
        let ours = &outcome.verdicts[0].1;
        let mut cells = vec![name.clone(), after(truth.end_s), lead(ours.named_s[warn])];
        cells.push(ours.false_alarms[warn].to_string());
        cells.extend(outcome.verdicts.iter().map(|(_, verdict)| match truth.onset_s {
            Some(_) => lead(verdict.warned_s[warn]),
            None => format!("{} false", verdict.false_alarms[warn]),
        }));
        cells
    });
    let table = markdown(&heading, &rows.collect::<Vec<_>>());
    let wolves: String = runs
        .iter()
        .flat_map(|(name, outcome)| {
            outcome.verdicts[0].1.false_kinds.iter().map(move |row| (name, row))
        })
        .map(|(name, ((kind, blamed), count))| {
            format!("- {name}: {count} x {kind}, blames {blamed}\n")
        })
        .collect();
    format!(
        "\n## Runs of the laboratory: lead of WARN\n\n\
         From the first alarm to the first failed request, hang or kill; \"on\": nothing had failed when the run ended, so \
         many seconds after the fault began. A run without fault shows false alarms; of observer's, each is told below.\n\n{table}\n{wolves}"
    )
}

fn goal_table(goals: &[Goal]) -> String {
    let rows: Vec<_> = goals.iter().map(|goal| goal.cells().to_vec()).collect();
    markdown(&["figure", "goal", "reached", ""], &rows)
}

fn main_table(results: &[Outcome], names: &[&str]) -> String {
    let heading = [
        "rule",
        "lead WARN p10 / p50",
        "CRITICAL p10 / p50",
        "EMERGENCY p10 / p50",
        "recall at 30 s",
        "2 min",
        "10 min",
        "at 30 s, right name",
        "culprit top-1",
        "to culprit p50 / p90",
        "time left, error",
        "µs a tick p50 / p99",
    ];
    let mut rows = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let runs = sum::runs(results, at, sum::is_slow_leak);
        let warn = sum::leads(&runs, Level::Warn);
        let lead = |level| pair(&sum::leads(&runs, level), (0.1, 0.5));
        let cost = sum::cost_ns(&sum::runs(results, at, |_| true));
        rows.push(vec![
            (*name).to_owned(),
            lead(Level::Warn),
            lead(Level::Critical),
            lead(Level::Emergency),
            share(sum::recall(&warn, 30.0)),
            share(sum::recall(&warn, 120.0)),
            share(sum::recall(&warn, 600.0)),
            share(sum::recall(&sum::named_leads(&runs), 30.0)),
            sum::first_right(&runs).map_or("names nobody".to_owned(), share),
            pair(&sum::naming(&runs), (0.5, 0.9)),
            sum::calibration(&sum::predictions(&runs, |_| true))
                .map_or("-".to_owned(), |error| format!("{error:.2}")),
            format!("{:.1} / {:.1}", cost.0 / 1e3, cost.1 / 1e3),
        ]);
    }
    let runs = sum::runs(results, 0, sum::is_slow_leak);
    let possible: Vec<f64> = runs
        .iter()
        .filter_map(|(outcome, _)| Some((outcome.truth.end_s? - outcome.truth.onset_s?) as f64))
        .collect();
    let mut text = markdown(&heading, &rows);
    text += &format!(
        "\nOf {} such hosts, {} hung at least 30 s after the fault began, {} two minutes, {} ten. A run without warning has lead 0.\n",
        possible.len(),
        sum::recall(&possible, 30.0).0,
        sum::recall(&possible, 120.0).0,
        sum::recall(&possible, 600.0).0,
    );
    text
}

/// What a level means in seconds, on the hosts of the main table.
fn calibration_table(results: &[Outcome]) -> String {
    let heading = [
        "told at",
        "times",
        "told p10 / p50 / p90",
        "was p10 / p50 / p90",
        "told by was p10 / p50 / p90",
        "error",
    ];
    let runs = sum::runs(results, 0, sum::is_slow_leak);
    let rows = Level::ALL.iter().map(|level| {
        let pairs = sum::predictions(&runs, |told| told == *level);
        let three = |of: fn(&(f64, f64)) -> f64, digits: usize| {
            let values = sorted(pairs.iter().map(of).collect());
            let at = |share| {
                quantile(&values, share).map_or("-".to_owned(), |v| format!("{v:.digits$}"))
            };
            format!("{} / {} / {}", at(0.1), at(0.5), at(0.9))
        };
        vec![
            level.text().to_owned(),
            pairs.len().to_string(),
            three(|pair| pair.0, 0) + " s",
            three(|pair| pair.1, 0) + " s",
            three(|pair| pair.0 / pair.1, 2),
            sum::calibration(&pairs).map_or("-".to_owned(), |error| format!("{error:.2}")),
        ]
    });
    markdown(&heading, &rows.collect::<Vec<_>>())
}

fn alarm_table(results: &[Outcome], names: &[&str]) -> String {
    let heading =
        ["rule", "WARN a host-day", "CRITICAL a host-day", "squeezed: WARN", "squeezed: CRITICAL"];
    let rows = names.iter().enumerate().map(|(at, name)| {
        let all = sum::runs(results, at, sum::is_listed);
        let squeezed =
            sum::runs(results, at, |outcome| sum::is_listed(outcome) && outcome.squeezed);
        let cells = [&all, &squeezed].map(|runs| {
            [Level::Warn, Level::Critical].map(|level| rate(sum::false_alarms(runs, level)))
        });
        [vec![(*name).to_owned()], cells.concat()].concat()
    });
    let rows: Vec<_> = rows.collect();
    let squeezed = sum::runs(results, 0, |outcome| sum::is_listed(outcome) && outcome.squeezed);
    let mut text = markdown(&heading, &rows);
    text += &format!(
        "\nWith the exact 95 % interval of Poisson; {:.1} of the host-days are squeezed, so that a quarter of RAM is left at the peak. An alarm that returns within five minutes is the same one.\n",
        sum::healthy_days(&squeezed)
    );
    text
}

/// Which runs a column is about.
type Which = fn(&Outcome) -> bool;

fn class_table(results: &[Outcome], names: &[&str]) -> String {
    let classes: [(&str, Which); 4] = [
        ("5 to 60 MB/s", |o| {
            o.class == Class::FastLeak && o.name != "leak-in-cgroup" && o.name != "redis-fork"
        }),
        ("control group's limit", |o| o.name == "leak-in-cgroup"),
        ("Redis fork", |o| o.name == "redis-fork"),
        ("spikes", |o| o.class == Class::Spike),
    ];
    let mut heading = vec!["rule".to_owned()];
    heading.extend(classes.iter().map(|(name, which)| {
        format!("{name} ({}): lead p50, recall 30 s", sum::runs(results, 0, which).len())
    }));
    let rows = names.iter().enumerate().map(|(at, name)| {
        let mut cells = vec![(*name).to_owned()];
        for (_, which) in &classes {
            let runs = sum::runs(results, at, which);
            let leads = sum::leads(&runs, Level::Warn);
            let median =
                quantile(&leads, 0.5).map_or("-".to_owned(), |lead| format!("{lead:.0} s"));
            cells.push(format!("{median}, {}", share(sum::recall(&leads, 30.0))));
        }
        cells
    });
    let rows: Vec<_> = rows.collect();
    markdown(&heading.iter().map(String::as_str).collect::<Vec<_>>(), &rows)
}

fn broken_table(results: &[Outcome]) -> String {
    let heading =
        ["fault", "runs", "told", "after p50 / p90", "at most", "lead p50", "culprit top-1"];
    let kinds = sum::broken(results);
    let rows = kinds.iter().map(|(name, runs)| {
        let delays = sum::delays(runs);
        let leads = sum::leads(runs, Level::Warn);
        vec![
            (*name).to_owned(),
            runs.len().to_string(),
            share((delays.len(), runs.len())),
            pair(&delays, (0.5, 0.9)),
            delays.last().map_or("-".to_owned(), |most| format!("{most:.0} s")),
            quantile(&leads, 0.5).map_or("-".to_owned(), |lead| format!("{lead:.0} s")),
            sum::first_right(runs).map_or("-".to_owned(), share),
        ]
    });
    markdown(&heading, &rows.collect::<Vec<_>>())
}

fn look_alike_table(results: &[Outcome], names: &[&str]) -> String {
    let mut kinds: Vec<&str> =
        results.iter().filter(|o| o.class <= Class::Packed).map(|o| o.name).collect();
    kinds.dedup();
    kinds.push("before faults");
    let mut heading = vec!["look-alike", "host-days"];
    heading.extend(names);
    let rows = kinds.iter().map(|kind| {
        let which = |outcome: &Outcome| {
            if outcome.class <= Class::Packed {
                outcome.name == *kind
            } else {
                *kind == "before faults"
            }
        };
        let days = sum::healthy_days(&sum::runs(results, 0, which));
        let mut cells = vec![(*kind).to_owned(), format!("{days:.1}")];
        cells.extend((0..names.len()).map(|at| {
            sum::false_alarms(&sum::runs(results, at, which), Level::Warn).0.to_string()
        }));
        cells
    });
    markdown(&heading, &rows.collect::<Vec<_>>())
}

/// Why our own detectors cried wolf.
fn kinds(results: &[Outcome]) -> String {
    let kinds = sum::false_kinds(&sum::runs(results, 0, |_| true));
    let mut text = String::new();
    if !kinds.is_empty() {
        text += "\nOur own, by kind:\n\n";
    }
    for (what, count) in kinds.iter().take(SHOWN_KINDS) {
        text += &format!("- {count} x {what}\n");
    }
    text
}

fn pair(sorted: &[f64], shares: (f64, f64)) -> String {
    match (quantile(sorted, shares.0), quantile(sorted, shares.1)) {
        (Some(low), Some(high)) => format!("{low:.0} / {high:.0} s"),
        _ => "-".to_owned(),
    }
}

fn share((hits, of): (usize, usize)) -> String {
    if of == 0 {
        return "-".to_owned();
    }
    let (low, high) = share_interval(hits, of);
    let percent = |share: f64| (share * 100.0).clamp(0.0, 100.0);
    format!("{:.0} % ({:.0}-{:.0})", hits as f64 / of as f64 * 100.0, percent(low), percent(high))
}

fn rate((count, a_day, (low, high)): (u32, f64, (f64, f64))) -> String {
    format!("{a_day:.2} ({low:.2}-{high:.2}; {count})")
}

/// A table in Markdown.
fn markdown(heading: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
    let mut text = line(heading.to_vec());
    text += &line(vec!["---"; heading.len()]);
    for row in rows {
        text += &line(row.iter().map(String::as_str).collect());
    }
    text
}

/// One run in a line, for those who look for a reason.
pub(crate) fn line(outcome: &Outcome) -> String {
    let verdict = &outcome.verdicts[0].1;
    let since = |at: Option<u64>| match (at, outcome.truth.onset_s) {
        (Some(at), Some(onset_s)) => format!("{}", at - onset_s),
        _ => "-".to_owned(),
    };
    let mut text = format!(
        "{} seed {:x}, {:.1} GiB{}, rate {:.2}: ended {}, false {:?}",
        outcome.name,
        outcome.seed,
        outcome.total_bytes / 1_073_741_824.0,
        if outcome.squeezed { " squeezed" } else { "" },
        outcome.rate,
        since(outcome.truth.end_s),
        verdict.false_alarms,
    );
    text += &format!(
        ", told {:?}, named {:?}, blamed {}",
        verdict.warned_s.map(since),
        verdict.named_s.map(since),
        verdict.blamed.as_deref().unwrap_or("nobody"),
    );
    for (at_s, kind, says) in &verdict.false_said {
        text += &format!("\n  false at {at_s}: {kind}: {says}");
    }
    text
}
