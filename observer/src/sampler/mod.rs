//! The sampler: drains the ring four times a second, reads maps, iterators and files once a second, and folds all of it.
//!
//! One plain thread. It never waits for the exporter, a terminal or a disk; what it makes goes into bounded queues.

mod clock;
mod limits;
mod malloc;
mod record;
mod replies;
mod report;
mod rows;
mod usage;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use anyhow::Result;
use observer_abi::alloc::{TASK_KERNEL, TASK_LEADER};

pub use self::clock::now;
use self::{
    malloc::Malloc, record::Fold, replies::Replies, rows::Rows, usage::Usage,
    watch::HOLDERS_RETRY_NS,
};
use crate::{
    config::{self, Config},
    detect::Detect,
    dns::{Names, parse_answer},
    files::Files,
    host::{Disks, Info},
    identity::{Identities, Process},
    kernel::{self, Counters, Kernel, Options, Packets, Scope},
    limits::Limits,
    proc,
    signal::{
        Now, Output, Readings, Who,
        alloc::{self, Alloc},
        comm_bytes,
        limit::{self, Limit},
        oom::{self, Oom},
        sched::{self, Sched, Watchlist},
        tcp::{self, Gone, PeerNames, Tcp},
    },
    snapshot::{Program, Verdict},
    telemetry::Batch,
};

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

/// When something was last done, CLOCK_MONOTONIC.
#[derive(Default)]
struct Last {
    tick_ns: u64,
    holders_ns: u64,
    holders_pause_ns: u64,
    faults_ns: u64,
    names_ns: u64,
    misses_ns: u64,
    sweep_ns: u64,
    warned_ns: u64,
}

impl Last {
    /// Says what goes wrong at a tick, at most once a minute: it may go wrong at each.
    fn warn(&mut self, now: Now, error: &anyhow::Error) {
        const WARN_EVERY_NS: u64 = 60_000_000_000;
        if self.warned_ns == 0 || now.since(self.warned_ns) >= WARN_EVERY_NS {
            self.warned_ns = now.ktime_ns;
            tracing::warn!("{error:#}");
        }
    }
}

/// State of the sampler.
pub struct Sampler {
    info: Info,
    kernel: Kernel,
    /// What takes the place of iterators that do not run.
    proc: proc::Rows,
    consumers: proc::Consumers,
    disks: Disks,
    senders: proc::Senders,
    files: Files,
    packets: Option<Packets>,
    names: Names,
    who: Directory,
    alloc: Alloc,
    oom: Oom,
    tcp: Tcp,
    sched: Sched,
    detect: Detect,
    limit: Limit,
    /// `None` if it could not be started.
    limits: Option<Limits>,
    /// Processes that a round of limits had no room for.
    limits_refused: u64,
    watchlist: Watchlist,
    /// Processes that listen, by the last table of holders and the records since.
    listeners: BTreeSet<u32>,
    watch_names: Vec<String>,
    rows: Rows,
    replies: Replies,
    malloc: Malloc,
    last: Last,
    counters: Counters,
    usage: Usage,
    page_bytes: u64,
    hz: u64,
    start_unix_ns: u64,
    malformed: u64,
    /// Events that each program was skipped at, when last looked.
    misses: Vec<(&'static str, u64)>,
    gone: Gone,
    /// Connections told as ended because their socket was gone, and of these, those that nobody saw who closed.
    swept: (u64, u64),
    /// Addresses of databases by name that the kernel's table had no room for.
    lost_peers: u64,
    /// Connections without an owner at the last tick.
    unowned: usize,
    /// When each growing process's stacks were last named.
    named: BTreeMap<u32, u64>,
    map_bytes: u64,
    output: Output,
    other_programs: Vec<Program>,
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
        let packets = open_packets(config.text(&config::DNS), &mut other_programs);
        let kernel = Kernel::open(&options);
        // Whoever does not want it does not miss it.
        let malloc = config.bool(&alloc::MALLOC_PROBE);
        let malloc = malloc.then(|| kernel::malloc::row(kernel.support()));
        other_programs.extend(malloc.clone());
        let limits = open_limits(config, &mut other_programs);
        let now = now();
        let map_bytes = kernel.map_bytes();
        let hz = clock::hz();
        Ok(Self {
            proc: proc::Rows::open(kernel.programs(), &options.ports, hz),
            consumers: proc::Consumers::default(),
            disks: Disks::open(Path::new("/proc"), Path::new("/sys")),
            senders: proc::Senders::default(),
            files: Files::open(Path::new("/proc")),
            packets,
            names: Names::default(),
            who: Directory(who),
            alloc: Alloc::new(alloc::Limits::new(config)),
            oom: Oom::new(oom::Limits::new(config), page_bytes),
            tcp: Tcp::new(tcp_limits),
            sched: Sched::new(options.gap_threshold.as_nanos() as u64),
            detect: Detect::new(config),
            limit: Limit::default(),
            limits,
            limits_refused: 0,
            watchlist: Watchlist::default(),
            listeners: BTreeSet::new(),
            watch_names: config.list(&sched::WATCH).to_vec(),
            rows: Rows::default(),
            replies: Replies::default(),
            malloc: Malloc::new(malloc.as_ref()),
            last: Last { holders_pause_ns: HOLDERS_RETRY_NS, ..Last::default() },
            counters: Counters::default(),
            usage: Usage::default(),
            page_bytes,
            hz,
            start_unix_ns: now.unix_ns,
            malformed: 0,
            misses: kernel.misses().read().collect(),
            gone: Gone::default(),
            swept: (0, 0),
            lost_peers: 0,
            unowned: 0,
            named: BTreeMap::new(),
            map_bytes,
            output: Output::default(),
            other_programs,
            info,
            kernel,
        })
    }

