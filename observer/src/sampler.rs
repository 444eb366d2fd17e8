//! The sampler: drains the ring four times a second, reads maps, iterators and files once a second, and folds all of it.
//!
//! One plain thread. It never waits for the exporter, a terminal or a disk; what it makes goes into bounded queues.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use anyhow::Result;
use observer_abi::{
    Header, Kind,
    alloc::{Exit, TASK_KERNEL, TASK_LEADER, TaskRow},
    oom::{Kill, Reclaim},
    sched::{CALIBRATE, LoopGap, Stall, Watch},
    tcp::{Closed, HolderRow, Listening, SocketRow, state},
};
use rustix::time::{ClockId, clock_getres, clock_gettime};
use zerocopy::FromBytes as _;

use crate::{
    config::{self, Config},
    dns::{Names, parse_answer},
    files::Files,
    host::Info,
    identity::{Identities, Process},
    kernel::{Counters, Kernel, Options, Packets},
    signal::{
        Now, Output, Readings, Who,
        alloc::{self, Alloc},
        comm_text,
        oom::{self, Oom},
        sched::{self, Sched, Watchlist},
        tcp::{self, PeerNames, Tcp},
    },
    snapshot::{Loss, Program, Snapshot, VERSION, Verdict},
    symbolize::{Request, Response},
    telemetry::Batch,
};

/// The table of socket holders is read at least this often; it tells who listens.
const HOLDERS_EVERY_NS: u64 = 10_000_000_000;
/// A connection whose owner was not found is looked for again after this time, then twice as long, up to the above.
const HOLDERS_RETRY_NS: u64 = 500_000_000;
/// Sampled faults are taken this often while a process grows.
const FAULTS_EVERY_NS: u64 = 3_000_000_000;
/// Without one, they are dropped this often, so that the tables do not fill with what nobody asks for.
const FAULTS_DROPPED_EVERY_NS: u64 = 30_000_000_000;
/// A process's stacks are named at most this often: it takes a child process some tenths of a second.
const NAMES_EVERY_NS: u64 = 10_000_000_000;

/// Identities of processes, and their names for peers.
struct Directory(Identities);

impl Who for Directory {
    fn process(&mut self, pid: u32, start_boottime_ns: Option<u64>, comm: &str) -> Arc<Process> {
        self.0.get_or_name(pid, start_boottime_ns, comm)
    }
}

/// Names from DNS answers at one instant.
struct NamesAt<'a>(&'a Names, u64);

impl PeerNames for NamesAt<'_> {
    fn name(&self, address: IpAddr) -> Option<(&str, Option<&'static str>)> {
        let name = self.0.name(address, self.1)?;
        // `other_sql` says no more than a port does.
        let system = self.0.database(address, self.1).filter(|system| *system != "other_sql");
        Some((name, system))
    }
}

/// Rows read at a tick; kept, so that a tick allocates nothing once they have grown.
#[derive(Default)]
struct Rows {
    tasks: Vec<TaskRow>,
    sockets: Vec<SocketRow>,
    holders: Vec<HolderRow>,
    watches: Vec<(u32, Watch)>,
    reclaimers: Vec<(u32, observer_abi::oom::Reclaimer)>,
}

/// When something was last done, CLOCK_MONOTONIC.
#[derive(Default)]
struct Last {
    tick_ns: u64,
    holders_ns: u64,
    holders_pause_ns: u64,
    faults_ns: u64,
    names_ns: u64,
}

/// State of the sampler.
pub struct Sampler {
    info: Info,
    kernel: Kernel,
    files: Files,
    packets: Option<Packets>,
    names: Names,
    who: Directory,
    alloc: Alloc,
    oom: Oom,
    tcp: Tcp,
    sched: Sched,
    watchlist: Watchlist,
    /// Processes that listen, by the last table of holders and the records since.
    listeners: BTreeSet<u32>,
    watch_names: Vec<String>,
    own_tid: u32,
    rows: Rows,
    last: Last,
    counters: Counters,
    usage: Usage,
    page_bytes: u64,
    hz: u64,
    start_unix_ns: u64,
    malformed: u64,
    map_bytes: u64,
    output: Output,
    other_programs: Vec<Program>,
}

