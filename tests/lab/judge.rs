//! When the host hung, and when it first failed somebody: from the witness's probes alone.

use serde_json::json;

use crate::timeline::{Event, Source};

/// A probe that takes longer has failed, and the host hangs.
pub const LIMIT_S: f64 = 5.0;

/// Slow probes with no more than this between them are one hang.
const GAP_S: f64 = 5.0;

/// What the probes have shown so far.
#[derive(Default)]
pub struct Judge {
    slow: Vec<Slow>,
    first_failed: Option<(f64, String)>,
    health_was_good: bool,
    shell_since: Option<f64>,
    stopped_s: Option<f64>,
    oom_kills: f64,
    oom: Vec<(f64, f64)>,
}

/// From when to when somebody waited.
#[derive(Debug, Clone, Copy)]
struct Slow {
    start_s: f64,
    end_s: f64,
    /// Nobody saw the end.
    open: bool,
}

impl Judge {
    /// Takes the next event of the witness; those of others say nothing here.
    pub fn see(&mut self, event: &Event) {
        let start_s = event.number("started_s").unwrap_or(event.t_s);
        let end_s = event.t_s;
        match event.what.as_str() {
            // From here on the programs are ended on purpose.
            "stop" => self.stopped_s = Some(event.t_s),
            _ if event.source != Source::Witness => {}
            "vitals" => self.see_kills(event),
            "shell_start" => self.shell_since = Some(event.t_s),
            "shell" => {
                self.shell_since = None;
                if end_s - start_s > LIMIT_S {
                    self.slow.push(Slow { start_s, end_s, open: false });
                }
            }
            "http_waits" => {
                self.fail(start_s, end_s, "no answer within 5 s");
                self.slow.push(Slow { start_s, end_s, open: true });
            }
            "http" => self.see_answer(event, start_s, end_s),
            _ => {}
        }
    }

    fn see_kills(&mut self, event: &Event) {
        let kills = event.number("oom_kills").unwrap_or(0.0);
        if kills > self.oom_kills {
            self.oom.push((event.t_s, kills - self.oom_kills));
            self.oom_kills = kills;
        }
    }

    fn see_answer(&mut self, event: &Event, start_s: f64, end_s: f64) {
        if event.number("status").is_some_and(|status| (200.0..300.0).contains(&status)) {
            self.health_was_good = true;
        } else if self.health_was_good {
            let error = event.values.get("error").and_then(|error| error.as_str());
            self.fail(start_s, end_s, error.unwrap_or("an answer that is none of 2xx"));
        }
        if let Some(slow) = self.slow.iter_mut().find(|slow| slow.open && slow.start_s == start_s) {
            *slow = Slow { start_s, end_s, open: false };
        }
    }

    fn fail(&mut self, start_s: f64, known_s: f64, why: &str) {
        if self.stopped_s.is_some_and(|stopped_s| known_s > stopped_s) {
            return;
        }
        if self.first_failed.as_ref().is_none_or(|(first_s, _)| start_s < *first_s) {
            self.first_failed = Some((start_s, why.to_owned()));
        }
    }

    /// Since when the host hangs or first hung, as far as it is known now.
    pub fn hang_since(&self, now_s: f64) -> Option<f64> {
        let pending = self.shell_since.filter(|since| now_s - since > LIMIT_S);
        self.slow.iter().map(|slow| slow.start_s).chain(pending).min_by(f64::total_cmp)
    }

    /// When the first request was sent that failed.
    pub fn first_failed(&self) -> Option<f64> {
        self.first_failed.as_ref().map(|(t_s, _)| *t_s)
    }

    /// Whether a shell has been asked for and is not there yet.
    pub fn is_waiting(&self) -> bool {
        self.shell_since.is_some()
    }

    /// When the OOM killer was seen first.
    pub fn first_oom_kill(&self) -> Option<f64> {
        self.oom.first().map(|(t_s, _)| *t_s)
    }

