//! What the export side tells of itself: counters and states that the sampler reads without waiting for the IO thread.

use std::sync::{
    Mutex, PoisonError, TryLockError,
    atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
};

use crate::snapshot;

/// Whether a destination takes what it is given. No state is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// Delivering, or has nothing to deliver.
    Open = 0,
    /// Temporarily refused or unreachable: the same request is tried again.
    Backoff = 1,
    /// The destination or the credential is wrong, not the data: what there is is kept, and an empty request asks now and
    /// then whether that has been mended.
    Held = 2,
}

impl State {
    const fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Backoff => "backoff",
            Self::Held => "held",
        }
    }

    const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Open,
            1 => Self::Backoff,
            _ => Self::Held,
        }
    }
}

/// One destination's row.
#[derive(Debug)]
pub(super) struct Destination {
    name: &'static str,
    destination: String,
    state: AtomicU8,
    reason: Mutex<String>,
    /// Items that were to go there: each ends up in `sent` or `dropped`.
    pub(super) offered: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) queued: AtomicU64,
}

impl Destination {
    pub(super) fn new(name: &'static str, destination: String) -> Self {
        Self {
            name,
            destination,
            state: AtomicU8::new(State::Open as u8),
            reason: Mutex::default(),
            offered: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            queued: AtomicU64::new(0),
        }
    }

    /// Where to.
    pub(super) fn place(&self) -> &str {
        &self.destination
    }

    /// At the end of the agent: counts what is undecided as dropped, and returns how much that was.
    pub(super) fn give_up(&self) -> u64 {
        let decided = self.sent.load(Relaxed) + self.dropped.load(Relaxed);
        let left = self.offered.load(Relaxed).saturating_sub(decided);
        self.dropped.fetch_add(left, Relaxed);
        self.queued.store(0, Relaxed);
        left
    }

    /// Enters a state, and returns whether this changes what is to be told.
    pub(super) fn enter(&self, state: State, reason: &str) -> bool {
        let before = self.state.swap(state as u8, Relaxed);
        let mut told = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = before != state as u8 || *told != reason;
        if *told != reason {
            reason.clone_into(&mut told);
        }
        changed
    }

    pub(super) fn state(&self) -> State {
        State::from_number(self.state.load(Relaxed))
    }

    pub(super) fn row(&self) -> snapshot::Exporter {
        // Never wait: whoever holds the lock is about to change the reason.
        let reason = match self.reason.try_lock() {
            Ok(reason) => reason.clone(),
            Err(TryLockError::Poisoned(reason)) => reason.into_inner().clone(),
            Err(TryLockError::WouldBlock) => "changing".to_owned(),
        };
        snapshot::Exporter {
            name: self.name.to_owned(),
            destination: self.destination.clone(),
            state: self.state().word().to_owned(),
            reason,
            sent: self.sent.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            queued: self.queued.load(Relaxed),
        }
    }
}

/// Where items can be lost on their way out, counted in items unless the name says otherwise.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// The IO thread lagged behind the sampler.
    pub(super) inbox: AtomicU64,
    /// The queue of requests was full, its oldest went.
    pub(super) queue: AtomicU64,
    /// Refused by the destination for what they are.
    pub(super) refused: AtomicU64,
    /// Accepted requests: items that the destination said it rejected (OTLP partial success).
    pub(super) rejected: AtomicU64,
    /// Larger than a request may be, or a number that does not go with its metric.
    pub(super) unencodable: AtomicU64,
    /// Not delivered when the agent ended.
    pub(super) exit: AtomicU64,
    /// The writer of local files lagged behind the sampler.
    pub(super) file_inbox: AtomicU64,
    /// Could not be written to a file.
    pub(super) file_write: AtomicU64,
    /// Bytes of the store's oldest files, removed to keep its size.
    pub(super) store_rotated_bytes: AtomicU64,
}

impl Losses {
    pub(super) fn rows(&self) -> Vec<snapshot::Loss> {
        [
            ("export.inbox", &self.inbox),
            ("export.queue", &self.queue),
            ("export.refused", &self.refused),
            ("export.rejected", &self.rejected),
            ("export.unencodable", &self.unencodable),
            ("export.exit", &self.exit),
            ("file.inbox", &self.file_inbox),
            ("file.write", &self.file_write),
            ("store.rotated_bytes", &self.store_rotated_bytes),
        ]
        .map(|(stage, count)| snapshot::Loss {
            stage: stage.to_owned(),
            count: count.load(Relaxed),
        })
        .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_while_its_reason_is_being_changed() {
        let destination = Destination::new("otlp", "http://collector:4318/v1/traces".into());
        assert!(destination.enter(State::Held, "HTTP 401"));
        assert!(!destination.enter(State::Held, "HTTP 401"));
        let row = destination.row();
        assert_eq!((row.state.as_str(), row.reason.as_str()), ("held", "HTTP 401"));
        let _changing = destination.reason.lock().unwrap();
        assert_eq!(destination.row().reason, "changing");
    }
}
