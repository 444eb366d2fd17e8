//! A migration waits for a report, and everybody else waits behind the migration (I1).
//!
//! A long SELECT holds ACCESS SHARE, which hurts nobody. ALTER TABLE wants ACCESS EXCLUSIVE and waits for it; PostgreSQL's
//! lock queue is fair, so each later SELECT waits behind the ALTER TABLE.

use std::process::Command;

use observer_tests::{postgres::find_binary, program::Program};
use serde_json::json;

use super::{
    Scenario,
    database::{self, Database, SIZE},
    orders,
};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "postgres-lock-pile-up",
    incident: "I1",
    shows: "ALTER TABLE waits for a long report; all requests wait behind it",
    culprit: "the migration (psql)",
    rate_unit: "looks at the catalogue a second",
    rate: 1.0,
    seconds: 40,
    needs: database::NEEDS,
    ci: false,
    fault: |stage| run(stage, true),
    twin: |stage| run(stage, false),
};

const POOL: u32 = 10;

const REPORT: &str = "SELECT count(*), pg_sleep(600) FROM orders";
const MIGRATION: &str = "ALTER TABLE orders ADD COLUMN note text";

/// As a careful migration is: it gives up after a second, lets others through, and tries again.
const CAREFUL: &str = "until $0 -q -c \"SET lock_timeout = '1s'\" -c \"$1\"; do sleep 3; done";

fn run(stage: &mut Stage, pushes: bool) {
    let mut database = Database::start(stage, SIZE);
    let _api = database::start_api(stage, "127.0.0.1", POOL, database::CATALOGUE);
    stage.health(stage.port(0), "/orders");
    stage.begin();
    // Not that of the PATH, which is a script in Perl.
    let psql = find_binary("psql").expect("it comes with PostgreSQL");
    let psql = psql.to_string_lossy();
    let start = |name: &str, words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env("PGAPPNAME", name).env("PGHOST", "127.0.0.1");
        command.env("PGPORT", stage.port(1).to_string()).env("PGUSER", "app");
        Program::start(command.env("PGDATABASE", "postgres"))
    };
    let _report = start("report", &[&psql, "-c", REPORT]);
    observer_tests::wait_until("the report runs", database::READY, || {
        (database.connections()[1] > 0).then_some(())
    });
    let migration = match pushes {
        true => start("migration", &[&psql, "-c", MIGRATION]),
        false => start("migration", &["sh", "-c", CAREFUL, &psql, MIGRATION]),
    };
    stage.culprit(&["migration"], &[migration.pid()]);
    let seen = orders::until_over(stage, stage.port(0), "/catalogue");
    let waiting = database.value("SELECT count(*) FROM pg_locks WHERE NOT granted");
    stage.tell("locks", json!({ "waiting": waiting.unwrap_or_default() }));
    stage.tell("customers", seen.told());
}
