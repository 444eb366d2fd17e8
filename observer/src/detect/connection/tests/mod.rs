//! Each kind against faults and healthy look-alikes, and all of them against nonsense.

mod budget;
mod peers;
mod pools;

use std::sync::Arc;

use proptest::prelude::*;

use super::testing::{DB, host};
use crate::{
    config::{Config, all_settings},
    detect::{ALL, Detector, Seen, State},
    identity::{Pm2, Process},
    signal::tcp::{Activity, Connection},
};

const ACTIVITIES: [Activity; 8] = [
    Activity::Connecting,
    Activity::Waiting,
    Activity::Unread,
    Activity::Active,
    Activity::Idle,
    Activity::HalfOpen,
    Activity::ZeroWindow,
    Activity::Closing,
];

fn extreme() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), Just(u64::MAX), 0..20_000_000_000_u64, any::<u64>()]
}

prop_compose! {
    fn any_connection()(
        pid in 0..5_u32,
        port in 0..8_u16,
        what in (0..8_usize, 0..3_usize, any::<bool>(), any::<bool>()),
        times in (extreme(), extreme(), proptest::option::of(extreme()), proptest::option::of(extreme())),
        counts in (extreme(), extreme(), extreme()),
    ) -> Connection {
        Connection {
            pid,
            name: ["node", "psql", "postgres"][what.1].into(),
            role: if what.2 { "client" } else { "server" }.into(),
            system: ["redis", "postgresql", ""][what.1].into(),
            peer_address: if what.3 { DB } else { "127.0.0.1" }.into(),
            local_address: "127.0.0.1".into(),
            local_port: port,
            state: "ESTABLISHED".into(),
            activity: ACTIVITIES[what.0],
            activity_ns: times.0,
            age_ns: times.1,
            last_send_ns: times.2,
            last_receive_ns: times.3,
            retransmits: counts.0,
            sent_bytes: counts.1,
            received_bytes: counts.2,
            ..Connection::default()
        }
    }
}

fn detectors() -> Vec<Box<dyn Detector>> {
    let config = Config::default_for_tests(&all_settings());
    let own = ALL.iter().filter(|kind| kind.name.starts_with("connection."));
    own.map(|kind| (kind.detector)(&config)).collect()
}

proptest! {
    #[test]
    fn nonsense_is_survived(
        looks in proptest::collection::vec(
            (proptest::collection::vec(any_connection(), 0..12), extreme(), extreme()),
            1..6,
        ),
    ) {
        let mut detectors = detectors();
        for (connections, now_ns, elapsed_ns) in looks {
            let rows = connections.len();
            let mut snapshot = host(1, connections);
            for process in snapshot.processes.values_mut() {
                let pm2 = Pm2 { app: "a".into(), home: process.pid.to_string(), ..Pm2::default() };
                *process = Arc::new(Process { pm2: Some(pm2), ..Process::clone(process) });
            }
            let mut found = Vec::new();
            for detector in &mut detectors {
                detector.look(&Seen { snapshot: &snapshot, now_ns, elapsed_ns }, &mut found);
            }
            prop_assert!(rows > 0 || found.is_empty(), "nothing is told of nothing");
            for judgement in found {
                if matches!(judgement.state, State::Undecided(_)) {
                    continue;
                }
                prop_assert!(!judgement.message.is_empty() && !judgement.subject.is_empty());
                prop_assert!(judgement.evidence.iter().all(|row| row.value.is_finite()));
            }
        }
    }
}
