//! Tests of how findings are raised, changed and cleared.

use std::time::Duration;

use super::*;
use crate::detect::{Group, judgement::Never};

static KIND: Kind = Kind {
    name: "test.kind",
    signal: "oom",
    help: "",
    reason: "",
    raise: Duration::from_secs(2),
    clear: Duration::from_secs(5),
    hazard: false,
    settings: &[],
    detector: |_| Box::new(Never),
};

static SLOW: Kind = Kind { clear: Duration::from_secs(60), ..KIND };

#[track_caller]
fn check(levels: &str, expect: &str) {
    check_kind(&KIND, levels, expect);
}

/// Levels a second: `.` clear, `w` WATCH, `W` WARN, `C` CRITICAL, `E` EMERGENCY, `?` undecided; changes as `second:what`.
#[track_caller]
fn check_kind(kind: &'static Kind, levels: &str, expect: &str) {
    let mut tracks = Tracks::default();
    let mut told = Vec::new();
    for (second, letter) in levels.chars().enumerate() {
        let boot_ns = second as u64 * 1_000_000_000;
        let at = Instant { boot_ns, unix_ns: boot_ns };
        tracks.begin();
        let state = match letter {
            'w' => State::Firing(Level::Watch),
            'W' => State::Firing(Level::Warn),
            'C' => State::Firing(Level::Critical),
            'E' => State::Firing(Level::Emergency),
            '?' => State::Undecided("why".into()),
            _ => State::Clear,
        };
        let judgement = Judgement { subject: "host".into(), state, ..Judgement::default() };
        let change = tracks.take(kind, judgement, at);
        for (finding, change) in change.into_iter().chain(tracks.end(at)) {
            let what = match change {
                Change::Raised | Change::Level(_) => finding.level.text(),
                Change::Culprit => "culprit",
                Change::Cleared => "clear",
            };
            told.push(format!("{second}:{what}"));
        }
    }
    assert_eq!(told.join(" "), expect, "{levels}");
}

#[test]
fn a_level_must_hold_before_it_is_told() {
    check("WW.WW.WW.", "");
    check("WWW", "2:WARN");
    check("wwWWW", "2:WATCH 4:WARN");
    check("WWCCWW", "2:WARN");
    check("CCC", "2:CRITICAL");
}

#[test]
fn it_must_be_gone_for_a_while_before_it_is_cleared() {
    check("WWW....W....", "2:WARN");
    check("WWW......", "2:WARN 8:clear");
    check("CCCWWWWWW", "2:CRITICAL 8:WARN");
    check("WWW......WWW", "2:WARN 8:clear 11:WARN");
}

#[test]
fn an_emergency_that_was_survived_is_lowered_soon() {
    check_kind(&SLOW, &format!("EEE{}", "W".repeat(62)), "2:EMERGENCY 13:CRITICAL 63:WARN");
    check_kind(&SLOW, &format!("EEE{}", ".".repeat(62)), "2:EMERGENCY 13:CRITICAL 63:clear");
    check_kind(&SLOW, &format!("EEE{}EEE", "C".repeat(20)), "2:EMERGENCY 13:CRITICAL 25:EMERGENCY");
    check_kind(&SLOW, &"EEECCCCCCCCC".repeat(3), "2:EMERGENCY");
    // A kind that is cleared sooner.
    check(&format!("EEE{}", "W".repeat(12)), "2:EMERGENCY 8:WARN");
}

#[test]
fn what_cannot_be_seen_stays_as_it_is() {
    check("WWW????????????", "2:WARN");
    check("????", "");
    check(&format!("WWW{}", "?".repeat(700)), "2:WARN 603:clear");
    // What was told before it went out of sight does not count as held afterwards.
    check(&format!("WWW{}WW", "?".repeat(601)), "2:WARN 603:clear");
}

