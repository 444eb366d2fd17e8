//! A thread for what may block, with a bounded queue before it: who hands something over never waits. Where it is full, the
//! oldest goes and is counted.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
        mpsc,
    },
    thread::{self, Thread},
    time::Duration,
};

use crossbeam_queue::ArrayQueue;

/// The end of those who hand over.
pub(crate) struct QueueThread<T> {
    shared: Arc<Shared<T>>,
    thread: Thread,
    ended: mpsc::Receiver<()>,
}

struct Shared<T> {
    waiting: ArrayQueue<T>,
    ending: AtomicBool,
    /// What the thread was too slow for.
    late: AtomicU64,
}

/// The thread's end: waits for the next, and ends with the last that was handed over before the end.
pub(crate) struct Items<T>(Arc<Shared<T>>);

impl<T: Send + 'static> QueueThread<T> {
    /// Starts the thread, for which `most` may wait.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub(crate) fn start(
        name: &str,
        most: usize,
        work: impl FnOnce(Items<T>) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            waiting: ArrayQueue::new(most),
            ending: AtomicBool::new(false),
            late: AtomicU64::new(0),
        });
        let items = Items(Arc::clone(&shared));
        let (end, ended) = mpsc::channel();
        let join = thread::Builder::new().name(name.to_owned()).spawn(move || {
            work(items);
            // Nobody may wait.
            end.send(()).ok();
        })?;
        Ok(Self { shared, thread: join.thread().clone(), ended })
    }

    /// Hands over.
    pub(crate) fn offer(&self, item: T) {
        if self.shared.waiting.force_push(item).is_some() {
            self.shared.late.fetch_add(1, Relaxed);
        }
        self.thread.unpark();
    }

    /// How many went because the thread was too slow.
    pub(crate) fn late(&self) -> u64 {
        self.shared.late.load(Relaxed)
    }

    /// Ends the thread once it has done what it has; false if it did not come to that within this time.
    pub(crate) fn finish(&self, within: Duration) -> bool {
        self.shared.ending.store(true, Release);
        self.thread.unpark();
        self.ended.recv_timeout(within).is_ok()
    }
}

impl<T> Iterator for Items<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        loop {
            // Read before the queue is: what was offered before the end is done.
            let ending = self.0.ending.load(Acquire);
            let item = self.0.waiting.pop();
            if item.is_some() || ending {
                return item;
            }
            thread::park();
        }
    }
}

impl<T> fmt::Debug for QueueThread<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueThread").field("waiting", &self.shared.waiting.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn what_was_handed_over_is_done_in_order_before_the_end() {
        let (done, all) = mpsc::channel();
        let work = move |items: Items<u32>| items.for_each(|item| done.send(item).unwrap());
        let queue = QueueThread::start("test", 8, work).unwrap();
        (0..8).for_each(|item| queue.offer(item));
        assert!(queue.finish(LONG));
        assert_eq!(all.iter().collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
        assert_eq!(queue.late(), 0);
    }

    #[test]
    fn a_thread_that_blocks_costs_the_oldest_and_no_time() {
        let ((done, all), (go, gate)) = (mpsc::channel(), mpsc::channel::<()>());
        let (begun, began) = mpsc::channel();
        let queue = QueueThread::start("test", 2, move |items: Items<u32>| {
            for item in items {
                begun.send(()).unwrap();
                gate.recv().ok();
                done.send(item).unwrap();
            }
        });
        let queue = queue.unwrap();
        queue.offer(0);
        began.recv_timeout(LONG).unwrap();
        (1..=5).for_each(|item| queue.offer(item));
        assert_eq!(queue.late(), 3);
        assert!(!queue.finish(Duration::ZERO), "it is in the first one still");
        drop(go);
        assert!(queue.finish(LONG));
        assert_eq!(all.iter().collect::<Vec<_>>(), [0, 4, 5]);
    }
}
