//! The whole way from a snapshot to events and spans.

use std::collections::BTreeSet;

use super::{ALL, CLEARED, Detect, FINDING, Level, Told, told};
use crate::{
    config::{Config, all_settings},
    signal::Output,
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
