//! From a time line to a verdict: when the host hung, and whether somebody was warned before. Pure.

use serde_json::Value;

use super::timeline::{Event, Timeline};

/// What a run has shown. Times are seconds since the fault began, by the clock of the run.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Score {
    /// Whether the software was healthy.
    pub(super) twin: bool,
    /// The first hang.
    pub(super) hang: Option<Hang>,
    /// The first OOM kill.
    pub(super) oom_kill_s: Option<f64>,
    /// When the first request was sent that failed.
    pub(super) failed_s: Option<f64>,
    /// The first finding of WARN or worse after the fault that names the culprit.
    pub(super) warned_s: Option<f64>,
    /// Findings of any level.
    pub(super) findings: usize,
    /// Findings of WARN or worse that name somebody else, or come before the fault, or on a twin. One that names nobody
    /// (a symptom) is neither right nor wrong.
    pub(super) false_alarms: usize,
    /// The first finding of WARN or worse of each kind and level that names the culprit: what and when.
    pub(super) told: Vec<(String, f64)>,
    /// The first of each kind and level that is a false alarm, with whom it names.
    pub(super) wrong: Vec<(String, f64)>,
    /// What the agent's signals showed: what and when.
    pub(super) signals: Vec<(String, f64)>,
    /// How well the witness could see.
    pub(super) witness: Witness,
}

/// A hang: a shell or a request took more than five seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Hang {
    /// When the first of them was started.
    pub(super) onset_s: f64,
    /// How long it lasted, or at least lasted.
    pub(super) length_s: f64,
    /// Whether it was still on when the run ended.
    pub(super) open: bool,
}

/// The witness's own state.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Witness {
    /// Samples of the vitals.
    pub(super) samples: usize,
    /// Longest time between two of them.
    pub(super) longest_gap_s: f64,
    /// Whether its memory was locked and its class real-time.
    pub(super) hardened: bool,
}

impl Score {
    /// From the first correct warning to the first failed request.
    pub(super) fn lead_s(&self) -> Option<f64> {
        Some(self.failed_s? - self.warned_s?)
    }
}

/// Judges a run; `None` if its fault never began.
pub(super) fn score(run: &Timeline) -> Option<Score> {
    let fault_s = run.of("scenario", "fault_start").next()?.t_s;
    let since = |event: &Event| event.t_s - fault_s;
    let culprits = Culprits::of(run);
    let twin = run.header["twin"] == true;
    let alarms: Vec<_> = run.of("agent", "finding").filter(|event| is_alarm(event)).collect();
    let right = |event: &Event| !twin && event.t_s >= fault_s && culprits.has(event);
    let is_false = |event: &&&Event| {
        twin || event.t_s < fault_s || (Culprits::are_named(event) && !culprits.has(event))
    };
    Some(Score {
        twin,
        hang: hang(run, fault_s),
        oom_kill_s: run.of("witness", "oom_kill").next().map(since),
        failed_s: run.of("witness", "first_failed_request").next().map(since),
        warned_s: alarms.iter().find(|event| right(event)).map(|event| since(event)),
        findings: run.of("agent", "finding").count(),
        false_alarms: alarms.iter().filter(|event| is_false(event)).count(),
        told: firsts(alarms.iter().filter(|event| right(event)), fault_s, kind_and_level),
        wrong: firsts(alarms.iter().filter(is_false), fault_s, with_whom),
        signals: signals(run, fault_s, &culprits),
        witness: witness(run),
    })
}

/// Whether a finding is WARN or worse. A level that is not known counts: better a false alarm than one that is not seen.
fn is_alarm(event: &Event) -> bool {
    let level = event.text("level").to_ascii_lowercase();
    !["info", "notice", "debug", "clear", "watch"].contains(&level.as_str())
}

/// The first of each name, in the order of time.
fn firsts<'a>(
    events: impl Iterator<Item = &'a &'a Event>,
    fault_s: f64,
    name: fn(&Event) -> String,
) -> Vec<(String, f64)> {
    let mut seen = Vec::<(String, f64)>::new();
    for event in events {
        let name = name(event);
        if seen.iter().all(|(known, _)| *known != name) {
            seen.push((name, event.t_s - fault_s));
        }
    }
    seen
}

