//! What the tests of the signals share: instants, an identity for every pid, quiet readings, control groups made of files.

use std::{fmt::Write as _, fs, sync::Arc};

use observer_abi::{COMM_LEN, Header, Kind};

use super::{Now, Output, Readings, Who};
use crate::{
    host::{Meminfo, Times, Vmstat, cgroup::Cgroups},
    identity::Process,
    kernel::Counters,
    telemetry::{Attr, Number, Subject, Value},
};

/// Nanoseconds.
pub(crate) const SECOND: u64 = 1_000_000_000;
/// The clock of the wall is this far ahead of the kernel's.
pub(crate) const WALL_AHEAD: u64 = 1_000_000 * SECOND;

/// An instant of the kernel's clock, in nanoseconds.
pub(crate) fn at(ktime_ns: u64) -> Now {
    Now { ktime_ns, unix_ns: ktime_ns.wrapping_add(WALL_AHEAD) }
}

/// Knows every process by what is asked about it.
pub(crate) struct Anyone;

impl Who for Anyone {
    fn process(&mut self, pid: u32, start_boottime_ns: Option<u64>, comm: &str) -> Arc<Process> {
        let start_unix_ns = start_boottime_ns.unwrap_or(0);
        Arc::new(Process { pid, start_unix_ns, name: comm.to_owned(), ..Process::default() })
    }
}

/// What a tick reads on a host on which nothing happens; one second after the tick before.
pub(crate) fn quiet<'a>(now: Now) -> Readings<'a> {
    Readings {
        now,
        boottime_ns: now.ktime_ns,
        elapsed_ns: SECOND,
        page_bytes: 4096,
        hz: 250,
        counters: Counters::default(),
        tasks: &[],
        sockets: &[],
        replies: &[],
        watches: &[],
        reclaimers: &[],
        meminfo: Meminfo { total_bytes: 4 << 30, available_bytes: 2 << 30, ..Meminfo::default() },
        vmstat: Vmstat { file_lru_pages: 1000, ..Vmstat::default() },
        times: Times::default(),
        pressure: &[],
        listeners: None,
        consumers: &[],
        disks: &[],
        senders: &[],
        cgroups: &[],
        limits: None,
    }
}

/// A command name as the kernel has it.
pub(crate) fn comm(name: &str) -> [u8; COMM_LEN] {
    let mut comm = [0; COMM_LEN];
    comm[..name.len()].copy_from_slice(name.as_bytes());
    comm
}

/// Header of a record.
pub(crate) fn header(kind: Kind, tgid: u32, name: &str, ktime_ns: u64) -> Header {
    Header { kind: kind as u32, tgid, tid: tgid, ktime_ns, comm: comm(name), reserved: 0 }
}

/// Value of an attribute.
pub(crate) fn value<'a>(attrs: &'a [Attr], key: &str) -> Option<&'a Value> {
    assert!(attrs.iter().filter(|attr| attr.key == key).count() <= 1, "{key} twice: {attrs:?}");
    attrs.iter().find(|attr| attr.key == key).map(|attr| &attr.value)
}

/// An integer attribute that must be there.
#[track_caller]
pub(crate) fn int(attrs: &[Attr], key: &str) -> i64 {
    match value(attrs, key) {
        Some(Value::Int(number)) => *number,
        other => panic!("{key} is {other:?} in {attrs:?}"),
    }
}

/// A text attribute that must be there.
#[track_caller]
pub(crate) fn text<'a>(attrs: &'a [Attr], key: &str) -> &'a str {
    match value(attrs, key) {
        Some(Value::Static(text)) => text,
        Some(Value::Str(text)) => text,
        other => panic!("{key} is {other:?} in {attrs:?}"),
    }
}

/// The pid that an item is about; 0 for the host.
pub(crate) fn pid(subject: &Subject) -> u32 {
    match subject {
        Subject::Host => 0,
        Subject::Process(process) => process.pid,
    }
}

/// Everything that a span, an event or a point may say is within what OTLP and JSON can carry.
#[track_caller]
pub(crate) fn check_numbers(out: &Output) {
    let spans = out.batch.spans.iter();
    spans.clone().for_each(|span| assert!(span.start_unix_ns <= span.end_unix_ns, "{span:?}"));
    let all = spans.flat_map(|span| &span.attrs);
    for attr in all.chain(out.batch.events.iter().flat_map(|event| &event.attrs)) {
        assert!(!matches!(attr.value, Value::Float(float) if !float.is_finite()), "{attr:?}");
    }
    for point in &out.batch.points {
        match &point.number {
            Number::Int(_) => {}
            Number::Float(float) => assert!(float.is_finite(), "{point:?}"),
            Number::Histogram(all) => {
                assert!(all.sum.is_finite() && all.max.is_finite(), "{point:?}");
            }
        }
    }
}

/// serde_json writes what is not finite as null, and does not read null as a number.
#[track_caller]
pub(crate) fn check_view<V: serde::Serialize + serde::de::DeserializeOwned>(view: &V) {
    let json = serde_json::to_string(view).unwrap();
    serde_json::from_str::<V>(&json).unwrap_or_else(|error| panic!("{error} in {json}"));
}

/// One control group made of files.
pub(crate) struct Group {
    root: tempfile::TempDir,
    /// To be read at each tick.
    pub(crate) cgroups: Cgroups,
}

impl Group {
    /// A group at `/api`.
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("self")).unwrap();
        fs::create_dir_all(root.path().join("cg/api")).unwrap();
        let mounts =
            format!("1 1 0:1 / {} rw - cgroup2 cgroup2 rw\n", root.path().join("cg").display());
        fs::write(root.path().join("self/mountinfo"), mounts).unwrap();
        Self::write_to(&root, 0, (0, 0));
        let mut cgroups = Cgroups::open(root.path()).unwrap();
        cgroups.watch(["/api"]);
        Self { root, cgroups }
    }

    /// Sets how often its memory limit was hit, its CPU periods and those of them that were throttled.
    pub(crate) fn set(&mut self, hits: u64, periods: (u64, u64)) {
        Self::write_to(&self.root, hits, periods);
    }

    fn write_to(root: &tempfile::TempDir, hits: u64, (periods, throttled): (u64, u64)) {
        let mut cpu = format!("nr_periods {periods}\nnr_throttled {throttled}\n");
        writeln!(cpu, "throttled_usec {}", throttled * 1000).unwrap();
        for (name, text) in [
            ("memory.current", "900\n".to_owned()),
            ("memory.max", "1000\n".to_owned()),
            ("memory.events", format!("low 0\nhigh 0\nmax {hits}\noom 0\noom_kill 0\n")),
            ("cpu.max", "50000 100000\n".to_owned()),
            ("cpu.stat", cpu),
        ] {
            fs::write(root.path().join("cg/api").join(name), text).unwrap();
        }
    }
}
