//! What a connection does, from its socket alone.

use std::time::Duration;

use observer_abi::tcp::{CLIENT, SocketRow, state};

use super::view::Activity;

/// Data that lies unread for less is on its way to the process.
const UNREAD_AFTER: Duration = Duration::from_millis(250);
/// Time without data after which a connection is idle.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// Retransmissions without an answer that make a connection half open: some 1.4 s at the least time-out.
const DEAD_TIMEOUTS: u16 = 3;
/// Time without an acknowledgement of data in flight that makes a connection half open; at least that, or eight time-outs.
const DEAD_AFTER: Duration = Duration::from_secs(5);

/// A time that lies this little ahead of the reading is taken as now.
const AHEAD: Duration = Duration::from_secs(60);

/// Times since something happened on a connection; `None` if it never did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Since {
    /// Data was sent.
    pub send_ns: Option<u64>,
    /// Data was received.
    pub receive_ns: Option<u64>,
    /// An acknowledgement came.
    pub acknowledged_ns: u64,
}

impl Since {
    /// Reads the jiffies of a row. The kernel sets both data clocks at the handshake, so that they say nothing before the
    /// first byte.
    pub fn of(row: &SocketRow, hz: u64) -> Self {
        let hz = hz.max(1);
        let since = |jiffies: u32| {
            let ticks = u64::from((row.now_jiffies as u32).wrapping_sub(jiffies));
            // Data may move while a kernel that does not lock the socket (before 5.13) reads it: that is now, not once
            // around the clock ago.
            let ahead = ticks + AHEAD.as_secs() * hz > u64::from(u32::MAX);
            if ahead { 0 } else { ticks * 1_000_000_000 / hz }
        };
        Self {
            send_ns: (row.socket.sent_bytes > 0).then(|| since(row.sent_jiffies)),
            receive_ns: (row.socket.received_bytes > 0).then(|| since(row.received_jiffies)),
            acknowledged_ns: since(row.acknowledged_jiffies),
        }
    }
}

/// What the connection does, and for how long it has.
pub fn activity(row: &SocketRow, since: Since, hz: u64, age_ns: u64) -> (Activity, u64) {
    let nanos = |duration: Duration| duration.as_nanos() as u64;
    let received = since.receive_ns.unwrap_or(age_ns);
    match row.state {
        state::SYN_SENT | state::SYN_RECV => return (Activity::Connecting, age_ns),
        state::ESTABLISHED => {}
        _ => return (Activity::Closing, since.acknowledged_ns.min(age_ns)),
    }
    if row.window_bytes == 0 && row.probes > 0 {
        return (Activity::ZeroWindow, since.acknowledged_ns);
    }
    let time_out_ns = u64::from(row.rto_jiffies) * 1_000_000_000 / hz.max(1);
    let patience = nanos(DEAD_AFTER).max(time_out_ns.saturating_mul(8));
    // After a rest, what was just sent is in flight although the last acknowledgement is old: that is no sign yet.
    let overdue = row.timeouts > 0 && since.acknowledged_ns > patience;
    if row.packets_out > 0 && (row.timeouts >= DEAD_TIMEOUTS || overdue) {
        return (Activity::HalfOpen, since.acknowledged_ns);
    }
    if row.unread_bytes > 0 && received >= nanos(UNREAD_AFTER) {
        return (Activity::Unread, received);
    }
    let client = row.owned.role == CLIENT;
    match (since.send_ns, since.receive_ns) {
        (Some(sent), received) if client && asked_last(row, sent, received) => {
            (Activity::Waiting, sent)
        }
        (sent, received) => {
            let last = sent.unwrap_or(age_ns).min(received.unwrap_or(age_ns));
            if last >= nanos(IDLE_AFTER) {
                (Activity::Idle, last)
            } else {
                (Activity::Active, last)
            }
        }
    }
}

/// Whether the last data went out. Within one jiffy the kernel's two data clocks cannot tell; then, if all that was sent is
/// acknowledged, the last segment sent is either that data, or the acknowledgement of an answer that came after it.
fn asked_last(row: &SocketRow, sent_ns: u64, received_ns: Option<u64>) -> bool {
    match received_ns {
        None => true,
        Some(received_ns) if sent_ns == received_ns => {
            row.unacknowledged_bytes > 0
                || (row.sent_us != 0 && row.sent_us == row.acknowledged_sent_us)
        }
        Some(received_ns) => sent_ns < received_ns,
    }
}

#[cfg(test)]
mod tests {
    use observer_abi::tcp::{Owned, Socket};
    use zerocopy::FromZeros as _;

    use super::*;

