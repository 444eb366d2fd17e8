//! What the kernel says of the host, four times a second, with how late the witness itself was.

use std::{fmt::Write as _, fs::File, os::unix::fs::FileExt as _, path::Path};

use observer_tests::monotonic_ns;

use super::Ticks;
use crate::timeline::{Fixed, now_s};

const EVERY_MS: u64 = 250;

/// Counters of /proc/vmstat, by their beginning (`allocstall_` has one a zone), and what they are called here.
const COUNTERS: &[(&str, &str)] = &[
    ("pgmajfault ", "major_faults"),
    ("workingset_refault_file ", "file_refaults"),
    ("workingset_refault_anon ", "anon_refaults"),
    ("allocstall_", "direct_reclaims"),
    ("pgscan_kswapd ", "kswapd_scanned"),
    ("pgscan_direct ", "direct_scanned"),
    ("oom_kill ", "oom_kills"),
];

/// Of /proc/meminfo, in kB.
const MEMORY: &[(&str, &str)] = &[
    ("MemAvailable:", "available"),
    ("MemFree:", "free"),
    ("Active(file):", "file_active"),
    ("Inactive(file):", "file_inactive"),
    ("AnonPages:", "anon"),
];

/// Lines of the pressure files: resource, scope.
const PRESSURE: &[(&str, &str)] =
    &[("memory", "some"), ("memory", "full"), ("io", "some"), ("io", "full"), ("cpu", "some")];

/// Of a memory control group, version 2 and 1.
const GROUP: &[(&str, &str)] = &[
    ("memory.current", "cgroup_usage_bytes"),
    ("memory.usage_in_bytes", "cgroup_usage_bytes"),
    ("memory.failcnt", "cgroup_limit_hits"),
];

/// Looks until it is killed.
pub(super) fn run(out: &mut Fixed, cgroup: Option<&Path>) {
    let mut ticks = Ticks::every_ms(EVERY_MS);
    let mut sources = Sources::open(cgroup);
    let mut line = String::with_capacity(2048);
    let mut last: Option<(u64, [u64; 12])> = None;
    let first_kills = sources.counters()[KILLS];
    loop {
        let due_ns = ticks.wait();
        let now_ns = monotonic_ns();
        let slip_ms = (now_ns - due_ns) / 1_000_000;
        let counters = sources.counters();
        let before = last.replace((now_ns, counters));
        let Some((before_ns, before)) = before else { continue };
        line.clear();
        let head = r#","source":"witness","what":"vitals","slip_ms":"#;
        let mut text = |part: std::fmt::Arguments<'_>| line.write_fmt(part).ok();
        text(format_args!("{{\"t_s\":{:.3}{head}{slip_ms}", now_s()));
        let seconds = (now_ns - before_ns) as f64 / 1e9;
        for (index, (_, name)) in COUNTERS.iter().enumerate() {
            let moved = counters[index].saturating_sub(before[index]) as f64;
            match index {
                KILLS => text(format_args!(",\"{name}\":{}", counters[index] - first_kills)),
                _ => text(format_args!(",\"{name}_per_s\":{:.0}", moved / seconds)),
            };
        }
        for (index, (resource, scope)) in PRESSURE.iter().enumerate() {
            let index = COUNTERS.len() + index;
            // Microseconds of stall over seconds, in percent.
            let share = counters[index].saturating_sub(before[index]) as f64 / seconds / 1e4;
            text(format_args!(",\"{resource}_{scope}_percent\":{share:.1}"));
        }
        sources.levels(|name, value| {
            text(format_args!(",\"{name}\":{value}"));
        });
        text(format_args!("}}\n"));
        out.write(&line);
    }
}

const KILLS: usize = COUNTERS.len() - 1;

/// Files of the kernel, kept open: opening one takes memory.
struct Sources {
    vmstat: Option<Text>,
    meminfo: Option<Text>,
    pressure: Vec<(&'static str, Text)>,
    group: Vec<(&'static str, Text)>,
}

impl Sources {
    fn open(cgroup: Option<&Path>) -> Self {
        let pressure = ["memory", "io", "cpu"];
        let opened =
            |name: &'static str| Some((name, Text::open(&Path::new("/proc/pressure").join(name))?));
        let group =
            |(file, name): &(&str, &'static str)| Some((*name, Text::open(&cgroup?.join(file))?));
        Self {
            vmstat: Text::open(Path::new("/proc/vmstat")),
            meminfo: Text::open(Path::new("/proc/meminfo")),
            pressure: pressure.into_iter().filter_map(opened).collect(),
            group: GROUP.iter().filter_map(group).collect(),
        }
    }

    /// [`COUNTERS`], then [`PRESSURE`] in microseconds. What this kernel does not have stays 0.
    fn counters(&mut self) -> [u64; COUNTERS.len() + PRESSURE.len()] {
        let mut values = [0; COUNTERS.len() + PRESSURE.len()];
        for line in self.vmstat.iter_mut().flat_map(|file| file.read().lines()) {
            for (index, (start, _)) in COUNTERS.iter().enumerate() {
                if line.starts_with(start) {
                    values[index] += last_number(line);
                }
            }
        }
        for (resource, file) in &mut self.pressure {
            for line in file.read().lines() {
                let is = |(of, scope): &&(&str, &str)| of == resource && line.starts_with(scope);
                if let Some(index) = PRESSURE.iter().position(|row| is(&row)) {
                    let total = line.rsplit_once('=').map_or("", |(_, total)| total);
                    values[COUNTERS.len() + index] = total.parse().unwrap_or(0);
                }
            }
        }
        values
    }

    /// Bytes of [`MEMORY`] and of [`GROUP`].
    fn levels(&mut self, mut tell: impl FnMut(std::fmt::Arguments<'_>, u64)) {
        for line in self.meminfo.iter_mut().flat_map(|file| file.read().lines()) {
            for (_, name) in MEMORY.iter().filter(|(start, _)| line.starts_with(start)) {
                let kilobytes = last_number(line.trim_end_matches(" kB"));
                tell(format_args!("{name}_bytes"), kilobytes * 1024);
            }
        }
        for (name, file) in &mut self.group {
            tell(format_args!("{name}"), file.read().trim().parse().unwrap_or(0));
        }
    }
}

fn last_number(line: &str) -> u64 {
    line.rsplit(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// A file of the kernel and room for what it says.
struct Text {
    file: File,
    room: Vec<u8>,
}

impl Text {
    fn open(path: &Path) -> Option<Self> {
        Some(Self { file: File::open(path).ok()?, room: vec![0; 16384] })
    }

    fn read(&mut self) -> &str {
        let mut length = 0;
        while let Ok(count) = self.file.read_at(&mut self.room[length..], length as u64) {
            if count == 0 {
                break;
            }
            length += count;
        }
        std::str::from_utf8(&self.room[..length]).unwrap_or_default()
    }
}
