//! What the scenarios with a database share: a PostgreSQL server with the shop's tables, and its API.

use std::time::Duration;

use observer_tests::{
    node::Node,
    pm2,
    postgres::{Client, Postgres, Settings},
};

use crate::stage::Stage;

/// The shop's API before PostgreSQL.
pub const API: &str = include_str!("../load/shop.js");

/// What a look at the catalogue asks for.
pub const CATALOGUE: &str = "SELECT count(*) FROM orders";

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

/// Connections that the server counts: of clients other than the one who asks, and how many of them do what.
pub fn connections(client: &mut Client) -> [u64; 3] {
    let count =
        |what: &str| format!("SELECT count(*) {what} FROM pg_stat_activity WHERE usename = 'app'");
    ["", "FILTER (WHERE state = 'active')", "FILTER (WHERE state = 'idle in transaction')"]
        .map(|what| client.value(&count(what)).ok().and_then(|text| text.parse().ok()).unwrap_or(0))
}
