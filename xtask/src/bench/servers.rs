//! The servers of the workloads: Redis and PostgreSQL on loopback, in the measured cgroup.

use std::{
    env, fs,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{cgroup::Cgroup, subject::Running, wait_for};
use crate::{
    command::{command, output, run},
    setup::first_match,
};

/// Port of the measured Redis.
pub(super) const REDIS: u16 = 26379;

/// Port of the measured PostgreSQL.
pub(super) const POSTGRES: u16 = 25432;

/// Port of the short connections.
pub(super) const CONNECT: u16 = 26432;

/// Ports that observer shall take as databases, so that it does for each connection all that it ever does.
pub(super) const PORTS: [u16; 3] = [REDIS, POSTGRES, CONNECT];

/// The user that PostgreSQL runs as; it refuses root.
const POSTGRES_USER: &str = "postgres";

/// How long a server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A server that runs; ended when dropped.
pub(super) struct Server {
    // Ended before its folder goes.
    _running: Running,
    _folder: Folder,
}

/// Starts Redis without persistence.
pub(super) fn redis(cgroup: &Cgroup) -> Result<Server> {
    let folder = Folder::new("redis")?;
    let line = format!(
        "redis-server --port {REDIS} --bind 127.0.0.1 --appendonly no --dir {}",
        folder.text()
    );
    let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
    serve("redis", cgroup, &words, REDIS, folder)
}

/// Makes a small database with pgbench's tables, and starts PostgreSQL.
pub(super) fn postgres(cgroup: &Cgroup) -> Result<Server> {
    let folder = Folder::new("postgres")?;
    run(&mut command(&["chown", POSTGRES_USER, folder.text()]))?;
    let initdb = postgres_program("initdb")?;
    let data = format!("{}/data", folder.text());
    let user: Vec<String> =
        ["setpriv", "--reuid", POSTGRES_USER, "--regid", POSTGRES_USER, "--clear-groups"]
            .map(str::to_owned)
            .to_vec();
    let as_user =
        |words: &[&str]| [user.clone(), words.iter().map(ToString::to_string).collect()].concat();
    output(
        command(&as_user(&[&initdb, "--auth=trust", "--no-sync", "-D", &data])).current_dir("/"),
    )?;
    let (postgres, port) = (postgres_program("postgres")?, POSTGRES.to_string());
    let words =
        as_user(&[&postgres, "-D", &data, "-p", &port, "-k", folder.text(), "-c", "fsync=off"]);
    let server = serve("postgres", cgroup, &words, POSTGRES, folder)?;
    let pgbench = postgres_program("pgbench")?;
    let init = [
        &pgbench,
        "-h",
        "127.0.0.1",
        "-p",
        &port,
        "-U",
        POSTGRES_USER,
        "-i",
        "-q",
        "-s",
        "5",
        "postgres",
    ];
    // It listens a moment before it takes connections.
    wait_for("PostgreSQL to take connections", START_LIMIT, || output(&mut command(&init)).ok())?;
    Ok(server)
}

fn serve(
    name: &'static str,
    cgroup: &Cgroup,
    words: &[String],
    port: u16,
    folder: Folder,
) -> Result<Server> {
    let running = Running::start(name, cgroup.command(words).current_dir("/"))?;
    wait_for(
        &format!("{name} to listen on port {port} (see target/bench-{name}.log)"),
        START_LIMIT,
        || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok(),
    )?;
    Ok(Server { _running: running, _folder: folder })
}

/// A program of the distribution's PostgreSQL.
pub(super) fn postgres_program(name: &str) -> Result<String> {
    let path = first_match(&format!("/usr/lib/postgresql/*/bin/{name}"));
    Ok(path.with_context(|| format!("{name} is not installed"))?.to_string_lossy().into_owned())
}

/// A temporary folder; removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let path = env::temp_dir().join(format!("observer-bench-{name}-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    fn text(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Removes a folder that the benchmark made.
pub(super) fn remove(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        println!("warning: {} stays: {error}", folder.display());
    }
}
