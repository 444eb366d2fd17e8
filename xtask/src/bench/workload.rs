//! The workloads: programs that others know, with a fixed number of operations.

use std::{
    env,
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use super::{
    cgroup::Cgroup,
    servers::{self, CONNECT, POSTGRES, REDIS, Server},
};
use crate::command::output;

/// A workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Workload {
    /// Two processes on one CPU that hand a byte to and fro: nothing but context switches.
    Pipe,
    /// Groups of processes that send messages to each other.
    Hackbench,
    /// Redis GET from ten clients, without pipelining.
    Redis,
    /// Selects by primary key from two clients of PostgreSQL.
    Pgbench,
    /// Connect, accept, close.
    Tcp,
}

impl Workload {
    /// All of them.
    pub(super) const ALL: &[Self] =
        &[Self::Pipe, Self::Hackbench, Self::Redis, Self::Pgbench, Self::Tcp];

    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pipe => "pinned pipe, round trip",
            Self::Hackbench => "hackbench, run",
            Self::Redis => "redis GET",
            Self::Pgbench => "pgbench -S, transaction",
            Self::Tcp => "TCP connection",
        }
    }

    /// Operations of one run.
    fn operations(self) -> u32 {
        match self {
            Self::Pipe => 50_000,
            Self::Hackbench => 1,
            Self::Redis => 100_000,
            Self::Pgbench => 2 * PGBENCH_TRANSACTIONS,
            Self::Tcp => 5_000,
        }
    }

    /// Starts the server that it needs.
    pub(super) fn server(self, cgroup: &Cgroup) -> Result<Option<Server>> {
        match self {
            Self::Redis => servers::redis(cgroup).map(Some),
            Self::Pgbench => servers::postgres(cgroup).map(Some),
            Self::Pipe | Self::Hackbench | Self::Tcp => Ok(None),
        }
    }

    /// Runs it once. CPU time per operation, of the workload and its servers.
    pub(super) fn run(self, cgroup: &Cgroup) -> Result<f64> {
        let words = self.words()?;
        let before = cgroup.cpu_ns()?;
        output(&mut cgroup.command(&words)).with_context(|| format!("workload {}", self.name()))?;
        let cpu_ns = cgroup.cpu_ns()? - before;
        ensure!(cpu_ns > 0, "workload {}: no CPU time was counted", self.name());
        Ok(cpu_ns as f64 / f64::from(self.operations()))
    }

    fn words(self) -> Result<Vec<String>> {
        let operations = self.operations();
        let line = match self {
            Self::Pipe => {
                format!("taskset -c {} perf bench sched pipe -l {operations}", last_cpu())
            }
            Self::Hackbench => "perf bench sched messaging -g 2 -l 400".to_owned(),
            Self::Redis => {
                format!("redis-benchmark -h 127.0.0.1 -p {REDIS} -q -t get -c 10 -n {operations}")
            }
            Self::Pgbench => format!(
                "{} -h 127.0.0.1 -p {POSTGRES} -U postgres -n -S -c 2 -t {PGBENCH_TRANSACTIONS} postgres",
                servers::postgres_program("pgbench")?
            ),
            Self::Tcp => {
                let this = env::current_exe().context("where this program is")?;
                let this = this.to_str().context("this program's path is not UTF-8")?;
                return Ok([this, "bench", "connect", &operations.to_string()]
                    .map(str::to_owned)
                    .to_vec());
            }
        };
        Ok(line.split(' ').map(str::to_owned).collect())
    }
}

/// Transactions of each of pgbench's two clients.
const PGBENCH_TRANSACTIONS: u32 = 2_500;

/// The CPU that least else runs on: the last.
fn last_cpu() -> usize {
    thread::available_parallelism().map_or(0, |count| count.get() - 1)
}

/// The workload of short connections, in one thread so that every run takes the same steps.
pub(super) fn connect(count: u32) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, CONNECT)).context("cannot listen")?;
    for _ in 0..count {
        let client =
            TcpStream::connect((Ipv4Addr::LOCALHOST, CONNECT)).context("cannot connect")?;
        let (server, _) = listener.accept().context("cannot accept")?;
        drop(client);
        drop(server);
    }
    Ok(())
}