    /// Verdict of every program and file.
    pub fn programs(&self) -> Vec<Program> {
        let mut programs =
            [self.kernel.programs(), &self.other_programs, self.files.programs()].concat();
        programs.extend(self.limits.as_ref().map(Limits::program));
        self.proc.amend(&mut programs);
        programs
    }

    /// Whether any BPF program runs.
    pub fn has_probes(&self) -> bool {
        self.kernel.is_loaded()
            && self.kernel.programs().iter().any(|row| row.verdict != Verdict::Impossible)
    }

    /// What the kernel offers.
    pub fn support(&self) -> &crate::kernel::Support {
        self.kernel.support()
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
            kernel,
            proc,
            alloc,
            oom,
            tcp,
            sched,
            who,
            output,
            listeners,
            names,
            malformed,
            ..
        } = self;
        if let Some(packets) = &mut self.packets {
            packets.drain(|payload| {
                for answer in parse_answer(payload) {
                    if answer.database.is_some() {
                        let address = mapped(answer.address);
                        let added = kernel.tables().is_none_or(|tables| tables.add_peer(address));
                        self.lost_peers += u64::from(!added || !proc.add_peer(address));
                    }
                    names.insert(&answer, now.unix_ns);
                }
            });
        }
        kernel.drain(|bytes| {
            let mut fold =
                Fold { alloc, oom, tcp, proc, sched, who, output, listeners, names, now };
            *malformed += u64::from(fold.record(bytes).is_none());
        });
    }

    /// Reads everything once and folds it. `ends` on the last tick: what is open is then told.
    pub fn tick(&mut self, ends: bool) {
        self.drain();
        // Both at once: what is born while the tick reads must not look older than the tick.
        let (now, boottime_ns) = (now(), clock::boottime_ns());
        let elapsed_ns = if self.last.tick_ns == 0 { 0 } else { now.since(self.last.tick_ns) };
        self.last.tick_ns = now.ktime_ns;
        let fresh = self.read_rows(now);
        self.find_holders(now);
        self.read_misses(now);
        self.sweep_ledger(now);
        self.read_replies();
        let read = self.files.read();
        self.usage.add(now.ktime_ns, &read.usage);
        let live = self
            .rows
            .tasks
            .iter()
            .filter(|row| row.flags & TASK_LEADER != 0 && row.flags & TASK_KERNEL == 0);
        if fresh {
            let live = live.map(|row| (row.tgid, row.start_boottime_ns, comm_bytes(&row.comm)));
            self.who.0.forget_dead(live);
        }
        let limits = self.read_limits(now, read.meminfo.total_bytes);
        let cgroups = self.files.cgroups.as_mut();
        let wanted = self.sched.wants_consumers();
        let consumers = self.consumers.read(wanted, now, elapsed_ns, &self.rows.tasks);
        let readings = Readings {
            now,
            boottime_ns,
            elapsed_ns,
            page_bytes: self.page_bytes,
            hz: self.hz,
            counters: self.counters,
            tasks: &self.rows.tasks,
            sockets: &self.rows.sockets,
            replies: &self.replies.rows,
            watches: &self.rows.watches,
            reclaimers: &self.rows.reclaimers,
            meminfo: read.meminfo,
            vmstat: read.vmstat,
            times: read.times,
            pressure: &read.pressure,
            listeners: (self.last.holders_ns != 0).then_some(&self.listeners),
            consumers,
            disks: self.disks.read(now),
            senders: self.senders.read(self.sched.wants_senders(), now, &self.rows.tasks),
            cgroups: cgroups.map_or(&[], crate::host::cgroup::Cgroups::read),
            limits: limits.as_ref(),
        };
        let (who, out) = (&mut self.who, &mut self.output);
        self.alloc.tick(&readings, who, out);
        self.oom.tick(&readings, ends, who, out);
        self.tcp.tick(&readings, &NamesAt(&self.names, now.unix_ns), ends, who, out);
        self.sched.tick(&readings, ends, who, out);
        self.limit.tick(&readings);
        self.watch_replies(now);
        if let Err(error) = self.kernel.set_epoll_probe(self.sched.wants_epoll_probe() && !ends) {
            self.last.warn(now, &error.context("cannot attach the epoll probe"));
        }
        if fresh {
            self.update_watchlist();
        }
        self.take_faults(now);
    }

    /// Takes everything made since the last time; with metric points of the present state if `points`.
    pub fn take_batch(&mut self, points: bool) -> Batch {
        if points {
            let (who, out) = (&mut self.who, &mut self.output);
            self.alloc.points(self.start_unix_ns, who, out);
            self.oom.points(self.start_unix_ns, self.info.boot_unix_ns, out);
            self.tcp.points(self.start_unix_ns, who, out);
            self.sched.points(self.start_unix_ns, self.info.boot_unix_ns, who, out);
            self.limit.points(self.start_unix_ns, who, out);
        }
        let mut batch = std::mem::take(&mut self.output.batch);
        batch.time_unix_ns = now().unix_ns;
        batch
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

fn open_packets(scope: &str, programs: &mut Vec<Program>) -> Option<Packets> {
    let opened = match scope {
        "off" => Ok(None),
        "all" => Packets::open(Scope::All).map(Some),
        _ => Packets::open(Scope::Network).map(Some),
    };
    let (verdict, reason, remedy) = match &opened {
        Ok(Some(_)) => (Verdict::Attached, String::new(), ""),
        Ok(None) => (
            Verdict::Impossible,
            "peers have no names: switched off".to_owned(),
            "set dns = \"network\"",
        ),
        Err(error) => {
            (Verdict::Impossible, format!("peers have no names: {error}"), "grant CAP_NET_RAW")
        }
    };
    programs.push(Program {
        name: "dns_answers".to_owned(),
        signal: "tcp".to_owned(),
        hook: format!("packet socket ({scope}), UDP from port 53"),
        verdict,
        reason,
        remedy: remedy.to_owned(),
    });
    opened.ok().flatten()
}

fn open_limits(config: &Config, programs: &mut Vec<Program>) -> Option<Limits> {
    match Limits::start(config.duration(&limit::INTERVAL)) {
        Ok(limits) => Some(limits),
        Err(error) => {
            programs.push(Program {
                name: "limits".to_owned(),
                signal: "limit".to_owned(),
                verdict: Verdict::Impossible,
                reason: format!("no thread to read them: {error}"),
                remedy: "raise the limit of threads of the agent's unit (TasksMax)".to_owned(),
                ..Program::default()
            });
            None
        }
    }
}

/// The address as the kernel side has it.
fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
