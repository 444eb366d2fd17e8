//! What one kernel does, as lines that are kept and compared: programs by how they run, tests by what came of them.

use std::{collections::BTreeSet, fmt};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::skips;

/// Stands for the release in a reason: a list is about a line of kernels.
const RELEASE: &str = "KERNEL";

/// What a line of a test that failed ends with; no list has one.
const FAILED: &str = "FAILED";

/// What came of a kernel.
#[derive(Debug, Default)]
pub(super) struct Account {
    programs: Vec<String>,
    tests: Vec<(String, Came)>,
    /// Tests that passed when they were tried again.
    late: Vec<String>,
}

/// What came of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Came {
    Passed,
    Skipped(String),
    Failed,
}

impl Account {
    /// Reads what `observer check --json` says, and what libtest prints with one thread.
    pub(super) fn read(check: &str, tests: &str) -> Result<Self> {
        let report: Value = serde_json::from_str(check).context("`observer check --json`")?;
        let release = report["kernel"].as_str().context("no kernel in the report")?;
        let rows = report["programs"].as_array().context("no programs in the report")?;
        let programs = rows.iter().map(|row| program(row).replace(release, RELEASE)).collect();
        Ok(Self { programs, tests: read_tests(tests), late: Vec::new() })
    }

    /// Names of the tests that failed.
    pub(super) fn failed(&self) -> Vec<String> {
        let failed = self.tests.iter().filter(|(_, came)| *came == Came::Failed);
        failed.map(|(name, _)| name.clone()).collect()
    }

    /// Tests that failed first, and passed when they were tried again.
    pub(super) fn late(&self) -> impl Iterator<Item = &String> {
        self.late.iter()
    }

    /// Takes what came of the tests that failed when they ran once more, alone.
    pub(super) fn try_again(&mut self, second: Self) {
        for (name, came) in second.tests {
            let first = self.tests.iter_mut().find(|(test, _)| *test == name);
            let Some((_, first)) = first.filter(|(_, first)| *first == Came::Failed) else {
                continue;
            };
            if came == Came::Passed {
                self.late.push(name);
            }
            *first = came;
        }
    }

    /// In a few words.
    pub(super) fn sums(&self) -> String {
        let program = |word: &str| self.programs.iter().filter(|line| line.contains(word)).count();
        let skipped =
            self.tests.iter().filter(|(_, came)| matches!(came, Came::Skipped(_))).count();
        let late = match self.late.len() {
            0 => String::new(),
            count => format!(", {count} at the second try"),
        };
        format!(
            "{} attached, {} degraded, {} impossible; {} tests, {skipped} skipped{late}",
            program(": attached") + program(": standby"),
            program(": degraded"),
            program(": impossible"),
            self.tests.len()
        )
    }

    /// The list with what was seen now: programs, tests that ran and did not fail, and what is known of those that did not run.
    /// If `all` ran, a test that is not among them is no more.
    pub(super) fn written(&self, list: &str, all: bool) -> String {
        let ran = |line: &str| self.tests.iter().any(|(name, _)| is_of(line, name));
        let known = list.lines().filter(|line| line.starts_with("test ") && !all && !ran(line));
        let seen = self.to_string();
        let (tests, programs): (Vec<_>, Vec<_>) =
            seen.lines().partition(|line| line.starts_with("test "));
        let mut tests: Vec<_> =
            tests.into_iter().filter(|line| !line.ends_with(FAILED)).chain(known).collect();
        tests.sort_unstable();
        programs.iter().chain(&tests).flat_map(|line| [line, "\n"]).collect()
    }

    /// Lines of this and not of the list, with `+`; lines of the list that are not in this, with `-`. A test that did not
    /// run is missed only if `all` ran.
    pub(super) fn differences(&self, list: &str, all: bool) -> Vec<String> {
        let seen = self.to_string();
        let (seen, known): (BTreeSet<_>, BTreeSet<_>) =
            (seen.lines().collect(), list.lines().collect());
        let mut lines: Vec<_> = seen.difference(&known).map(|line| format!("+ {line}")).collect();
        let ran = |line: &str| {
            all || !line.starts_with("test ")
                || self.tests.iter().any(|(name, _)| is_of(line, name))
        };
        let missed = known.difference(&seen).filter(|line| ran(line));
        lines.extend(missed.map(|line| format!("- {line}")));
        lines
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.programs {
            writeln!(f, "{line}")?;
        }
        for (name, came) in &self.tests {
            match came {
                Came::Passed => writeln!(f, "test {name}: passed")?,
                Came::Skipped(reason) => writeln!(f, "test {name}: skipped: {reason}")?,
                Came::Failed => writeln!(f, "test {name}: {FAILED}")?,
            }
        }
        Ok(())
    }
}

/// Whether a line of a list is about this test.
fn is_of(line: &str, test: &str) -> bool {
    line.strip_prefix("test ")
        .and_then(|line| line.strip_prefix(test))
        .is_some_and(|rest| rest.starts_with(": "))
}

