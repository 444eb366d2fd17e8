//! What a person sees of a hand-made snapshot, as text and on a terminal of memory.

use std::{collections::BTreeSet, sync::Arc};

use proptest::prelude::*;
use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
    style::Color,
};

use super::*;
use crate::snapshot::{Health, Snapshot, VERSION};

fn state_of(snapshot: Snapshot) -> State {
    let mut state = State::default();
    state.update(Ok(Arc::new(snapshot)));
    state
}

/// Positions of panes.
const ALLOC: usize = 1;

fn screen(state: &State, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(frame, state)).unwrap();
    terminal
}

fn lines(state: &State, width: u16, height: u16) -> Vec<String> {
    let terminal = screen(state, width, height);
    let cells = terminal.backend().buffer().content();
    cells
        .chunks(usize::from(width))
        .map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned())
        .collect()
}

#[track_caller]
fn assert_shows(lines: &[String], expect: &str) {
    assert!(
        lines.iter().any(|line| line.contains(expect)),
        "no line has {expect:?}:\n{}",
        lines.join("\n")
    );
}

fn key(state: &mut State, code: KeyCode) -> Flow {
    state.key(KeyEvent::new(code, KeyModifiers::NONE), 5)
}

#[test]
fn text_has_every_table() {
    let snapshot = sample::snapshot();
    let text = text::render(&snapshot);
    for expect in [
        "api-1  2026-11-21 00:33:15 UTC  up 3d04h  kernel 6.18.5  CRITICAL memory.exhaustion",
        "findings: CRITICAL: memory is gone in 95 s: node 4711 grows by 2 MiB/s; do: restart the worker (1 standing hazard)",
        "CRITICAL   1m35s memory.exhaustion   node 4711 (PM2 app api,…  1m35s memory is gone in 95 s: node 4711 grows by 2 MiB/s",
        "WATCH      3d04h redis.thp           redis-server 9                  huge pages are on",
        "undecided        sched.steal         host                            less than a minute of history",
        "CRITICAL memory.exhaustion of host",
        "  do: restart the worker",
        "  who: node 4711 (PM2 app api, worker 3), 92% of the cause",
        "  suffers: sshd 700",
        "  because: memory_available 191M (exact, /proc/meminfo)",
        "  trace: 0af7 span b7ad",
        "WATCH redis.thp of redis-server 9, a standing hazard",
        "agent: 0.2% cpu, 14M rss, 9.0M maps; otlp held (401 Unauthorized), 3 dropped; store open",
        "blind: epoll (no BTF); lost: ring.tcp 5",
        "alloc: node 4711 grows +3.0M/s; 212 processes, 1 fork, 40 execs, 12 short-lived",
        "   4711 node             +3.0M/s  700M  680M    0B    0B pm2 upload/3; 62% Buffer::New < onUpload",
        "    812 postgres                  900M   20M  870M    0B postgresql.service",
        "oom: 700M available of 4.0G, headroom 600M gone in 3m20s by node 4711; no swap; kswapd awake; refaults 440/s, 3 direct reclaims (21ms)",
        "OOM kill    java 999                    1.0G 1m30s ago, its cgroup's limit, set off by postgres 812",
        "memory full host                         12% of the last 10s stalled, 30s since boot, 4 triggers",
        "cgroup      …nit-name-indeed.service    500M 98% of 512M, limit hit 7 times, 1 OOM kill",
        "reclaim     node 4711                   21ms 3 times, longest 15ms, 96 pages freed; pm2 upload/3",
        "tcp: 2 open, 1 reply unread, 9 idle; 30 opened, 28 closed since start",
        "   4711 node         unread        7.0s   2h03m 340us    0 db.internal:5432 postgresql in transaction sent 0B got 2.0M",
        "   4711 node         = 10 open                             db.internal:5432 postgresql 1 unread, 9 idle",
        "   4711 node         idle           40s  >2h03m 340us    0 [::1]:6379 redis sent 0B got 0B",
        "sched: CPUs 93% busy, 2.0% stolen, 42 threads watched, 7 stalls since start, 1 event loop stands still, 1 task in D state",
        "     55      55 jbd2?[2J                       12s D state: io_schedule < wait_on_bit",
        "                CPU quota               30%        /api throttled, 3.0s since boot",
        "   4711    4711 node              99%   12%   7.0s stands still: 6.0s on CPU, 1.0s waiting for one, 0 blocked; pm2 upload/3",
        "limit: jvm_metaspace is 94% full, 3 limits",
        "    999 java            jvm_metaspace      60M    64M   94%",
        "                        host_files        3000 100000  3.0% host",
        "    700 redis-server    redis_memory       90M   none       at most",
        "    999 java                                                Java 17.0.15, 4 full collections (9.0s), 0 young (0)",
        "    600 PM2 v6.0.14: Go                                     daemon of /root/.pm2, 4 workers",
    ] {
        assert!(text.lines().any(|line| line == expect), "no line is {expect:?}:\n{text}");
    }
}

