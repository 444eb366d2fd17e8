//! A disk that answers later than it is used to, and services that wait: by far not as late that tasks hang
//! (`sched.blocked`), but requests queue up.

mod habit;
#[cfg(test)]
mod tests;
mod waits;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use self::{
    habit::{Device, Wait},
    waits::{Waits, service},
};
use super::{
    Detector, Judgement, Kind, Level, MAX_PIDS, Party, Quality, Seen, State, evidence,
    judgement::worst, mean::Mean, party, sched::is_memory_short,
};
use crate::{
    config::{self, Config, Setting},
    signal::sched::Disk,
};

/// A disk is slow.
pub static KIND: Kind = Kind {
    name: "disk.slow",
    signal: "sched",
    help: "a disk answers later than it is used to, and services wait for it",
    reason: "Disks differ by a factor of a thousand (NVMe 0.1 ms, EBS 1 ms, spinning ones 10 to 20 ms), so each is compared \
             with itself. Backups, upgrades and checkpoints make long queues and harm nobody as long as no service waits: so \
             most of a service's time must go there, and half of the host's (PSI).",
    raise: Duration::from_secs(3),
    clear: Duration::from_secs(10),
    hazard: false,
    settings: &[WAIT],
    detector: |config| Box::new(Slow::new(config)),
};

/// How long a request may take.
pub const WAIT: Setting = Setting {
    key: "detect.disk_wait",
    kind: config::Kind::Duration { min_ms: 1, max_ms: 60_000 },
    default: "50ms",
    otel: &[],
    help: "mean time of a disk's requests from which on a slow disk is a WARN, if four times what is usual of it; two fifths of \
           it are a WATCH, ten times as much is CRITICAL",
};

/// What each level needs.
struct Need {
    level: Level,
    /// Time of a request, in [`WAIT`]s, and in what is usual.
    waits: f64,
    times: f64,
    /// Tasks of the service that waits most, at a time.
    tasks: f64,
    /// Share of the time in which some task of the host waits for a disk (PSI).
    pressure: f64,
}

const NEEDS: [Need; 3] = [
    Need { level: Level::Critical, waits: 10.0, times: 10.0, tasks: 0.85, pressure: 0.7 },
    Need { level: Level::Warn, waits: 1.0, times: 4.0, tasks: 0.75, pressure: 0.5 },
    Need { level: Level::Watch, waits: 0.4, times: 4.0, tasks: 0.3, pressure: 0.25 },
];
const SUSPECT: &Need = &NEEDS[2];

/// Disks followed.
const MAX_DISKS: usize = 256;
/// A disk without requests is forgotten after so many looks.
const KEPT_LOOKS: u64 = 86_400;
const CONSTANT: Duration = Duration::from_secs(5);
/// Memory was short so lately that disks are still busy with it.
const LATELY_NS: u64 = 10_000_000_000;
/// Share of what goes to and from disks that is read back after it was evicted: then memory is what is short.
const REFAULTS: f64 = 0.25;
const PAGE_BYTES: f64 = 4096.0;
/// Who sends less than this share is one of many.
const SUBSTANTIAL: f64 = 1.0 / 3.0;

struct Slow {
    limit_ns: f64,
    disks: BTreeMap<String, Device>,
    waits: Waits,
    pressure: Mean,
    pressure_ns: Option<u64>,
    /// When memory was short last, and when what was evicted was read back last.
    short_ns: Option<u64>,
    read_back_ns: Option<u64>,
    round: u64,
}

impl Slow {
    fn new(config: &Config) -> Self {
        Self {
            limit_ns: config.duration(&WAIT).as_nanos() as f64,
            disks: BTreeMap::new(),
            waits: Waits::default(),
            pressure: Mean::default(),
            pressure_ns: None,
            short_ns: None,
            read_back_ns: None,
            round: 0,
        }
    }

    fn is_slow(&self, wait: Wait, need: &Need) -> bool {
        wait.now_ns >= self.limit_ns * need.waits && wait.times() >= need.times
    }

    fn is_suspect(&self, device: &Device) -> bool {
        device.wait().is_some_and(|wait| self.is_slow(wait, SUSPECT))
    }

