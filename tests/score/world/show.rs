//! What the agent would show of the host: the model's state in the fields of a [`Snapshot`], changed in place.

use std::cmp::Ordering;

use observer::{
    signal::{
        alloc::ProcessMemory,
        limit::{Bound, Host},
        oom::{MemoryCgroup, Pressure},
        sched::{Consumer, CpuCgroup, EventLoop, Thread},
    },
    snapshot::{Snapshot, VERSION},
};

use super::{
    SECOND_NS, World,
    actor::{Actor, Why},
    chance::{PAGE, noise},
};

/// Share of RAM below which a host without swap begins to thrash: the agent's default.
const FLOOR_PERCENT: f64 = 8.0;
/// What has a bound is read so often.
const LIMITS_S: u64 = 10;
/// Processes shown of those that use the CPU.
const MAX_CONSUMERS: usize = 8;
/// RLIMIT_NOFILE of services.
const MAX_FILES: u64 = 1024;
/// Resources and scopes of PSI.
const PRESSURES: [(&str, &str); 5] =
    [("memory", "some"), ("memory", "full"), ("io", "some"), ("io", "full"), ("cpu", "some")];

/// A snapshot with the rows that do not change.
pub(super) fn empty() -> Snapshot {
    let mut snapshot = Snapshot {
        version: VERSION,
        host_name: "model".to_owned(),
        kernel: "6.12.0".to_owned(),
        ..Snapshot::default()
    };
    snapshot.oom.pressure = PRESSURES
        .iter()
        .map(|(resource, scope)| Pressure {
            resource: (*resource).to_owned(),
            scope: (*scope).to_owned(),
            ..Pressure::default()
        })
        .collect();
    snapshot
}

impl World {
    pub(super) fn show(&mut self) {
        self.snapshot.time_unix_ns = self.unix_ns();
        self.snapshot.uptime_ns += SECOND_NS;
        self.show_processes();
        let io_some = self.show_disk();
        self.show_memory(io_some);
        self.show_cgroups();
        self.show_cpu();
        if self.now_s % LIMITS_S == 1 {
            self.show_limits();
        }
    }

    fn show_processes(&mut self) {
        let (actors, order) = (&self.actors, &mut self.order);
        if order.len() != actors.len() {
            *order = (0..actors.len()).collect();
        }
        // Nearly in order since the last second.
        order.sort_by(|a, b| actors[*b].rss().total_cmp(&actors[*a].rss()));
        let rows = &mut self.snapshot.alloc.processes;
        rows.resize_with(actors.len(), ProcessMemory::default);
        for (row, at) in rows.iter_mut().zip(order) {
            let actor = &actors[*at];
            if row.pid != actor.pid {
                row.pid = actor.pid;
                row.name.clone_from(&actor.identity.name);
            }
            row.rss_bytes = actor.rss() as u64;
            row.anon_bytes = actor.anon() as u64;
            row.file_bytes = actor.file as u64;
            row.shmem_bytes = actor.shmem as u64;
            row.swap_bytes = actor.swap as u64;
            row.page_table_bytes = actor.page_tables() as u64;
            row.growth_bytes_per_second = actor.growth();
        }
        self.snapshot.alloc.process_count = actors.len() as u64 + 40;
    }