#[test]
fn text_is_bounded_and_says_so() {
    let mut snapshot = sample::snapshot();
    snapshot.alloc.processes = vec![snapshot.alloc.processes[0].clone(); 100];
    let text = text::render(&snapshot);
    assert!(text.contains("... and 80 more (--once --json has all)"), "{text}");
    assert!(!text.contains("cannot be judged"), "its row has said it: {text}");
    let empty = text::render(&Snapshot::default());
    assert!(
        empty.contains(" kinds judged, 0 undecided\n")
            && empty.contains("findings: nothing found; ")
            && empty.contains("alloc: nobody grows; 0 processes")
            && empty.contains("sees all: 0 programs attached"),
        "{empty}"
    );
}

#[test]
fn once_prints_text_or_json() {
    let print = |json| {
        let mut calls = 0;
        let own = Source::Own(Box::new(move || {
            calls += 1;
            Ok(Arc::new(Snapshot { uptime_ns: calls, ..sample::snapshot() }))
        }));
        let mut out = Vec::new();
        once(own, json, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    let back: Snapshot = serde_json::from_str(&print(true)).unwrap();
    assert_eq!((back.version, back.uptime_ns, back.host_name.as_str()), (VERSION, 2, "api-1"));
    assert_eq!(print(true).lines().count(), 1);
    assert!(print(false).starts_with("api-1  "));
    let broken = Source::Own(Box::new(|| anyhow::bail!("no BPF here")));
    assert_eq!(once(broken, true, &mut Vec::new()).unwrap_err().to_string(), "no BPF here");
}

#[test]
fn small_terminal_shows_all_panes_and_more_of_the_focused() {
    let state = state_of(sample::snapshot());
    let summaries = [
        " 1 findings  from row 1 of 3",
        "; do: restart the",
        " 2 alloc  node 4711 grows",
        " 3 oom  700M available",
        " 4 tcp  2 open",
        " 5 sched  CPUs 93%",
        " 6 limit  jvm_metaspace is 94% full, 3 limits",
    ];
    let smallest = lines(&state, 80, 24);
    summaries.iter().for_each(|summary| assert_shows(&smallest, summary));
    let seen = lines(&state, 80, 28);
    summaries.iter().for_each(|summary| assert_shows(&seen, summary));
    for expect in
        ["api-1", "agent: 0.2%", "blind: epoll", "CRITICAL: memory is gone in 95 s", "q quit"]
    {
        assert_shows(&seen, expect);
    }
    assert_shows(&seen, "sched.steal");
    assert_shows(&seen, "pm2 upload/3");
    assert_shows(&seen, "OOM kill");
    assert_shows(&seen, "unread");
    assert_shows(&seen, "D state");
    assert_eq!(seen.iter().filter(|line| line.contains("PID")).count(), 4, "{seen:#?}");
}

#[test]
fn tiny_terminal_shows_the_focused_pane_only() {
    let mut state = state_of(sample::snapshot());
    key(&mut state, KeyCode::Char('4'));
    let seen = lines(&state, 60, 12);
    assert_shows(&seen, " 4 tcp ");
    assert!(!seen.iter().any(|line| line.contains("1 findings")), "{seen:#?}");
}

#[test]
fn urgency_is_coloured() {
    let mut state = state_of(sample::snapshot());
    state.focus = ALLOC;
    let terminal = screen(&state, 100, 40);
    let buffer = terminal.backend().buffer();
    let colour_of = |word: &str| {
        let position = lines(&state, 100, 40)
            .iter()
            .enumerate()
            .find_map(|(y, line)| Some((line.find(word)?, y)))
            .unwrap();
        buffer[(u16::try_from(position.0).unwrap(), u16::try_from(position.1).unwrap())].fg
    };
    assert_eq!(colour_of("+3.0M/s  700M"), Color::Red);
    assert_eq!(colour_of("OOM kill"), Color::Red);
    assert_eq!(colour_of("blind"), Color::Red);
    assert_eq!(colour_of("api-1"), Color::Red);
    assert_eq!(colour_of("postgresql.service"), Color::Reset);
    let mut calm = sample::snapshot();
    calm.health = Health::default();
    calm.detect.findings.retain(|finding| finding.hazard);
    assert_eq!(header::lines(&calm).map(|(_, tone)| tone), [Tone::Plain; 3]);
}

#[test]
fn keys_move_the_focus() {
    let mut state = state_of(sample::snapshot());
    let mut check = |code, expect: usize| {
        assert_eq!(key(&mut state, code), Flow::Continue);
        assert_eq!(state.focus, expect, "{code:?}");
    };
    check(KeyCode::Tab, 1);
    check(KeyCode::BackTab, 0);
    check(KeyCode::BackTab, 5);
    check(KeyCode::Tab, 0);
    check(KeyCode::Char('3'), 2);
    check(KeyCode::Char('9'), 2);
    check(KeyCode::Enter, 2);
    assert_eq!(state.details, None, "its rows have said all");
}

#[test]
fn a_finding_is_opened_and_left() {
    let mut state = state_of(sample::snapshot());
    let mut check = |code, expect: Option<usize>, shown: &str| {
        assert_eq!(key(&mut state, code), Flow::Continue);
        assert_eq!(state.details, expect, "{code:?}");
        assert_shows(&lines(&state, 80, 24), shown);
        assert_shows(&lines(&state, 80, 24), "api-1");
    };
    check(KeyCode::Enter, Some(0), "because: memory_available 191M (exact, /proc/meminfo)");
    check(KeyCode::Down, Some(1), "WATCH redis.thp of redis-server 9, a standing hazard");
    check(KeyCode::Down, Some(2), "sched.steal of host cannot be judged: less than a minute");
    check(KeyCode::Down, Some(2), "cannot be judged");
    check(KeyCode::Home, Some(0), "who: node 4711");
    check(KeyCode::Char('q'), None, " 2 alloc ");
    check(KeyCode::Right, Some(0), "do: restart the worker");
    check(KeyCode::Tab, None, " 1 findings ");
    state.details = Some(99);
    assert_shows(&lines(&state, 80, 24), "it is gone");
}

#[test]
fn keys_scroll_within_the_rows() {
    let mut snapshot = sample::snapshot();
    snapshot.alloc.processes = (1..=30)
        .map(|pid| crate::signal::alloc::ProcessMemory {
            pid,
            ..snapshot.alloc.processes[0].clone()
        })
        .collect();
    let mut state = state_of(snapshot);
    state.focus = ALLOC;
    let mut check = |code, expect: usize| {
        key(&mut state, code);
        assert_eq!(state.scroll[ALLOC], expect, "{code:?}");
    };
    check(KeyCode::Up, 0);
    check(KeyCode::Down, 1);
    check(KeyCode::PageDown, 6);
    check(KeyCode::End, 25);
    check(KeyCode::Down, 25);
    check(KeyCode::PageUp, 20);
    check(KeyCode::Home, 0);
    key(&mut state, KeyCode::End);
    let seen = lines(&state, 80, 24);
    assert_shows(&seen, "from row 26 of 30");
    assert_shows(&seen, "     30 postgres");
}

#[test]
fn pause_help_and_quit() {
    let mut state = state_of(sample::snapshot());
    key(&mut state, KeyCode::Char('p'));
    state.update(Ok(Arc::new(Snapshot { host_name: "other".into(), ..Snapshot::default() })));
    let seen = lines(&state, 80, 24);
    assert_shows(&seen, "PAUSED");
    assert_shows(&seen, "api-1");
    key(&mut state, KeyCode::Char('p'));
    state.update(Ok(Arc::new(Snapshot { host_name: "other".into(), ..Snapshot::default() })));
    assert_shows(&lines(&state, 80, 24), "other");

    key(&mut state, KeyCode::Char('h'));
    assert_shows(&lines(&state, 80, 24), "keep what is shown");
    assert_eq!(key(&mut state, KeyCode::Char('q')), Flow::Continue);
    assert!(!state.help);
    assert_eq!(key(&mut state, KeyCode::Char('q')), Flow::Quit);
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(state.key(interrupt, 5), Flow::Quit);
}

#[test]
fn trouble_stays_visible_until_data_comes_again() {
    let mut state = State::default();
    assert_shows(&lines(&state, 80, 24), "waiting for the first snapshot");
    state.update(Err("the agent closed the connection".into()));
    assert_shows(&lines(&state, 80, 24), "no newer data: the agent closed the connection");
    state.update(Ok(Arc::new(sample::snapshot())));
    assert!(!lines(&state, 80, 24).iter().any(|line| line.contains("no newer data")));
}

/// The JSON form is a contract: no field without its line.
#[test]
fn every_field_is_documented() {
    fn collect(value: &serde_json::Value, names: &mut BTreeSet<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (name, value) in fields {
                    // The keys of `processes` are pids.
                    if name.parse::<u32>().is_err() {
                        names.insert(name.clone());
                    }
                    collect(value, names);
                }
            }
            serde_json::Value::Array(items) => items.iter().for_each(|item| collect(item, names)),
            _ => {}
        }
    }
    let mut names = BTreeSet::new();
    collect(&serde_json::to_value(sample::snapshot()).unwrap(), &mut names);
    let document = include_str!("../../../docs/snapshot-json.md");
    let missing: Vec<_> =
        names.iter().filter(|name| !document.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "docs/snapshot-json.md lacks {missing:?}");
    assert!(
        document.contains(&format!("`version` is {VERSION}")),
        "docs/snapshot-json.md is of another version"
    );
}

proptest! {
    /// Any size of terminal, any focus: nothing panics and the focused pane is there.
    #[test]
    fn every_size_draws(width in 1u16..200, height in 1u16..80, focus in 0..panes::COUNT, row in proptest::option::of(0usize..5), empty: bool) {
        let mut state = state_of(if empty { Snapshot::default() } else { sample::snapshot() });
        (state.focus, state.details) = (focus, row);
        let seen = lines(&state, width, height);
        prop_assert_eq!(seen.len(), usize::from(height));
        if width >= 20 && height >= 8 && row.is_none() {
            let name = ["1 findings", "2 alloc", "3 oom", "4 tcp", "5 sched", "6 limit"][focus];
            prop_assert!(seen.iter().any(|line| line.contains(name)), "{:?}", seen);
        }
        prop_assert!(view::page_rows(height) <= usize::from(height));
    }
}
