//! From reclaim records, counters and polled files to pressure, headroom and kills.

use std::{collections::HashMap, time::Duration};

use observer_abi::{
    Counter,
    alloc::TASK_KERNEL,
    oom::{Kill, Reclaim},
};

use super::{
    AVAILABLE, CGROUP_LIMIT, CGROUP_LIMIT_HITS, CGROUP_USAGE, COMPACTIONS, DIRECT_RECLAIM_TIME,
    DIRECT_RECLAIMS, EXHAUSTION, HEADROOM, KILLS, KSWAPD_WAKES, Limits, MemoryCgroup, OOM_RETRIES,
    OomKill, PRESSURE, Pressure, REFAULTS, Reclaimer, THROTTLES, View, episode::Episode,
};
use crate::{
    host::cgroup::Watched,
    signal::{
        Now, Output, Readings, Who, alloc::ProcessMemory, comm_text, per_second, span_context,
    },
    telemetry::{Attr, Event, Metric, Number, Point, Severity, Span, Subject, attr},
};

/// Kills remembered for the snapshot.
const MAX_KILLS: usize = 16;
/// Reclaimers shown.
const MAX_RECLAIMERS: usize = 64;
/// Kernel threads that reclaim, compact, and make huge pages.
const RECLAIM_THREADS: [&[u8]; 3] = [b"kswapd", b"kcompactd", b"khugepaged"];
/// A control group's limit is told again after this time.
const LIMIT_REPEAT: Duration = Duration::from_secs(10);

/// State of the signal.
#[derive(Debug)]
pub struct Oom {
    limits: Limits,
    page_bytes: u64,
    episode: Episode,
    refaults: Option<u64>,
    paged_kib: Option<[u64; 2]>,
    major_faults: Option<u64>,
    /// Time on a CPU of the kernel threads that reclaim, at the last tick.
    reclaim_cpu_ns: Option<u64>,
    kswapd_sleeps: u64,
    triggers: u64,
    /// Limit hits of a control group as last told, and when.
    cgroups: HashMap<String, (u64, u64)>,
    names: HashMap<u32, String>,
    view: View,
    kills: u64,
}

impl Oom {
    /// Empty.
    pub fn new(limits: Limits, page_bytes: u64) -> Self {
        Self {
            limits,
            page_bytes,
            episode: Episode::default(),
            refaults: None,
            paged_kib: None,
            major_faults: None,
            reclaim_cpu_ns: None,
            kswapd_sleeps: 0,
            triggers: 0,
            cgroups: HashMap::new(),
            names: HashMap::new(),
            view: View::default(),
            kills: 0,
        }
    }

    /// What the snapshot shows.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// A long reclaim.
    pub fn reclaim(&mut self, record: &Reclaim, now: Now, who: &mut dyn Who, out: &mut Output) {
        let header = &record.header;
        let process = who.process(header.tgid, None, &comm_text(&header.comm));
        let end_unix_ns = now.unix_of(header.ktime_ns);
        out.span(Span {
            name: "memory.reclaim",
            context: span_context([u64::from(header.tid), header.ktime_ns], 2),
            parent_span_id: None,
            links: Vec::new(),
            start_unix_ns: end_unix_ns.saturating_sub(record.duration_ns),
            end_unix_ns,
            error: None,
            attrs: vec![
                attr("process.pid", header.tgid),
                attr("thread.id", header.tid),
                attr(
                    "observer.memory.reclaimed_bytes",
                    record.pages.saturating_mul(self.page_bytes),
                ),
                attr("observer.memory.for_cgroup", record.memcg != 0),
            ],
            subject: Subject::Process(process),
        });
    }