/// The agent's own cost.
#[derive(Default)]
struct Usage {
    readings: std::collections::VecDeque<(u64, u64)>,
    rss_bytes: u64,
}

impl Sampler {
    /// Loads the probes and opens the files. What this host does not allow is a row of the health table.
    ///
    /// # Errors
    /// Only what is wrong with the configuration.
    pub fn new(config: &Config) -> Result<Self> {
        let tcp_limits = tcp::Limits::new(config)?;
        let options = options(config, &tcp_limits);
        let info = Info::read(Path::new("/"));
        let who = Identities::new(Path::new("/proc"), Path::new("/etc/passwd"), info.boot_unix_ns);
        let page_bytes = rustix::param::page_size() as u64;
        let mut other_programs = Vec::new();
        let packets = open_packets(config.bool(&config::DNS), &mut other_programs);
        let kernel = Kernel::open(&options);
        let now = now();
        let map_bytes = kernel.map_bytes();
        Ok(Self {
            files: Files::open(Path::new("/proc")),
            packets,
            names: Names::default(),
            who: Directory(who),
            alloc: Alloc::new(alloc::Limits::new(config)),
            oom: Oom::new(oom::Limits::new(config), page_bytes),
            tcp: Tcp::new(tcp_limits),
            sched: Sched::new(options.gap_threshold.as_nanos() as u64),
            watchlist: Watchlist::default(),
            listeners: BTreeSet::new(),
            watch_names: config.list(&sched::WATCH).to_vec(),
            own_tid: 0,
            rows: Rows::default(),
            last: Last { holders_pause_ns: HOLDERS_RETRY_NS, ..Last::default() },
            counters: Counters::default(),
            usage: Usage::default(),
            page_bytes,
            hz: hz(),
            start_unix_ns: now.unix_ns,
            malformed: 0,
            map_bytes,
            output: Output::default(),
            other_programs,
            info,
            kernel,
        })
    }

    /// Verdict of every program and file.
    pub fn programs(&self) -> Vec<Program> {
        [self.kernel.programs(), &self.other_programs, self.files.programs()].concat()
    }

    /// Whether any BPF program runs.
    pub fn has_probes(&self) -> bool {
        self.kernel.is_loaded()
            && self.kernel.programs().iter().any(|row| row.verdict != Verdict::Impossible)
    }

    /// What the host is.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// The PSI triggers, to be polled by the thread that runs the sampler.
    pub fn triggers(&self) -> &crate::host::Triggers {
        &self.files.triggers
    }

    /// Folds what waits in the ring and the packet sockets.
    pub fn drain(&mut self) {
        let now = now();
        let Self {
            kernel, alloc, oom, tcp, sched, who, output, listeners, names, malformed, ..
        } = self;
        if let Some(packets) = &mut self.packets {
            packets.drain(|payload| {
                for answer in parse_answer(payload) {
                    if answer.database.is_some() {
                        let address = mapped(answer.address);
                        if let Some(tables) = kernel.tables() {
                            tables.add_peer(address);
                        }
                    }
                    names.insert(&answer, now.unix_ns);
                }
            });
        }
        kernel.drain(|bytes| {
            let mut fold = Fold { alloc, oom, tcp, sched, who, output, listeners, names, now };
            *malformed += u64::from(fold.record(bytes).is_none());
        });
    }