    /// `io_some`: share of the second in which some task waited for a disk.
    fn show_memory(&mut self, io_some: f64) {
        let Some(memory) = &self.memory else { return };
        let (view, total) = (&mut self.snapshot.oom, self.machine.total);
        view.memory_total_bytes = total as u64;
        view.memory_available_bytes = memory.available as u64;
        view.swap_total_bytes = self.machine.swap_total as u64;
        view.swap_free_bytes = (self.machine.swap_total - memory.swapped).max(0.0) as u64;
        let swap_free = view.swap_free_bytes as f64;
        view.headroom_bytes =
            (memory.available + swap_free - total * FLOOR_PERCENT / 100.0).max(0.0) as u64;
        view.kswapd_awake = memory.kswapd_awake;
        view.kswapd_wakes = memory.kswapd_wakes;
        view.direct_reclaims = memory.direct_reclaims;
        view.direct_reclaim_ns = memory.direct_reclaim_ns;
        view.compactions = memory.compactions;
        view.throttles = memory.throttles;
        view.file_lru_bytes = memory.file() as u64;
        view.anon_bytes = (self.demand.anon - memory.swapped) as u64;
        view.shmem_bytes = self.demand.shmem as u64;
        view.slab_unreclaimable_bytes = memory.slab_unreclaimable as u64;
        view.page_table_bytes = self.demand.page_tables as u64;
        // Processes are promised more than they touch.
        view.committed_bytes = ((self.demand.anon + self.demand.shmem) * 1.4) as u64;
        view.major_faults_per_second = memory.major_faults_per_s;
        view.reclaim_cpu_ratio = memory.reclaim_cpu;
        view.refault_per_second = memory.refault_per_s;
        view.refault_ratio = memory.refault_per_s / (memory.file() / PAGE).max(1.0);
        let streams = self.demand.cold_per_s * memory.progress;
        view.disk_written_bytes_per_second = self.device.streamed();
        view.disk_read_bytes_per_second = memory.refault_per_s * PAGE + streams;
        let crowd = self.crowd();
        let cpu_some = (crowd - 0.7).clamp(0.0, 1.0) * 0.9 + self.cpu.hog * 0.8;
        let some = memory.io_some.max(io_some);
        let shares = [memory.some, memory.full, some, memory.io_some * 0.5, cpu_some.min(1.0)];
        let view = &mut self.snapshot.oom;
        for (row, share) in view.pressure.iter_mut().zip(shares) {
            // The kernel's average of ten seconds is exponential (kernel/sched/psi.c).
            row.avg10_percent += (share * 100.0 - row.avg10_percent) * (1.0 - (-0.1_f64).exp());
            row.total_ns += (share * 1e9) as u64;
            // The agent's trigger: some 70 ms, full 70 ms in a second of memory.
            row.triggers += u64::from(row.resource == "memory" && share > 0.07);
        }
    }

    /// Files and processes by their bounds, and how the host is set: as usual.
    fn show_limits(&mut self) {
        let now_ns = self.unix_ns();
        let view = &mut self.snapshot.limit;
        view.read_unix_ns = now_ns;
        view.rows.clear();
        for actor in self.actors.iter().filter(|actor| actor.threads > 0) {
            let more =
                self.files.iter().find(|(pid, _)| *pid == actor.pid).map_or(0.0, |row| row.1);
            view.rows.push(Bound {
                resource: "files".to_owned(),
                pid: actor.pid,
                name: actor.identity.name.clone(),
                scope: "process".to_owned(),
                used: (40 + u64::from(actor.pid % 60) + more as u64).min(MAX_FILES),
                limit: Some(MAX_FILES),
                unit: "files".to_owned(),
                source: "kernel".to_owned(),
                upper_estimate: false,
            });
        }
        view.rows.push(Bound {
            resource: "processes".to_owned(),
            scope: "host".to_owned(),
            used: self.actors.len() as u64 + 150,
            limit: Some(31_000),
            unit: "threads".to_owned(),
            source: "kernel".to_owned(),
            ..Bound::default()
        });
        view.rows.sort_by(|a, b| b.share().partial_cmp(&a.share()).unwrap_or(Ordering::Equal));
        view.host = Host {
            overcommit_memory: Some(1),
            thp_enabled: "madvise".to_owned(),
            thp_defrag: "madvise".to_owned(),
            swappiness: Some(60),
            cpus: u64::from(self.machine.cpus),
            memory_total_bytes: self.machine.total as u64,
            swap_total_bytes: self.machine.swap_total as u64,
            commit_limit_bytes: (self.machine.total * 0.5) as u64,
            tcp_keepalive_time_seconds: Some(7200),
            tcp_retries2: Some(15),
            port_range_first: Some(32_768),
            port_range_last: Some(60_999),
            psi_available: true,
            ..Host::default()
        };
    }

    fn show_cgroups(&mut self) {
        let view = &mut self.snapshot.oom;
        view.cgroups.resize_with(self.limited.len(), MemoryCgroup::default);
        for at in 0..self.limited.len() {
            let charged = self.charged(&self.limited[at].path);
            let (row, group) = (&mut self.snapshot.oom.cgroups[at], &self.limited[at]);
            row.path.clone_from(&group.path);
            row.usage_bytes = (charged + group.file).min(group.limit) as u64;
            row.limit_bytes = Some(group.limit as u64);
            row.limit_hits = group.hits;
            row.oom_kills = group.kills;
        }
    }