    const HZ: u64 = 250;

    /// An established connection of a client at jiffy 10,000; sent and received in jiffies ago.
    fn row(sent: Option<u32>, received: Option<u32>, change: impl Fn(&mut SocketRow)) -> SocketRow {
        let mut row = SocketRow::new_zeroed();
        row.owned = Owned { role: CLIENT, ..Owned::default() };
        row.now_jiffies = 10_000;
        row.state = state::ESTABLISHED;
        row.socket = Socket {
            sent_bytes: u64::from(sent.is_some()),
            received_bytes: u64::from(received.is_some()),
            ..Socket::default()
        };
        row.sent_jiffies = 10_000 - sent.unwrap_or(0);
        row.received_jiffies = 10_000 - received.unwrap_or(0);
        row.acknowledged_jiffies = 10_000;
        row.window_bytes = 65_536;
        row.rto_jiffies = 50;
        change(&mut row);
        row
    }

    fn check(row: SocketRow, expect: Activity, expect_seconds: f64) {
        let (found, for_ns) = activity(&row, Since::of(&row, HZ), HZ, 100_000_000_000);
        assert_eq!(found, expect, "{row:?}");
        assert!((for_ns as f64 / 1e9 - expect_seconds).abs() < 0.001, "{for_ns} ns");
    }

    #[test]
    fn each_state_of_a_pooled_connection_is_told_apart() {
        let same = |_: &mut SocketRow| {};
        check(row(None, None, same), Activity::Idle, 100.0);
        check(row(Some(500), Some(1000), same), Activity::Waiting, 2.0);
        check(row(Some(500), None, same), Activity::Waiting, 2.0);
        check(row(Some(1000), Some(500), same), Activity::Idle, 2.0);
        check(row(Some(10), Some(10), same), Activity::Active, 0.04);
        check(row(Some(1000), Some(500), |row| row.unread_bytes = 1), Activity::Unread, 2.0);
        check(row(Some(1000), Some(10), |row| row.unread_bytes = 1), Activity::Active, 0.04);
        check(row(Some(500), Some(1000), |row| row.owned.role = 2), Activity::Idle, 2.0);
        check(row(None, None, |row| row.state = state::SYN_SENT), Activity::Connecting, 100.0);
        check(row(Some(1), Some(1), |row| row.state = state::CLOSE_WAIT), Activity::Closing, 0.0);
    }

    #[test]
    fn a_question_within_the_jiffy_of_an_answer_is_told_by_the_last_segment() {
        let at = |sent_us, acknowledged_sent_us| {
            row(Some(500), Some(500), move |row| {
                (row.sent_us, row.acknowledged_sent_us) = (sent_us, acknowledged_sent_us);
            })
        };
        check(at(7, 7), Activity::Waiting, 2.0);
        check(at(9, 7), Activity::Idle, 2.0);
        check(at(0, 0), Activity::Idle, 2.0);
        check(
            row(Some(500), Some(500), |row| row.unacknowledged_bytes = 1),
            Activity::Waiting,
            2.0,
        );
    }

    #[test]
    fn a_dead_path_is_not_a_slow_reply() {
        let dead = |row: &mut SocketRow| {
            row.packets_out = 1;
            row.timeouts = 3;
            row.acknowledged_jiffies = 10_000 - 400;
        };
        check(row(Some(350), Some(1000), dead), Activity::HalfOpen, 1.6);
        let silent = |timeouts| {
            move |row: &mut SocketRow| {
                (row.packets_out, row.timeouts) = (1, timeouts);
                row.acknowledged_jiffies = 10_000 - 1500;
            }
        };
        check(row(Some(1400), Some(2000), silent(1)), Activity::HalfOpen, 6.0);
        // The first question after a rest, on its way.
        check(row(Some(0), Some(1500), silent(0)), Activity::Waiting, 0.0);
        let closed = |row: &mut SocketRow| {
            row.window_bytes = 0;
            row.probes = 2;
        };
        check(row(Some(350), Some(1000), closed), Activity::ZeroWindow, 0.0);
    }

    #[test]
    fn the_clock_may_wrap() {
        let mut wrapped = row(Some(500), Some(1000), |_| {});
        wrapped.now_jiffies = 1 << 32;
        wrapped.sent_jiffies = u32::MAX - 499;
        wrapped.received_jiffies = u32::MAX - 999;
        wrapped.acknowledged_jiffies = 0;
        check(wrapped, Activity::Waiting, 2.0);
        check(row(Some(500), Some(1000), |row| row.sent_jiffies = 10_001), Activity::Waiting, 0.0);
    }
}