    /// Reads everything once and folds it. `ends` on the last tick: what is open is then told.
    pub fn tick(&mut self, ends: bool) {
        self.drain();
        let now = now();
        let elapsed_ns = if self.last.tick_ns == 0 { 0 } else { now.since(self.last.tick_ns) };
        self.last.tick_ns = now.ktime_ns;
        self.calibrate();
        self.read_rows();
        let read = self.files.read();
        self.usage.add(now.ktime_ns, &read.usage);
        let live = self
            .rows
            .tasks
            .iter()
            .filter(|row| row.flags & TASK_LEADER != 0 && row.flags & TASK_KERNEL == 0);
        self.who.0.forget_dead(live.map(|row| (row.tgid, row.start_boottime_ns)));
        let cgroups = self.files.cgroups.as_mut();
        let run_queue_clock_ns =
            self.kernel.tables().and_then(|t| t.watched(self.own_tid)).and_then(|watch| {
                (watch.calibration_ktime_ns != 0)
                    .then(|| watch.left_clock + now.since(watch.calibration_ktime_ns))
            });
        let readings = Readings {
            now,
            elapsed_ns,
            page_bytes: self.page_bytes,
            hz: self.hz,
            cpus: read.cpus,
            counters: self.counters,
            tasks: &self.rows.tasks,
            sockets: &self.rows.sockets,
            watches: &self.rows.watches,
            run_queue_clock_ns,
            reclaimers: &self.rows.reclaimers,
            meminfo: read.meminfo,
            vmstat: read.vmstat,
            times: read.times,
            pressure: &read.pressure,
            cgroups: cgroups.map_or(&[], crate::host::cgroup::Cgroups::read),
        };
        let (who, out) = (&mut self.who, &mut self.output);
        self.alloc.tick(&readings, who, out);
        self.oom.tick(&readings, &self.alloc.growers(), ends, who, out);
        self.tcp.tick(&readings, &NamesAt(&self.names, now.unix_ns), ends, who, out);
        self.sched.tick(&readings, ends, who, out);
        if let Err(error) = self.kernel.set_epoll_probe(self.sched.wants_epoll_probe() && !ends) {
            tracing::warn!("cannot attach the epoll probe: {error:#}");
        }
        self.find_holders(now);
        self.update_watchlist();
        self.take_faults(now);
    }

    fn calibrate(&mut self) {
        if self.own_tid == 0 {
            self.own_tid =
                u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap_or(0);
            if let Some(tables) = self.kernel.tables() {
                tables.watch(self.own_tid, CALIBRATE);
            }
        }
    }

    fn read_rows(&mut self) {
        let rows = &mut self.rows;
        for result in [self.kernel.tasks(&mut rows.tasks), self.kernel.sockets(&mut rows.sockets)] {
            if let Err(error) = result {
                tracing::warn!("{error:#}");
            }
        }
        rows.watches.clear();
        rows.reclaimers.clear();
        if let Some(tables) = self.kernel.tables() {
            self.counters = tables.counters();
            rows.watches.extend(
                self.watchlist.threads().filter_map(|(_, tid)| Some((tid, tables.watched(tid)?))),
            );
            rows.reclaimers.extend(tables.reclaimers());
        }
    }

    /// Finds owners of connections that have none, and who listens.
    fn find_holders(&mut self, now: Now) {
        let unowned = self.rows.sockets.iter().any(|row| row.owned.tgid == 0);
        let pause = if unowned { self.last.holders_pause_ns } else { HOLDERS_EVERY_NS };
        if self.last.holders_ns != 0 && now.since(self.last.holders_ns) < pause {
            return;
        }
        self.last.holders_ns = now.ktime_ns;
        if let Err(error) = self.kernel.holders(&mut self.rows.holders) {
            tracing::warn!("{error:#}");
            return;
        }
        self.listeners.clear();
        let mut found = 0;
        for row in &self.rows.holders {
            if row.state == state::LISTEN {
                self.listeners.insert(row.tgid);
                self.tcp.listener(row);
            } else if let Some(tables) = self.kernel.tables() {
                let unowned = tables.owned(row.key).filter(|owned| owned.tgid == 0);
                if let Some(mut owned) = unowned {
                    (owned.tgid, owned.tid, owned.comm) = (row.tgid, row.tgid, row.comm);
                    tables.set_owned(row.key, owned);
                    found += 1;
                }
            }
        }
        let patience = if found > 0 { HOLDERS_RETRY_NS } else { self.last.holders_pause_ns * 2 };
        self.last.holders_pause_ns = patience.min(HOLDERS_EVERY_NS);
    }