    /// What follows from all of it, as events of the witness. `end_s`: when the witness ended.
    pub fn finish(mut self, end_s: f64) -> Vec<Event> {
        let mut events = Vec::new();
        let mut push =
            |t_s, what, values| events.push(Event::new(t_s, Source::Witness, what, values));
        if let Some((t_s, why)) = &self.first_failed {
            push(*t_s, "first_failed_request", json!({ "why": why }));
        }
        for (t_s, count) in &self.oom {
            push(*t_s, "oom_kill", json!({ "count": count }));
        }
        if let Some(start_s) = self.shell_since.filter(|since| end_s - since > LIMIT_S) {
            self.slow.push(Slow { start_s, end_s, open: true });
        }
        for hang in joined(self.slow, end_s) {
            push(hang.start_s, "hang_start", json!({}));
            if !hang.open {
                push(hang.end_s, "hang_end", json!({ "length_s": hang.end_s - hang.start_s }));
            }
        }
        events
    }
}

/// Slow probes as hangs, in the order of time.
fn joined(mut slow: Vec<Slow>, end_s: f64) -> Vec<Slow> {
    slow.sort_by(|a, b| a.start_s.total_cmp(&b.start_s));
    let mut hangs: Vec<Slow> = Vec::new();
    for mut next in slow {
        if next.open {
            next.end_s = end_s;
        }
        match hangs.last_mut() {
            Some(last) if next.start_s <= last.end_s + GAP_S => {
                if next.end_s > last.end_s {
                    (last.end_s, last.open) = (next.end_s, next.open);
                }
            }
            _ => hangs.push(next),
        }
    }
    hangs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(events: &[(f64, &str, serde_json::Value)], end_s: f64) -> Vec<(f64, String)> {
        let mut judge = Judge::default();
        for (t_s, what, values) in events {
            judge.see(&Event::new(*t_s, Source::Witness, what, values.clone()));
        }
        judge.finish(end_s).into_iter().map(|event| (event.t_s, event.what)).collect()
    }

    fn check(events: &[(f64, &str, serde_json::Value)], end_s: f64, expected: &[(f64, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(t, what)| (*t, (*what).to_owned())).collect();
        assert_eq!(shown(events, end_s), expected, "{events:?}");
    }

    #[test]
    fn quick_probes_are_no_hang() {
        let good = json!({"started_s": 1.0, "status": 200});
        check(&[(1.1, "http", good), (2.0, "shell_start", json!({}))], 4.0, &[]);
        // The server is not there yet.
        check(&[(1.1, "http", json!({"started_s": 1.0, "error": "refused"}))], 4.0, &[]);
    }

    #[test]
    fn a_probe_that_never_ends_is_a_hang_without_end() {
        check(&[(2.0, "shell_start", json!({}))], 8.0, &[(2.0, "hang_start")]);
        let waits = [(7.0, "http_waits", json!({"started_s": 2.0}))];
        check(&waits, 9.0, &[(2.0, "first_failed_request"), (2.0, "hang_start")]);
    }

    #[test]
    fn slow_probes_join_into_one_hang_with_its_end() {
        let slow = |start_s: f64, end_s: f64| (end_s, "shell", json!({"started_s": start_s}));
        let events = [slow(2.0, 9.0), slow(12.0, 20.0), slow(40.0, 46.0), slow(50.0, 51.0)];
        let expected =
            [(2.0, "hang_start"), (20.0, "hang_end"), (40.0, "hang_start"), (46.0, "hang_end")];
        check(&events, 60.0, &expected);
    }

    #[test]
    fn the_first_failed_request_is_the_one_sent_first() {
        let events = [
            (1.0, "http", json!({"started_s": 1.0, "status": 200})),
            (3.1, "http", json!({"started_s": 3.0, "error": "refused"})),
            (7.0, "http_waits", json!({"started_s": 2.0})),
            (8.0, "http", json!({"started_s": 2.0, "status": 200})),
        ];
        let expected = [(2.0, "first_failed_request"), (2.0, "hang_start"), (8.0, "hang_end")];
        check(&events, 9.0, &expected);
    }

    #[test]
    fn what_fails_because_the_run_was_stopped_is_no_failure() {
        let events = [
            (1.0, "http", json!({"started_s": 1.0, "status": 200})),
            (2.0, "stop", json!({})),
            (2.1, "http", json!({"started_s": 1.9, "error": "reset"})),
        ];
        check(&events, 9.0, &[]);
    }

    #[test]
    fn kills_are_counted_where_the_counter_moves() {
        let vitals = |t_s: f64, kills: u32| (t_s, "vitals", json!({"oom_kills": kills}));
        check(&[vitals(1.0, 0), vitals(2.0, 2), vitals(3.0, 2)], 4.0, &[(2.0, "oom_kill")]);
    }
}
