//! What a JVM tells in its counters, and where it keeps them.

use std::collections::BTreeMap;

use rustix::fd::OwnedFd;

use super::{
    file,
    hsperf::{Value, counters},
};
use crate::{identity::Process, signal::limit::Jvm};

/// Bytes read of a file of counters: 32 KiB unless -XX:PerfDataMemorySize asks for more.
const MAX_BYTES: usize = 256 * 1024;
/// Entries of /tmp looked through for a JVM whose user has another name in its container.
const MAX_NAMES: usize = 4096;
/// Generations and spaces are numbered from zero; HotSpot has three of each at most.
const MAX_NUMBER: usize = 4;

/// Path of the counters of a process below its root folder, if it has any. Only a file of its own user counts.
pub(super) fn find(root: &OwnedFd, process: &Process) -> Option<String> {
    let status = file::of_proc(&format!("/proc/{}/status", process.pid), 16 * 1024).ok()?;
    let pid = own_pid(&status).unwrap_or(process.pid);
    let at = |folder: &str| format!("/tmp/{folder}/{pid}");
    let is_one = |path: &String| read(root, path, process.user_id).is_some();
    let usual = Some(at(&format!("hsperfdata_{}", process.user_name))).filter(is_one);
    usual.or_else(|| {
        let named = |name: &str| name.starts_with("hsperfdata_");
        let folders = file::names_below(root, "/tmp", MAX_NAMES, named).ok()?;
        folders.iter().map(|folder| at(folder)).find(is_one)
    })
}

/// The counters at a path that [`find`] found.
pub(super) fn read(root: &OwnedFd, path: &str, user_id: u32) -> Option<Jvm> {
    let (stat, bytes) = file::below(root, path, MAX_BYTES).ok()?;
    (stat.st_uid == user_id).then(|| facts(&bytes)).flatten()
}

/// The pid that a process has in its own namespace: the last in `NSpid` of `/proc/PID/status`.
fn own_pid(status: &[u8]) -> Option<u32> {
    let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"NSpid:"))?;
    str::from_utf8(line).ok()?.split_ascii_whitespace().next_back()?.parse().ok()
}

/// Names as HotSpot has them since Java 6 (src/hotspot/share/gc and services; hotspot/src/share/vm before Java 10).
pub(super) fn facts(bytes: &[u8]) -> Option<Jvm> {
    let all = All(counters(bytes)?.collect());
    let options = [all.text("java.rt.vmArgs"), all.text("java.rt.vmFlags")].join(" ");
    let name = |number| all.text(&format!("sun.gc.collector.{number}.name"));
    let permgen = all.0.contains_key("sun.gc.generation.2.maxCapacity");
    let metaspace = if permgen { "sun.gc.generation.2.space.0" } else { "sun.gc.metaspace" };
    // These count the pauses of a concurrent collection under the number that others have for full ones.
    let is_concurrent = ["CMS", "Shenandoah"].iter().any(|start| name(1).starts_with(start));
    let (full, concurrent) = if is_concurrent { (None, 1) } else { (Some(1), 2) };
    let count = |of: Option<usize>| {
        of.map_or(0, |of| all.count(&format!("sun.gc.collector.{of}.invocations")))
    };
    let time =
        |of: Option<usize>| of.map_or(0, |of| all.time_ns(&format!("sun.gc.collector.{of}.time")));
    let largest = |of: usize| all.count(&format!("sun.gc.generation.{of}.maxCapacity"));
    // Where both generations are of one set of regions, each may take all of it.
    let shares_regions = ["G1", "Z ", "ZGC", "Shenandoah"];
    let shares =
        (0..3).any(|number| shares_regions.iter().any(|start| name(number).starts_with(start)));
    let by_generations =
        if shares { largest(0).max(largest(1)) } else { largest(0).saturating_add(largest(1)) };
    let heap_max_bytes = option(&options, &["-Xmx", "-XX:MaxHeapSize="]).unwrap_or(by_generations);
    let of_permgen = permgen.then(|| all.count("sun.gc.generation.2.maxCapacity"));
    let open_ns = full.and_then(|of| all.open_ns(of));
    // ZGC has none of the number 1.
    let collector = if name(1).is_empty() { name(2) } else { name(1) };
    Some(Jvm {
        version: all.text("java.property.java.version").to_owned(),
        collector: collector.to_owned(),
        young_collections: count(Some(0)),
        young_collection_ns: time(Some(0)),
        full_collections: count(full),
        full_collection_ns: time(full).saturating_add(open_ns.unwrap_or(0)),
        in_full_collection: open_ns.is_some(),
        concurrent_pauses: count(Some(concurrent)),
        concurrent_pause_ns: time(Some(concurrent)),
        heap_used_bytes: all.used(0).saturating_add(all.used(1)),
        heap_max_bytes,
        old_used_bytes: all.used(1),
        old_max_bytes: largest(1).min(heap_max_bytes),
        old_after_full_bytes: None,
        metaspace_used_bytes: all.count(&format!("{metaspace}.used")),
        metaspace_capacity_bytes: all.count(&format!("{metaspace}.capacity")),
        metaspace_max_bytes: option(&options, &["-XX:MaxMetaspaceSize="])
            .or(of_permgen.filter(|bytes| *bytes > 0)),
        loaded_classes: all
            .count("java.cls.loadedClasses")
            .saturating_sub(all.count("java.cls.unloadedClasses")),
        class_space_used_bytes: all.count("sun.gc.compressedclassspace.used"),
        class_space_max_bytes: all.count("sun.gc.compressedclassspace.maxCapacity"),
        permgen,
    })
}

