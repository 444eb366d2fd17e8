//! Pressure episodes: from the first PSI trigger of memory to the last, as one span.

use crate::{
    signal::{Now, span_context},
    telemetry::{Span, Subject, attr},
};

/// The open episode, if any.
#[derive(Debug, Default)]
pub struct Episode {
    start_ktime_ns: Option<u64>,
    last_ktime_ns: u64,
    start_total_ns: u64,
    last_total_ns: Option<u64>,
    triggers: u64,
    lowest_available_bytes: u64,
}

impl Episode {
    /// Folds a tick. Returns the span of an episode that has been over for `calm_ns`, or that `ends` now.
    pub fn tick(
        &mut self,
        now: Now,
        fired: u64,
        total_ns: u64,
        available_bytes: u64,
        calm_ns: u64,
        ends: bool,
    ) -> Option<Span> {
        if fired > 0 {
            if self.start_ktime_ns.is_none() {
                *self = Self {
                    start_ktime_ns: Some(now.ktime_ns),
                    start_total_ns: self.last_total_ns.unwrap_or(total_ns),
                    lowest_available_bytes: u64::MAX,
                    ..Self::default()
                };
            }
            self.last_ktime_ns = now.ktime_ns;
            self.triggers = self.triggers.saturating_add(fired);
        }
        self.last_total_ns = Some(total_ns);
        self.lowest_available_bytes = self.lowest_available_bytes.min(available_bytes);
        let start = self.start_ktime_ns?;
        let over = now.since(self.last_ktime_ns) >= calm_ns;
        (over || ends).then(|| {
            self.start_ktime_ns = None;
            self.span(start, now, !over)
        })
    }

    fn span(&self, start_ktime_ns: u64, now: Now, open: bool) -> Span {
        let end = if open { now.ktime_ns } else { self.last_ktime_ns };
        Span {
            name: "memory.pressure",
            context: span_context([0, now.unix_of(start_ktime_ns)], 1),
            parent_span_id: None,
            links: Vec::new(),
            start_unix_ns: now.unix_of(start_ktime_ns),
            end_unix_ns: now.unix_of(end),
            error: None,
            attrs: vec![
                attr("observer.pressure.triggers", self.triggers),
                attr(
                    "observer.pressure.stall_ns",
                    self.last_total_ns.unwrap_or(0).saturating_sub(self.start_total_ns),
                ),
                attr("observer.memory.lowest_available_bytes", self.lowest_available_bytes),
                attr("observer.open", open),
            ],
            subject: Subject::Host,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_episode_lasts_from_the_first_to_the_last_trigger() {
        let mut episode = Episode::default();
        let mut tick = |second: u64, fired| {
            let now = Now { ktime_ns: second * 1_000_000_000, unix_ns: second * 1_000_000_000 };
            episode.tick(now, fired, second * 10, 1000 - second, 10_000_000_000, false)
        };
        assert!(tick(1, 0).is_none());
        assert!(tick(2, 1).is_none());
        assert!(tick(5, 2).is_none());
        assert!(tick(14, 0).is_none());
        let span = tick(15, 0).expect("calm for ten seconds");
        assert_eq!((span.start_unix_ns, span.end_unix_ns), (2_000_000_000, 5_000_000_000));
        assert!(span.attrs.contains(&attr("observer.pressure.triggers", 3_u64)));
        assert!(tick(30, 0).is_none());
    }
}
