//! Requests that wait for one destination: bounded in number and bytes, the oldest goes first.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

/// Most requests in a queue. At one request a second this is a quarter of an hour, if the bytes suffice.
pub(super) const MAX_REQUESTS: usize = 1024;

/// One encoded request, uncompressed.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// `Export*ServiceRequest`.
    pub(super) bytes: Bytes,
    /// Items in it.
    pub(super) items: u64,
    /// How often the destination has refused it without blaming the data.
    pub(super) refusals: u32,
}

/// A destination's queue; filled and drained on the IO thread, its lock is held for a push or a pop.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    max_bytes: usize,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: VecDeque<Request>,
    bytes: usize,
}

impl Waiting {
    fn pop(&mut self) -> Option<Request> {
        let request = self.requests.pop_front()?;
        self.bytes -= request.bytes.len();
        Some(request)
    }
}

impl Queue {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { waiting: Mutex::default(), max_bytes, arrived: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request and returns how many items had to go for it.
    pub(super) fn push(&self, request: Request) -> u64 {
        let mut waiting = self.lock();
        waiting.bytes += request.bytes.len();
        waiting.requests.push_back(request);
        let mut dropped = 0;
        while waiting.requests.len() > MAX_REQUESTS
            || (waiting.bytes > self.max_bytes && waiting.requests.len() > 1)
        {
            dropped += waiting.pop().map_or(0, |request| request.items);
        }
        drop(waiting);
        self.arrived.notify_one();
        dropped
    }

    /// The oldest request.
    pub(super) fn pop(&self) -> Option<Request> {
        self.lock().pop()
    }

    /// Returns once a request may have arrived.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Requests waiting.
    pub(super) fn len(&self) -> usize {
        self.lock().requests.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bounds_hold_and_nothing_goes_uncounted(sizes in prop::collection::vec(0..400usize, 0..80)) {
            let queue = Queue::new(1000);
            let mut dropped = 0;
            for size in &sizes {
                dropped += queue.push(Request { bytes: vec![0; *size].into(), items: 1, refusals: 0 });
                prop_assert!(queue.lock().bytes <= 1000);
            }
            // What is left is the newest.
            let left: Vec<usize> = std::iter::from_fn(|| queue.pop()).map(|request| request.bytes.len()).collect();
            prop_assert_eq!(&sizes[sizes.len() - left.len()..], &left[..]);
            prop_assert_eq!(dropped as usize, sizes.len() - left.len());
            prop_assert_eq!(queue.lock().bytes, 0);
        }
    }

    #[test]
    fn the_number_of_requests_is_bounded_too() {
        let queue = Queue::new(usize::MAX);
        let request = Request { bytes: Bytes::new(), items: 2, refusals: 0 };
        let dropped: u64 = (0..MAX_REQUESTS + 3).map(|_| queue.push(request.clone())).sum();
        assert_eq!((dropped, queue.len()), (6, MAX_REQUESTS));
    }
}