fn program(row: &Value) -> String {
    let text = |field: &str| row[field].as_str().unwrap_or_default();
    let reason = text("reason");
    let why = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
    format!("{} {}: {} {}{why}", text("signal"), text("name"), text("verdict"), text("hook"))
}

/// Tests by the lines that libtest starts with their names; those that failed are listed at the end.
fn read_tests(text: &str) -> Vec<(String, Came)> {
    let name = |line: &str| Some(line.strip_prefix("test ")?.split_once(" ... ")?.0.to_owned());
    let skips: Vec<_> = text.lines().filter_map(skips::parse).collect();
    let failures: BTreeSet<_> = text
        .rsplit_once("\nfailures:\n")
        .map_or("", |(_, rest)| rest)
        .lines()
        .map_while(|line| line.strip_prefix("    "))
        .collect();
    let came = |name: String| {
        let skip = skips.iter().find(|skip| skip.test == name);
        let came = match skip {
            _ if failures.contains(name.as_str()) => Came::Failed,
            Some(skip) => Came::Skipped(skip.reason.clone()),
            None => Came::Passed,
        };
        (name, came)
    };
    text.lines().filter_map(name).map(came).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECK: &str = r#"{"kernel": "5.10.0-46", "programs": [
        {"signal": "alloc", "name": "task_rows", "verdict": "attached", "hook": "iter/task", "reason": ""},
        {"signal": "oom", "name": "throttled", "verdict": "impossible", "hook": "tp_btf/x", "reason": "kernel 5.10.0-46 has no x"}
    ]}"#;

    const TESTS: &str = "\nrunning 3 tests\ntest a::b ... ok\ntest a::c ... SKIPPED a::c: no node\nok\n\
        test a::d ... FAILED\n\nfailures:\n\n---- a::d stdout ----\nwords\n\nfailures:\n    a::d\n\n\
        test result: FAILED. 2 passed; 1 failed\n";

    const LIST: &str = "alloc task_rows: attached iter/task\n\
        oom throttled: impossible tp_btf/x (kernel KERNEL has no x)\n\
        test a::b: passed\ntest a::c: skipped: no node\ntest a::d: FAILED\n";

    #[test]
    fn what_is_seen_is_written_as_lines() {
        let account = Account::read(CHECK, TESTS).expect("an account");
        assert_eq!(account.to_string(), LIST);
        assert_eq!(account.failed(), ["a::d"]);
        assert_eq!(account.sums(), "1 attached, 0 degraded, 1 impossible; 3 tests, 1 skipped");
    }

    #[test]
    fn who_fails_may_pass_late_and_is_named() {
        let check = |second: &str, failed: &[&str], late: &[&str]| {
            let mut account = Account::read(CHECK, TESTS).expect("an account");
            account.try_again(Account::read(CHECK, second).expect("an account"));
            assert_eq!(account.failed(), failed, "{second}");
            assert_eq!(account.late().collect::<Vec<_>>(), late, "{second}");
            assert_eq!(account.sums().contains("second try"), !late.is_empty());
        };
        check("test a::d ... ok\n", &[], &["a::d"]);
        check("test a::d ... FAILED\n\nfailures:\n    a::d\n", &["a::d"], &[]);
        check("", &["a::d"], &[]);
        check("test a::d ... SKIPPED a::d: no node\nok\n", &[], &[]);
        // Only those that failed run again.
        check("test a::b ... ok\ntest a::e ... ok\n", &["a::d"], &[]);
    }

    #[test]
    fn a_list_is_written_of_what_passed_and_keeps_what_did_not_run() {
        let account = Account::read(CHECK, TESTS).expect("an account");
        let check = |all: bool, known: &str, expected: &[&str]| {
            let written = account.written(known, all);
            let tests: Vec<_> = written.lines().skip(2).collect();
            assert_eq!(tests, expected);
            assert!(LIST.starts_with(
                &written.lines().take(2).map(|line| format!("{line}\n")).collect::<String>()
            ));
        };
        let seen = ["test a::b: passed", "test a::c: skipped: no node"];
        check(true, "", &seen);
        check(true, "old: attached\ntest a::bb: passed\n", &seen);
        let known = "old: attached\ntest a::b: skipped: x\ntest a::bb: passed\ntest a::d: passed\n";
        check(false, known, &[seen[0], "test a::bb: passed", seen[1]]);
    }

    #[test]
    fn differences_go_both_ways() {
        let account = Account::read(CHECK, "test a::b ... ok\n").expect("an account");
        let check = |list: &str, all: bool, expected: &[&str]| {
            assert_eq!(account.differences(list, all), expected);
        };
        check(LIST, false, &[]);
        check(LIST, true, &["- test a::c: skipped: no node", "- test a::d: FAILED"]);
        let attached = LIST.replace("attached", "degraded");
        check(
            &attached,
            false,
            &["+ alloc task_rows: attached iter/task", "- alloc task_rows: degraded iter/task"],
        );
        check(
            &LIST.replace("a::b: passed", "a::b: skipped: x"),
            false,
            &["+ test a::b: passed", "- test a::b: skipped: x"],
        );
    }
}