    /// Watches the threads of processes that listen, own connections, or are named in the configuration.
    fn update_watchlist(&mut self) {
        let owners = self.rows.sockets.iter().map(|row| row.owned.tgid).filter(|pid| *pid != 0);
        let mut pids: BTreeSet<u32> = owners.chain(self.listeners.iter().copied()).collect();
        let own_pid = std::process::id();
        let mut threads: BTreeMap<u32, u32> = BTreeMap::new();
        for row in self
            .rows
            .tasks
            .iter()
            .filter(|row| row.flags & TASK_LEADER != 0 && row.flags & TASK_KERNEL == 0)
        {
            threads.insert(row.tgid, row.threads);
            if self.watch_names.iter().any(|name| *name == comm_text(&row.comm)) {
                pids.insert(row.tgid);
            }
        }
        pids.retain(|pid| threads.contains_key(pid) && *pid != own_pid);
        let mut known: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for (pid, tid) in self.watchlist.threads() {
            known.entry(pid).or_default().insert(tid);
        }
        let wanted = pids.iter().map(|pid| {
            let same = known
                .remove(pid)
                .filter(|tids| threads.get(pid).copied() == u32::try_from(tids.len()).ok());
            (*pid, same.unwrap_or_else(|| self.who.0.threads(*pid).into_iter().collect()))
        });
        let changes = self.watchlist.update(wanted.collect());
        if let Some(tables) = self.kernel.tables() {
            changes.remove.iter().for_each(|tid| tables.unwatch(*tid));
            for tid in changes.add {
                if !tables.watch(tid, 0) {
                    self.watchlist.refuse(tid);
                }
            }
        }
        if let Some(cgroups) = &mut self.files.cgroups {
            let processes: Vec<_> =
                pids.iter().filter_map(|pid| self.who.0.get(*pid, None)).collect();
            let reclaimers: Vec<_> = self
                .rows
                .reclaimers
                .iter()
                .filter_map(|(pid, _)| self.who.0.get(*pid, None))
                .collect();
            let paths: BTreeSet<&str> = processes
                .iter()
                .chain(&reclaimers)
                .map(|process| process.cgroup.as_str())
                .filter(|path| !path.is_empty())
                .collect();
            cgroups.watch(paths);
        }
    }

    /// Takes sampled faults for processes that grow, and drops the others.
    fn take_faults(&mut self, now: Now) {
        let growers = self.alloc.growers();
        let pause = if growers.is_empty() { FAULTS_DROPPED_EVERY_NS } else { FAULTS_EVERY_NS };
        if now.since(self.last.faults_ns) < pause {
            return;
        }
        self.last.faults_ns = now.ktime_ns;
        let Some(tables) = self.kernel.tables() else { return };
        let faults = tables.take_faults();
        let mut stacks = BTreeSet::new();
        for (site, samples) in &faults {
            stacks.insert(site.stack_id);
            if growers.contains(&site.tgid) {
                let addresses = tables.stack(site.stack_id);
                if !addresses.is_empty() {
                    self.alloc.add_stack(site.tgid, addresses, *samples);
                }
            }
        }
        stacks.into_iter().for_each(|id| tables.forget_stack(id));
    }

    /// What should be given names now; the answer goes to [`Sampler::name`].
    pub fn name_request(&mut self) -> Option<Request> {
        let now = now();
        if now.since(self.last.names_ns) < NAMES_EVERY_NS {
            return None;
        }
        let kernel_stacks: Vec<Vec<u64>> =
            self.sched.unnamed().into_iter().take(64).map(|address| vec![address]).collect();
        let user = self.alloc.unnamed().into_iter().next();
        if kernel_stacks.is_empty() && user.is_none() {
            return None;
        }
        self.last.names_ns = now.ktime_ns;
        let (pid, stacks) = user.unwrap_or_default();
        Some(Request { pid, stacks, kernel_stacks })
    }

    /// Takes the answer to [`Sampler::name_request`].
    pub fn name(&mut self, request: &Request, response: Response) {
        for (addresses, frames) in request.stacks.iter().zip(response.stacks) {
            self.alloc.name_stack(request.pid, addresses, frames);
        }
        for (addresses, frames) in request.kernel_stacks.iter().zip(response.kernel_stacks) {
            if let (Some(address), Some(name)) = (addresses.first(), frames.into_iter().next()) {
                self.sched.name(*address, name);
            }
        }
    }

