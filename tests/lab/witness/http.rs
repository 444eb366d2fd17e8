//! What a client of the API would go through. Requests are sent at even times, whatever became of the earlier ones, so a
//! server that stands still for a minute shows the waits of all who came in that minute.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::OwnedFd,
};

use observer_tests::monotonic_ns;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, recv, send, socket_with, sockopt},
};
use serde_json::{Value, json};

use super::Ticks;
use crate::{
    judge::LIMIT_S,
    timeline::{Fixed, rounded},
};

/// Requests in flight: a minute of them.
const MAX_REQUESTS: usize = 120;

/// Between two requests.
const EVERY_MS: u64 = 500;

struct Request {
    socket: OwnedFd,
    started_ns: u64,
    sent: bool,
    told_slow: bool,
    /// Start of the answer, with its status line.
    answer: [u8; 32],
    length: usize,
}

/// Asks until it is killed.
pub(super) fn run(out: &mut Fixed, port: u16, path: &str) {
    let mut ticks = Ticks::every_ms(EVERY_MS);
    let text = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    let mut requests: Vec<Request> = Vec::with_capacity(MAX_REQUESTS);
    loop {
        if ticks.left_ns() == 0 {
            let started_ns = ticks.take();
            match Request::start(port, started_ns) {
                _ if requests.len() == MAX_REQUESTS => ended(out, started_ns, "too many wait"),
                Ok(request) => requests.push(request),
                Err(errno) => ended(out, started_ns, &errno.to_string()),
            }
        }
        wait(&requests, ticks.left_ns());
        requests.retain_mut(|request| request.turn(out, text.as_bytes()));
    }
}

/// Sleeps until something can be done, 250 ms at most.
fn wait(requests: &[Request], left_ns: u64) {
    let mut polled: Vec<_> = requests
        .iter()
        .map(|request| {
            let flags = if request.sent { PollFlags::IN } else { PollFlags::OUT };
            PollFd::new(&request.socket, flags)
        })
        .collect();
    let nanoseconds = left_ns.min(250_000_000);
    let timeout = Timespec { tv_sec: 0, tv_nsec: nanoseconds.cast_signed() };
    // A signal only makes this turn come sooner.
    poll(&mut polled, Some(&timeout)).ok();
}

impl Request {
    fn start(port: u16, started_ns: u64) -> Result<Self, Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        match connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(errno) => return Err(errno),
        }
        Ok(Self { socket, started_ns, sent: false, told_slow: false, answer: [0; 32], length: 0 })
    }

    /// Does what can be done now; `false` once it has ended.
    fn turn(&mut self, out: &mut Fixed, text: &[u8]) -> bool {
        let waits_s = (monotonic_ns() - self.started_ns) as f64 / 1e9;
        if waits_s > LIMIT_S && !self.told_slow {
            self.told_slow = true;
            out.event("http_waits", json!({ "started_s": rounded(self.started_ns as f64 / 1e9) }));
        }
        match self.advance(text) {
            Ok(None) | Err(Errno::AGAIN | Errno::NOTCONN | Errno::INTR) => true,
            Ok(Some(status)) => {
                tell(out, self.started_ns, &json!({ "status": status }));
                false
            }
            Err(errno) => {
                ended(out, self.started_ns, &errno.to_string());
                false
            }
        }
    }

    /// The status, once the status line is there; 0 for an answer that is none.
    fn advance(&mut self, text: &[u8]) -> Result<Option<u16>, Errno> {
        if !self.sent {
            sockopt::socket_error(&self.socket)??;
            send(&self.socket, text, rustix::net::SendFlags::NOSIGNAL)?;
            self.sent = true;
        }
        let rest = &mut self.answer[self.length..];
        let (count, _) = recv(&self.socket, rest, rustix::net::RecvFlags::empty())?;
        self.length += count;
        if count > 0 && self.length < self.answer.len() {
            return Ok(None);
        }
        let line = String::from_utf8_lossy(&self.answer);
        Ok(Some(line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)))
    }
}

fn ended(out: &mut Fixed, started_ns: u64, error: &str) {
    tell(out, started_ns, &json!({ "error": error }));
}

fn tell(out: &mut Fixed, started_ns: u64, how: &Value) {
    let latency_ns = monotonic_ns() - started_ns;
    let mut values = json!({
        "started_s": rounded(started_ns as f64 / 1e9),
        "latency_s": rounded(latency_ns as f64 / 1e9),
    });
    if let (Some(values), Some(how)) = (values.as_object_mut(), how.as_object()) {
        values.extend(how.clone());
    }
    out.event("http", values);
}
