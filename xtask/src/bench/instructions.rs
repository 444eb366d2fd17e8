//! `bench instructions`: instructions that each hot program takes for an event, in a guest whose clock counts them.
//!
//! The guest's time is that of its instructions, so the figures do not depend on how busy this machine is, and a budget can
//! be asserted anywhere. Caches and branch predictors are not in them: nanoseconds come from `bench stats`.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::table::{Spread, markdown};
use crate::{
    command::{command, run},
    setup::{self, Purpose},
    skips::Skip,
    vm::{Disk, Guest, Job, Unavailable},
};

/// An instruction takes 2^0 ns of the guest's time: its clock reads instructions, and ticks of the timer are rare in them.
const SHIFT: u8 = 0;

/// Starts and reads the loads, in the guest. `sleep` costs nothing there, and lets what booting began come to its end.
const SCRIPT: &str = "sleep 60; exec /job/instructions /job/nothing >/out/instructions.jsonl";

/// Line of kernels that the budgets are for.
pub(super) const BUDGET_KERNEL: &str = "6.12";

/// Most instructions an event, beyond those of an empty program on the same hook: a tenth above what was measured.
/// A program that needs more has got dearer: mend it, or raise its budget here with the reason in the commit.
const BUDGETS: &[(&str, f64)] = &[
    ("row, task", 990.0),
    ("row, socket", 740.0),
    ("row, file", 205.0),
    ("switch, not watched", 72.0),
    ("switch, turn of a watched event loop", 357.0),
    ("switch, watched, no event loop", 235.0),
    ("TCP state, port not watched", 149.0),
    ("TCP state, port watched", 378.0),
    ("page fault, sampled", 1352.0),
    ("fork", 22.0),
    ("exec", 22.0),
    ("exit", 335.0),
    ("system call, no poll", 27.0),
    ("system call, poll of a watched loop", 195.0),
    ("function, poll of a watched loop", 180.0),
    ("packet, port not looked at", 151.0),
    ("packet, end of a reply", 474.0),
];

/// Rounds of a load that differ by more than this share tell nothing about what one event adds to it.
const RESOLVED: f64 = 0.2;

/// A case, of one boot or of several.
struct Row {
    case: String,
    program: String,
    hook: String,
    /// Why the kernel does not run the program; empty if it does.
    refused: String,
    /// Time of the load, without a program on the hook.
    bare_ns: Vec<f64>,
    empty: Vec<Sample>,
    ours: Vec<Sample>,
}

/// One round with one program, as `tests/instructions` prints it.
#[derive(Clone, Copy)]
struct Sample {
    load_ns: f64,
    runs: f64,
    run_ns: f64,
}

/// What a case takes, in instructions an event.
struct Cost {
    /// In our program, less those in an empty one.
    net: f64,
    /// Net of the least and of the most round.
    range: (f64, f64),
    /// What the load takes more than without a program; `None` if its rounds differ too much.
    whole: Option<f64>,
}

/// Measures on a kernel, prints the table, and fails if a program is over its budget.
pub(super) fn instructions(kernel: &str, boots: usize) -> Result<()> {
    let tools = setup::ensure(Purpose::Vm)?;
    let build = ["build", "--release", "--package", "observer-tests", "--bin", "instructions"];
    run(&mut tools.cargo(&build))?;
    fs::create_dir_all("target/vm")?;
    let nothing = PathBuf::from("target/vm/nothing");
    let cc = ["cc", "-O1", "-static", "-nostdlib", "-o"];
    run(command(&cc).arg(&nothing).arg("tests/load/nothing.c"))?;
    let files = vec![
        (PathBuf::from("target/release/instructions"), "/job/instructions".to_owned()),
        (nothing, "/job/nothing".to_owned()),
    ];
    let guest = Guest {
        mem_bytes: 1 << 30,
        icount: Some(SHIFT),
        disk: Some(Disk { iops: None }),
        // A huge page would take the place of 512 faults.
        append: "transparent_hugepage=never".to_owned(),
        time_limit: Duration::from_secs(300),
        ..Guest::new(kernel.parse()?)
    };
    let job =
        Job { command: ["sh", "-c", SCRIPT].map(str::to_owned).to_vec(), files, ..Job::default() };
    let mut boots_rows = Vec::new();
    let mut release = String::new();
    for _ in 0..boots {
        let outcome = guest.run(&job)?;
        ensure!(
            outcome.status == Some(0),
            "the guest did not measure ({}, status {:?}); see {}",
            outcome.ended,
            outcome.status,
            outcome.log.display()
        );
        println!(
            "{}: {:.0} s, {:.0} s of CPU",
            outcome.release,
            outcome.wall.as_secs_f64(),
            outcome.cpu.as_secs_f64()
        );
        let text = fs::read_to_string(outcome.out.join("instructions.jsonl"))?;
        boots_rows.push(text.lines().map(parse).collect::<Result<Vec<_>>>()?);
        release = outcome.release;
    }
    let merged = merge(boots_rows)?;
    print!("\nInstructions an event on {release}, {boots} boots\n\n{}", table(&merged));
    for row in merged.iter().filter(|row| !row.refused.is_empty()) {
        println!("not measured: {}: {}", row.case, row.refused);
    }
    if kernel == BUDGET_KERNEL {
        return judge(&merged);
    }
    println!(
        "budgets are for {BUDGET_KERNEL}: a helper of the kernel takes more in one than in another"
    );
    Ok(())
}

