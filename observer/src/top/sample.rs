//! A host at 3 a.m., by hand: everything that a pane can show happens at once. Every list has a row, so that the test of
//! docs/snapshot-json.md meets every field.

use std::sync::Arc;

use crate::{
    detect::{self, Finding, Group, Level, Link, Party, Undecided, evidence},
    identity::{Pm2, Process},
    signal::{
        alloc::{self, AllocationStack, Failure, MallocProbe, ProcessMemory},
        limit::{self, Bound, Facts, Host, Jvm, Node, Pm2Daemon, Postgres, Redis, Runtime},
        oom::{self, MemoryCgroup, OomKill, Pressure, Reclaimer},
        sched::{
            self, BlockedTask, Consumer, CpuCgroup, Disk, EventLoop, Sender, Thread,
            Uninterruptible,
        },
        tcp::{self, Activity, Closing, Connection, Endpoint, Transaction},
    },
    snapshot::{Exporter, Health, Loss, Program, Snapshot, VERSION, Verdict},
};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

pub(crate) fn snapshot() -> Snapshot {
    let node = Process {
        pid: 4711,
        name: "node".into(),
        service_name: "upload".into(),
        pm2: Some(Pm2 {
            app: "upload".into(),
            worker: 3,
            home: "/root/.pm2".into(),
            ..Pm2::default()
        }),
        ..Process::default()
    };
    let postgres = Process {
        pid: 812,
        name: "postgres".into(),
        unit: "postgresql.service".into(),
        ..Process::default()
    };
    Snapshot {
        version: VERSION,
        time_unix_ns: 1_795_221_195 * SECOND,
        host_name: "api-1".into(),
        kernel: "6.18.5".into(),
        uptime_ns: 273_600 * SECOND,
        alloc: alloc(),
        oom: oom(),
        tcp: tcp(),
        sched: sched(),
        detect: detect(),
        limit: limit(),
        processes: [node, postgres]
            .into_iter()
            .map(|process| (process.pid, Arc::new(process)))
            .collect(),
        health: health(),
    }
}

fn detect() -> detect::View {
    let leak = Finding {
        id: "memory.exhaustion/host/1".into(),
        kind: "memory.exhaustion".into(),
        level: Level::Critical,
        since_unix_ns: 1_795_221_100 * SECOND,
        level_since_unix_ns: 1_795_221_150 * SECOND,
        subject: "host".into(),
        culprit: Some(Party {
            group: Group::Process,
            name: "node".into(),
            pid: Some(4711),
            pids: vec![4711],
            share_ratio: 0.92,
            title: "node 4711 (PM2 app api, worker 3)".into(),
        }),
        victims: vec![Party { name: "sshd".into(), title: "sshd 700".into(), ..Party::default() }],
        evidence: vec![evidence("memory_available", 2e8, "By", "/proc/meminfo")],
        time_left_seconds: Some(95.0),
        message: "memory is gone in 95 s: node 4711 grows by 2 MiB/s".into(),
        advice: "restart the worker".into(),
        links: vec![Link { trace_id: "0af7".into(), span_id: "b7ad".into() }],
        hazard: false,
    };
    let undecided = Undecided {
        kind: "sched.steal".into(),
        subject: "host".into(),
        reason: "less than a minute of history".into(),
    };
    let hazard = Finding {
        kind: "redis.thp".into(),
        subject: "redis-server 9".into(),
        message: "huge pages are on".into(),
        hazard: true,
        ..Finding::default()
    };
    let hazard = Finding { since_unix_ns: leak.since_unix_ns - 273_600 * SECOND, ..hazard };
    detect::View {
        cleared: vec![Finding { level: Level::Watch, ..leak.clone() }.into()],
        findings: vec![hazard.into(), leak.into()],
        undecided: vec![undecided],
        raised: 2,
        dropped: 0,
    }
}