/// Whether what it calls the old generation is emptied by full collections only: concurrent collectors without generations
/// count their whole heap there.
pub(super) fn has_old_generation(jvm: &Jvm) -> bool {
    let without = ["Shenandoah", "Z ", "stop-the-world"];
    !without.iter().any(|start| jvm.collector.starts_with(start))
}

/// All counters of a file. One that is missing is zero, or empty.
struct All<'a>(BTreeMap<&'a str, Value<'a>>);

impl All<'_> {
    fn count(&self, name: &str) -> u64 {
        match self.0.get(name) {
            Some(Value::Long(number)) => u64::try_from(*number).unwrap_or(0),
            _ => 0,
        }
    }

    fn text(&self, name: &str) -> &str {
        match self.0.get(name) {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }

    /// A time that is counted in ticks of the JVM's clock.
    fn time_ns(&self, name: &str) -> u64 {
        self.ticks_ns(self.count(name))
    }

    fn ticks_ns(&self, ticks: u64) -> u64 {
        let hz = self.count("sun.os.hrt.frequency").max(1);
        u64::try_from(u128::from(ticks) * 1_000_000_000 / u128::from(hz)).unwrap_or(u64::MAX)
    }

    /// How long the collection goes on that has no end yet; a JVM adds it to its time at its end only. The JVM's clock is
    /// copied each 50 ms by a thread that collections do not stop (-XX:PerfDataSamplingInterval).
    fn open_ns(&self, collector: usize) -> Option<u64> {
        let at = |end: &str| self.count(&format!("sun.gc.collector.{collector}.last{end}Time"));
        let begun = at("Entry");
        let now = self.count("sun.os.hrt.ticks");
        (begun > at("Exit")).then(|| self.ticks_ns(now.saturating_sub(begun)))
    }

    /// Bytes in use in all spaces of a generation.
    fn used(&self, generation: usize) -> u64 {
        let space =
            |number| self.count(&format!("sun.gc.generation.{generation}.space.{number}.used"));
        (0..MAX_NUMBER).map(space).fold(0, u64::saturating_add)
    }
}

/// Size that an option gives, as `-Xmx2g`; the last one counts.
pub(super) fn option(options: &str, names: &[&str]) -> Option<u64> {
    let value = |word: &str| names.iter().find_map(|name| size(word.strip_prefix(name)?));
    options.split_ascii_whitespace().rev().find_map(value)
}

fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::hsperf::tests::file, *};

    const MIB: u64 = 1 << 20;

    fn jvm(counters: &[(&str, Value<'_>)]) -> Jvm {
        facts(&file(counters, true)).unwrap()
    }

    #[test]
    fn of_the_serial_collector() {
        // As Java 17 has them, cut.
        let found = jvm(&[
            ("java.cls.loadedClasses", Value::Long(2_000)),
            ("java.cls.unloadedClasses", Value::Long(12)),
            ("java.property.java.version", Value::Text("17.0.15")),
            ("java.rt.vmArgs", Value::Text("-XX:+UseSerialGC -Xmx64m -XX:MaxMetaspaceSize=48M")),
            ("sun.gc.collector.0.name", Value::Text("Serial young collection pauses")),
            ("sun.gc.collector.0.invocations", Value::Long(9)),
            ("sun.gc.collector.0.time", Value::Long(9_030_067)),
            ("sun.gc.collector.1.name", Value::Text("Serial full collection pauses")),
            ("sun.gc.collector.1.invocations", Value::Long(2)),
            ("sun.gc.collector.1.time", Value::Long(500)),
            ("sun.gc.collector.1.lastEntryTime", Value::Long(900)),
            ("sun.gc.collector.1.lastExitTime", Value::Long(800)),
            ("sun.gc.compressedclassspace.maxCapacity", Value::Long(64 << 20)),
            ("sun.gc.compressedclassspace.used", Value::Long(1_116_160)),
            ("sun.gc.generation.0.maxCapacity", Value::Long(22_347_776)),
            ("sun.gc.generation.0.space.0.used", Value::Long(1000)),
            ("sun.gc.generation.0.space.2.used", Value::Long(10)),
            ("sun.gc.generation.1.maxCapacity", Value::Long(44_761_088)),
            ("sun.gc.generation.1.space.0.used", Value::Long(2_324_472)),
            ("sun.gc.metaspace.capacity", Value::Long(9_502_720)),
            // Reserved for all that may be, not what the option allows.
            ("sun.gc.metaspace.maxCapacity", Value::Long(134_217_728)),
            ("sun.gc.metaspace.used", Value::Long(9_282_680)),
            ("sun.os.hrt.frequency", Value::Long(1_000_000)),
        ]);
        assert_eq!((found.version.as_str(), found.heap_max_bytes), ("17.0.15", 64 * MIB));
        assert_eq!((found.young_collections, found.young_collection_ns), (9, 9_030_067_000));
        assert_eq!((found.full_collections, found.full_collection_ns), (2, 500_000));
        assert!(found.in_full_collection && !found.permgen);
        assert_eq!((found.heap_used_bytes, found.old_used_bytes), (2_325_482, 2_324_472));
        assert_eq!((found.old_max_bytes, found.loaded_classes), (44_761_088, 1_988));
        assert_eq!(
            (found.metaspace_used_bytes, found.metaspace_max_bytes),
            (9_282_680, Some(48 * MIB))
        );
        assert_eq!(
            (found.class_space_used_bytes, found.class_space_max_bytes),
            (1_116_160, 64 * MIB)
        );
    }

    #[test]
    fn heaps_by_collector() {
        #[track_caller]
        fn check(collector: &str, options: &str, expected_max: u64) {
            let found = jvm(&[
                ("java.rt.vmArgs", Value::Text(options)),
                ("sun.gc.collector.0.name", Value::Text(collector)),
                ("sun.gc.generation.0.maxCapacity", Value::Long(100)),
                ("sun.gc.generation.1.maxCapacity", Value::Long(120)),
                ("sun.gc.metaspace.used", Value::Long(1)),
            ]);
            assert_eq!((found.heap_max_bytes, found.metaspace_max_bytes), (expected_max, None));
        }
        check("G1 young collection pauses", "", 120);
        check("PSScavenge", "", 220);
        check("PSScavenge", "-Xmx1k -Xmx2k", 2048);
        check("PSScavenge", "-XX:MaxHeapSize=4096", 4096);
    }

    /// The names of each release's collectors, by number; of each 10, 20, 30 collections, that took 1, 2, 3 s.
    #[test]
    fn collectors_by_release() {
        const YOUNG_100: &[(usize, i64)] = &[(0, 100), (1, 120)];
        const HEAP_120: &[(usize, i64)] = &[(1, 120)];
        #[track_caller]
        fn check(
            names: [&str; 3],
            generations: &[(usize, i64)],
            collections: [u64; 3],
            heap_max: u64,
            collector: &str,
        ) {
            let mut written = vec![("sun.os.hrt.frequency".to_owned(), Value::Long(1_000_000_000))];
            for (at, name) in (0..).zip(names).filter(|(_, name)| !name.is_empty()) {
                let of = |field: &str| format!("sun.gc.collector.{at}.{field}");
                written.push((of("name"), Value::Text(name)));
                written.push((of("invocations"), Value::Long(10 * (at + 1))));
                written.push((of("time"), Value::Long(1_000_000_000 * (at + 1))));
            }
            for (at, largest) in generations {
                let of = |field: &str| format!("sun.gc.generation.{at}.{field}");
                written.push((of("maxCapacity"), Value::Long(*largest)));
                written.push((of("space.0.used"), Value::Long(40)));
            }
            let written: Vec<_> = written.iter().map(|(name, value)| (&**name, *value)).collect();
            let found = jvm(&written);
            let counted =
                [found.young_collections, found.full_collections, found.concurrent_pauses];
            assert_eq!(counted, collections, "{names:?}");
            let times =
                [found.young_collection_ns, found.full_collection_ns, found.concurrent_pause_ns];
            assert_eq!(times, collections.map(|count| count * 100_000_000), "{names:?}");
            assert_eq!((found.heap_max_bytes, found.old_max_bytes), (heap_max, 120), "{names:?}");
            assert_eq!((found.collector.as_str(), found.permgen), (collector, false));
            assert_eq!(found.old_used_bytes, 40, "{names:?}");
        }
        let of_pauses = |young: u64| [young, 0, 20];
        // Java 8 and 11.
        check(["Copy", "MSC", ""], YOUNG_100, [10, 20, 0], 220, "MSC");
        check(["PSScavenge", "PSMarkSweep", ""], YOUNG_100, [10, 20, 0], 220, "PSMarkSweep");
        check(
            ["PSScavenge", "PSParallelCompact", ""],
            YOUNG_100,
            [10, 20, 0],
            220,
            "PSParallelCompact",
        );
        check(["PCopy", "CMS", ""], YOUNG_100, of_pauses(10), 220, "CMS");
        let full = "G1 stop-the-world full collections";
        check(["G1 incremental collections", full, ""], YOUNG_100, [10, 20, 0], 120, full);
        let phases = "G1 stop-the-world phases";
        check(["G1 incremental collections", full, phases], YOUNG_100, [10, 20, 30], 120, full);
        check(["", "", "stop-the-world"], HEAP_120, [0, 0, 30], 120, "stop-the-world");
        // Java 17 and 21.
        let full = "Serial full collection pauses";
        check(["Serial young collection pauses", full, ""], YOUNG_100, [10, 20, 0], 220, full);
        let full = "Parallel full collection pauses";
        check(["Parallel young collection pauses", full, ""], YOUNG_100, [10, 20, 0], 220, full);
        let (full, pauses) = ("G1 full collection pauses", "G1 concurrent cycle pauses");
        check(["G1 young collection pauses", full, pauses], YOUNG_100, [10, 20, 30], 120, full);
        check(
            ["Shenandoah partial", "Shenandoah full", ""],
            HEAP_120,
            of_pauses(10),
            120,
            "Shenandoah full",
        );
        check(
            ["", "", "Z concurrent cycle pauses"],
            HEAP_120,
            [0, 0, 30],
            120,
            "Z concurrent cycle pauses",
        );
        let major = "ZGC major collection pauses";
        check(["ZGC minor collection pauses", "", major], YOUNG_100, [10, 0, 30], 120, major);
    }

    #[test]
    fn a_collection_that_goes_on_counts() {
        #[track_caller]
        fn check(entry: i64, exit: i64, ticks: i64, expected: (bool, u64)) {
            let found = jvm(&[
                ("sun.os.hrt.frequency", Value::Long(1000)),
                ("sun.os.hrt.ticks", Value::Long(ticks)),
                ("sun.gc.collector.1.time", Value::Long(500)),
                ("sun.gc.collector.1.lastEntryTime", Value::Long(entry)),
                ("sun.gc.collector.1.lastExitTime", Value::Long(exit)),
            ]);
            assert_eq!((found.in_full_collection, found.full_collection_ns / 1_000_000), expected);
        }
        check(0, 0, 9000, (false, 500));
        check(7000, 7500, 9000, (false, 500));
        check(8000, 7500, 9000, (true, 1500));
        // Not copied yet, or not at all (-XX:-UsePerfData's sampling is off).
        check(8000, 7500, 7990, (true, 500));
        check(8000, 7500, 0, (true, 500));
    }

    #[test]
    fn permgen_before_java_8() {
        let found = jvm(&[
            ("sun.gc.generation.2.name", Value::Text("perm")),
            ("sun.gc.generation.2.maxCapacity", Value::Long(85_983_232)),
            ("sun.gc.generation.2.space.0.used", Value::Long(80_000_000)),
            ("sun.gc.generation.2.space.0.capacity", Value::Long(85_000_000)),
        ]);
        assert!(found.permgen);
        assert_eq!(
            (found.metaspace_used_bytes, found.metaspace_max_bytes),
            (80_000_000, Some(85_983_232))
        );
        assert_eq!(found.metaspace_capacity_bytes, 85_000_000);
    }

    #[test]
    fn sizes_and_pids() {
        for (text, expected) in [
            ("64m", Some(64 * MIB)),
            ("2G", Some(2 << 30)),
            ("7", Some(7)),
            ("1x", None),
            ("m", None),
            ("99999999t", None),
        ] {
            assert_eq!(size(text), expected, "{text}");
        }
        assert_eq!(own_pid(b"Name:\tjava\nNSpid:\t812\t7\nX:\t1\n"), Some(7));
        assert_eq!(own_pid(b"Name:\tjava\n"), None);
    }

    proptest! {
        #[test]
        fn never_panics(numbers in proptest::collection::vec(any::<i64>(), 6), options in ".{0,60}") {
            let bytes = file(&[
                ("java.rt.vmArgs", Value::Text(&options)),
                ("sun.os.hrt.frequency", Value::Long(numbers[0])),
                ("sun.gc.collector.1.time", Value::Long(numbers[1])),
                ("sun.gc.generation.0.maxCapacity", Value::Long(numbers[2])),
                ("sun.gc.generation.1.maxCapacity", Value::Long(numbers[3])),
                ("sun.gc.generation.0.space.0.used", Value::Long(numbers[4])),
                ("sun.gc.generation.0.space.1.used", Value::Long(numbers[5])),
            ], true);
            prop_assert!(facts(&bytes).is_some());
        }
    }
}