fn kind_and_level(event: &Event) -> String {
    format!("{} {}", event.text("kind"), event.text("level"))
}

fn with_whom(event: &Event) -> String {
    let name = event.text("culprit_name");
    let of = if name.is_empty() { String::new() } else { format!(" of {name}") };
    kind_and_level(event) + &of
}

fn hang(run: &Timeline, fault_s: f64) -> Option<Hang> {
    let start = run.of("witness", "hang_start").find(|event| event.t_s >= fault_s)?;
    let end = run.of("witness", "hang_end").find(|event| event.t_s >= start.t_s);
    let last_s = run.of("witness", "vitals").last().map_or(start.t_s, |event| event.t_s);
    Some(Hang {
        onset_s: start.t_s - fault_s,
        length_s: end.map_or(last_s, |event| event.t_s) - start.t_s,
        open: end.is_none(),
    })
}

/// Who may be named.
struct Culprits {
    pids: Vec<u64>,
    names: Vec<String>,
}

impl Culprits {
    /// All that the scenario has told in the course of the run: workers are started anew.
    fn of(run: &Timeline) -> Self {
        let list = |key: &'static str| {
            let told = run.of("scenario", "culprit");
            told.filter_map(move |event| event.values[key].as_array()).flatten()
        };
        let name = |value: &Value| value.as_str().map(str::to_owned);
        Self {
            pids: list("pids").filter_map(Value::as_u64).collect(),
            names: list("names").filter_map(name).collect(),
        }
    }

    /// Whether a finding names anybody.
    fn are_named(event: &Event) -> bool {
        !event.values["culprit_pid"].is_null() || !event.text("culprit_name").is_empty()
    }

    /// A pid decides where there is one: an innocent process may have the culprit's name.
    fn has(&self, event: &Event) -> bool {
        match event.values["culprit_pid"].as_u64() {
            Some(pid) => self.pids.contains(&pid),
            None => self.names.iter().any(|name| name == event.text("culprit_name")),
        }
    }
}

/// The first of each thing that the agent's signals showed after the fault.
fn signals(run: &Timeline, fault_s: f64, culprits: &Culprits) -> Vec<(String, f64)> {
    let after = |event: &&Event| event.t_s >= fault_s;
    let left: Vec<&Event> = run.of("agent", "time_left").filter(after).collect();
    let named = |most_s: f64| {
        let soon = |event: &&&Event| event.number("time_left_s").is_some_and(|left| left < most_s);
        left.iter().filter(soon).find(|event| culprits.has(event)).map(|event| event.t_s - fault_s)
    };
    let left = [("culprit grows most", f64::MAX), ("culprit, less than 60 s left", 60.0)];
    let left = left.map(|(what, most_s)| Some((what.to_owned(), named(most_s)?)));
    let first = |what: &'static str| {
        let event = run.of("agent", what).find(after)?;
        Some((what.replace('_', " "), event.t_s - fault_s))
    };
    let spans = run.of("agent", "first_span").filter(after);
    let spans = spans.map(|event| (event.text("name").to_owned(), event.t_s - fault_s));
    left.into_iter()
        .flatten()
        .chain(first("limit_hit"))
        .chain(first("oom_kill"))
        .chain(spans)
        .collect()
}

