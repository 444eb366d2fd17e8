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

/// Names as HotSpot has them since Java 6 (src/hotspot/share/gc and services).
pub(super) fn facts(bytes: &[u8]) -> Option<Jvm> {
    let all = All(counters(bytes)?.collect());
    let options = [all.text("java.rt.vmArgs"), all.text("java.rt.vmFlags")].join(" ");
    let name = |number| all.text(&format!("sun.gc.collector.{number}.name"));
    let has_metaspace = all.0.contains_key("sun.gc.metaspace.used");
    let metaspace = if has_metaspace { "sun.gc.metaspace" } else { "sun.gc.generation.2.space.0" };
    // Shenandoah counts the pauses of a concurrent collection under the number that others have for full ones.
    let (full, concurrent) =
        if name(1).starts_with("Shenandoah") { (None, 1) } else { (Some(1), 2) };
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
    let of_permgen = (!has_metaspace).then(|| all.count("sun.gc.generation.2.maxCapacity"));
    let in_full = full.is_some_and(|of| {
        let at = |end: &str| all.count(&format!("sun.gc.collector.{of}.last{end}Time"));
        at("Entry") > at("Exit")
    });
    Some(Jvm {
        version: all.text("java.property.java.version").to_owned(),
        collector: name(1).to_owned(),
        young_collections: count(Some(0)),
        young_collection_ns: time(Some(0)),
        full_collections: count(full),
        full_collection_ns: time(full),
        in_full_collection: in_full,
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
        permgen: !has_metaspace,
    })
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
        let hz = self.count("sun.os.hrt.frequency").max(1);
        let ns = u128::from(self.count(name)) * 1_000_000_000 / u128::from(hz);
        u64::try_from(ns).unwrap_or(u64::MAX)
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

    #[test]
    fn shenandoah_has_no_full_collections() {
        let found = jvm(&[
            ("sun.gc.collector.1.name", Value::Text("Shenandoah full")),
            ("sun.gc.collector.1.invocations", Value::Long(76)),
        ]);
        assert_eq!((found.full_collections, found.concurrent_pauses), (0, 76));
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