/// The budgets, as every test run has them: on one boot. Gives the skip where the kernel cannot be had.
///
/// # Errors
/// Where a program is over its budget, or was not measured.
pub(crate) fn budgets() -> Result<Vec<Skip>> {
    match instructions(BUDGET_KERNEL, 1) {
        Err(error) if error.is::<Unavailable>() => {
            let test = "bench::instructions".to_owned();
            Ok(vec![Skip { test, reason: format!("{error:#}") }])
        }
        measured => measured.map(|()| Vec::new()),
    }
}

fn parse(line: &str) -> Result<Row> {
    let value: Value = serde_json::from_str(line).with_context(|| format!("no row: {line}"))?;
    let word = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let list = |name: &str| value[name].as_array().into_iter().flatten();
    let samples = |name: &str| list(name).map(sample).collect::<Option<Vec<_>>>();
    Ok(Row {
        case: word("case"),
        program: word("program"),
        hook: word("hook"),
        refused: word("refused"),
        bare_ns: list("bare_ns").filter_map(Value::as_f64).collect(),
        empty: samples("empty").with_context(|| format!("an empty program did not run: {line}"))?,
        ours: samples("ours").with_context(|| format!("a program did not run: {line}"))?,
    })
}

fn sample(value: &Value) -> Option<Sample> {
    let number = |name: &str| value[name].as_f64();
    let runs = number("runs").filter(|runs| *runs > 0.0)?;
    Some(Sample { load_ns: number("load_ns")?, runs, run_ns: number("run_ns")? })
}

/// The same cases of several boots as one.
fn merge(boots: Vec<Vec<Row>>) -> Result<Vec<Row>> {
    let mut boots = boots.into_iter();
    let mut merged = boots.next().context("no boot")?;
    for rows in boots {
        for (all, row) in merged.iter_mut().zip(rows) {
            ensure!(all.case == row.case, "boots measured different cases");
            all.bare_ns.extend(row.bare_ns);
            all.empty.extend(row.empty);
            all.ours.extend(row.ours);
        }
    }
    Ok(merged)
}

impl Row {
    fn cost(&self) -> Option<Cost> {
        let in_program = |sample: &Sample| instructions_of(sample.run_ns) / sample.runs;
        let floor = Spread::of(&self.empty.iter().map(in_program).collect::<Vec<_>>())?.median;
        let net: Vec<_> = self.ours.iter().map(|sample| in_program(sample) - floor).collect();
        let added =
            |(sample, bare): (&Sample, &f64)| instructions_of(sample.load_ns - bare) / sample.runs;
        let whole: Vec<_> = self.ours.iter().zip(&self.bare_ns).map(added).collect();
        let (low, high) = range(&whole);
        let typical = Spread::of(&whole)?.median;
        Some(Cost {
            net: Spread::of(&net)?.median,
            range: range(&net),
            whole: (high - low <= RESOLVED * typical).then_some(typical),
        })
    }

    fn budget(&self) -> Option<f64> {
        BUDGETS.iter().find(|(case, _)| *case == self.case).map(|(_, budget)| *budget)
    }
}

