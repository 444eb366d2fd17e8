//! Delivers one signal's queue to its destination, for ever.
//!
//! No answer, and no lack of one, ends this. A request leaves the sender by being accepted, by being refused for what it
//! is (then it is cut down to the record that is at fault), or by ageing out of the bounded queue; each is counted.
//! `hold`: where the destination or the credential is at fault, the refused request is kept with the others while empty
//! requests probe ("if the server receives an empty request the server SHOULD respond with success").

use std::{sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::Bytes;
use tokio::{sync::watch, time::sleep};

use super::{
    OtlpSignal,
    answer::Answer,
    http::Transport,
    queue::{Queue, Request},
    split,
    status::{Destination, Losses, State},
    throttle::Throttle,
};

/// Times and limits of a sender. The tests have shorter ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Upper bound of the first pause; doubles with each failure.
    pub(super) first: Duration,
    /// Upper bound of every pause.
    pub(super) longest: Duration,
    /// So often is a request refused after a probe was welcome before it is the request that is at fault.
    pub(super) refusals: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { first: Duration::from_secs(1), longest: Duration::from_secs(60), refusals: 3 }
    }
}

/// Full jitter (AWS Architecture Blog, "Exponential Backoff and Jitter"): anything up to the bound, so that many agents
/// that lost the same collector do not come back together.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    fn next(&mut self, pace: Pace, random: f64) -> Duration {
        let bound = pace.first.saturating_mul(1 << self.failures.min(20)).min(pace.longest);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(random)
    }
}

/// The agent is ending: no more pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ending;

/// Sends one signal.
pub(super) struct Sender<T> {
    pub(super) signal: OtlpSignal,
    pub(super) transport: T,
    pub(super) queue: Arc<Queue>,
    pub(super) destination: Arc<Destination>,
    pub(super) losses: Arc<Losses>,
    pub(super) pace: Pace,
    pub(super) compression: Gzip,
    /// Turns true when the agent ends.
    pub(super) ending: watch::Receiver<bool>,
}

/// What is known of the destination and compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gzip {
    /// Not asked for, or refused before.
    Off,
    /// Asked for, not yet accepted on this connection.
    Tried,
    /// Accepted.
    Welcome,
}