    /// An OOM kill.
    /// `last` is what the victim held at the last tick: before 6.9 the kernel says its pid only.
    pub fn kill(
        &mut self,
        record: &Kill,
        last: Option<&ProcessMemory>,
        now: Now,
        who: &mut dyn Who,
        out: &mut Output,
    ) {
        let bytes = |pages: i64| u64::try_from(pages).unwrap_or(0).saturating_mul(self.page_bytes);
        let mut kill = OomKill {
            time_unix_ns: now.unix_of(record.header.ktime_ns),
            victim_pid: record.header.tgid,
            victim_name: comm_text(&record.header.comm),
            trigger_pid: record.trigger_tgid,
            trigger_name: comm_text(&record.trigger_comm),
            anon_bytes: bytes(record.anon_pages),
            file_bytes: bytes(record.file_pages),
            shmem_bytes: bytes(record.shmem_pages),
            page_table_bytes: record.page_table_bytes,
            oom_score_adj: record.oom_score_adj,
            in_cgroup: record.memcg != 0,
        };
        if let Some(last) = last.filter(|_| record.anon_pages == 0 && record.file_pages == 0) {
            kill.victim_name.clone_from(&last.name);
            kill.anon_bytes = last.anon_bytes;
            kill.file_bytes = last.file_bytes;
            kill.shmem_bytes = last.shmem_bytes;
            kill.page_table_bytes = last.page_table_bytes;
        }
        let start = (record.start_boottime_ns != 0).then_some(record.start_boottime_ns);
        let subject = Subject::Process(who.process(kill.victim_pid, start, &kill.victim_name));
        out.event(kill_event(&kill, subject));
        self.kills += 1;
        self.view.kills.insert(0, kill);
        self.view.kills.truncate(MAX_KILLS);
    }

    /// Takes what finding `memory.exhaustion` says, so that there is one clock: seconds left, and who takes the memory.
    pub fn foretell(&mut self, exhaustion_seconds: Option<f64>, culprit_pid: Option<u32>) {
        self.view.exhaustion_seconds = exhaustion_seconds;
        self.view.culprit_pid = culprit_pid;
    }

    /// Folds one tick. `ends` if it is the last one.
    pub fn tick(
        &mut self,
        readings: &Readings<'_>,
        ends: bool,
        who: &mut dyn Who,
        out: &mut Output,
    ) {
        self.memory(readings);
        self.pressure(readings, ends, out);
        self.cgroups(readings.cgroups, readings.now, out);
        self.reclaimers(readings, who);
        self.reclaim_cpu(readings);
        let counters = &readings.counters;
        let view = &mut self.view;
        // kswapd wakes up once for each balancing but may begin the next one without having slept: the counts do not match.
        let (wakes, sleeps) =
            (counters.get(Counter::KswapdWakes), counters.get(Counter::KswapdSleeps));
        let slept = std::mem::replace(&mut self.kswapd_sleeps, sleeps) != sleeps;
        view.kswapd_awake = wakes != view.kswapd_wakes || (view.kswapd_awake && !slept);
        view.kswapd_wakes = wakes;
        view.direct_reclaims = counters.get(Counter::DirectReclaims);
        view.direct_reclaim_ns = counters.get(Counter::DirectReclaimNs);
        view.compactions = counters.get(Counter::Compactions);
        view.throttles = counters.get(Counter::Throttles);
        view.oom_retries = counters.get(Counter::OomRetries);
        let refaults = readings.vmstat.refault_file_pages;
        // It counts since boot: 0 is a file that could not be read.
        if refaults > 0 {
            let before = self.refaults.replace(refaults).unwrap_or(refaults);
            let pages = refaults.saturating_sub(before);
            view.refault_per_second = per_second(pages as f64, readings.elapsed_ns);
        }
        let faults = readings.vmstat.major_faults;
        if faults > 0 {
            let before = self.major_faults.replace(faults).unwrap_or(faults);
            view.major_faults_per_second =
                per_second(faults.saturating_sub(before) as f64, readings.elapsed_ns);
        }
        let paged = [readings.vmstat.paged_in_kib, readings.vmstat.paged_out_kib];
        if paged[0] > 0 {
            let before = self.paged_kib.replace(paged).unwrap_or(paged);
            let rate = |at: usize| {
                let kib = paged[at].saturating_sub(before[at]) as f64;
                per_second(kib * 1024.0, readings.elapsed_ns)
            };
            (view.disk_read_bytes_per_second, view.disk_written_bytes_per_second) =
                (rate(0), rate(1));
        }
        view.refault_ratio = view.refault_per_second / readings.vmstat.file_lru_pages.max(1) as f64;
    }

    fn memory(&mut self, readings: &Readings<'_>) {
        let memory = readings.meminfo;
        if memory.total_bytes == 0 {
            // It could not be read: what was last known is nearer to the truth than no memory at all.
            return;
        }
        let floor = (memory.total_bytes / 100).saturating_mul(self.limits.floor_percent);
        let available = memory.available_bytes.saturating_add(memory.swap_free_bytes);
        let view = &mut self.view;
        view.memory_total_bytes = memory.total_bytes;
        view.memory_available_bytes = memory.available_bytes;
        view.swap_total_bytes = memory.swap_total_bytes;
        view.swap_free_bytes = memory.swap_free_bytes;
        view.file_lru_bytes = memory.file_lru_bytes;
        view.anon_bytes = memory.anon_bytes;
        view.shmem_bytes = memory.shmem_bytes;
        view.slab_unreclaimable_bytes = memory.slab_unreclaimable_bytes;
        view.page_table_bytes = memory.page_table_bytes;
        view.committed_bytes = memory.committed_bytes;
        view.headroom_bytes = available.saturating_sub(floor);
    }

