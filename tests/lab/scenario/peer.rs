//! A database on another host that is no longer heard, in two ways that need different cures (I4): the network drops its
//! packets, or the host is there and its processes stand still.
//!
//! The other host is a network namespace, and so is the router before it. The router drops by a blackhole route: no link goes
//! down, no reset and no ICMP message comes, as behind a firewall that has lost its state or a host without power.

use std::process::Command;

use observer_tests::{
    netns::{Namespace, ip},
    postgres::{Postgres, Settings},
    procfs,
    program::signal_pid,
};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Native, Needs, Scenario, database, orders};
use crate::stage::Stage;

const NEEDS: Needs = Needs {
    programs: &["node", "pm2", "postgres", "ip", "ss", "unshare"],
    guest_mib: 1024,
    disk_iops: None,
    icount: super::SMALL,
    privileged: true,
    native: Native::OwnNetwork,
};

/// Nobody acknowledges.
pub const BLACK_HOLED: Scenario = Scenario {
    name: "peer-black-holed",
    incident: "I4",
    shows: "packets to and from the database's host are dropped: nothing is acknowledged, requests wait",
    culprit: "the network to the database's host",
    rate_unit: "orders a second",
    rate: 5.0,
    seconds: 40,
    needs: NEEDS,
    ci: false,
    fault: |stage| run(stage, Fault::BlackHole),
    twin: |stage| run(stage, Fault::Slow),
};

/// The kernel acknowledges, nobody reads.
pub const FROZEN: Scenario = Scenario {
    name: "peer-frozen",
    incident: "I4",
    shows: "the database's processes stand still: its kernel acknowledges, nobody answers",
    culprit: "the database's processes",
    rate_unit: "orders a second",
    rate: 5.0,
    seconds: 40,
    needs: NEEDS,
    ci: false,
    fault: |stage| run(stage, Fault::Freeze),
    twin: |stage| run(stage, Fault::Slow),
};

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    BlackHole,
    Freeze,
    Slow,
}

const POOL: u32 = 5;

/// Addresses for documentation (RFC 5737), which no host has.
const CLIENT: &str = "192.0.2.1";
const PEER: &str = "198.51.100.2";

/// For the twin: what one look at the catalogue takes. The database answers all the time, only late.
const SLOW: &str = "SELECT count(*), pg_sleep(1) FROM orders";

fn run(stage: &mut Stage, fault: Fault) {
    let (router, peer) = (Namespace::new(), Namespace::new());
    connect(&router, &peer);
    let settings = Settings { address: PEER, ..Settings::default() };
    let server = peer.enter(|| database::start(stage, settings));
    let sql = if fault == Fault::Slow { SLOW } else { database::CATALOGUE };
    let _api = database::start_api(stage, PEER, POOL, sql);
    let peer_name = format!("{PEER}:{}", server.port);
    stage.culprit(&[PEER, &peer_name], &[]);
    stage.health(stage.port(0), "/catalogue");
    stage.begin();
    match fault {
        Fault::BlackHole => {
            router.ip(&format!("route add blackhole {PEER}/32"));
            router.ip(&format!("route add blackhole {CLIENT}/32"));
        }
        Fault::Freeze => signal_all(&server, Signal::STOP),
        Fault::Slow => {}
    }
    let seen = orders::until_over(stage, stage.port(0), "/orders");
    stage.tell("customers", seen.told());
    stage.tell("sockets", sockets());
    if fault == Fault::Freeze {
        signal_all(&server, Signal::CONT);
    }
}

/// This host, a router, and the host of the database.
fn connect(router: &Namespace, peer: &Namespace) {
    router.plug("lab0", "near");
    ip(&format!("addr add {CLIENT}/24 dev lab0"));
    ip("link set lab0 up");
    router.enter(|| {
        peer.plug("far", "lab0");
        ip("addr add 192.0.2.254/24 dev near");
        ip("addr add 198.51.100.254/24 dev far");
        ip("link set near up");
        ip("link set far up");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("a namespace has its own");
    });
    ip("route add 198.51.100.0/24 via 192.0.2.254");
    peer.ip(&format!("addr add {PEER}/24 dev lab0"));
    peer.ip("link set lab0 up");
    peer.ip("route add 192.0.2.0/24 via 198.51.100.254");
}

/// What the kernel says of the pool's connections: the proof that it is the fault that it is meant to be.
fn sockets() -> Value {
    let ss = Command::new("ss").args(["-tinHO", "dst", PEER]).output().expect("ss can be started");
    let text = String::from_utf8_lossy(&ss.stdout);
    let with = |word: &str| text.lines().filter(|line| line.contains(word)).count();
    json!({ "all": text.lines().count(), "unacknowledged": with("unacked:"), "backing_off": with("backoff:") })
}

fn signal_all(server: &Postgres, signal: Signal) {
    let backends = procfs::children(server.pid());
    std::iter::once(server.pid()).chain(backends).for_each(|pid| signal_pid(pid, signal));
}