    /// Takes everything made since the last time; with metric points of the present state if `points`.
    pub fn take_batch(&mut self, points: bool) -> Batch {
        if points {
            let (who, out) = (&mut self.who, &mut self.output);
            self.alloc.points(self.start_unix_ns, who, out);
            self.oom.points(self.start_unix_ns, out);
            self.tcp.points(self.start_unix_ns, who, out);
            self.sched.points(self.start_unix_ns, who, out);
        }
        let mut batch = std::mem::take(&mut self.output.batch);
        batch.time_unix_ns = now().unix_ns;
        batch
    }

    /// The present state. `exporters` and `losses` come from the exporter, if there is one.
    pub fn snapshot(
        &mut self,
        exporters: Vec<crate::snapshot::Exporter>,
        losses: Vec<Loss>,
    ) -> Snapshot {
        let now = now();
        let mut snapshot = Snapshot {
            version: VERSION,
            time_unix_ns: now.unix_ns,
            host_name: self.info.host_name.clone(),
            kernel: self.info.kernel.clone(),
            uptime_ns: now.unix_ns.saturating_sub(self.info.boot_unix_ns),
            alloc: self.alloc.view(),
            oom: self.oom.view(),
            tcp: self.tcp.view(),
            sched: self.sched.view(),
            processes: BTreeMap::new(),
            health: crate::snapshot::Health {
                programs: self.programs(),
                losses: [self.losses(), losses].concat(),
                cpu_ratio: self.usage.cpu_ratio(),
                rss_bytes: self.usage.rss_bytes,
                bpf_map_bytes: self.map_bytes,
                exporters,
            },
        };
        let mut pids: BTreeSet<u32> = snapshot.alloc.processes.iter().map(|row| row.pid).collect();
        pids.extend(snapshot.tcp.connections.iter().map(|row| row.pid));
        pids.extend(snapshot.sched.threads.iter().map(|row| row.pid));
        let known = pids.into_iter().filter_map(|pid| Some((pid, self.who.0.get(pid, None)?)));
        snapshot.processes = known.collect();
        snapshot
    }

    fn losses(&self) -> Vec<Loss> {
        use observer_abi::Counter;
        let ring = self
            .counters
            .ring_losses()
            .map(|(kind, count)| (format!("ring.{}", kind.name()), count));
        let own = [
            ("ring.malformed", self.malformed),
            ("ledger.full", self.counters.get(Counter::LedgerFull)),
            ("alloc.stacks", self.counters.get(Counter::FaultsLost)),
            ("oom.reclaimers", self.counters.get(Counter::ReclaimersFull)),
            ("sched.watchlist", self.watchlist.refused()),
            ("identity.evicted", self.who.0.evicted()),
            ("dns.names", self.names.evicted()),
            (
                "cgroups",
                self.files.cgroups.as_ref().map_or(0, crate::host::cgroup::Cgroups::refused),
            ),
            ("tick.items", self.output.dropped),
        ];
        let own = own.map(|(stage, count)| (stage.to_owned(), count));
        ring.into_iter().chain(own).map(|(stage, count)| Loss { stage, count }).collect()
    }
}

/// The folds, while records are handed to them.
struct Fold<'a> {
    alloc: &'a mut Alloc,
    oom: &'a mut Oom,
    tcp: &'a mut Tcp,
    sched: &'a mut Sched,
    who: &'a mut Directory,
    output: &'a mut Output,
    listeners: &'a mut BTreeSet<u32>,
    names: &'a Names,
    now: Now,
}