fn instructions_of(guest_ns: f64) -> f64 {
    guest_ns / f64::from(1_u32 << SHIFT)
}

fn range(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(*value), high.max(*value))
    })
}

fn table(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        let cost = row.cost()?;
        let runs: f64 = row.ours.iter().map(|sample| sample.runs).sum();
        Some(vec![
            row.case.clone(),
            format!("`{}`", row.program),
            row.hook.clone(),
            format!("{runs:.0}"),
            format!("{:.1}", cost.net),
            format!("{:.1} to {:.1}", cost.range.0, cost.range.1),
            row.budget().map_or_else(|| "-".to_owned(), |budget| format!("{budget:.0}")),
            cost.whole.map_or_else(|| "-".to_owned(), |whole| format!("{whole:.0}")),
        ])
    };
    let heading =
        ["event", "program", "hook", "events", "net", "rounds", "budget", "with the call of it"];
    markdown(&heading, &rows.iter().filter_map(cells).collect::<Vec<_>>())
}

/// Fails on a program over its budget, and on a case or budget without the other.
fn judge(rows: &[Row]) -> Result<()> {
    let mut problems = Vec::new();
    for row in rows {
        match (row.cost(), row.budget()) {
            (None, _) => problems.push(format!("{}: not measured: {}", row.case, row.refused)),
            (Some(cost), None) => {
                problems.push(format!("{}: no budget; it takes {:.0}", row.case, cost.net));
            }
            (Some(cost), Some(budget)) if cost.net > budget => {
                problems.push(format!(
                    "{}: {:.0} instructions, budget {budget:.0}",
                    row.case, cost.net
                ));
            }
            _ => {}
        }
    }
    let unused = BUDGETS.iter().filter(|(case, _)| rows.iter().all(|row| row.case != *case));
    problems.extend(unused.map(|(case, _)| format!("{case}: has a budget and was not measured")));
    if problems.is_empty() {
        Ok(())
    } else {
        bail!("budgets do not hold:\n  {}", problems.join("\n  "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"case":"a","program":"p","hook":"tp_btf/x","bare_ns":[1000,1010],
        "empty":[{"load_ns":1100,"runs":10,"run_ns":480},{"load_ns":1100,"runs":10,"run_ns":480}],
        "ours":[{"load_ns":1600,"runs":10,"run_ns":980},{"load_ns":1610,"runs":10,"run_ns":1000}]}"#;

    #[test]
    fn costs_are_net_of_an_empty_program() {
        let row = parse(LINE).expect("a row");
        let cost = row.cost().expect("measured");
        assert_eq!((cost.net, cost.range, cost.whole), (51.0, (50.0, 52.0), Some(60.0)));
        assert!(
            table(&[row]).contains("| a | `p` | tp_btf/x | 20 | 51.0 | 50.0 to 52.0 | - | 60 |")
        );
    }

    #[test]
    fn a_load_that_varies_tells_nothing() {
        let row = parse(&LINE.replace("[1000,1010]", "[1000,1310]")).expect("a row");
        assert_eq!(row.cost().expect("measured").whole, None);
    }

    #[test]
    fn a_program_that_never_ran_is_no_measurement() {
        assert!(parse(&LINE.replace("\"runs\":10", "\"runs\":0")).is_err());
        assert!(parse("nonsense").is_err());
    }

    #[test]
    fn a_refused_program_is_told() {
        let line = r#"{"case":"a","refused":"p: no","bare_ns":[],"empty":[],"ours":[]}"#;
        let error = judge(&[parse(line).expect("a row")]).expect_err("not measured");
        assert!(error.to_string().contains("a: not measured: p: no"), "{error}");
    }

    #[test]
    fn boots_are_merged_case_by_case() {
        let boot = || vec![parse(LINE).expect("a row")];
        let merged = merge(vec![boot(), boot()]).expect("the same cases");
        assert_eq!((merged.len(), merged[0].ours.len()), (1, 4));
        let mut other = boot();
        other[0].case = "b".to_owned();
        assert!(merge(vec![boot(), other]).is_err());
    }

    #[test]
    fn a_case_without_a_budget_is_told() {
        let error = judge(&[parse(LINE).expect("a row")]).expect_err("no budget");
        assert!(error.to_string().contains("a: no budget; it takes 51"), "{error}");
    }
}
