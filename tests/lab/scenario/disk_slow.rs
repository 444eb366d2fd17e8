//! A disk that becomes slower and slower below a database, of which every commit waits for it.

use std::time::Duration;

use observer_tests::postgres::{Postgres, Settings};
use serde_json::json;

use super::{
    Native, Needs, Scenario,
    disk::Disk,
    shop::{Rate, Shop, Visitors},
};
use crate::stage::Stage;

/// The registry's entry.
pub const SCENARIO: Scenario = Scenario {
    name: "disk-slow",
    incident: "I2",
    shows: "each write and flush of a database's disk takes twice as long every few seconds",
    culprit: "the disk (device-mapper), not the database that waits for it",
    rate_unit: "commits a second",
    rate: 5.0,
    seconds: 100,
    needs: Needs {
        programs: &["node", "postgres", "dmsetup", "losetup", "mkfs.ext4", "mount"],
        guest_mib: 768,
        disk_iops: None,
        icount: None,
        privileged: true,
        native: Native::Never,
    },
    ci: false,
    fault: |stage| run(stage, &[8, 16, 32, 64, 128, 256, 512, 1024, 2048]),
    twin: |stage| run(stage, &[8]),
};

const DISK_MIB: u64 = 512;
const STEP: Duration = Duration::from_secs(6);

fn run(stage: &mut Stage, delays_ms: &[u32]) {
    let disk = Disk::make(DISK_MIB);
    let folder = disk.mounted();
    let settings = Settings { port: stage.port(1), folder: Some(&folder), ..Settings::default() };
    let database = Postgres::with(settings);
    let shop = Shop::open(stage, &[("DATABASE", &database.port.to_string())]);
    stage.health(shop.port, "/stock");
    stage.tell("victim", json!({ "pids": [shop.pid(), database.pid()] }));
    let visitors = Visitors::start(shop.port, "/stock", Rate::even(stage.rate()));
    stage.culprit(&["disk dm-0"], &[]);
    stage.begin();
    for delay_ms in delays_ms {
        disk.delay_writes(*delay_ms);
        stage.tell("delay", json!({ "write_ms": delay_ms }));
        if !stage.pause(STEP) {
            break;
        }
    }
    stage.wait();
    disk.delay_writes(0);
    visitors.end(stage);
}