    /// Takes what the disks did, and learns from it. Whether one of them is suspect.
    fn follow(&mut self, seen: &Seen<'_>) -> bool {
        self.round += 1;
        let idle = Disk::default();
        let rows: BTreeMap<&str, &Disk> =
            seen.snapshot.sched.disks.iter().map(|disk| (disk.name.as_str(), disk)).collect();
        for name in rows.keys() {
            if self.disks.len() < MAX_DISKS && !self.disks.contains_key(*name) {
                self.disks.insert((*name).to_owned(), Device::default());
            }
        }
        let mut suspect = false;
        let mut disks = std::mem::take(&mut self.disks);
        disks.retain(|name, device| {
            let row = rows.get(name.as_str()).copied();
            device.take(row.unwrap_or(&idle), seen.elapsed_ns);
            let is_suspect = self.is_suspect(device);
            suspect |= is_suspect;
            if let Some(row) = row {
                device.round = self.round;
                device.learn(row, is_suspect, seen.elapsed_ns);
            }
            self.round - device.round < KEPT_LOOKS
        });
        self.disks = disks;
        suspect
    }

    /// Share of the time of late in which some task waited for a disk; 1 if the kernel does not say.
    fn pressure(&mut self, seen: &Seen<'_>) -> f64 {
        let rows = seen.snapshot.oom.pressure.iter();
        let mut rows = rows.filter(|row| row.resource == "io" && row.scope == "some");
        let Some(total_ns) = rows.next().map(|row| row.total_ns) else { return 1.0 };
        let before_ns = self.pressure_ns.replace(total_ns).unwrap_or(total_ns);
        let waited = total_ns.saturating_sub(before_ns) as f64 / seen.elapsed_ns.max(1) as f64;
        self.pressure.add(waited.min(1.0), seen.elapsed_ns, CONSTANT)
    }

    /// Whether memory is or was short, and whether what was evicted is read back: what disks have more to do then is memory's
    /// matter, and told by others.
    fn memory(&mut self, seen: &Seen<'_>) -> (bool, bool) {
        let oom = &seen.snapshot.oom;
        let traffic = oom.disk_read_bytes_per_second + oom.disk_written_bytes_per_second;
        let refaults = oom.refault_per_second * PAGE_BYTES;
        let states = [
            (&mut self.short_ns, is_memory_short(seen.snapshot)),
            (&mut self.read_back_ns, traffic > 0.0 && refaults >= traffic * REFAULTS),
        ];
        let [short, read_back] = states.map(|(last_ns, is_now)| {
            if is_now {
                *last_ns = Some(seen.now_ns);
            }
            last_ns.is_some_and(|at_ns| seen.now_ns.saturating_sub(at_ns) < LATELY_NS)
        });
        (short, read_back)
    }

    /// Disks that are slow, without those that stand on one that is.
    fn slow<'a>(&self, seen: &'a Seen<'_>) -> Vec<(&'a Disk, &Device, Wait)> {
        let of = |disk: &'a Disk| {
            let device = self.disks.get(&disk.name)?;
            let wait = device.wait().filter(|wait| self.is_slow(*wait, SUSPECT))?;
            (!disk.suspended).then_some((disk, device, wait))
        };
        let slow: Vec<_> = seen.snapshot.sched.disks.iter().filter_map(of).collect();
        let names: BTreeSet<&str> = slow.iter().map(|(disk, ..)| disk.name.as_str()).collect();
        let stands = |disk: &Disk| disk.below.iter().any(|below| names.contains(below.as_str()));
        slow.iter().filter(|(disk, ..)| !stands(disk)).copied().collect()
    }
}

impl Detector for Slow {
    fn look(&mut self, seen: &Seen<'_>, found: &mut Vec<Judgement>) {
        let suspect = self.follow(seen);
        self.waits.take(seen, suspect);
        let pressure = self.pressure(seen);
        let (short, read_back) = self.memory(seen);
        if short || !suspect {
            return;
        }
        let victims = self.waits.victims(seen);
        let Some((_, tasks)) = victims.first().copied() else { return };
        let mut judgements = Vec::new();
        for (disk, device, wait) in self.slow(seen) {
            if read_back && device.load_rose() {
                continue;
            }
            let enough = |need: &&Need| {
                self.is_slow(wait, need) && tasks >= need.tasks && pressure >= need.pressure
            };
            let Some(need) = NEEDS.iter().find(enough) else { continue };
            let case = Case { disk, device, wait, victims: &victims, pressure };
            judgements.push(case.judge(need.level, seen));
        }
        let level = |judgement: &Judgement| match judgement.state {
            State::Firing(level) => Some(level),
            _ => None,
        };
        let judgements = worst(judgements, level, found);
        found.extend(judgements);
    }
}

/// A disk that is slow.
struct Case<'a> {
    disk: &'a Disk,
    device: &'a Device,
    wait: Wait,
    victims: &'a [(u32, f64)],
    pressure: f64,
}