    fn pressure(&mut self, readings: &Readings<'_>, ends: bool, out: &mut Output) {
        self.view.pressure.clear();
        let (mut triggers, mut total_ns) = (0, 0);
        for reading in readings.pressure {
            let mut row = |scope: &str, stall: crate::host::StallTime, triggers| {
                self.view.pressure.push(Pressure {
                    resource: reading.resource.to_owned(),
                    scope: scope.to_owned(),
                    avg10_percent: stall.avg10_percent,
                    total_ns: stall.total_ns,
                    triggers,
                });
            };
            row("some", reading.stall.some, reading.some_triggers);
            if let Some(full) = reading.stall.full {
                row("full", full, reading.full_triggers);
            }
            if reading.resource == "memory" {
                triggers = reading.some_triggers.saturating_add(reading.full_triggers);
                total_ns = reading.stall.some.total_ns;
            }
        }
        let fired = triggers.saturating_sub(self.triggers);
        self.triggers = triggers;
        let available = readings.meminfo.available_bytes;
        let calm_ns = self.limits.calm.as_nanos() as u64;
        if let Some(span) =
            self.episode.tick(readings.now, fired, total_ns, available, calm_ns, ends)
        {
            out.span(span);
        }
    }

    fn cgroups(&mut self, watched: &[Watched], now: Now, out: &mut Output) {
        self.view.cgroups.clear();
        for group in watched {
            let Some(memory) = group.memory else { continue };
            if self.view.cgroups.iter().any(|row| row.path == group.memory_path) {
                continue;
            }
            let row = MemoryCgroup {
                path: group.memory_path.clone(),
                usage_bytes: memory.usage_bytes,
                limit_bytes: memory.limit_bytes,
                limit_hits: memory.limit_hits,
                oom_kills: memory.oom_kills,
            };
            let first = (row.limit_hits, 0);
            let (hits, told) = self.cgroups.entry(row.path.clone()).or_insert(first);
            // A v1 counter can be set to zero.
            *hits = row.limit_hits.min(*hits);
            if row.limit_hits > *hits
                && (*told == 0 || now.since(*told) >= LIMIT_REPEAT.as_nanos() as u64)
            {
                out.event(limit_event(&row, row.limit_hits - *hits, now));
                (*hits, *told) = (row.limit_hits, now.ktime_ns);
            }
            self.view.cgroups.push(row);
        }
        let view = &self.view;
        self.cgroups.retain(|path, _| view.cgroups.iter().any(|row| row.path == *path));
    }

    fn reclaimers(&mut self, readings: &Readings<'_>, who: &mut dyn Who) {
        let mut rows: Vec<_> = readings.reclaimers.iter().collect();
        rows.sort_unstable_by_key(|(_, sum)| std::cmp::Reverse(sum.total_ns));
        rows.truncate(MAX_RECLAIMERS);
        self.names.retain(|pid, _| rows.iter().any(|(tgid, _)| tgid == pid));
        self.view.reclaimers = rows
            .iter()
            .map(|(pid, sum)| Reclaimer {
                pid: *pid,
                name: self
                    .names
                    .entry(*pid)
                    .or_insert_with(|| who.process(*pid, None, "").name.clone())
                    .clone(),
                count: sum.count,
                total_ns: sum.total_ns,
                max_ns: sum.max_ns,
                pages: sum.pages,
            })
            .collect();
    }

    /// CPU time of the kernel threads that make room.
    fn reclaim_cpu(&mut self, readings: &Readings<'_>) {
        let reclaims = |comm: &[u8]| RECLAIM_THREADS.iter().any(|name| comm.starts_with(name));
        let kernel = readings.tasks.iter().filter(|row| row.flags & TASK_KERNEL != 0);
        let sum = kernel.filter(|row| reclaims(&row.comm)).map(|row| row.on_cpu_ns);
        let cpu_ns = sum.fold(0, u64::saturating_add);
        let before = self.reclaim_cpu_ns.replace(cpu_ns).unwrap_or(cpu_ns);
        self.view.reclaim_cpu_ratio =
            per_second(cpu_ns.saturating_sub(before) as f64 / 1e9, readings.elapsed_ns);
    }

