//! From ledger rows and records to connections, endpoints and spans.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use observer_abi::{
    Counter,
    reply::Reply,
    tcp::{
        CLIENT, Closed, HolderRow, LOCAL, Listening, OWNER_EXIT, Owned, SERVER, Socket, SocketRow,
        UNSEEN,
    },
};

use super::{
    Activity, CLOSED, CONNECTIONS, Connection, Endpoint, LONGEST_WAIT, Limits, OPENED, UNNEEDED_NS,
    View,
    activity::{Since, activity},
    churn::Churn,
    endpoint::Naming,
    span::{self, Ends},
    transaction::{Watch, transaction},
};
use crate::{
    signal::{Now, Output, Readings, Who, comm_text, span_context},
    snapshot::MAX_ROWS,
    telemetry::{Attr, Metric, Number, Point, Subject, attr},
};

/// Names of peers from DNS answers; the agent's table of them.
pub trait PeerNames {
    /// Name of an address and the system that the name stands for.
    fn name(&self, address: IpAddr) -> Option<(&str, Option<&'static str>)>;
}

/// Rows kept for the connections that were used last, if there are more than [`MAX_ROWS`].
const USED_ROWS: usize = MAX_ROWS / 4;

/// Who closes first stays in TIME_WAIT; where nobody saw it, it may have been us.
const KEEPS_PORT: &[u8] = &[LOCAL, OWNER_EXIT, UNSEEN];

/// Where the last segment of a connection ended.
#[derive(Debug)]
struct Segments {
    start_ktime_ns: u64,
    number: u32,
    /// Counters at that time.
    before: Socket,
    round: u64,
}

/// State of the signal.
#[derive(Debug)]
pub struct Tcp {
    naming: Naming,
    segment_ns: u64,
    /// By socket and birth: the kernel uses a socket again.
    segments: HashMap<(u64, u64), Segments>,
    round: u64,
    watch: Watch,
    churn: Churn,
    view: View,
}

impl Tcp {
    /// Empty.
    pub fn new(limits: Limits) -> Self {
        let segment_ns = u64::try_from(limits.segment.as_nanos()).unwrap_or(u64::MAX);
        Self {
            naming: limits.naming,
            segment_ns,
            segments: HashMap::new(),
            round: 0,
            watch: Watch::default(),
            churn: Churn::default(),
            view: View::default(),
        }
    }

    /// What the snapshot shows.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Where ends of replies should be looked for, by the connections of the last tick.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// A process has begun to listen.
    pub fn listening(&mut self, record: &Listening) {
        self.naming.listens(record.port as u16, &comm_text(&record.header.comm));
    }

    /// A process holds a listening socket.
    pub fn listener(&mut self, row: &HolderRow) {
        self.naming.listens(row.local_port, &comm_text(&row.comm));
    }

    /// A connection has ended.
    pub fn closed(
        &mut self,
        record: &Closed,
        now: Now,
        names: &dyn PeerNames,
        who: &mut dyn Who,
        out: &mut Output,
    ) {
        let own = (record.key, record.owned.birth_ktime_ns);
        self.closed_as(record, own, now, names, who, out);
    }

    /// Likewise, of a connection whose rows have another key and birth than the record, because they come from elsewhere.
    pub fn closed_as(
        &mut self,
        record: &Closed,
        (key, birth_ktime_ns): (u64, u64),
        now: Now,
        names: &dyn PeerNames,
        who: &mut dyn Who,
        out: &mut Output,
    ) {
        self.segments.remove(&(key, birth_ktime_ns));
        let ends = Ends::of(&record.socket);
        if record.owned.role == SERVER && ends.are_here() {
            return;
        }
        let owned = &record.owned;
        if owned.role == CLIENT
            && owned.tgid != 0
            && owned.was_established != 0
            && KEEPS_PORT.contains(&owned.closer)
        {
            self.churn.add(owned.tgid, &comm_text(&owned.comm), ends.peer);
        }
        let (reason, error) = span::close_reason(record);
        let mut attrs = self.attrs(&record.owned, &ends, names);
        attrs.extend(span::counts(&record.socket));
        attrs.push(attr("observer.tcp.close_reason", reason));
        // The owner is done when it closes; what the kernel still does then is no part of its wait.
        let end = match record.owned.closed_ktime_ns {
            0 => record.header.ktime_ns,
            closed => closed,
        };
        // Where the socket was another's by then, nobody knows how long that was.
        if !ends.local.0.is_unspecified() {
            let lingered_ns = record.header.ktime_ns.saturating_sub(end);
            attrs.push(attr("observer.tcp.lingered_ns", lingered_ns));
        }
        let times = (now.unix_of(record.owned.birth_ktime_ns), now.unix_of(end));
        let context = span::root(key, birth_ktime_ns);
        let subject = subject(&record.owned, who);
        out.span(crate::telemetry::Span { error, ..span::span(context, times, attrs, subject) });
    }

