//! What the snapshot holds of `limit`; field names and units are those of docs/snapshot-json.md.

use serde::{Deserialize, Serialize};

/// What `top` and the JSON snapshot show of things that have a bound.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct View {
    /// When the rows and runtimes were read, some seconds ago; 0 before the first reading.
    pub read_unix_ns: u64,
    /// What has a bound and how full it is, the fullest first; bounded by [`crate::snapshot::MAX_ROWS`].
    pub rows: Vec<Bound>,
    /// How many less full ones there are beyond that.
    pub more_rows: u64,
    /// Virtual machines and servers that have bounds of their own.
    pub runtimes: Vec<Runtime>,
    /// How the host is set.
    pub host: Host,
}

/// One thing that can be full.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bound {
    /// What it is a bound of: `files`, `host_files`, `processes`, `ports`, `conntrack`, `jvm_heap`, `jvm_old`,
    /// `jvm_metaspace`, `jvm_class_space`, `jvm_permgen`, `node_heap`, `redis_memory`, `pm2_memory`.
    pub resource: String,
    /// The process that it holds for; 0 for the host, a control group or an endpoint.
    pub pid: u32,
    /// Its command name.
    pub name: String,
    /// `process`, `host`, the path of a control group, or `address:port` of an endpoint.
    pub scope: String,
    /// How much is in use.
    pub used: u64,
    /// How much there may be; null if unlimited or unknown, see `source`.
    pub limit: Option<u64>,
    /// `bytes`, `files`, `threads`, `connections` or `ports`.
    pub unit: String,
    /// Where the limit is from: `kernel`, `counters` (the runtime's own), `command_line`, `environment`, `config_file`,
    /// `default` (of the runtime, by the size of memory), or `unknown`.
    pub source: String,
    /// Whether `used` is the most that it can be, and not a count.
    pub upper_estimate: bool,
}

impl Bound {
    /// Share that is in use, 0 to 1 and more; `None` without a limit.
    pub fn share(&self) -> Option<f64> {
        self.limit.map(|limit| self.used as f64 / limit.max(1) as f64)
    }
}

/// A virtual machine or server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Runtime {
    /// Process id.
    pub pid: u32,
    /// Command name.
    pub name: String,
    /// What it is, in the field `kind`, and what it tells.
    #[serde(flatten)]
    pub facts: Facts,
}

/// What a runtime tells, by its kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Facts {
    /// A Java virtual machine.
    Jvm(Jvm),
    /// Node.js.
    Node(Node),
    /// Redis, or what it became: Valkey, KeyDB.
    Redis(Redis),
    /// The first process of a PostgreSQL server.
    Postgres(Postgres),
    /// A daemon of PM2.
    Pm2(Pm2Daemon),
}

impl Default for Facts {
    fn default() -> Self {
        Self::Node(Node::default())
    }
}

/// Counters of a JVM, from its hsperfdata file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Jvm {
    /// `java.property.java.version`, as `17.0.15`.
    pub version: String,
    /// Name of the collector that cleans everything, as `G1 full collection pauses`.
    pub collector: String,
    /// Young collections since it started.
    pub young_collections: u64,
    /// Time in them.
    pub young_collection_ns: u64,
    /// Full collections, which stop it, since it started.
    pub full_collections: u64,
    /// Time in them, that of the one that goes on included.
    pub full_collection_ns: u64,
    /// Whether it is in a full collection now.
    pub in_full_collection: bool,
    /// Pauses of a concurrent collector since it started.
    pub concurrent_pauses: u64,
    /// Time in them.
    pub concurrent_pause_ns: u64,
    /// Heap in use, as the JVM last wrote it: most collectors do at each collection.
    pub heap_used_bytes: u64,
    /// The largest that the heap may be.
    pub heap_max_bytes: u64,
    /// Old generation in use, or the heap of a collector without generations.
    pub old_used_bytes: u64,
    /// The largest that it may be.
    pub old_max_bytes: u64,
    /// Old generation in use right after the last full collection that the agent has seen; null before.
    pub old_after_full_bytes: Option<u64>,
    /// Class metadata in use (Metaspace; PermGen before Java 8), as of the last collection; 0 before the first.
    pub metaspace_used_bytes: u64,
    /// Memory reserved or committed for it by the JVM.
    pub metaspace_capacity_bytes: u64,
    /// Classes loaded now, without those of the shared archive.
    pub loaded_classes: u64,
    /// -XX:MaxMetaspaceSize (PermGen: its largest size); null if not set, which means until memory ends.
    pub metaspace_max_bytes: Option<u64>,
    /// Whether the three above are of PermGen.
    pub permgen: bool,
    /// Compressed class space in use, which has a bound of its own.
    pub class_space_used_bytes: u64,
    /// That bound; 0 if it has none.
    pub class_space_max_bytes: u64,
}

