//! Heap and class space of a JVM.

use super::*;

#[test]
fn class_space_counts_if_it_grows() {
    #[track_caller]
    fn check(used_mib: impl Fn(u64) -> u64, max: Option<u64>, expect: &str) {
        let snapshot = |second: u64| {
            let facts = Jvm {
                metaspace_used_bytes: used_mib(step(second)) * MIB,
                metaspace_max_bytes: max,
                ..Jvm::default()
            };
            read(second, Vec::new(), Some(Facts::Jvm(facts)))
        };
        assert_eq!(told(&jvm::KIND, SECOND, (0..400).map(snapshot)), expect);
    }
    check(|_| 920, Some(1000 * MIB), "1:WATCH");
    check(|_| 960, Some(1000 * MIB), "1:WARN");
    check(|second| 600 + second, Some(1000 * MIB), "301:WARN 371:CRITICAL");
    check(|second| 600 + second, None, "");
}

#[test]
fn between_collections_class_space_is_known_by_its_classes() {
    // Ten classes a second, of 100 KiB; bytes are counted at these seconds.
    let snapshot = |second: u64| {
        let counted = [0, 100, 300, 500].into_iter().rfind(|at| *at <= step(second));
        let facts = Jvm {
            metaspace_used_bytes: counted.unwrap_or(0) * MIB,
            metaspace_max_bytes: Some(700 * MIB),
            loaded_classes: step(second) * 10,
            ..Jvm::default()
        };
        read(second, Vec::new(), Some(Facts::Jvm(facts)))
    };
    let found = findings(&jvm::KIND, SECOND, (0..700).map(snapshot));
    let told: Vec<_> = found.iter().map(|(second, what, _)| format!("{second}:{what}")).collect();
    assert_eq!(told.join(" "), "591:WATCH 631:WARN 681:CRITICAL");
}

#[test]
fn a_heap_is_full_if_full_collections_leave_it_full() {
    #[track_caller]
    fn check(after: f64, collecting: f64, expect: &str) {
        let snapshot = |second: u64| {
            let facts = Jvm {
                full_collections: step(second),
                full_collection_ns: (step(second) as f64 * collecting * 1e9) as u64,
                old_used_bytes: GIB,
                old_max_bytes: GIB,
                old_after_full_bytes: Some((after * GIB as f64) as u64),
                ..Jvm::default()
            };
            read(second, Vec::new(), Some(Facts::Jvm(facts)))
        };
        assert_eq!(
            told(&jvm::KIND, SECOND, (0..120).map(snapshot)),
            expect,
            "{after} {collecting}"
        );
    }
    check(0.95, 0.6, "1:WATCH 11:CRITICAL");
    check(0.95, 0.1, "1:WATCH 21:WARN");
    // A heap like a saw, and one that works well though it is full.
    check(0.4, 0.05, "");
    check(0.92, 0.001, "1:WATCH");
}

#[test]
fn a_heap_that_fills_fast_is_told_at_the_first_collections_that_do_not_empty_it() {
    /// A collection of 2.4 s each four seconds from the tenth on, read each two seconds; `after` is what is told of what
    /// they leave.
    #[track_caller]
    fn check(collector: &str, after: Option<f64>, of_full: bool, expect: &str) {
        let snapshot = |second: u64| {
            let at_s = (second / 2 * 2) as f64;
            let (rounds, within_s) = ((at_s - 10.0).max(0.0) / 4.0, (at_s - 10.0).max(0.0) % 4.0);
            let stopped_ns = ((rounds.floor() * 2.4 + within_s.min(2.4)) * 1e9) as u64;
            let facts = Jvm {
                collector: collector.into(),
                full_collection_ns: if of_full { stopped_ns } else { 0 },
                concurrent_pause_ns: if of_full { 0 } else { stopped_ns },
                in_full_collection: of_full && at_s > 10.0 && within_s < 2.4,
                old_max_bytes: GIB,
                old_after_full_bytes: after
                    .filter(|_| at_s >= 14.0)
                    .map(|share| (share * GIB as f64) as u64),
                ..Jvm::default()
            };
            hurried(second, Vec::new(), Some(Facts::Jvm(facts)))
        };
        assert_eq!(
            told(&jvm::KIND, SECOND, (0..60).map(snapshot)),
            expect,
            "{collector} {after:?}"
        );
    }
    check("Serial full collection pauses", Some(0.95), true, "15:WARN 21:CRITICAL");
    check("Serial full collection pauses", Some(0.5), true, "21:WATCH 33:WARN");
    // It does not say what is left.
    check("CMS", None, false, "21:WATCH 33:WARN");
}
