//! What the scenarios with a database share: a PostgreSQL server with the shop's tables, and its API, plain or under PM2.

use std::time::Duration;

use observer_tests::{
    node::Node,
    pm2::{self, App, Pm2},
    postgres::{Client, Postgres, Settings},
};
use serde_json::json;

use super::{Native, Needs};
use crate::stage::Stage;

/// What the machine must have, if nothing else is special.
pub const NEEDS: Needs = Needs {
    programs: &["node", "pm2", "postgres"],
    guest_mib: 1024,
    disk_iops: None,
    icount: super::SMALL,
    privileged: false,
    native: Native::Free,
};

/// The shop's API before PostgreSQL.
const API: &str = include_str!("../load/shop.js");

/// What a look at the catalogue asks for.
pub const CATALOGUE: &str = "SELECT count(*) FROM orders";

/// `max_connections` where there are enough.
pub const SIZE: u32 = 400;

/// Longest time for a program to get ready; software emulation needs most of it.
pub const READY: Duration = Duration::from_secs(120);

/// Tables and the role of the API, which is no superuser: those have connections reserved for them.
const TABLES: &[&str] = &[
    "CREATE TABLE stock (id int PRIMARY KEY, pieces int)",
    "INSERT INTO stock SELECT id, 1000000 FROM generate_series(1, 10) AS id",
    "CREATE TABLE orders AS SELECT id, 1 AS pieces FROM generate_series(1, 1000) AS id",
    "CREATE ROLE app LOGIN",
    "GRANT ALL ON stock, orders TO app",
    "ALTER TABLE orders OWNER TO app",
];

/// A server, and who asks it how it is: a superuser, who always gets a connection.
pub struct Database {
    /// The server.
    pub server: Postgres,
    client: Client,
}

impl Database {
    /// Starts one of this size on the stage's second port.
    pub fn start(stage: &Stage, max_connections: u32) -> Self {
        let server = start(stage, Settings { max_connections, ..Settings::default() });
        let client = Client::connect(server.port).expect("the server answers");
        Self { server, client }
    }

    /// Connections that the server counts, of clients other than this one: all, active, idle in transaction.
    pub fn connections(&mut self) -> [u64; 3] {
        let count = |what: &str| {
            format!("SELECT count(*) {what} FROM pg_stat_activity WHERE usename = 'app'")
        };
        ["", "FILTER (WHERE state = 'active')", "FILTER (WHERE state = 'idle in transaction')"]
            .map(|what| self.value(&count(what)).and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    /// Puts them on the time line.
    pub fn tell(&mut self, stage: &mut Stage) {
        let [all, active, idle_in_transaction] = self.connections();
        let values =
            json!({ "all": all, "active": active, "idle_in_transaction": idle_in_transaction });
        stage.tell("connections", values);
    }

    /// First field of the last row that a query gives.
    pub fn value(&mut self, query: &str) -> Option<String> {
        self.client.value(query).ok()
    }
}

/// The API as an app of PM2.
pub struct Api<'a> {
    /// Name of the app.
    pub name: &'a str,
    /// Which of the stage's ports it listens at.
    pub port: usize,
    /// Workers that share the port; none for a plain process.
    pub workers: Option<u32>,
    /// What shop.js is told beside its ports.
    pub env: &'a [(&'a str, &'a str)],
}

impl Api<'_> {
    /// Has this daemon start it; returns when all workers are ready.
    pub fn start(&self, stage: &Stage, pm2: &mut Pm2) {
        let (port, pg_port) = (stage.port(self.port).to_string(), stage.port(1).to_string());
        let ports = [("PORT", &*port), ("PGPORT", &*pg_port)];
        let env: Vec<_> = ports.iter().chain(self.env).copied().collect();
        pm2.start(&App { name: self.name, script: API, workers: self.workers, env: &env });
    }
}

/// Starts the server on the stage's second port, so that the agent knows it.
pub fn start(stage: &Stage, settings: Settings) -> Postgres {
    let server = Postgres::with(Settings { port: stage.port(1), ..settings });
    let mut client = Client::connect(server.port).expect("the server answers");
    for statement in TABLES {
        client.query(statement).unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    client.close();
    server
}

/// Starts the API on the stage's first port, with a pool of so many connections to `host`; `GET /catalogue` runs `sql`.
pub fn start_api(stage: &Stage, host: &str, pool: u32, sql: &str) -> Node {
    let modules = pm2::node_modules().expect("node-postgres is installed beside PM2");
    let env = [
        ("PORT", &*stage.port(0).to_string()),
        ("PGHOST", host),
        ("PGPORT", &stage.port(1).to_string()),
        ("POOL", &pool.to_string()),
        ("CATALOGUE", sql),
        ("NODE_PATH", &modules.to_string_lossy()),
    ];
    let api = Node::named("shop.js", API, &[], &env);
    api.program.wait_line(READY, |line| line.starts_with("listening").then_some(()));
    api
}
