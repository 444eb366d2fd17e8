//! Connections of the model: what each does, second by second, as the socket alone shows it.

use fastrand::Rng;
use observer::signal::tcp::{Activity, Connection, Endpoint, View};

use super::chance::{happens, log_between};

/// A second.
const SECOND_NS: u64 = 1_000_000_000;

/// What a connection is used for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Use {
    /// In a pool: used with this probability a second, and answered at once.
    Pooled(f64),
    /// It asks, and waits for so many seconds; then it is pooled again. `f64::INFINITY`: for ever.
    Asks(f64),
    /// Nobody uses it.
    Unused,
    /// What is sent is not acknowledged any more.
    Dead,
    /// The peer acknowledges, and does not answer.
    Frozen,
    /// Answers come, and are not read: the owner's loop does not turn.
    Unread,
}

/// A server that somebody connects to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Server {
    pub(crate) system: &'static str,
    pub(crate) name: &'static str,
    pub(crate) address: &'static str,
    pub(crate) port: u16,
}

/// PostgreSQL, elsewhere.
pub(crate) const POSTGRES: Server = Server {
    system: "postgresql",
    name: "shop.cluster-c1.eu-west-1.rds.amazonaws.com",
    address: "10.0.3.17",
    port: 5432,
};
/// Redis, here.
pub(crate) const REDIS: Server =
    Server { system: "redis", name: "", address: "127.0.0.1", port: 6379 };
/// A peer of a cluster.
pub(crate) const PEER: Server = Server { system: "", name: "", address: "10.0.3.40", port: 5701 };

#[derive(Debug)]
struct Role {
    used: Use,
    /// Seconds in this use.
    for_s: f64,
    endpoint: usize,
}

/// All connections of a host.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    roles: Vec<Role>,
    next_port: u16,
}

impl Pools {
    /// A process connects.
    pub(crate) fn connect(&mut self, view: &mut View, owner: (u32, &str), to: &Server, used: Use) {
        let address = if to.name.is_empty() { to.address } else { to.name };
        let same =
            |row: &Endpoint| row.pid == owner.0 && row.address == address && row.port == to.port;
        let endpoint = view.endpoints.iter().position(same).unwrap_or_else(|| {
            view.endpoints.push(Endpoint {
                pid: owner.0,
                name: owner.1.to_owned(),
                role: "client".into(),
                system: to.system.to_owned(),
                address: address.to_owned(),
                port: to.port,
                ..Endpoint::default()
            });
            view.endpoints.len() - 1
        });
        self.next_port = self.next_port.wrapping_add(1) % 28_000;
        view.connections.push(Connection {
            pid: owner.0,
            name: owner.1.to_owned(),
            role: "client".into(),
            system: to.system.to_owned(),
            peer_address: to.address.to_owned(),
            peer_port: to.port,
            peer_name: to.name.to_owned(),
            local_address: if to.address.starts_with("127.") { "127.0.0.1" } else { "10.0.3.5" }
                .to_owned(),
            local_port: 32_768 + self.next_port,
            state: "ESTABLISHED".into(),
            srtt_ns: 400_000,
            sent_bytes: 80,
            received_bytes: 400,
            last_send_ns: Some(0),
            last_receive_ns: Some(0),
            ..Connection::default()
        });
        self.roles.push(Role { used, for_s: 0.0, endpoint });
        view.opened += 1;
    }

    /// Gives those of a process's connections to a port that `which` takes (by number) another use.
    pub(crate) fn use_for(
        &mut self,
        view: &View,
        pid: u32,
        port: u16,
        used: Use,
        mut which: impl FnMut(usize) -> bool,
    ) {
        let mut number = 0;
        for (role, row) in self.roles.iter_mut().zip(&view.connections) {
            if row.pid == pid && row.peer_port == port {
                if which(number) && role.used != used {
                    (role.used, role.for_s) = (used, 0.0);
                }
                number += 1;
            }
        }
    }

    /// Closes what `which` takes: (pid, peer port, number of the connection).
    pub(crate) fn close(&mut self, view: &mut View, which: impl Fn(u32, u16, usize) -> bool) {
        let mut at = 0;
        while at < self.roles.len() {
            let row = &view.connections[at];
            if which(row.pid, row.peer_port, at) {
                view.connections.swap_remove(at);
                self.roles.swap_remove(at);
                view.closed += 1;
            } else {
                at += 1;
            }
        }
        self.index(view);
    }