impl Jvm {
    /// How long it stood still since it started to clean more than what is young, in nanoseconds.
    pub fn stopped_ns(&self) -> u64 {
        self.full_collection_ns.saturating_add(self.concurrent_pause_ns)
    }
}

/// Limits of a Node.js process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Bound of V8's old space.
    pub heap_limit_bytes: u64,
    /// `command_line`, `environment` (NODE_OPTIONS), or `default` (by the size of memory).
    pub heap_limit_source: String,
}

/// Limits of a Redis server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Redis {
    /// Port that it listens on; 0 if not known.
    pub port: u16,
    /// The file that the rest is from; empty if none was found that fits the port.
    pub config_file: String,
    /// `maxmemory`; null if unlimited, or not known: see `maxmemory_known`.
    pub maxmemory_bytes: Option<u64>,
    /// Whether a file or the command line tells it. What was set at run time (CONFIG SET) is not seen.
    pub maxmemory_known: bool,
    /// `maxmemory-policy`; empty if not known.
    pub maxmemory_policy: String,
    /// Whether snapshots (`save`) are on, which fork; null if not known.
    pub save: Option<bool>,
    /// Whether the append-only file is on, whose rewriting forks; null if not known.
    pub append_only: Option<bool>,
    /// `maxclients`; null if not known. What was set at run time is not seen.
    pub max_clients: Option<u64>,
}

/// Limits of a PostgreSQL server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Postgres {
    /// Port that it listens on; 0 if not known.
    pub port: u16,
    /// Folder of its data.
    pub data_directory: String,
    /// `max_connections`; null if not known.
    pub max_connections: Option<u64>,
}

/// A daemon of PM2. Two on one host mean two sets of everything that they start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pm2Daemon {
    /// Its home.
    pub home: String,
    /// User that it runs as.
    pub user_name: String,
    /// Processes that live and are its apps' workers.
    pub workers: u64,
}

/// How the host is set: what is read at the start and every few minutes. Null where the kernel does not tell.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// vm.overcommit_memory: 0 heuristic, 1 always, 2 never.
    pub overcommit_memory: Option<u64>,
    /// vm.overcommit_ratio, in percent.
    pub overcommit_ratio_percent: Option<u64>,
    /// Transparent huge pages: `always`, `madvise` or `never`; empty if the kernel has none.
    pub thp_enabled: String,
    /// What a page fault does for a huge page: `always`, `defer`, `defer+madvise`, `madvise` or `never`.
    pub thp_defrag: String,
    /// vm.panic_on_oom.
    pub panic_on_oom: Option<u64>,
    /// vm.min_free_kbytes.
    pub min_free_bytes: Option<u64>,
    /// vm.watermark_scale_factor, in 1/10,000 of memory.
    pub watermark_scale: Option<u64>,
    /// vm.swappiness.
    pub swappiness: Option<u64>,
    /// CPUs online.
    pub cpus: u64,
    /// MemTotal.
    pub memory_total_bytes: u64,
    /// SwapTotal.
    pub swap_total_bytes: u64,
    /// CommitLimit, which holds if `overcommit_memory` is 2.
    pub commit_limit_bytes: u64,
    /// net.ipv4.tcp_keepalive_time.
    pub tcp_keepalive_time_seconds: Option<u64>,
    /// net.ipv4.tcp_retries2: unanswered retransmissions before a connection is given up.
    pub tcp_retries2: Option<u64>,
    /// net.core.somaxconn.
    pub somaxconn: Option<u64>,
    /// First port that a connection may get (net.ipv4.ip_local_port_range).
    pub port_range_first: Option<u64>,
    /// The last.
    pub port_range_last: Option<u64>,
    /// kernel.pid_max.
    pub pid_max: Option<u64>,
    /// kernel.threads-max.
    pub threads_max: Option<u64>,
    /// fs.file-max.
    pub file_max: Option<u64>,
    /// Whether the kernel tells pressure (PSI).
    pub psi_available: bool,
}
