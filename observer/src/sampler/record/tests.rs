//! Bytes of every length and kind in: folded, or malformed; never a panic.

use std::path::Path;

use observer_abi::KINDS;
use proptest::prelude::*;

use super::*;
use crate::{
    config::{self, Config},
    identity::Identities,
    signal::{alloc, oom, tcp},
};

/// What the folds have made of one record.
struct Folded {
    taken: bool,
    items: usize,
    listeners: BTreeSet<u32>,
    sched_holds: bool,
}

fn fold(bytes: &[u8]) -> Folded {
    let config = Config::default_for_tests(&config::all_settings());
    let nowhere = Path::new("/nonexistent");
    let mut listeners = BTreeSet::new();
    let (mut output, names) = (Output::default(), Names::default());
    let mut sched = Sched::new(1);
    let now = Now { ktime_ns: 1 << 40, unix_ns: 1 << 60 };
    let mut fold = Fold {
        alloc: &mut Alloc::new(alloc::Limits::new(&config)),
        oom: &mut Oom::new(oom::Limits::new(&config), 4096),
        tcp: &mut Tcp::new(tcp::Limits::new(&config).unwrap()),
        proc: &mut proc::Rows::open(&[], &[], 0),
        sched: &mut sched,
        who: &mut Directory(Identities::new(nowhere, nowhere, 0)),
        output: &mut output,
        listeners: &mut listeners,
        names: &names,
        now,
    };
    let taken = fold.record(bytes).is_some();
    for span in &output.batch.spans {
        assert!(span.start_unix_ns <= span.end_unix_ns, "{span:?}");
    }
    let items = output.batch.spans.len() + output.batch.events.len();
    Folded { taken, items, listeners, sched_holds: !sched.unnamed().is_empty() }
}

fn length(kind: Kind) -> usize {
    match kind {
        Kind::TcpClosed => size_of::<Closed>(),
        Kind::TcpListening => size_of::<Listening>(),
        Kind::LoopGap => size_of::<LoopGap>(),
        Kind::Stall => size_of::<Stall>(),
        Kind::Reclaim => size_of::<Reclaim>(),
        Kind::OomKill => size_of::<Kill>(),
        Kind::Exit => size_of::<Exit>(),
    }
}

/// A record of this kind with every other byte zero.
fn record(kind: u32, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let number = kind.to_ne_bytes();
    let known = number.len().min(length);
    bytes[..known].copy_from_slice(&number[..known]);
    bytes
}

#[test]
fn a_record_is_taken_at_its_own_length_only() {
    for kind in Kind::ALL {
        let whole = length(kind);
        for length in 0..whole + 64 {
            let folded = fold(&record(kind as u32, length));
            assert_eq!(folded.taken, length == whole, "{kind:?} of {length} bytes");
            assert!(folded.taken || folded.items == 0 && folded.listeners.is_empty());
        }
    }
    for unknown in [KINDS as u32, 8, u32::MAX] {
        (0..512).for_each(|length| assert!(!fold(&record(unknown, length)).taken));
    }
}

#[test]
fn each_kind_reaches_its_fold() {
    #[track_caller]
    fn check(kind: Kind, change: impl Fn(&mut Vec<u8>), items: usize) -> Folded {
        let mut bytes = record(kind as u32, length(kind));
        // The process, behind the kind.
        bytes[4..8].copy_from_slice(&77_u32.to_ne_bytes());
        change(&mut bytes);
        let folded = fold(&bytes);
        assert_eq!((folded.taken, folded.items), (true, items), "{kind:?}");
        folded
    }
    let same = |_: &mut Vec<u8>| {};
    check(Kind::TcpClosed, same, 1);
    check(Kind::Reclaim, same, 1);
    check(Kind::OomKill, same, 1);
    check(Kind::Exit, same, 0);
    let watched = |bytes: &mut Vec<u8>| bytes[std::mem::offset_of!(Exit, watched)] = 1;
    check(Kind::Exit, watched, 1);
    check(Kind::LoopGap, same, 0);
    assert_eq!(check(Kind::TcpListening, same, 0).listeners, BTreeSet::from([77]));
    // The stack is the last field; where it has an address, the stall waits for its name.
    let named = |bytes: &mut Vec<u8>| {
        let at = bytes.len() - observer_abi::KERNEL_FRAMES * 8;
        bytes[at] = 1;
        bytes[size_of::<Header>() + 8] = 4;
    };
    assert!(check(Kind::Stall, named, 0).sched_holds);
    check(Kind::Stall, |bytes| bytes[size_of::<Header>() + 8] = 4, 1);
}

proptest! {
    #[test]
    fn no_bytes_panic(
        kind in 0_u32..KINDS as u32 + 2,
        mut bytes in prop::collection::vec(prop_oneof![Just(0_u8), Just(255), any::<u8>()], 0..400),
        exact: bool,
    ) {
        let known = Kind::from_number(kind);
        if let Some(known) = known.filter(|_| exact) {
            bytes.resize(length(known), 255);
        }
        if bytes.len() >= 4 {
            bytes[..4].copy_from_slice(&kind.to_ne_bytes());
            let whole = known.is_some_and(|known| bytes.len() == length(known));
            prop_assert_eq!(fold(&bytes).taken, whole);
        } else {
            prop_assert!(!fold(&bytes).taken);
        }
    }
}
