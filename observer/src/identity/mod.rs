//! Who a process is: the only reader of `/proc/PID`.
//!
//! `cache` keeps what was read, `read` does the IO, the others are pure parsers of what `/proc` says.

mod cache;
mod cgroup;
mod environ;
mod parse;
mod read;

use serde::{Deserialize, Serialize};

pub use self::{
    cache::{Identities, MAX_PROCESSES},
    cgroup::{Cgroup, parse_cgroup},
    environ::{Environment, parse_environ},
    parse::{Stat, parse_stat},
};

/// Identity of a process. (pid, start time) is unique on a host until reboot; the rest describes it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Process id in the host's namespace.
    pub pid: u32,
    /// When it started, in steps of a clock tick (10 ms); 0 if unknown.
    pub start_unix_ns: u64,
    /// Parent's pid.
    pub parent_pid: u32,
    /// Command name (`/proc/PID/comm`).
    pub name: String,
    /// Path of the executable; empty if unreadable or a kernel thread.
    pub executable: String,
    /// Arguments joined by spaces, bounded.
    pub command_line: String,
    /// Numeric user id (effective).
    pub user_id: u32,
    /// User name, if known.
    pub user_name: String,
    /// Control group path (the v1 memory controller's where the host has one, else v2's).
    pub cgroup: String,
    /// Control group path of the v1 CPU controller, where it is another one; else empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cpu_cgroup: String,
    /// systemd unit or scope; empty if none.
    pub unit: String,
    /// Container id; empty if none.
    pub container_id: String,
    /// PM2, if it manages this process.
    pub pm2: Option<Pm2>,
    /// Home of the PM2 daemon that this process *is*. Two such processes on a host mean two sets of pools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pm2_daemon_home: Option<String>,
    /// `service.name` of its telemetry: from OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES in its environment, the PM2
    /// app, the unit, else the executable's name.
    pub service_name: String,
}

/// A process managed by PM2, known from its environment (`pm_id`, `name`, `PM2_HOME`; in cluster mode all of them inside
/// the JSON of `pm2_env`). Children of a worker inherit it, and so count as the worker's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pm2 {
    /// Application name.
    pub app: String,
    /// Worker number (`pm_id`).
    pub worker: u32,
    /// PM2's home, which tells several daemons apart.
    pub home: String,
    /// Number of this worker among those of its app (`NODE_APP_INSTANCE`), if PM2 was told how many to start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<u32>,
    /// Restarts of the app up to this start (`restart_time`), if PM2 told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<u32>,
    /// Memory at which PM2 restarts it (`max_memory_restart`), if it does. PM2 looks every 30 seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_memory_restart_bytes: Option<u64>,
}