    /// Endpoints without connections go.
    fn index(&mut self, view: &mut View) {
        let mut kept = vec![false; view.endpoints.len()];
        self.roles.iter().for_each(|role| kept[role.endpoint] = true);
        let mut place = vec![0; kept.len()];
        let mut next = 0;
        for (at, kept) in kept.iter().enumerate() {
            place[at] = next;
            next += usize::from(*kept);
        }
        let mut at = 0;
        view.endpoints.retain(|_| {
            at += 1;
            kept[at - 1]
        });
        self.roles.iter_mut().for_each(|role| role.endpoint = place[role.endpoint]);
    }

    /// Segments that had to be sent twice on all connections, for so long without an answer.
    pub(crate) fn retransmit(&mut self, view: &mut View, most: u64, rng: &mut Rng) {
        for row in &mut view.connections {
            row.retransmits += rng.u64(..=most);
        }
    }

    /// One second.
    pub(crate) fn step(&mut self, view: &mut View, rng: &mut Rng) {
        for row in &mut view.endpoints {
            (row.open, row.waiting, row.unread, row.idle, row.stuck, row.longest_wait_ns) =
                (0, 0, 0, 0, 0, 0);
        }
        for (role, row) in self.roles.iter_mut().zip(&mut view.connections) {
            role.step(row, rng);
            row.age_ns += SECOND_NS;
            let sum = &mut view.endpoints[role.endpoint];
            sum.open += 1;
            match row.activity {
                Activity::Waiting => {
                    sum.waiting += 1;
                    sum.longest_wait_ns = sum.longest_wait_ns.max(row.activity_ns);
                }
                Activity::Unread => sum.unread += 1,
                Activity::Idle => sum.idle += 1,
                Activity::HalfOpen | Activity::ZeroWindow => sum.stuck += 1,
                Activity::Connecting | Activity::Active | Activity::Closing => {}
            }
        }
        view.connection_count = view.connections.len() as u64;
    }
}

impl Role {
    fn step(&mut self, row: &mut Connection, rng: &mut Rng) {
        let first = self.for_s == 0.0;
        self.for_s += 1.0;
        match self.used {
            Use::Pooled(busy) => {
                if happens(rng, busy) {
                    answered(row, rng);
                } else {
                    quiet(row, Activity::Idle);
                }
            }
            Use::Unused => quiet(row, Activity::Idle),
            Use::Asks(seconds) => {
                if first {
                    asked(row, rng);
                } else {
                    quiet(row, Activity::Waiting);
                }
                if self.for_s > seconds {
                    answered(row, rng);
                    self.used = Use::Pooled(0.3);
                }
            }
            Use::Dead => {
                // The first send after the path died may be a while off; the kernel's time-outs are 0.2 s times 2^k.
                if first {
                    asked(row, rng);
                } else {
                    let activity =
                        if self.for_s >= 3.0 { Activity::HalfOpen } else { Activity::Waiting };
                    quiet(row, activity);
                    let due = [1.0, 2.0, 4.0, 7.0, 13.0, 26.0, 52.0, 103.0, 206.0];
                    row.retransmits +=
                        u64::from(due.contains(&self.for_s)) + u64::from(self.for_s == 1.0);
                }
            }
            Use::Frozen => {
                if first {
                    asked(row, rng);
                } else {
                    quiet(row, Activity::Waiting);
                }
            }
            Use::Unread => {
                if first {
                    answered(row, rng);
                    (row.activity, row.activity_ns) = (Activity::Unread, SECOND_NS / 2);
                } else {
                    quiet(row, Activity::Unread);
                }
            }
        }
    }
}

fn later(row: &mut Connection) {
    for since in [&mut row.last_send_ns, &mut row.last_receive_ns].into_iter().flatten() {
        *since += SECOND_NS;
    }
}

fn quiet(row: &mut Connection, activity: Activity) {
    later(row);
    if row.activity == activity {
        row.activity_ns += SECOND_NS;
    } else {
        // What it was before it was that: since the last data, as the agent reads it.
        row.activity_ns = match activity {
            Activity::Waiting | Activity::HalfOpen => row.last_send_ns.unwrap_or(0),
            _ => row.last_receive_ns.unwrap_or(0),
        };
        row.activity = activity;
    }
}

fn asked(row: &mut Connection, rng: &mut Rng) {
    later(row);
    let ago = rng.u64(1_000_000..SECOND_NS);
    row.last_send_ns = Some(ago);
    row.sent_bytes += 120;
    (row.activity, row.activity_ns) = (Activity::Waiting, ago);
}

fn answered(row: &mut Connection, rng: &mut Rng) {
    let ago = rng.u64(1_000_000..SECOND_NS);
    row.last_receive_ns = Some(ago);
    row.last_send_ns = Some(ago + 2_000_000);
    row.sent_bytes += 150;
    row.received_bytes += log_between(rng, 100.0, 20_000.0) as u64;
    (row.activity, row.activity_ns) = (Activity::Active, ago);
}