    /// Metric points of the present view.
    pub fn points(&self, start_unix_ns: u64, boot_unix_ns: u64, out: &mut Output) {
        // What the kernel has counted since boot must say so, or a backend sees it all happen at once.
        let since_boot = [REFAULTS.name, PRESSURE.name, CGROUP_LIMIT_HITS.name];
        let mut add = |metric: &'static Metric, number: Number, attrs: Vec<Attr>| {
            let start_unix_ns =
                if since_boot.contains(&metric.name) { boot_unix_ns } else { start_unix_ns };
            out.point(Point { metric, attrs, number, start_unix_ns, subject: Subject::Host });
        };
        let view = &self.view;
        let counts = [
            (&AVAILABLE, view.memory_available_bytes),
            (&HEADROOM, view.headroom_bytes),
            (&DIRECT_RECLAIMS, view.direct_reclaims),
            (&KSWAPD_WAKES, view.kswapd_wakes),
            (&COMPACTIONS, view.compactions),
            (&THROTTLES, view.throttles),
            (&OOM_RETRIES, view.oom_retries),
            (&REFAULTS, self.refaults.unwrap_or(0)),
            (&KILLS, self.kills),
        ];
        for (metric, value) in counts {
            add(metric, int(value), Vec::new());
        }
        add(&DIRECT_RECLAIM_TIME, Number::Float(view.direct_reclaim_ns as f64 / 1e9), Vec::new());
        if let Some(seconds) = view.exhaustion_seconds {
            add(&EXHAUSTION, Number::Float(seconds), Vec::new());
        }
        for row in &view.pressure {
            let attrs = vec![
                attr("observer.pressure.resource", row.resource.clone()),
                attr("observer.pressure.scope", row.scope.clone()),
            ];
            add(&PRESSURE, Number::Float(row.total_ns as f64 / 1e9), attrs);
        }
        for row in view.cgroups.iter().filter(|row| row.limit_bytes.is_some()) {
            let attrs = || vec![attr("process.linux.cgroup", row.path.clone())];
            add(&CGROUP_USAGE, int(row.usage_bytes), attrs());
            add(&CGROUP_LIMIT, int(row.limit_bytes.unwrap_or(0)), attrs());
            add(&CGROUP_LIMIT_HITS, int(row.limit_hits), attrs());
        }
    }
}

fn int(value: u64) -> Number {
    Number::Int(i64::try_from(value).unwrap_or(i64::MAX))
}

fn kill_event(kill: &OomKill, subject: Subject) -> Event {
    Event {
        name: "observer.oom.kill",
        severity: Severity::Error,
        time_unix_ns: kill.time_unix_ns,
        body: format!(
            "{} ({}) was killed for want of memory, holding {} MiB; the allocation of {} ({}) set it off",
            kill.victim_name,
            kill.victim_pid,
            kill.anon_bytes.saturating_add(kill.file_bytes).saturating_add(kill.shmem_bytes) >> 20,
            kill.trigger_name,
            kill.trigger_pid
        ),
        attrs: vec![
            attr("process.pid", kill.victim_pid),
            attr("observer.oom.victim.pid", kill.victim_pid),
            attr("observer.oom.victim.name", kill.victim_name.clone()),
            attr("observer.oom.trigger.pid", kill.trigger_pid),
            attr("observer.oom.trigger.name", kill.trigger_name.clone()),
            attr("observer.oom.anon_bytes", kill.anon_bytes),
            attr("observer.oom.file_bytes", kill.file_bytes),
            attr("observer.oom.shmem_bytes", kill.shmem_bytes),
            attr("observer.oom.page_table_bytes", kill.page_table_bytes),
            attr("observer.oom.score_adj", kill.oom_score_adj),
            attr("observer.oom.in_cgroup", kill.in_cgroup),
        ],
        context: None,
        subject,
    }
}

fn limit_event(row: &MemoryCgroup, hits: u64, now: Now) -> Event {
    Event {
        name: "observer.memory.limit_hit",
        severity: Severity::Warn,
        time_unix_ns: now.unix_ns,
        body: format!("{} hit its memory limit {hits} times", row.path),
        attrs: vec![
            attr("process.linux.cgroup", row.path.clone()),
            attr("observer.cgroup.limit_hits", hits),
            attr("observer.cgroup.usage_bytes", row.usage_bytes),
            attr("observer.cgroup.limit_bytes", row.limit_bytes.unwrap_or(0)),
        ],
        context: None,
        subject: Subject::Host,
    }
}