impl Case<'_> {
    fn judge(&self, level: Level, seen: &Seen<'_>) -> Judgement {
        let rose = self.device.load_rose();
        let sender = rose.then(|| sender(seen)).flatten();
        // A service that waits for its own requests has too much to do, and harms nobody else.
        let own = sender.as_ref().is_some_and(|party| self.is_own(party, seen));
        let level = if own { Level::Watch } else { level };
        Judgement {
            subject: self.disk.name.clone(),
            state: State::Firing(level),
            victims: self.parties(seen),
            message: self.message(rose, sender.as_ref(), seen),
            advice: advice(rose, own).to_owned(),
            culprit: Some(sender.unwrap_or_else(|| self.party())),
            evidence: {
                let (now, usual) = self.device.requests();
                let tasks = self.victims.first().map_or(0.0, |(_, tasks)| *tasks);
                vec![
                    evidence("disk_wait", self.wait.now_ns / 1e9, "s", "/proc/diskstats"),
                    evidence("usual_disk_wait", self.wait.usual_ns / 1e9, "s", "/proc/diskstats"),
                    evidence("requests", now, "1/s", "/proc/diskstats"),
                    evidence("usual_most_requests", usual, "1/s", "/proc/diskstats"),
                    evidence("tasks_waiting", tasks, "1", "iter/task").with(Quality::Sampled),
                    evidence("io_pressure", self.pressure, "1", "/proc/pressure/io"),
                ]
            },
            ..Judgement::default()
        }
    }

    fn party(&self) -> Party {
        party::kernel(&format!("disk {}", self.disk.name), 1.0)
    }

    fn parties(&self, seen: &Seen<'_>) -> Vec<Party> {
        let party = |(pid, tasks): &(u32, f64)| {
            party::process(seen.snapshot, *pid, "", tasks.clamp(0.0, 1.0))
        };
        self.victims
            .iter()
            .filter(|(_, tasks)| *tasks >= SUSPECT.tasks)
            .take(MAX_PIDS)
            .map(party)
            .collect()
    }

    /// Whether nobody waits but for himself.
    fn is_own(&self, sender: &Party, seen: &Seen<'_>) -> bool {
        let watched = seen.snapshot.sched.threads.iter().map(|thread| thread.pid).collect();
        let group = |pid: u32| seen.process(pid).map(party::group_of);
        let of_sender = sender.pid.and_then(group);
        let is_own = |pid: u32| {
            let sends = |other: &u32| *other == pid || service(*other, &watched, seen) == Some(pid);
            sender.pids.iter().any(sends) || of_sender.is_some() && group(pid) == of_sender
        };
        let waiting = self.victims.iter().filter(|(_, tasks)| *tasks >= SUSPECT.tasks);
        waiting.map(|(pid, _)| *pid).all(is_own)
    }

    fn message(&self, rose: bool, sender: Option<&Party>, seen: &Seen<'_>) -> String {
        let ms = |ns: f64| {
            if ns < 1e7 { format!("{:.1}", ns / 1e6) } else { format!("{:.0}", ns / 1e6) }
        };
        let (requests, usual) = self.device.requests();
        let load = match sender {
            Some(party) => format!(
                "it has more to do than usual, and {} sends {:.0} % of it",
                party.title,
                party.share_ratio * 100.0
            ),
            None if rose => "it has more to do than usual".to_owned(),
            None => format!(
                "it has no more to do than usual ({requests:.0} requests a second, at most {usual:.0} nine tenths of the time): \
                 it is the disk itself, or its throttle"
            ),
        };
        let victims = self.parties(seen);
        let victim = victims.first().map_or("", |party| party.title.as_str());
        format!(
            "disk {} takes {} ms a request where {} ms are usual; {load}; {victim} waits",
            self.disk.name,
            ms(self.wait.now_ns),
            ms(self.wait.usual_ns)
        )
    }
}

/// Who sends most of what goes to and from disks.
fn sender(seen: &Seen<'_>) -> Option<Party> {
    let sent = |row: &crate::signal::sched::Sender| {
        row.read_bytes_per_second + row.written_bytes_per_second
    };
    let rows = seen.snapshot.sched.senders.iter();
    let causes: Vec<_> = rows.map(|row| (row.pid, row.name.as_str(), sent(row))).collect();
    party::culprit(seen.snapshot, &causes).filter(|party| party.share_ratio >= SUBSTANTIAL)
}

fn advice(rose: bool, own: bool) -> &'static str {
    match (rose, own) {
        (false, _) => {
            "see the volume's metrics (EBS: burst balance, its limits of requests and bytes; a RAID that rebuilds), dmesg and \
             smartctl; give the volume more, or move the data"
        }
        (true, true) => {
            "it has too much to do for this disk: see what it reads and writes, or give it a faster one"
        }
        (true, false) => {
            "stop it, or let it wait for others (ionice -c 3, IOWeight=, IOReadBandwidthMax=), or give it a disk of its own"
        }
    }
}
