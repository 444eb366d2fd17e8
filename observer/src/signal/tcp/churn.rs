//! Who closed connections of late: each keeps its local port for a minute (TIME_WAIT) although nobody holds it any more.

use std::{collections::HashMap, net::IpAddr};

use super::Closing;

/// Processes and addresses followed. Beyond it the least takes in the next one and passes its count on, so that no count is
/// too low, and none is too high by more than the whole divided by this.
pub const MAX_CLOSING: usize = 256;

/// TCP_TIMEWAIT_LEN of the kernel.
const KEPT_NS: f64 = 60e9;

/// Connections closed here, by process, address and port; a count fades as the kernel lets go of the ports.
#[derive(Debug, Default)]
pub(super) struct Churn(HashMap<(u32, IpAddr, u16), (String, f64)>);

impl Churn {
    /// A process has closed a connection to an address before the peer did.
    pub(super) fn add(&mut self, pid: u32, name: &str, to: (IpAddr, u16)) {
        let key = (pid, to.0, to.1);
        let mut before = 0.0;
        if self.0.len() >= MAX_CLOSING && !self.0.contains_key(&key) {
            let least = self.0.iter().min_by(|a, b| a.1.1.total_cmp(&b.1.1).then(a.0.cmp(b.0)));
            if let Some(least) = least.map(|(key, _)| *key) {
                before = self.0.remove(&least).map_or(0.0, |(_, count)| count);
            }
        }
        self.0.entry(key).or_insert_with(|| (name.to_owned(), before)).1 += 1.0;
    }

    /// Time passes; what has faded to less than one is forgotten.
    pub(super) fn fade(&mut self, elapsed_ns: u64) {
        let left = (-(elapsed_ns as f64) / KEPT_NS).exp();
        self.0.retain(|_, (_, count)| {
            *count *= left;
            *count >= 0.5
        });
    }

    /// The most first.
    pub(super) fn rows(&self) -> Vec<Closing> {
        let row = |((pid, address, port), (name, count)): (&(u32, IpAddr, u16), &(String, f64))| {
            Closing {
                pid: *pid,
                name: name.clone(),
                address: address.to_string(),
                port: *port,
                count: count.round() as u64,
            }
        };
        let mut rows: Vec<_> = self.0.iter().map(row).collect();
        rows.sort_by(|a, b| {
            let key = |row: &Closing| (std::cmp::Reverse(row.count), row.pid, row.port);
            key(a).cmp(&key(b)).then_with(|| a.address.cmp(&b.address))
        });
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn to(port: u16) -> (IpAddr, u16) {
        (IpAddr::from([10, 0, 0, 9]), port)
    }

    fn counts(churn: &Churn) -> Vec<(u32, u16, u64)> {
        churn.rows().iter().map(|row| (row.pid, row.port, row.count)).collect()
    }

    #[test]
    fn a_count_is_about_that_of_the_last_minute() {
        let mut churn = Churn::default();
        for _ in 0..600 {
            churn.fade(SECOND_NS);
            (0..10).for_each(|_| churn.add(7, "node", to(6379)));
            churn.add(8, "node", to(5432));
        }
        assert_eq!(counts(&churn), [(7, 6379, 605), (8, 5432, 60)]);
        churn.fade(600 * SECOND_NS);
        assert_eq!(counts(&churn), []);
    }

    #[test]
    fn who_closes_most_is_seen_among_any_number_of_others() {
        let mut churn = Churn::default();
        for number in 0..10_000_u32 {
            churn.add(1000 + number, "cron", to(443));
            churn.add(7, "node", to(6379));
        }
        let rows = churn.rows();
        assert_eq!(rows.len(), MAX_CLOSING);
        let most = (rows[0].pid, rows[0].count);
        let too_high = 20_000 / MAX_CLOSING as u64;
        assert!(most.0 == 7 && (10_000..=10_000 + too_high).contains(&most.1), "{most:?}");
    }
}