    /// Cores wanted by the cores that there are.
    fn crowd(&self) -> f64 {
        let wanted: f64 = self.actors.iter().map(|actor| actor.cpu).sum();
        let there = f64::from(self.machine.cpus) * (1.0 - self.cpu.steal).max(0.05);
        (wanted * self.work + self.cpu.extra) / there
    }

    fn show_cpu(&mut self) {
        let crowd = self.crowd();
        let progress = self.memory.as_ref().map_or(1.0, |memory| memory.progress);
        let (now_s, hog, work) = (self.now_s as f64, self.cpu.hog, self.work);
        let view = &mut self.snapshot.sched;
        view.busy_ratio = crowd.min(1.0);
        view.steal_ratio = self.cpu.steal;
        view.blocked.clone_from(&self.cpu.blocked);
        let mut row = 0;
        for actor in self.actors.iter_mut().filter(|actor| actor.threads > 0) {
            let share = actor.cpu * work * noise(&mut self.shown, 0.3);
            let waits = share * (crowd - 0.8).max(0.0) * 0.6 + 0.004 * self.shown.f64();
            // What a quota holds back waits as well.
            let held =
                self.cpu.throttled.as_ref().filter(|(path, _)| *path == actor.identity.cgroup);
            let held = held.map_or(0.0, |(_, ratio)| ratio * (0.3 + 0.5 * self.shown.f64()));
            let delay = if hog > 0.0 { hog } else { waits.max(held).min(0.9) };
            actor.run_delay_ns += (delay * 1e9) as u64;
            for thread in 0..actor.threads {
                if row == view.threads.len() {
                    view.threads.push(Thread::default());
                }
                let shown = &mut view.threads[row];
                row += 1;
                if shown.tid != actor.pid + thread {
                    (shown.pid, shown.tid) = (actor.pid, actor.pid + thread);
                    shown.name.clone_from(&actor.identity.name);
                    shown.event_loop = None;
                    shown.listens = Some(actor.event_loop.is_some());
                }
                shown.on_cpu_ratio = (share * (1.0 - hog)).min(1.0 - delay);
                shown.run_delay_ratio = delay;
                shown.run_delay_ns = actor.run_delay_ns;
                if thread == 0 {
                    turn(actor, now_s, progress, shown);
                }
            }
        }
        view.threads.truncate(row);
        view.watched = row as u64;
        view.threads.sort_by_key(|row| {
            std::cmp::Reverse(row.event_loop.as_ref().map_or(0, |turn| turn.open_ns))
        });
        view.consumers.clear();
        if crowd > 0.8 || hog > 0.0 {
            let mut busy: Vec<&Actor> =
                self.actors.iter().filter(|actor| actor.cpu > 0.1).collect();
            busy.sort_by(|a, b| b.cpu.total_cmp(&a.cpu));
            view.consumers.extend(busy.into_iter().take(MAX_CONSUMERS).map(|actor| Consumer {
                pid: actor.pid,
                name: actor.identity.name.clone(),
                cpu_ratio: actor.cpu / crowd.max(1.0),
                policy: if actor.real_time { "fifo" } else { "other" }.to_owned(),
                rt_priority: u32::from(actor.real_time) * 50,
                ..Consumer::default()
            }));
        }
        let before = view.throttled.pop().map_or(0, |row| row.throttled_ns);
        if let Some((path, ratio)) = &self.cpu.throttled {
            view.throttled.push(CpuCgroup {
                path: path.clone(),
                throttled_periods: before / 50_000_000,
                throttled_ns: before + (ratio * 5e8) as u64,
                throttled_ratio: *ratio,
            });
        }
    }
}

/// One second of an event loop.
fn turn(actor: &mut Actor, now_s: f64, progress: f64, shown: &mut Thread) {
    let turns = (actor.cpu * 2000.0 * progress) as u64 + 1;
    let Some(event_loop) = &mut actor.event_loop else { return };
    let row = shown.event_loop.get_or_insert_with(EventLoop::default);
    if event_loop.step(now_s, turns, row) == Some(Why::OnCpu) {
        (shown.on_cpu_ratio, shown.run_delay_ratio) = (0.99, 0.002);
    }
}