fn witness(run: &Timeline) -> Witness {
    let times: Vec<f64> = run.of("witness", "vitals").map(|event| event.t_s).collect();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    let state = run.of("witness", "witness").find(|event| event.text("probe") == "vitals");
    let is = |key: &str| state.is_some_and(|event| event.values[key] == true);
    Witness {
        samples: times.len(),
        longest_gap_s: gaps.fold(0.0, f64::max),
        hardened: is("memory_locked") && is("real_time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT: &str = r#"{"t_s":10,"source":"scenario","what":"culprit","pids":[7],"names":["node"]}
{"t_s":20,"source":"scenario","what":"fault_start"}"#;

    fn scored(twin: bool, events: &str) -> Score {
        let text = format!("{{\"lab\":1,\"twin\":{twin}}}\n{FAULT}\n{events}");
        score(&Timeline::parse(&text).expect("a time line")).expect("a fault")
    }

    fn finding(t_s: u32, level: &str, culprit: &str) -> String {
        format!(r#"{{"t_s":{t_s},"source":"agent","what":"finding","level":"{level}",{culprit}}}"#)
    }

    const FAILED: &str = r#"{"t_s":45,"source":"witness","what":"first_failed_request"}"#;

    #[test]
    fn the_lead_is_from_the_first_correct_warning_to_the_first_failure() {
        let events = [
            finding(22, "INFO", r#""culprit_pid":7"#),
            finding(24, "WARN", r#""culprit_pid":8,"culprit_name":"node""#),
            finding(25, "WARN", r#""culprit_name":"node""#),
            finding(26, "CRITICAL", r#""culprit_pid":7"#),
            finding(27, "WARN", r#""kind":"host.responsiveness""#),
            finding(28, "WATCH", r#""culprit_pid":8"#),
            FAILED.to_owned(),
        ];
        let score = scored(false, &events.join("\n"));
        assert_eq!(
            (score.warned_s, score.failed_s, score.lead_s()),
            (Some(5.0), Some(25.0), Some(20.0))
        );
        assert_eq!((score.findings, score.false_alarms), (6, 1));
        let named = |list: &[(String, f64)]| -> Vec<_> {
            list.iter().map(|(what, at)| format!("{} {at}", what.trim())).collect()
        };
        assert_eq!(named(&score.told), ["WARN 5", "CRITICAL 6"]);
        assert_eq!(named(&score.wrong), ["WARN of node 4"]);
    }

    #[test]
    fn a_twin_has_no_culprit() {
        let score = scored(true, &finding(25, "WARN", r#""culprit_pid":7"#));
        assert_eq!((score.warned_s, score.false_alarms), (None, 1));
    }

    #[test]
    fn a_hang_without_end_lasts_as_long_as_somebody_looked() {
        let start = r#"{"t_s":30,"source":"witness","what":"hang_start"}"#;
        let vitals = r#"{"t_s":70,"source":"witness","what":"vitals"}"#;
        let score = scored(false, &format!("{start}\n{vitals}"));
        assert_eq!(score.hang, Some(Hang { onset_s: 10.0, length_s: 40.0, open: true }));
        let end = r#"{"t_s":50,"source":"witness","what":"hang_end"}"#;
        let score = scored(false, &format!("{start}\n{end}\n{vitals}"));
        assert_eq!(score.hang, Some(Hang { onset_s: 10.0, length_s: 20.0, open: false }));
    }

    #[test]
    fn signals_are_told_from_the_fault_on() {
        let left = |t_s: u32, pid: u32, left_s: u32| {
            let who = format!(r#""culprit_pid":{pid},"time_left_s":{left_s}"#);
            format!(r#"{{"t_s":{t_s},"source":"agent","what":"time_left",{who}}}"#)
        };
        let span = r#"{"t_s":33,"source":"agent","what":"first_span","name":"memory.reclaim"}"#;
        let score = scored(
            false,
            &[left(21, 9, 31), left(22, 7, 90), span.to_owned(), left(34, 7, 59)].join("\n"),
        );
        let expected = [
            ("culprit grows most", 2.0),
            ("culprit, less than 60 s left", 14.0),
            ("memory.reclaim", 13.0),
        ];
        assert_eq!(score.signals, expected.map(|(what, at)| (what.to_owned(), at)));
    }

    #[test]
    fn a_witness_that_stood_still_is_seen() {
        let vitals = |t_s: f64| format!(r#"{{"t_s":{t_s},"source":"witness","what":"vitals"}}"#);
        let events = [20.25, 20.5, 23.5].map(vitals).join("\n");
        let witness = scored(false, &events).witness;
        assert_eq!(witness, Witness { samples: 3, longest_gap_s: 3.0, hardened: false });
        let run = Timeline::parse("{\"lab\":1}\n").expect("a time line");
        assert_eq!(score(&run), None);
    }
}
