//! The whole way from a snapshot to events and spans.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{ALL, CLEARED, Detect, FINDING, Level, Told, told};
use crate::{
    config::{Config, all_settings},
    signal::{Output, alloc, sched},
    snapshot::{Exporter, Health, Snapshot},
};

const SECOND: u64 = 1_000_000_000;

fn snapshot(second: u64, state: &str) -> Snapshot {
    let exporter =
        Exporter { destination: "c:4317".into(), state: state.into(), ..Exporter::default() };
    Snapshot {
        time_unix_ns: second * SECOND,
        uptime_ns: second * SECOND,
        health: Health { exporters: vec![exporter], ..Health::default() },
        ..Snapshot::default()
    }
}

#[test]
fn a_finding_goes_out_as_events_and_one_trace() {
    let mut detect = Detect::new(&Config::default_for_tests(&all_settings()));
    let mut out = Output::default();
    for second in 1..=200 {
        let state = if (10..30).contains(&second) { "held" } else { "open" };
        detect.tick(&snapshot(second, state), false, &mut out);
        if second == 20 {
            let found: Vec<_> =
                detect.view().findings.iter().map(|f| (&*f.kind, f.level)).collect();
            assert_eq!(found, [("agent.uplink", Level::Warn)]);
        }
    }
    let events: Vec<_> =
        out.batch.events.iter().map(|e| (e.name, e.time_unix_ns / SECOND)).collect();
    assert_eq!(events, [(FINDING, 12), (CLEARED, 40)]);
    let told: Vec<_> = out.batch.events.iter().filter_map(told).collect();
    let [raised, cleared] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((raised.level, raised.state, cleared.state), (Level::Warn, "raised", "cleared"));
    let says = |told: &Told<'_>, start| told.sentence.starts_with(start) && told.advice.len() > 10;
    assert!(says(raised, "WARN agent.uplink: c:4317 does not take"), "{raised:?}");
    assert!(says(cleared, "cleared agent.uplink: c:4317 does not take"), "{cleared:?}");
    let spans: Vec<_> = out
        .batch
        .spans
        .iter()
        .map(|s| (s.name, s.start_unix_ns / SECOND, s.end_unix_ns / SECOND))
        .collect();
    assert_eq!(spans, [("incident", 10, 40), ("finding", 10, 40)]);
    let of_event = out.batch.events[0].context.expect("its place in the trace");
    assert_eq!(of_event, out.batch.spans[1].context);
    assert!(detect.view().findings.is_empty() && detect.view().cleared.len() == 1);
}

/// A host on which nothing happens: two services, a loop that turns, a pool that rests.
fn quiet(uptime_ns: u64) -> Snapshot {
    let gib = 1 << 30;
    let process = |pid, bytes: u64| alloc::ProcessMemory {
        pid,
        rss_bytes: bytes,
        anon_bytes: bytes,
        ..alloc::ProcessMemory::default()
    };
    let turns = uptime_ns / 10_000_000;
    let event_loop = Some(sched::EventLoop { turns, ..sched::EventLoop::default() });
    let thread = sched::Thread { pid: 7, tid: 7, event_loop, ..sched::Thread::default() };
    let mut snapshot = Snapshot { time_unix_ns: uptime_ns, uptime_ns, ..Snapshot::default() };
    snapshot.alloc.processes = vec![process(7, gib), process(8, gib / 2)];
    snapshot.oom.memory_total_bytes = 8 * gib;
    snapshot.oom.memory_available_bytes = 5 * gib;
    snapshot.sched.busy_ratio = 0.3;
    snapshot.sched.threads = vec![thread];
    snapshot
}

proptest! {
    /// Suspended machines, recordings with gaps of hours, or put together from several boots.
    #[test]
    fn time_may_jump_and_nothing_is_found(steps in proptest::collection::vec(-20_000_i64..20_000, 1..60)) {
        let mut detect = Detect::new(&Config::default_for_tests(&all_settings()));
        let mut out = Output::default();
        let mut second = 30_000_u64;
        for step in steps {
            for _ in 0..4 {
                detect.tick(&quiet(second * SECOND), false, &mut out);
                second += 1;
            }
            second = second.saturating_add_signed(step).max(1);
        }
        prop_assert!(detect.view().findings.is_empty(), "{:?}", detect.view().findings);
        prop_assert!(out.batch.events.is_empty());
    }
}

#[test]
fn names_are_unique_and_in_the_docs() {
    let docs = include_str!("../../../docs/signals.md");
    let names: BTreeSet<_> = ALL.iter().map(|kind| kind.name).collect();
    assert_eq!(names.len(), ALL.len());
    for kind in ALL {
        assert!(docs.contains(&format!("`{}`", kind.name)), "docs/signals.md lacks {}", kind.name);
        for setting in kind.settings {
            assert!(docs.contains(&format!("`{}`", setting.key)), "it lacks {}", setting.key);
        }
    }
}