fn alloc() -> alloc::View {
    let stack = AllocationStack {
        frames: vec!["Buffer::New".into(), "onUpload".into()],
        share: 0.62,
        samples: 31,
    };
    let malloc = MallocProbe {
        time_unix_ns: 1_795_221_190 * SECOND,
        outcome: "probed for 10.0 s".into(),
        probed_ns: 10 * SECOND,
        hits: 61_000,
        samples: 320,
        lost: 0,
        outstanding_bytes: 19 * MIB,
        stacks: vec![stack.clone()],
    };
    alloc::View {
        processes: vec![
            ProcessMemory {
                pid: 812,
                name: "postgres".into(),
                rss_bytes: 900 * MIB,
                anon_bytes: 20 * MIB,
                shmem_bytes: 870 * MIB,
                ..ProcessMemory::default()
            },
            ProcessMemory {
                pid: 4711,
                name: "node".into(),
                rss_bytes: 700 * MIB,
                anon_bytes: 680 * MIB,
                growth_bytes_per_second: 3.0 * MIB as f64,
                stacks: vec![stack],
                malloc: Some(malloc),
                ..ProcessMemory::default()
            },
        ],
        process_count: 212,
        forks: 1,
        execs: 40,
        exits: 50,
        short_lived: 12,
        fault_samples: 900,
        failures: vec![Failure {
            time_unix_ns: 1_795_221_190 * SECOND,
            pid: 4700,
            name: "node".into(),
            exit_code: Some(7),
            signal: None,
            lived_ns: 2 * SECOND,
            ..Failure::default()
        }],
    }
}

fn oom() -> oom::View {
    oom::View {
        memory_total_bytes: 4 * GIB,
        memory_available_bytes: 700 * MIB,
        headroom_bytes: 600 * MIB,
        exhaustion_seconds: Some(200.0),
        culprit_pid: Some(4711),
        pressure: vec![Pressure {
            resource: "memory".into(),
            scope: "full".into(),
            avg10_percent: 12.5,
            total_ns: 30 * SECOND,
            triggers: 4,
        }],
        kswapd_awake: true,
        direct_reclaims: 3,
        direct_reclaim_ns: 21 * MS,
        refault_per_second: 440.0,
        reclaimers: vec![Reclaimer {
            pid: 4711,
            name: "node".into(),
            count: 3,
            total_ns: 21 * MS,
            max_ns: 15 * MS,
            pages: 96,
        }],
        cgroups: vec![MemoryCgroup {
            path: "/system.slice/a-very-long-unit-name-indeed.service".into(),
            usage_bytes: 500 * MIB,
            limit_bytes: Some(512 * MIB),
            limit_hits: 7,
            oom_kills: 1,
        }],
        kills: vec![OomKill {
            time_unix_ns: (1_795_221_195 - 90) * SECOND,
            victim_pid: 999,
            victim_name: "java".into(),
            trigger_pid: 812,
            trigger_name: "postgres".into(),
            anon_bytes: GIB,
            in_cgroup: true,
            ..OomKill::default()
        }],
        ..oom::View::default()
    }
}

fn tcp() -> tcp::View {
    let calm = Connection {
        pid: 4711,
        name: "node".into(),
        role: "client".into(),
        system: "redis".into(),
        peer_address: "::1".into(),
        peer_port: 6379,
        activity: Activity::Idle,
        activity_ns: 40 * SECOND,
        age_ns: 7_380 * SECOND,
        preexisting: true,
        srtt_ns: 340_000,
        ..Connection::default()
    };
    let unread = Connection {
        system: "postgresql".into(),
        peer_name: "db.internal".into(),
        peer_port: 5432,
        activity: Activity::Unread,
        activity_ns: 7 * SECOND,
        preexisting: false,
        received_bytes: 2 * MIB,
        transaction: Transaction::Open,
        transaction_ns: Some(9 * SECOND),
        ..calm.clone()
    };
    tcp::View {
        connections: vec![calm, unread],
        connection_count: 2,
        endpoints: vec![Endpoint {
            pid: 4711,
            name: "node".into(),
            system: "postgresql".into(),
            address: "db.internal".into(),
            port: 5432,
            open: 10,
            unread: 1,
            idle: 9,
            unneeded: 4,
            ..Endpoint::default()
        }],
        closing: vec![Closing {
            pid: 4711,
            name: "node".into(),
            address: "10.0.0.7".into(),
            port: 6379,
            count: 26,
        }],
        opened: 30,
        closed: 28,
    }
}