/// Who is blamed each second, of WARN: `.` nobody, `a` and `b` processes, `A` the group of processes called `a`.
#[track_caller]
fn check_culprits(culprits: &str, expect: &str) {
    let mut tracks = Tracks::default();
    let mut told = Vec::new();
    for (second, letter) in culprits.chars().enumerate() {
        let boot_ns = second as u64 * 1_000_000_000;
        tracks.begin();
        let group = if letter.is_uppercase() { Group::Program } else { Group::Process };
        let party = Party {
            group,
            name: letter.to_lowercase().to_string(),
            // A group's pid is that of whoever is in front.
            pid: Some(if letter.is_uppercase() { boot_ns as u32 } else { letter as u32 }),
            ..Party::default()
        };
        let judgement = Judgement {
            subject: "host".into(),
            state: State::Firing(Level::Warn),
            culprit: (letter != '.').then_some(party),
            ..Judgement::default()
        };
        let change = tracks.take(&KIND, judgement, Instant { boot_ns, unix_ns: boot_ns });
        told.extend(change.map(|(_, change)| format!("{second}:{change:?}")));
    }
    assert_eq!(told.join(" "), expect, "{culprits}");
}

#[test]
fn another_culprit_is_told_once_it_has_lasted() {
    check_culprits(&"a".repeat(60), "2:Raised");
    check_culprits(&format!("{}{}", "a".repeat(20), "b".repeat(20)), "2:Raised 30:Culprit");
    check_culprits(&"aaabbb".repeat(20), "2:Raised");
    check_culprits(&format!("....{}", "a".repeat(20)), "2:Raised 12:Culprit");
    check_culprits(&format!("aaa{}", "A".repeat(60)), "2:Raised");
}

#[test]
fn who_was_told_is_blamed_while_the_finding_stands() {
    // Who is blamed each second; who is heard of it afterwards.
    #[track_caller]
    fn check(culprits: &str, level: Level, expect: &[&str]) {
        let mut tracks = Tracks::default();
        for (second, letter) in culprits.chars().enumerate() {
            let boot_ns = second as u64 * 1_000_000_000;
            let at = Instant { boot_ns, unix_ns: boot_ns };
            tracks.begin();
            if letter != '.' {
                let culprit = Party { name: letter.to_string(), ..Party::default() };
                let (subject, state) = ("host".into(), State::Firing(level));
                let culprit = Some(culprit);
                tracks.take(
                    &KIND,
                    Judgement { subject, state, culprit, ..Judgement::default() },
                    at,
                );
            }
            tracks.end(at);
        }
        let heard: Vec<_> =
            tracks.blamed(&[&KIND]).into_iter().map(|told| told.culprit.name).collect();
        assert_eq!(heard, expect, "{culprits}");
    }
    check("aa", Level::Warn, &[]);
    check("aaa", Level::Warn, &["a"]);
    check("aaa", Level::Watch, &[]);
    check("aaabbb", Level::Warn, &["a"]);
    check("aaabbbbbbbbbbb", Level::Warn, &["b"]);
    check("aaa.....", Level::Warn, &["a"]);
    check("aaa......", Level::Warn, &[]);
}

#[test]
fn subjects_are_bounded_and_counted() {
    let mut tracks = Tracks::default();
    tracks.begin();
    let at = Instant { boot_ns: 0, unix_ns: 0 };
    for subject in 0..MAX_FINDINGS + 3 {
        let state = State::Firing(Level::Warn);
        let judgement = Judgement { subject: subject.to_string(), state, ..Judgement::default() };
        tracks.take(&KIND, judgement, at);
    }
    assert_eq!((tracks.len, tracks.dropped), (MAX_FINDINGS, 3));
}

#[test]
fn who_comes_after_an_emergency_is_not_blamed_for_it() {
    let mut tracks = Tracks::default();
    let mut told = Vec::new();
    for second in 0..70_u64 {
        let at = Instant { boot_ns: second * 1_000_000_000, unix_ns: second };
        tracks.begin();
        let (level, name) =
            if second < 3 { (Level::Emergency, "node") } else { (Level::Warn, "lab") };
        let judgement = Judgement {
            subject: "host".into(),
            state: State::Firing(level),
            culprit: Some(Party { name: name.into(), ..Party::default() }),
            message: name.into(),
            ..Judgement::default()
        };
        if let Some((finding, _)) = tracks.take(&SLOW, judgement, at) {
            let culprit = finding.culprit.as_ref().map_or("", |party| &party.name);
            assert_eq!(culprit, finding.message);
            told.push(format!("{second}:{} {culprit}", finding.level.text()));
        }
    }
    assert_eq!(told, ["2:EMERGENCY node", "13:CRITICAL node", "63:WARN lab"]);
}