    fn attrs(&self, owned: &Owned, ends: &Ends, names: &dyn PeerNames) -> Vec<Attr> {
        let (system, name) = self.name(owned.role, ends, names);
        span::attrs(owned, ends, system, name)
    }

    /// System and DNS name of the database's side of a connection.
    fn name<'a>(&'a self, role: u8, ends: &Ends, names: &'a dyn PeerNames) -> (&'a str, &'a str) {
        if role == SERVER {
            return (self.naming.system(ends.local.0, ends.local.1, ends.local.0, None), "");
        }
        let known = names.name(ends.peer.0);
        let system = self.naming.system(
            ends.peer.0,
            ends.peer.1,
            ends.local.0,
            known.and_then(|(_, system)| system),
        );
        (system, known.map_or("", |(name, _)| name))
    }

    /// Folds one tick; `ends` if it is the last: what is open then makes its last segment.
    pub fn tick(
        &mut self,
        readings: &Readings<'_>,
        names: &dyn PeerNames,
        ends: bool,
        who: &mut dyn Who,
        out: &mut Output,
    ) {
        self.round += 1;
        let mut connections = Vec::with_capacity(readings.sockets.len());
        self.watch = Watch::default();
        for (index, row) in readings.sockets.iter().enumerate() {
            let both = Ends::of(&row.socket);
            if row.owned.role == SERVER && both.are_here() {
                continue;
            }
            let reply = readings.replies.get(index).and_then(Option::as_ref);
            let connection = self.connection(row, &both, reply, readings, names);
            if row.owned.role == CLIENT {
                self.watch.add(&both, &connection.system);
            }
            connections.push(connection);
            self.segment(row, &both, readings.now, names, ends, who, out);
        }
        let round = self.round;
        self.segments.retain(|_, segments| segments.round == round);
        self.churn.fade(readings.elapsed_ns);
        self.view = View {
            closing: self.churn.rows(),
            opened: readings.counters.get(Counter::TcpOpened),
            closed: readings.counters.get(Counter::TcpClosed),
            ..View::of(connections)
        };
    }

    fn connection(
        &self,
        row: &SocketRow,
        ends: &Ends,
        reply: Option<&Reply>,
        readings: &Readings<'_>,
        names: &dyn PeerNames,
    ) -> Connection {
        let since = Since::of(row, readings.hz);
        let age_ns = readings.now.since(row.owned.birth_ktime_ns);
        let (activity, activity_ns) = activity(row, since, readings.hz, age_ns);
        let (system, name) = self.name(row.owned.role, ends, names);
        let (transaction, transaction_ns) = transaction(row, reply, activity, readings.hz);
        Connection {
            pid: row.owned.tgid,
            name: comm_text(&row.owned.comm),
            role: if row.owned.role == CLIENT { "client" } else { "server" }.into(),
            system: system.to_owned(),
            peer_address: ends.peer.0.to_string(),
            peer_port: ends.peer.1,
            peer_name: name.to_owned(),
            local_address: ends.local.0.to_string(),
            local_port: ends.local.1,
            state: state_name(row.state).into(),
            activity,
            activity_ns,
            age_ns,
            preexisting: row.owned.preexisting != 0,
            sent_bytes: row.socket.sent_bytes,
            received_bytes: row.socket.received_bytes,
            srtt_ns: u64::from(row.socket.srtt_us) * 1000,
            retransmits: u64::from(row.socket.retransmits),
            last_send_ns: since.send_ns,
            last_receive_ns: since.receive_ns,
            transaction,
            transaction_ns,
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call; a struct for it would only name them again"
    )]
    fn segment(
        &mut self,
        row: &SocketRow,
        both: &Ends,
        now: Now,
        names: &dyn PeerNames,
        ends: bool,
        who: &mut dyn Who,
        out: &mut Output,
    ) {
        let birth_ktime_ns = row.owned.birth_ktime_ns;
        let segments = self.segments.entry((row.key, birth_ktime_ns)).or_insert_with(|| Segments {
            start_ktime_ns: birth_ktime_ns,
            number: 0,
            before: Socket::default(),
            round: 0,
        });
        segments.round = self.round;
        if now.since(segments.start_ktime_ns) < self.segment_ns && !ends {
            return;
        }
        let start = std::mem::replace(&mut segments.start_ktime_ns, now.ktime_ns);
        let number = segments.number;
        segments.number += 1;
        let before = std::mem::replace(&mut segments.before, row.socket);
        let mut attrs = self.attrs(&row.owned, both, names);
        attrs.extend(span::counts(&span::since(&row.socket, &before)));
        attrs.push(attr("observer.tcp.open", true));
        attrs.push(attr("observer.tcp.segment", number));
        let context = span_context([row.key, birth_ktime_ns], u64::from(number) + 1);
        let whole = span::root(row.key, birth_ktime_ns);
        let times = (now.unix_of(start), now.unix_ns);
        let segment = span::span(context, times, attrs, subject(&row.owned, who));
        out.span(crate::telemetry::Span { parent_span_id: Some(whole.span_id), ..segment });
    }

