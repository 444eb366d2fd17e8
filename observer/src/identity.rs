//! Who a process is: the only reader of `/proc/PID`.

use serde::{Deserialize, Serialize};

/// Identity of a process. (pid, start time) is unique on a host until reboot; the rest describes it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Process id in the host's namespace.
    pub pid: u32,
    /// When it started.
    pub start_unix_ns: u64,
    /// Parent's pid.
    pub parent_pid: u32,
    /// Command name (`/proc/PID/comm`).
    pub name: String,
    /// Path of the executable; empty if unreadable or a kernel thread.
    pub executable: String,
    /// Arguments joined by spaces, bounded.
    pub command_line: String,
    /// Numeric user id.
    pub user_id: u32,
    /// User name, if known.
    pub user_name: String,
    /// Control group path (v2, else the memory controller's).
    pub cgroup: String,
    /// systemd unit or scope; empty if none.
    pub unit: String,
    /// Container id; empty if none.
    pub container_id: String,
    /// PM2, if it manages this process.
    pub pm2: Option<Pm2>,
    /// `service.name` of its telemetry: from OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES in its environment, the PM2
    /// app, the unit, else the executable's name.
    pub service_name: String,
}

/// A process managed by PM2, known from its environment (`pm_id`, `name`, `PM2_HOME`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pm2 {
    /// Application name.
    pub app: String,
    /// Worker number (`pm_id`).
    pub worker: u32,
    /// PM2's home, which tells several daemons apart.
    pub home: String,
}