fn sched() -> sched::View {
    let event_loop = EventLoop {
        turns: 1000,
        gaps: 2,
        gap_ns: 500 * MS,
        gap_waiting_ns: 40 * MS,
        max_ns: 300 * MS,
        recent_turns: 100,
        p99_ns: 134 * MS,
        open_ns: 7 * SECOND,
        open_on_cpu_ns: 6 * SECOND,
        open_waiting_ns: SECOND,
        open_blocked_ns: 0,
    };
    sched::View {
        threads: vec![Thread {
            pid: 4711,
            tid: 4711,
            name: "node".into(),
            listens: Some(true),
            on_cpu_ratio: 0.99,
            run_delay_ratio: 0.12,
            run_delay_ns: SECOND,
            event_loop: Some(event_loop),
        }],
        watched: 42,
        blocked: vec![BlockedTask {
            pid: 55,
            tid: 55,
            name: "jbd2\u{1b}[2J".into(),
            blocked_ns: 12 * SECOND,
            stack: vec!["io_schedule".into(), "wait_on_bit".into()],
        }],
        throttled: vec![CpuCgroup {
            path: "/api".into(),
            throttled_periods: 9,
            throttled_ns: 3 * SECOND,
            throttled_ratio: 0.3,
        }],
        uninterruptible: vec![Uninterruptible { pid: 55, name: "postgres".into(), tasks: 3 }],
        disks: vec![Disk {
            name: "dm-0".into(),
            below: vec!["nvme0n1".into()],
            suspended: true,
            in_flight: 2,
            silent_ns: 9 * SECOND,
            wait_ns: 3 * MS,
            read_wait_ns: 2 * MS,
            write_wait_ns: 4 * MS,
            reads_per_second: 10.0,
            writes_per_second: 20.0,
            read_bytes_per_second: 40960.0,
            written_bytes_per_second: 81920.0,
            busy_ratio: 0.5,
        }],
        senders: vec![Sender {
            pid: 55,
            name: "postgres".into(),
            read_bytes_per_second: 40960.0,
            written_bytes_per_second: 81920.0,
        }],
        consumers: vec![Consumer {
            pid: 4711,
            name: "node".into(),
            cpu_ratio: 1.5,
            children_cpu_ratio: 0.1,
            policy: "other".into(),
            rt_priority: 0,
            nice: 5,
        }],
        steal_ratio: 0.02,
        busy_ratio: 0.93,
        stalls: 7,
    }
}

fn limit() -> limit::View {
    let runtime = |pid, name: &str, facts| Runtime { pid, name: name.into(), facts };
    let jvm = Jvm {
        version: "17.0.15".into(),
        full_collections: 4,
        full_collection_ns: 9 * SECOND,
        metaspace_max_bytes: Some(64 * MIB),
        ..Jvm::default()
    };
    let pm2 = Pm2Daemon { home: "/root/.pm2".into(), workers: 4, ..Pm2Daemon::default() };
    limit::View {
        read_unix_ns: 1_795_221_190 * SECOND,
        more_rows: 3,
        rows: vec![
            Bound {
                resource: "jvm_metaspace".into(),
                pid: 999,
                name: "java".into(),
                scope: "process".into(),
                used: 60 * MIB,
                limit: Some(64 * MIB),
                unit: "bytes".into(),
                source: "command_line".into(),
                ..Bound::default()
            },
            Bound {
                resource: "host_files".into(),
                scope: "host".into(),
                used: 3000,
                limit: Some(100_000),
                unit: "files".into(),
                source: "kernel".into(),
                ..Bound::default()
            },
            Bound {
                resource: "redis_memory".into(),
                pid: 700,
                name: "redis-server".into(),
                scope: "process".into(),
                used: 90 * MIB,
                unit: "bytes".into(),
                source: "config_file".into(),
                upper_estimate: true,
                ..Bound::default()
            },
        ],
        runtimes: vec![
            runtime(999, "java", Facts::Jvm(jvm)),
            runtime(4711, "node", Facts::Node(Node::default())),
            runtime(700, "redis-server", Facts::Redis(Redis::default())),
            runtime(812, "postgres", Facts::Postgres(Postgres::default())),
            runtime(600, "PM2 v6.0.14: Go", Facts::Pm2(pm2)),
        ],
        host: Host { cpus: 2, memory_total_bytes: 4 * GIB, ..Host::default() },
    }
}

fn health() -> Health {
    Health {
        programs: vec![
            Program {
                name: "switch".into(),
                signal: "sched".into(),
                hook: "tp_btf/sched_switch".into(),
                ..Program::default()
            },
            Program {
                name: "epoll".into(),
                verdict: Verdict::Impossible,
                reason: "no BTF".into(),
                ..Program::default()
            },
        ],
        losses: vec![
            Loss { stage: "ring.tcp".into(), count: 5 },
            Loss { stage: "ledger.full".into(), count: 0 },
        ],
        cpu_ratio: 0.002,
        rss_bytes: 14 * MIB,
        bpf_map_bytes: 9 * MIB,
        exporters: vec![
            Exporter { name: "store".into(), state: "open".into(), ..Exporter::default() },
            Exporter {
                name: "otlp".into(),
                state: "held".into(),
                reason: "401 Unauthorized".into(),
                dropped: 3,
                ..Exporter::default()
            },
        ],
    }
}