impl<T: Transport> Sender<T> {
    /// Delivers until the agent ends and what can be delivered at once is.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut throttle = Throttle::default();
        loop {
            let Some(request) = self.queue.pop() else {
                if *self.ending.borrow() {
                    return;
                }
                tokio::select! {
                    () = self.queue.arrived() => {}
                    // An error: whoever could end us is gone.
                    changed = self.ending.changed() => if changed.is_err() { return },
                }
                continue;
            };
            if self.deliver(request, &mut backoff, &mut throttle).await == Err(Ending) {
                return;
            }
        }
    }

    /// Ends with the fate of every item of `first` decided. On the way it may become many smaller requests.
    async fn deliver(
        &mut self,
        first: Request,
        backoff: &mut Backoff,
        throttle: &mut Throttle,
    ) -> Result<(), Ending> {
        let mut work = vec![first];
        while let Some(mut request) = work.pop() {
            self.show_queued(work.len() + 1);
            let reason = match self.send(&request.bytes).await {
                Answer::Accepted { rejected, message } => {
                    backoff.failures = 0;
                    self.accepted(request.items, rejected, &message, throttle);
                    continue;
                }
                Answer::Retry { after, reason } => {
                    self.enter(State::Backoff, &reason, throttle);
                    work.push(request);
                    self.pause(backoff, after).await?;
                    continue;
                }
                Answer::Hold { reason, .. } => {
                    request.refusals += 1;
                    self.enter(State::Held, &reason, throttle);
                    if request.refusals < self.pace.refusals {
                        work.push(request);
                        self.probe(backoff, throttle).await?;
                        continue;
                    }
                    reason
                }
                Answer::Refused { reason, .. } => reason,
            };
            match split::halves(self.signal, &request) {
                Some((first, second)) => work.extend([second, first]),
                None => self.refused(request.items, &reason, throttle),
            }
        }
        self.show_queued(0);
        Ok(())
    }

    /// Sends, and finds out whether a refusal is for the compression alone.
    async fn send(&mut self, bytes: &Bytes) -> Answer {
        let gzip = self.compression != Gzip::Off;
        let answer = self.transport.post(bytes.clone(), gzip).await;
        if self.compression == Gzip::Tried && answer.may_be_for_encoding() {
            let plain = self.transport.post(bytes.clone(), false).await;
            if let Answer::Accepted { .. } = plain {
                self.compression = Gzip::Off;
                tracing::warn!(
                    destination = self.destination.place(),
                    "the destination refuses gzip: sending uncompressed from now on (set export.compression to none)"
                );
            }
            return plain;
        }
        if gzip && matches!(answer, Answer::Accepted { .. }) {
            self.compression = Gzip::Welcome;
        }
        answer
    }

    /// Asks with empty requests until the destination takes one. Then the next real request decides.
    async fn probe(
        &mut self,
        backoff: &mut Backoff,
        throttle: &mut Throttle,
    ) -> Result<(), Ending> {
        loop {
            self.pause(backoff, None).await?;
            self.transport.renew();
            match self.send(&Bytes::new()).await {
                // A receiver that dislikes empty requests has at least let us in.
                Answer::Accepted { .. } | Answer::Refused { .. } => return Ok(()),
                Answer::Retry { after, reason } => {
                    self.enter(State::Held, &reason, throttle);
                    if after.is_some() {
                        self.pause(backoff, after).await?;
                    }
                }
                Answer::Hold { reason, .. } => self.enter(State::Held, &reason, throttle),
            }
        }
    }

    /// Waits as long as the destination asks and the backoff says; the end of the agent cuts it short, once.
    async fn pause(
        &mut self,
        backoff: &mut Backoff,
        after: Option<Duration>,
    ) -> Result<(), Ending> {
        if *self.ending.borrow() {
            return Err(Ending);
        }
        if self.compression == Gzip::Welcome {
            // Another server may stand there after a failure.
            self.compression = Gzip::Tried;
        }
        let pause = backoff.next(self.pace, fastrand::f64()).max(after.unwrap_or_default());
        tokio::select! {
            () = sleep(pause) => Ok(()),
            changed = self.ending.changed() => changed.or(Err(Ending)),
        }
    }

    fn accepted(&self, items: u64, rejected: u64, message: &str, throttle: &mut Throttle) {
        let rejected = rejected.min(items);
        self.destination.sent.fetch_add(items - rejected, Relaxed);
        self.destination.dropped.fetch_add(rejected, Relaxed);
        self.losses.rejected.fetch_add(rejected, Relaxed);
        if (rejected > 0 || !message.is_empty()) && throttle.allows() {
            tracing::warn!(
                destination = self.destination.place(),
                rejected,
                message,
                "accepted in part"
            );
        }
        self.enter(State::Open, "", throttle);
    }

    fn refused(&self, items: u64, reason: &str, throttle: &mut Throttle) {
        self.destination.dropped.fetch_add(items, Relaxed);
        self.losses.refused.fetch_add(items, Relaxed);
        if throttle.allows() {
            tracing::warn!(
                destination = self.destination.place(),
                items,
                reason,
                "refused for good, dropped"
            );
        }
    }

    fn enter(&self, state: State, reason: &str, throttle: &mut Throttle) {
        if !self.destination.enter(state, reason) || !throttle.allows() {
            return;
        }
        let destination = self.destination.place();
        match state {
            State::Open => tracing::info!(destination, "delivering telemetry"),
            State::Backoff => {
                tracing::warn!(destination, reason, "cannot deliver telemetry now, trying again")
            }
            State::Held => {
                tracing::warn!(
                    destination,
                    reason,
                    "telemetry is refused: keeping it and asking until this is mended"
                );
            }
        }
    }

    fn show_queued(&self, in_hand: usize) {
        self.destination.queued.store((self.queue.len() + in_hand) as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests;
