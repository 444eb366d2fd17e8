//! Test runs that are watched: what they print goes on, and what is skipped, fails, or passes late is kept.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    command::line,
    skips::{Skip, parse},
};

/// Lines kept of a panic: the place and the first of its message.
const PANIC_LINES: usize = 8;

/// Lines kept of all panics of a run.
const WHY_LINES: usize = 80;

/// More failures than this are no chance, and no second try is given.
pub(crate) const SECOND_TRIES: usize = 3;

/// What is known of the tests that ran.
#[derive(Default)]
pub(crate) struct Seen {
    /// Those that were skipped.
    pub(crate) skips: Vec<Skip>,
    /// Those that failed, and passed when tried again.
    pub(crate) second_tries: Vec<String>,
}

impl Seen {
    /// Where nothing is tried again.
    pub(crate) fn of_skips(skips: Vec<Skip>) -> Self {
        Self { skips, second_tries: Vec::new() }
    }
}

/// Runs tests, hands their output to `say`, and collects the skips in it.
///
/// # Errors
/// Names the tests that failed, with the lines that say why: the output of a run is long.
pub(crate) fn watch(tests: &mut Command, seen: &mut Seen, say: fn(&str)) -> Result<()> {
    let run = Run::of(tests, &mut seen.skips, say)?;
    if run.passed { Ok(()) } else { bail!("{}", run.failure(tests)) }
}

/// Likewise, for tests that hold times of real processes to bounds: a machine that is shared can stand still for longer than
/// they allow. Those that fail are tried again, once and alone, and are named if they pass then.
///
/// # Errors
/// As [`watch`], if more than a few fail, or one fails again.
pub(crate) fn watch_timed(tests: &mut Command, seen: &mut Seen, say: fn(&str)) -> Result<()> {
    let first = Run::of(tests, &mut seen.skips, say)?;
    if first.passed {
        return Ok(());
    }
    if first.failed.is_empty() || first.failed.len() > SECOND_TRIES {
        bail!("{}", first.failure(tests));
    }
    say(&format!("{}\nonce more, alone:", first.failure(tests)));
    let second = Run::of(tests.arg("--exact").args(&first.failed), &mut seen.skips, say)?;
    if !second.passed {
        bail!("{}", second.failure(tests));
    }
    seen.second_tries.extend(first.failed);
    Ok(())
}

/// What came of one run.
struct Run {
    passed: bool,
    status: String,
    /// Names of the tests that failed, as libtest lists them at its end.
    failed: Vec<String>,
    /// Where and why.
    why: Vec<String>,
}

impl Run {
    fn of(tests: &Command, skips: &mut Vec<Skip>, say: fn(&str)) -> Result<Self> {
        say(&format!("$ {}", line(tests)));
        // One pipe for both outputs keeps their order.
        let mut child = Command::new("sh");
        let script = r#"exec "$@" 2>&1"#;
        child.args(["-c", script, "sh"]).arg(tests.get_program()).args(tests.get_args());
        child.envs(tests.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut child = child.stdout(Stdio::piped()).spawn().context("cannot start sh")?;
        let pipe = child.stdout.take().context("no pipe")?;
        let (mut failures, mut panics) = (Failures::default(), Panics::default());
        for line in BufReader::new(pipe).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            say(&line);
            skips.extend(parse(&line));
            failures.read(&line);
            panics.read(&line);
        }
        let status = child.wait()?;
        Ok(Self {
            passed: status.success(),
            status: status.to_string(),
            failed: failures.names,
            why: panics.lines,
        })
    }

    fn failure(&self, tests: &Command) -> String {
        let shown = self.failed.iter().chain(&self.why).map(|line| format!("\n  {line}"));
        format!("`{}` failed: {}{}", line(tests), self.status, shown.collect::<String>())
    }
}

/// The list of names under the last `failures:`.
#[derive(Default)]
struct Failures {
    names: Vec<String>,
    listed: bool,
}

impl Failures {
    fn read(&mut self, line: &str) {
        if line == "failures:" {
            self.listed = true;
            self.names.clear();
        } else if let Some(name) = line.strip_prefix("    ").filter(|_| self.listed) {
            self.names.push(name.to_owned());
        } else if !line.is_empty() {
            self.listed = false;
        }
    }
}

/// The first lines of each panic.
#[derive(Default)]
struct Panics {
    lines: Vec<String>,
    left: usize,
}

impl Panics {
    fn read(&mut self, line: &str) {
        if line.contains(" panicked at ") {
            self.left = PANIC_LINES;
        }
        if self.left > 0 && self.lines.len() < WHY_LINES {
            self.left -= 1;
            self.lines.push(line.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::command;

    fn shell(script: &str) -> Command {
        command(&["sh", "-c", script, "sh"])
    }

    #[test]
    fn skips_are_collected_from_both_outputs() {
        let script =
            "echo 'SKIPPED a::b: no root'; echo 'test c ... SKIPPED c: no BTF' >&2; echo ok";
        let mut seen = Seen::default();
        watch(&mut shell(script), &mut seen, |_| {}).expect("succeeds");
        let shown: Vec<_> = seen.skips.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["a::b: no root", "c: no BTF"]);
    }

    #[test]
    fn what_failed_is_told_at_the_end() {
        let script = "echo 'thread x panicked at a.rs:1'; echo why; echo; echo failures:; echo; echo 'failures:'; \
                      echo '    a::b'; echo '    c'; echo; echo 'test result: FAILED'; echo '    no name'; exit 101";
        let error = watch(&mut shell(script), &mut Seen::default(), |_| {}).unwrap_err();
        let shown = error.to_string();
        let wanted = "exit status: 101\n  a::b\n  c\n  thread x panicked at a.rs:1\n  why\n";
        assert!(shown.contains(wanted), "{shown}");
    }

    #[test]
    fn a_second_try_is_for_few_and_is_named() {
        let check = |script: &str, expected: Result<&[&str], &str>| {
            let mut seen = Seen::default();
            let result = watch_timed(&mut shell(script), &mut seen, |_| {});
            let shown = result.map_err(|error| error.to_string());
            match expected {
                Ok(names) => {
                    assert!(shown.is_ok(), "{script}: {shown:?}");
                    assert_eq!(seen.second_tries, names, "{script}");
                }
                Err(part) => {
                    assert!(shown.is_err_and(|shown| shown.contains(part)), "{script}");
                    assert!(seen.second_tries.is_empty(), "{script}");
                }
            }
        };
        let failing = |names: &str| format!("echo failures:; printf '    %s\\n' {names}");
        check("exit 0", Ok(&[]));
        // The second try has the name as an argument.
        check(
            &format!(
                "[ \"$1\" = --exact ] && [ \"$2\" = a ] && exit 0; {}; exit 101",
                failing("a")
            ),
            Ok(&["a"]),
        );
        check(&format!("{}; exit 101", failing("a")), Err("--exact a"));
        check(
            &format!("[ \"$1\" = --exact ] && exit 0; {}; exit 101", failing("a b c d")),
            Err("exit status: 101\n  a\n  b"),
        );
        check("exit 3", Err("exit status: 3"));
    }
}