impl Fold<'_> {
    /// Folds one record of the ring; `None` if it is malformed.
    fn record(&mut self, bytes: &[u8]) -> Option<()> {
        let (header, _) = Header::read_from_prefix(bytes).ok()?;
        let (now, who, out) = (self.now, &mut *self.who, &mut *self.output);
        match Kind::from_number(header.kind)? {
            Kind::TcpClosed => {
                let names = NamesAt(self.names, now.unix_ns);
                self.tcp.closed(&Closed::read_from_bytes(bytes).ok()?, now, &names, who, out);
            }
            Kind::TcpListening => {
                let record = Listening::read_from_bytes(bytes).ok()?;
                self.listeners.insert(record.header.tgid);
                self.tcp.listening(&record);
            }
            Kind::LoopGap => self.sched.gap(LoopGap::read_from_bytes(bytes).ok()?, now, who, out),
            Kind::Stall => self.sched.stall(&Stall::read_from_bytes(bytes).ok()?, now, who, out),
            Kind::Reclaim => {
                self.oom.reclaim(&Reclaim::read_from_bytes(bytes).ok()?, now, who, out)
            }
            Kind::OomKill => self.oom.kill(&Kill::read_from_bytes(bytes).ok()?, now, who, out),
            Kind::Exit => self.alloc.exit(&Exit::read_from_bytes(bytes).ok()?, now, who, out),
        }
        Some(())
    }
}

impl Usage {
    fn add(&mut self, ktime_ns: u64, usage: &crate::host::Usage) {
        self.rss_bytes = usage.rss_bytes;
        self.readings.push_back((ktime_ns, usage.cpu_ns));
        if self.readings.len() > 11 {
            self.readings.pop_front();
        }
    }

    /// Cores used over the last ten seconds.
    fn cpu_ratio(&self) -> f64 {
        match (self.readings.front(), self.readings.back()) {
            (Some((from, before)), Some((to, after))) if to > from => {
                after.saturating_sub(*before) as f64 / (to - from) as f64
            }
            _ => 0.0,
        }
    }
}

fn options(config: &Config, tcp: &tcp::Limits) -> Options {
    let level = ["off", "error", "warn", "info", "debug", "trace"];
    let log_level =
        level.iter().position(|word| *word == config.text(&config::LOG_PROBES)).unwrap_or(0);
    Options {
        btf: config.text(&config::BTF).into(),
        ring_bytes: u32::try_from(config.bytes(&config::RING_SIZE))
            .unwrap_or(observer_abi::RING_BYTES),
        fault_period: config.integer(&alloc::FAULT_PERIOD),
        gap_threshold: config.duration(&sched::GAP_THRESHOLD),
        stall_threshold: config.duration(&sched::STALL_THRESHOLD),
        run_delay_threshold: config.duration(&sched::RUN_DELAY_THRESHOLD),
        reclaim_threshold: config.duration(&oom::RECLAIM_THRESHOLD),
        ports: tcp.naming.ports(),
        log_level: log_level as u8,
    }
}

fn open_packets(wanted: bool, programs: &mut Vec<Program>) -> Option<Packets> {
    let opened = if wanted { Packets::open().map(Some) } else { Ok(None) };
    let (verdict, reason, remedy) = match &opened {
        Ok(Some(_)) => (Verdict::Attached, String::new(), ""),
        Ok(None) => {
            (Verdict::Impossible, "peers have no names: switched off".to_owned(), "set dns = true")
        }
        Err(error) => {
            (Verdict::Impossible, format!("peers have no names: {error}"), "grant CAP_NET_RAW")
        }
    };
    programs.push(Program {
        name: "dns_answers".to_owned(),
        signal: "tcp".to_owned(),
        hook: "packet socket, UDP from port 53".to_owned(),
        verdict,
        reason,
        remedy: remedy.to_owned(),
    });
    opened.ok().flatten()
}

/// The address as the kernel side has it.
fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn nanos(time: rustix::time::Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Now on both clocks.
pub fn now() -> Now {
    Now {
        ktime_ns: nanos(clock_gettime(ClockId::Monotonic)),
        unix_ns: nanos(clock_gettime(ClockId::Realtime)),
    }
}

/// Ticks a second of the kernel: the coarse clock moves once a tick (kernel/time/posix-timers.c).
fn hz() -> u64 {
    let tick_ns = nanos(clock_getres(ClockId::MonotonicCoarse)).max(1);
    (1_000_000_000 + tick_ns / 2) / tick_ns
}
