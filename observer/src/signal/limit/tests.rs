//! Readings in, rows out.

use proptest::prelude::*;

use super::{Bound, Facts, Jvm, Limit, Redis, Runtime, View};
use crate::{
    limits::Reading,
    signal::{
        Output,
        testing::{Anyone, SECOND, at, check_numbers, check_view, pid, quiet, text},
    },
    snapshot::{MAX_ROWS, Snapshot},
};

fn bound(resource: &str, pid: u32, used: u64, limit: Option<u64>) -> Bound {
    Bound { resource: resource.into(), pid, used, limit, ..Bound::default() }
}

fn jvm(pid: u32, full_collections: u64, old_used_bytes: u64) -> Runtime {
    let facts = Facts::Jvm(Jvm { full_collections, old_used_bytes, ..Jvm::default() });
    Runtime { pid, name: "java".into(), facts }
}

fn tick(limit: &mut Limit, second: u64, reading: Option<&Reading>) -> View {
    let mut readings = quiet(at(second * SECOND));
    readings.limits = reading;
    limit.tick(&readings);
    limit.view()
}

#[test]
fn the_fullest_comes_first_and_stays_until_the_next_reading() {
    let mut limit = Limit::default();
    let rows = vec![
        bound("a", 1, 10, Some(100)),
        bound("b", 2, 5, None),
        bound("c", 3, 9, Some(10)),
        bound("d", 4, 7, Some(0)),
    ];
    let reading = Reading { rows, ..Reading::default() };
    let view = tick(&mut limit, 1, Some(&reading));
    let order: Vec<_> = view.rows.iter().map(|row| row.resource.as_str()).collect();
    assert_eq!(order, ["d", "c", "a", "b"]);
    assert_eq!(tick(&mut limit, 9, None), view);
    assert_eq!(view.read_unix_ns, at(SECOND).unix_ns);
}

#[test]
fn the_floor_of_a_heap_is_what_a_full_collection_leaves() {
    let mut limit = Limit::default();
    let mut check = |full, is_open, old, expected: Option<u64>| {
        let mut runtime = jvm(7, full, old);
        if let Facts::Jvm(jvm) = &mut runtime.facts {
            jvm.in_full_collection = is_open;
        }
        let reading = Reading { runtimes: vec![runtime], ..Reading::default() };
        let view = tick(&mut limit, 1, Some(&reading));
        let [Runtime { facts: Facts::Jvm(jvm), .. }] = view.runtimes.as_slice() else { panic!() };
        assert_eq!(jvm.old_after_full_bytes, expected, "after {full} collections");
    };
    check(3, false, 50, None);
    check(3, false, 70, None);
    // It has begun: what is there is from before.
    check(4, true, 70, None);
    check(4, false, 30, Some(30));
    check(4, false, 60, Some(30));
    check(6, true, 40, Some(40));
    check(6, true, 45, Some(40));
    check(6, false, 35, Some(35));
    check(0, false, 5, None);
    check(1, false, 4, Some(4));
}

#[test]
fn a_jvm_that_is_gone_is_forgotten() {
    let mut limit = Limit::default();
    let reading = Reading { runtimes: vec![jvm(7, 1, 1)], ..Reading::default() };
    tick(&mut limit, 1, Some(&reading));
    assert_eq!(limit.collected.len(), 1);
    tick(&mut limit, 2, Some(&Reading::default()));
    assert!(limit.collected.is_empty());
}

#[test]
fn shares_are_exported_by_resource() {
    let mut limit = Limit::default();
    let rows = vec![
        bound("files", 7, 1, Some(4)),
        bound("host_files", 0, 1, Some(2)),
        bound("x", 1, 1, None),
    ];
    tick(&mut limit, 1, Some(&Reading { rows, ..Reading::default() }));
    let mut out = Output::default();
    limit.points(1, &mut Anyone, &mut out);
    let found: Vec<_> = out
        .batch
        .points
        .iter()
        .map(|point| (pid(&point.subject), text(&point.attrs, "observer.limit.resource")))
        .collect();
    assert_eq!(found, [(0, "host_files"), (7, "files")]);
}

#[test]
fn runtimes_have_their_kind_beside_their_facts() {
    let redis = Redis { port: 6379, maxmemory_bytes: Some(u64::MAX), ..Redis::default() };
    let runtime = Runtime { pid: 7, name: "redis-server".into(), facts: Facts::Redis(redis) };
    let json = serde_json::to_value(&runtime).unwrap();
    assert_eq!((json["kind"].as_str(), json["port"].as_u64()), (Some("redis"), Some(6379)));
    assert_eq!(serde_json::from_value::<Runtime>(json).unwrap(), runtime);
    let older = r#"{"pid":7,"name":"java","kind":"jvm","version":"8"}"#;
    let read: Runtime = serde_json::from_str(older).unwrap();
    assert!(matches!(read.facts, Facts::Jvm(jvm) if jvm.version == "8"));
}

/// A snapshot of before this signal, and of before failures were told, is still read.
#[test]
fn older_recordings_are_read() {
    let mut json = serde_json::to_value(Snapshot::default()).unwrap();
    json.as_object_mut().unwrap().remove("limit").unwrap();
    json["alloc"].as_object_mut().unwrap().remove("failures").unwrap();
    let read: Snapshot = serde_json::from_value(json).unwrap();
    assert_eq!(read.limit, View::default());
    assert!(read.alloc.failures.is_empty());
}

#[test]
fn rows_are_bounded() {
    // Control groups that are fuller the later they come.
    let used = 0..MAX_ROWS as u64 + 3;
    let rows = used.map(|used| bound("processes", 0, used, Some(10_000))).collect();
    let view = tick(&mut Limit::default(), 1, Some(&Reading { rows, ..Reading::default() }));
    assert_eq!((view.rows.len(), view.more_rows), (MAX_ROWS, 3));
    let shown: Vec<_> = view.rows.iter().map(|row| row.used).collect();
    assert_eq!((shown.first(), shown.last()), (Some(&(MAX_ROWS as u64 + 2)), Some(&3)));
}

proptest! {
    #[test]
    fn extremes_are_shown(numbers in proptest::collection::vec((any::<u64>(), proptest::option::of(any::<u64>())), 0..20), full in any::<u64>()) {
        let rows: Vec<_> = numbers.iter().map(|(used, limit)| bound("x", 1, *used, *limit)).collect();
        let mut limit = Limit::default();
        for full in [full, 0, full] {
            let reading = Reading { rows: rows.clone(), runtimes: vec![jvm(1, full, full)], ..Reading::default() };
            let view = tick(&mut limit, 1, Some(&reading));
            prop_assert_eq!(view.rows.len(), rows.len());
            check_view(&view);
        }
        let mut out = Output::default();
        limit.points(1, &mut Anyone, &mut out);
        check_numbers(&out);
    }
}
