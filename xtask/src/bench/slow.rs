//! `bench slow`: CPU time per operation, alternated, with A/A beside it.

use std::collections::BTreeMap;

use anyhow::Result;

use super::{
    Choice,
    cgroup::Cgroup,
    servers::remove,
    subject::{Subject, state_folder},
    table::{Spread, duration, markdown},
    workload::Workload,
};

/// Nanoseconds per operation, one a round.
type Runs = BTreeMap<(Workload, Subject), Vec<f64>>;

/// Measures, and prints the tables.
pub(super) fn slow(choice: &Choice) -> Result<()> {
    let workloads = choice.workloads(Workload::ALL);
    let mut subjects = vec![Subject::Base, Subject::Base2];
    subjects.extend(&choice.only);
    let cgroup = Cgroup::new()?;
    let servers: Vec<_> =
        workloads.iter().map(|workload| workload.server(&cgroup)).collect::<Result<_>>()?;
    // Caches, connections and the database's buffers are not what the first round shall show.
    workloads.iter().try_for_each(|workload| workload.run(&cgroup).map(drop))?;
    let mut runs = Runs::new();
    for round in 0..choice.rounds {
        for subject in rotated(&subjects, round) {
            println!("round {} of {}: {}", round + 1, choice.rounds, subject.name());
            let running = subject.start()?;
            for workload in &workloads {
                runs.entry((*workload, subject)).or_default().push(workload.run(&cgroup)?);
            }
            drop(running);
        }
    }
    drop(servers);
    remove(&state_folder());
    print!("\n{}", factors(&runs, &workloads, &subjects));
    print!("\n{}", extras(&runs, &workloads, &choice.only));
    Ok(())
}

/// The list, beginning elsewhere in every round.
fn rotated<T: Copy>(list: &[T], round: usize) -> impl Iterator<Item = T> {
    list.iter().copied().cycle().skip(round % list.len().max(1)).take(list.len())
}

/// Of each round, the mean of the two runs with nothing attached.
fn bases(runs: &Runs, workload: Workload) -> Vec<f64> {
    let (first, second) = (&runs[&(workload, Subject::Base)], &runs[&(workload, Subject::Base2)]);
    first.iter().zip(second).map(|(first, second)| f64::midpoint(*first, *second)).collect()
}

fn factors(runs: &Runs, workloads: &[Workload], subjects: &[Subject]) -> String {
    let heading: Vec<_> =
        ["workload", "base"].into_iter().chain(subjects[1..].iter().map(|s| s.name())).collect();
    let row = |workload: &Workload| {
        let bases = bases(runs, *workload);
        let mut row = vec![workload.name().to_owned(), median(&bases)];
        for subject in &subjects[1..] {
            // A/A is the one base against the other.
            let against = if *subject == Subject::Base2 {
                &runs[&(*workload, Subject::Base)]
            } else {
                &bases
            };
            let ratios: Vec<_> = runs[&(*workload, *subject)]
                .iter()
                .zip(against)
                .map(|(run, base)| run / base)
                .collect();
            row.push(Spread::factor(&ratios));
        }
        row
    };
    markdown(&heading, &workloads.iter().map(row).collect::<Vec<_>>())
}

/// What each adds to an operation, and how much of what a tool of others adds ours does.
fn extras(runs: &Runs, workloads: &[Workload], subjects: &[Subject]) -> String {
    let mut heading = vec!["workload".to_owned()];
    heading.extend(subjects.iter().map(|subject| format!("{} adds", subject.name())));
    let others: Vec<_> = subjects.iter().filter(|subject| **subject != Subject::Observer).collect();
    let compared = subjects.contains(&Subject::Observer);
    heading.extend(
        others.iter().filter(|_| compared).map(|other| format!("observer / {}", other.name())),
    );
    let row = |workload: &Workload| {
        let bases = bases(runs, *workload);
        let added = |subject: Subject| -> Vec<f64> {
            runs[&(*workload, subject)].iter().zip(&bases).map(|(run, base)| run - base).collect()
        };
        let mut row = vec![workload.name().to_owned()];
        row.extend(subjects.iter().map(|subject| median(&added(*subject))));
        for other in others.iter().filter(|_| compared) {
            let middle = |subject| Spread::of(&added(subject)).map_or(0.0, |spread| spread.median);
            row.push(ratio(middle(Subject::Observer), middle(**other)));
        }
        row
    };
    let heading: Vec<_> = heading.iter().map(String::as_str).collect();
    markdown(&heading, &workloads.iter().map(row).collect::<Vec<_>>())
}

fn median(values: &[f64]) -> String {
    Spread::of(values).map_or_else(String::new, |spread| duration(spread.median))
}

/// A ratio, if the other adds anything that can be told from nothing.
fn ratio(ours: f64, other: f64) -> String {
    if other > 0.0 { format!("{:.2}", ours / other) } else { "-".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_is_first_once() {
        let check = |round, expected: &[u8]| {
            assert_eq!(rotated(&[1_u8, 2, 3], round).collect::<Vec<_>>(), expected);
        };
        check(0, &[1, 2, 3]);
        check(1, &[2, 3, 1]);
        check(3, &[1, 2, 3]);
    }

    #[test]
    fn ratios_are_to_the_mean_of_both_bases() {
        let runs = Runs::from([
            ((Workload::Pipe, Subject::Base), vec![90.0, 90.0]),
            ((Workload::Pipe, Subject::Base2), vec![110.0, 110.0]),
            ((Workload::Pipe, Subject::Observer), vec![105.0, 105.0]),
            ((Workload::Pipe, Subject::Runqlat), vec![120.0, 120.0]),
        ]);
        let ours = [Subject::Observer, Subject::Runqlat];
        let table = factors(
            &runs,
            &[Workload::Pipe],
            &[&[Subject::Base, Subject::Base2], &ours[..]].concat(),
        );
        assert!(
            table.contains("| 100.00 ns | x1.222 [1.222-1.222] | x1.050 [1.050-1.050] |"),
            "{table}"
        );
        let table = extras(&runs, &[Workload::Pipe], &ours);
        assert!(table.contains("| 5.00 ns | 20.00 ns | 0.25 |"), "{table}");
    }
}
