//! Where the sampler leaves the newest snapshot for the IO thread.

use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_queue::ArrayQueue;

use crate::snapshot::Snapshot;

/// Holds the newest snapshot. The sampler never waits here: it only overwrites a lock-free queue of one.
#[derive(Debug, Clone)]
pub struct Slot(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fresh: ArrayQueue<Arc<Snapshot>>,
    /// Taken by readers only, for the time of a pointer swap.
    latest: Mutex<Option<Arc<Snapshot>>>,
}

impl Default for Slot {
    fn default() -> Self {
        Self(Arc::new(Inner { fresh: ArrayQueue::new(1), latest: Mutex::new(None) }))
    }
}

impl Slot {
    /// Leaves a snapshot; an older one that nobody has read is dropped.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        drop(self.0.fresh.force_push(snapshot));
    }

    /// The newest snapshot, `None` before the first.
    pub fn latest(&self) -> Option<Arc<Snapshot>> {
        let mut latest = self.0.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fresh) = self.0.fresh.pop() {
            *latest = Some(fresh);
        }
        latest.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest() {
        let slot = Slot::default();
        let publish =
            |time_unix_ns| slot.publish(Arc::new(Snapshot { time_unix_ns, ..Snapshot::default() }));
        let time = || slot.latest().map(|snapshot| snapshot.time_unix_ns);
        assert_eq!(time(), None);
        publish(1);
        publish(2);
        assert_eq!((time(), time()), (Some(2), Some(2)));
        publish(3);
        assert_eq!(time(), Some(3));
    }
}
