//! A row a scenario: what several runs of it have in common.

use super::{
    runs::{Outcome, Row},
    score::Score,
};
use crate::bench::markdown;

const HEADING: [&str; 8] = [
    "scenario",
    "incident",
    "runs",
    "first failure after",
    "warned before it",
    "lead, least / median",
    "false alarms",
    "twins: runs, failed, with false alarms",
];

/// The scenarios of these rows, in their order.
pub(super) fn table(rows: &[Row]) -> String {
    let groups = rows.chunk_by(|a, b| a.scenario.name() == b.scenario.name());
    markdown(&HEADING, &groups.map(cells).collect::<Vec<_>>())
}

fn cells(rows: &[Row]) -> Vec<String> {
    let scored = |twin: bool| -> Vec<&Score> {
        let scores = rows.iter().filter_map(|row| match &row.result {
            Outcome::Scored(score) => Some(&**score),
            _ => None,
        });
        scores.filter(|score| score.twin == twin).collect()
    };
    let (faults, twins) = (scored(false), scored(true));
    let failed: Vec<f64> = faults.iter().filter_map(|score| failure_s(score)).collect();
    let leads = sorted(faults.iter().filter_map(|score| lead_s(score)));
    let early = leads.iter().filter(|lead| **lead > 0.0).count();
    let number = |scores: &[&Score], is: fn(&&&Score) -> bool| scores.iter().filter(is).count();
    let scenario = &rows[0].scenario;
    vec![
        scenario.name().to_owned(),
        scenario.text("incident").to_owned(),
        faults.len().to_string(),
        range(&sorted(failed.iter().copied())),
        format!("{early} of {}", failed.len()),
        median(&leads).map_or("-".to_owned(), |middle| format!("{:.1} / {middle:.1}", leads[0])),
        faults.iter().map(|score| score.false_alarms).sum::<usize>().to_string(),
        format!(
            "{}, {}, {}",
            twins.len(),
            number(&twins, |score| failure_s(score).is_some()),
            number(&twins, |score| score.false_alarms > 0)
        ),
    ]
}

/// The first request that failed, or the begin of a hang in which none was sent.
fn failure_s(score: &Score) -> Option<f64> {
    score.failed_s.or_else(|| Some(score.hang?.onset_s))
}

fn lead_s(score: &Score) -> Option<f64> {
    Some(failure_s(score)? - score.warned_s?)
}

fn sorted(numbers: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut numbers: Vec<_> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers
}

fn median(sorted: &[f64]) -> Option<f64> {
    let (low, high) = (sorted.len().checked_sub(1)? / 2, sorted.len() / 2);
    Some(f64::midpoint(sorted[low], sorted[high]))
}

/// The least and the most.
fn range(sorted: &[f64]) -> String {
    match sorted {
        [] => "-".to_owned(),
        [only] => format!("{only:.1}"),
        [least, .., most] => format!("{least:.1} to {most:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{runs::Host, scenarios::Scenario, score::Hang};

    #[test]
    fn runs_of_a_scenario_are_one_row() {
        let row =
            |twin: bool, failed_s: Option<f64>, warned_s: Option<f64>, false_alarms: usize| {
                let score = Score { twin, failed_s, warned_s, false_alarms, ..Score::default() };
                let (scenario, host) = (Scenario::named("a"), Host::default());
                Row { scenario, twin, host, result: Outcome::Scored(Box::new(score)) }
            };
        let mut hung = row(false, None, Some(9.0), 0);
        if let Outcome::Scored(score) = &mut hung.result {
            score.hang = Some(Hang { onset_s: 29.0, length_s: 6.0, open: true });
        }
        let rows = [
            row(false, Some(30.0), Some(20.0), 1),
            row(false, Some(32.0), Some(33.0), 0),
            row(false, Some(31.0), None, 2),
            hung,
            row(true, None, None, 0),
            row(true, Some(3.0), None, 2),
        ];
        let expected = ["a", "", "4", "29.0 to 32.0", "2 of 4", "-1.0 / 10.0", "3", "2, 1, 1"];
        assert_eq!(cells(&rows), expected);
        assert_eq!(cells(&rows[4..5])[5], "-");
    }

    #[test]
    fn the_middle_of_an_even_number_lies_between_two() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[1.0]), Some(1.0));
        assert_eq!(median(&[1.0, 4.0]), Some(2.5));
        assert_eq!(median(&[1.0, 4.0, 9.0]), Some(4.0));
    }
}
