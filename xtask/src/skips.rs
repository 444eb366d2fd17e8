//! Skipped tests: a test prints `SKIPPED <test>: <reason>`; a skip that nobody expects here fails the task.

use std::fmt;

/// A test that did not run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Skip {
    /// Its name.
    pub(crate) test: String,
    /// Why.
    pub(crate) reason: String,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.test, self.reason)
    }
}

/// The skip that a line of test output tells of. The line may start with libtest's own words.
pub(crate) fn parse(line: &str) -> Option<Skip> {
    let at = line.find("SKIPPED ")?;
    if !line[..at].is_empty() && !line[..at].ends_with(' ') {
        return None;
    }
    let (test, reason) = line[at + "SKIPPED ".len()..].split_once(": ")?;
    let name = !test.is_empty() && !test.contains(char::is_whitespace);
    name.then(|| Skip { test: test.to_owned(), reason: reason.trim().to_owned() })
}

/// What this machine lacks, as words of `tests/expected-skips.txt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lack {
    /// Not root.
    Root,
    /// No BPF, or no BTF of the kernel.
    Bpf,
    /// No archive of Debian among the sources of packages: kernels of guests come from it.
    Archive,
}

impl Lack {
    fn word(self) -> &'static str {
        match self {
            Self::Root => "no-root",
            Self::Bpf => "no-bpf",
            Self::Archive => "no-archive",
        }
    }
}

/// Skips that the list does not allow where these things are lacking.
///
/// A line of the list is what is lacking, then the test, in which a `*` at the end stands for any rest.
pub(crate) fn unexpected<'a>(skips: &'a [Skip], list: &str, lacks: &[Lack]) -> Vec<&'a Skip> {
    let allowed: Vec<_> = list
        .lines()
        .filter_map(|line| line.split('#').next()?.trim().split_once(char::is_whitespace))
        .filter(|(word, _)| lacks.iter().any(|lack| lack.word() == *word))
        .map(|(_, pattern)| pattern.trim())
        .collect();
    let is_allowed = |skip: &Skip| {
        allowed.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => skip.test.starts_with(start),
            None => skip.test == *pattern,
        })
    };
    skips.iter().filter(|skip| !is_allowed(skip)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skip(test: &str) -> Skip {
        Skip { test: test.to_owned(), reason: "not root".to_owned() }
    }

    #[test]
    fn skips_are_read_from_test_output() {
        let check = |line: &str, expected: Option<(&str, &str)>| {
            let found = parse(line);
            let found = found.as_ref().map(|skip| (skip.test.as_str(), skip.reason.as_str()));
            assert_eq!(found, expected, "{line}");
        };
        check("SKIPPED tcp::counts: not root", Some(("tcp::counts", "not root")));
        check(
            "test tcp::counts ... SKIPPED tcp::counts: no BTF: none",
            Some(("tcp::counts", "no BTF: none")),
        );
        check("test tcp::counts ... ok", None);
        check("SKIPPED", None);
        check("SKIPPED two words: reason", None);
        check("NOTSKIPPED tcp::counts: reason", None);
    }

    #[test]
    fn only_listed_skips_are_expected() {
        let list = "# comment\nno-root tcp::*   # all of it\nno-bpf  sched::gap\n";
        let skips = [skip("tcp::counts"), skip("sched::gap"), skip("sched::gaps")];
        let check = |lacks: &[Lack], expected: &[&str]| {
            let found: Vec<_> =
                unexpected(&skips, list, lacks).iter().map(|skip| skip.test.as_str()).collect();
            assert_eq!(found, expected, "{lacks:?}");
        };
        check(&[], &["tcp::counts", "sched::gap", "sched::gaps"]);
        check(&[Lack::Root], &["sched::gap", "sched::gaps"]);
        check(&[Lack::Root, Lack::Bpf], &["sched::gaps"]);
    }
}
