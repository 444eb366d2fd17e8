//! The plan over kernels that described themselves: `observer/tests/kernels/NAME.json` is the `support` part of
//! `observer check --json`, NAME.txt what must come of it.

use std::{fmt::Write as _, fs, path::PathBuf};

use super::*;

/// A kernel without function hooks.
const NO_FTRACE: &str = "6.18-no-ftrace";
const WANTED: Wanted = Wanted { page_faults: true };

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/kernels")
}

fn recorded(name: &str) -> Support {
    let text = fs::read_to_string(folder().join(format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The rows that `check` shows if everything goes as planned.
fn rows(plan: &Plan) -> Vec<Program> {
    let row = |(spec, choice): (&Spec, &Choice)| match choice.ways.first() {
        Some(way) => spec.running(way, &choice.refusal),
        None => spec.impossible(&choice.refusal),
    };
    PROGRAMS.iter().zip(&plan.choices).map(row).collect()
}

fn table(plan: &Plan) -> String {
    let mut text = format!("{:?}\n", plan.rung);
    for row in rows(plan) {
        let verdict = format!("{:?}", row.verdict);
        write!(text, "{:<20} {verdict:<10} {}", row.name, row.hook).unwrap();
        if !row.reason.is_empty() {
            write!(text, " | {} | {}", row.reason, row.remedy).unwrap();
        }
        text.push('\n');
    }
    text
}

/// Rung and verdict of one program.
#[track_caller]
fn check(support: &Support, program: &str, rung: Rung, verdict: Verdict, reason: &str) {
    let plan = plan(support, WANTED);
    let row = rows(&plan).into_iter().find(|row| row.name == program).unwrap();
    assert_eq!((plan.rung, row.verdict), (rung, verdict), "{row:?}");
    assert!(row.reason.contains(reason), "{row:?}");
    assert_eq!(row.reason.is_empty(), row.remedy.is_empty(), "{row:?}");
}

#[test]
fn every_recorded_kernel_gets_the_plan_beside_it() {
    let mut count = 0;
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "json") {
            continue;
        }
        count += 1;
        let name = path.file_stem().unwrap().to_str().unwrap();
        let seen = table(&plan(&recorded(name), WANTED));
        let expected = fs::read_to_string(path.with_extension("txt")).unwrap_or_default();
        assert_eq!(seen, expected, "{name}.txt should be:\n{seen}");
    }
    assert!(count > 0, "no kernels in {}", folder().display());
}

#[test]
fn without_btf_no_typed_program_runs() {
    let mut support = recorded(NO_FTRACE);
    support.btf = super::super::support::Types { error: "gone".to_owned(), ..Default::default() };
    check(
        &support,
        "sched_switch",
        Rung::Classic,
        Verdict::Impossible,
        "no kernel type information",
    );
    check(&support, "kswapd_wake", Rung::Classic, Verdict::Attached, "");
    check(&support, "inet_sock_set_state", Rung::Classic, Verdict::Degraded, "no bytes");
}

#[test]
fn without_a_ring_buffer_records_go_through_a_queue() {
    // As 5.4 to 5.7 are.
    let mut support = recorded(NO_FTRACE);
    let unknown = || Offer::No { reason: "Invalid argument".to_owned(), errno: Some(libc::EINVAL) };
    support.bpf.ring_buffer = unknown();
    check(&support, "mark_victim", Rung::Classic, Verdict::Attached, "");
    check(&support, "tcp_rows", Rung::Classic, Verdict::Impossible, "no ring buffer");
    support.bpf.queue = unknown();
    check(&support, "mark_victim", Rung::Proc, Verdict::Impossible, "no queue");
}

#[test]
fn without_btf_and_tracefs_both_are_named() {
    let mut support = recorded(NO_FTRACE);
    support.tracefs = None;
    support.bpf.ring_buffer = Offer::Untried;
    check(&support, "mark_victim", Rung::Proc, Verdict::Impossible, "no ring buffer; no tracefs");
    check(&support, "sched_switch", Rung::Proc, Verdict::Impossible, "no ring buffer");
}

#[test]
fn an_old_mark_victim_is_seen_in_its_format() {
    let mut support = recorded(NO_FTRACE);
    support.refused.insert(Rung::Full, Offer::Untried);
    let events = &mut support.tracefs.as_mut().unwrap().events;
    events.get_mut("oom/mark_victim").unwrap().retain(|field| field.name == "pid");
    check(&support, "mark_victim", Rung::Classic, Verdict::Degraded, "by its pid only");
}

#[test]
fn what_was_refused_when_tried_is_not_tried_again() {
    let mut support = recorded(NO_FTRACE);
    let refusal =
        Offer::No { reason: "the verifier says no".to_owned(), errno: Some(libc::EINVAL) };
    support.refused.insert(Rung::Full, refusal.clone());
    check(&support, "sched_switch", Rung::Classic, Verdict::Impossible, "the verifier says no");
    support.refused.insert(Rung::Classic, refusal);
    check(&support, "kswapd_wake", Rung::Proc, Verdict::Impossible, "the verifier says no");
}

#[test]
fn a_distribution_may_close_perf_events() {
    let mut support = recorded("6.12");
    check(&support, "page_fault", Rung::Full, Verdict::Attached, "");
    // CAP_PERFMON and CAP_BPF.
    support.privileges.capabilities = "000000c000000000".to_owned();
    check(&support, "page_fault", Rung::Full, Verdict::Impossible, "perf_event_paranoid");
    support.btf.error = "gone".to_owned();
    check(&support, "kswapd_wake", Rung::Proc, Verdict::Impossible, "perf_event_paranoid");
}

#[test]
fn lockdown_is_named_where_it_is_the_cause() {
    let mut support = recorded(NO_FTRACE);
    let refusal = Offer::No { reason: "not permitted".to_owned(), errno: Some(libc::EPERM) };
    support.bpf.tp_btf = refusal;
    support.privileges.lockdown = "confidentiality".to_owned();
    let plan = plan(&support, WANTED);
    assert!(plan.choices[0].refusal.remedy.contains("lockdown"), "{:?}", plan.choices[0]);
}

#[test]
fn one_tracepoint_that_is_missing_takes_one_program_along() {
    let mut support = recorded(NO_FTRACE);
    support.btf.tracepoints.remove("mm_vmscan_throttled");
    let missing = "has no tp_btf/mm_vmscan_throttled";
    check(&support, "reclaim_throttled", Rung::Full, Verdict::Impossible, missing);
    check(&support, "sched_switch", Rung::Full, Verdict::Attached, "");
}

#[test]
fn a_victim_that_is_only_a_pid_is_a_lesser_one() {
    let mut support = recorded(NO_FTRACE);
    support.btf.tracepoints.insert("mark_victim".to_owned(), vec![false]);
    check(&support, "mark_victim", Rung::Full, Verdict::Degraded, "by its pid only");
}

#[test]
fn what_is_switched_off_says_so() {
    let plan = plan(&recorded(NO_FTRACE), Wanted { page_faults: false });
    let row = rows(&plan).into_iter().find(|row| row.name == "page_fault").unwrap();
    assert_eq!((row.verdict, row.remedy.as_str()), (Verdict::Impossible, "set alloc.fault_period"));
}
