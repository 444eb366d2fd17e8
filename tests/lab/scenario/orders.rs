//! Customers: one request after the other, however the earlier ones fare.

use std::{sync::Mutex, time::Duration};

use observer_tests::http;
use serde_json::{Value, json};

use crate::{
    stage::Stage,
    timeline::{now_s, rounded},
};

/// A customer leaves after so long. What the API does for them goes on.
const PATIENCE: Duration = Duration::from_secs(2);

/// What became of the requests.
#[derive(Debug, Default)]
pub struct Seen {
    done: u64,
    failed: u64,
    first_failed_s: Option<f64>,
}

/// Asks for a path at the stage's rate until the run is over.
pub fn until_over(stage: &Stage, port: u16, path: &str) -> Seen {
    let seen = Mutex::new(Seen::default());
    let ask = || {
        let started_s = now_s();
        let good = http::status(port, path, PATIENCE).is_ok_and(|status| status == 200);
        seen.lock().expect("no customer panics").note(started_s, good);
    };
    std::thread::scope(|scope| {
        stage.at_rate(stage.rate(), |_| {
            scope.spawn(ask);
        });
    });
    seen.into_inner().expect("no customer panics")
}

impl Seen {
    fn note(&mut self, started_s: f64, good: bool) {
        if good {
            self.done += 1;
            return;
        }
        self.failed += 1;
        let first_s = self.first_failed_s.map_or(started_s, |first_s| first_s.min(started_s));
        self.first_failed_s = Some(first_s);
    }

    /// As an event's values.
    pub fn told(&self) -> Value {
        json!({
            "done": self.done,
            "failed": self.failed,
            "first_failed_s": self.first_failed_s.map(rounded),
        })
    }
}