    /// Metric points of the present view.
    pub fn points(&self, start_unix_ns: u64, who: &mut dyn Who, out: &mut Output) {
        let mut add =
            |metric: &'static Metric, number: Number, attrs: Vec<Attr>, subject: &Subject| {
                out.point(Point { metric, attrs, number, start_unix_ns, subject: subject.clone() });
            };
        let int = |value: u64| Number::Int(i64::try_from(value).unwrap_or(i64::MAX));
        add(&OPENED, int(self.view.opened), Vec::new(), &Subject::Host);
        add(&CLOSED, int(self.view.closed), Vec::new(), &Subject::Host);
        for row in self.view.endpoints.iter().filter(|row| row.pid != 0 && row.role == "client") {
            let subject = Subject::Process(who.process(row.pid, None, &row.name));
            let pool = format!("{}:{}", row.address, row.port);
            let pool_attrs = || {
                let mut attrs = vec![attr("db.client.connection.pool.name", pool.clone())];
                if !row.system.is_empty() {
                    attrs.push(attr("db.system.name", row.system.clone()));
                }
                attrs
            };
            for (state, count) in [("idle", row.idle), ("used", row.open.saturating_sub(row.idle))]
            {
                let mut attrs = pool_attrs();
                attrs.push(attr("db.client.connection.state", state));
                add(&CONNECTIONS, int(count), attrs, &subject);
            }
            add(
                &LONGEST_WAIT,
                Number::Float(row.longest_wait_ns as f64 / 1e9),
                pool_attrs(),
                &subject,
            );
        }
    }
}

fn subject(owned: &Owned, who: &mut dyn Who) -> Subject {
    if owned.tgid == 0 {
        return Subject::Host;
    }
    Subject::Process(who.process(owned.tgid, None, &comm_text(&owned.comm)))
}

impl View {
    /// What is shown of these connections.
    pub fn of(mut connections: Vec<Connection>) -> Self {
        connections.sort_by_cached_key(|connection| Reverse(rank(connection)));
        let (connection_count, mut endpoints) = (connections.len() as u64, endpoints(&connections));
        endpoints.truncate(MAX_ROWS);
        // The last ones were used a moment ago.
        let beyond = connections.len().saturating_sub(MAX_ROWS);
        if beyond > 0 {
            let kept = MAX_ROWS - USED_ROWS;
            connections.drain(kept..kept + beyond);
        }
        Self { connections, connection_count, endpoints, ..Self::default() }
    }
}

/// The longest stuck or waiting first.
fn rank(connection: &Connection) -> (u8, u64) {
    let urgency = match connection.activity {
        Activity::HalfOpen | Activity::ZeroWindow => 3,
        Activity::Unread => 2,
        Activity::Waiting | Activity::Connecting => 1,
        Activity::Active | Activity::Idle | Activity::Closing => 0,
    };
    (urgency, connection.activity_ns)
}

/// Counts per process and endpoint.
pub fn endpoints(connections: &[Connection]) -> Vec<Endpoint> {
    let mut rows: BTreeMap<(u32, &str, u16), Endpoint> = BTreeMap::new();
    for connection in connections {
        let server = connection.role == "server";
        let named = if connection.peer_name.is_empty() {
            &connection.peer_address
        } else {
            &connection.peer_name
        };
        let (address, port) = if server {
            (&connection.local_address, connection.local_port)
        } else {
            (named, connection.peer_port)
        };
        let row = rows.entry((connection.pid, address, port)).or_insert_with(|| Endpoint {
            pid: connection.pid,
            name: connection.name.clone(),
            role: connection.role.clone(),
            system: connection.system.clone(),
            address: address.clone(),
            port,
            ..Endpoint::default()
        });
        row.open += 1;
        row.last_receive_ns =
            connection.last_receive_ns.into_iter().chain(row.last_receive_ns).min();
        match connection.activity {
            Activity::Waiting => {
                row.waiting += 1;
                row.longest_wait_ns = row.longest_wait_ns.max(connection.activity_ns);
            }
            Activity::Unread => row.unread += 1,
            Activity::Idle => {
                row.idle += 1;
                row.unneeded += u64::from(connection.is_idle_for(UNNEEDED_NS));
            }
            Activity::HalfOpen | Activity::ZeroWindow => row.stuck += 1,
            Activity::Active | Activity::Connecting | Activity::Closing => {}
        }
    }
    let mut rows: Vec<_> = rows.into_values().collect();
    rows.sort_by_key(|row| Reverse((row.stuck, row.longest_wait_ns, row.open)));
    rows
}

fn state_name(state: u32) -> &'static str {
    const NAMES: [&str; 13] = [
        "UNKNOWN",
        "ESTABLISHED",
        "SYN_SENT",
        "SYN_RECV",
        "FIN_WAIT1",
        "FIN_WAIT2",
        "TIME_WAIT",
        "CLOSE",
        "CLOSE_WAIT",
        "LAST_ACK",
        "LISTEN",
        "CLOSING",
        "NEW_SYN_RECV",
    ];
    NAMES.get(state as usize).copied().unwrap_or(NAMES[0])
}
