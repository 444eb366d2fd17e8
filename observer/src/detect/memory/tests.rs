//! All detectors of memory on numbers that no host has.

use proptest::prelude::*;

use super::testing::{Host, actor};
use crate::{
    config::{Config, all_settings},
    detect::Detect,
    signal::{
        Output,
        oom::{MemoryCgroup, OomKill, Pressure},
        testing::{check_numbers, check_view},
    },
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_number_breaks_them(
        rows in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<f64>(), any::<u32>()), 1..60),
    ) {
        let mut detect = Detect::new(&Config::default_for_tests(&all_settings()));
        let host = Host { actors: vec![actor(1, "node", |_| 100.0), actor(2, "java", |_| 9.0)], ..Host::default() };
        let mut out = Output::default();
        for (clock, large, small, ratio, pid) in rows {
            let mut snapshot = host.snapshot(0.0);
            (snapshot.uptime_ns, snapshot.time_unix_ns) = (clock, small);
            let view = &mut snapshot.oom;
            (view.memory_total_bytes, view.memory_available_bytes) = (large, small);
            (view.swap_total_bytes, view.swap_free_bytes, view.shmem_bytes) = (small, large, clock);
            (view.refault_ratio, view.reclaim_cpu_ratio) = (ratio, ratio);
            (view.direct_reclaims, view.slab_unreclaimable_bytes) = (clock, large);
            view.pressure = vec![Pressure { resource: "memory".into(), scope: "some".into(), total_ns: large, ..Pressure::default() }];
            view.cgroups = vec![MemoryCgroup { path: "/".into(), usage_bytes: large, limit_bytes: Some(small), limit_hits: clock, ..MemoryCgroup::default() }];
            view.kills = vec![OomKill { time_unix_ns: small, victim_pid: pid, anon_bytes: large, ..OomKill::default() }];
            for row in &mut snapshot.alloc.processes {
                (row.anon_bytes, row.swap_bytes, row.growth_bytes_per_second) = (large, small, ratio);
            }
            detect.tick(&snapshot, false, &mut out);
            check_view(detect.view());
        }
        check_numbers(&out);
    }
}
