//! The sender against a scripted destination, in tokio's own time: minutes pass at once.

use std::sync::{Arc, Mutex};

use tokio::time::{Instant, advance, timeout};

use super::*;
use crate::export::{
    encode::Encoder,
    generate,
    resource::{HostResource, Resources},
    wire::Fields,
};

/// A destination that answers by a script: from when on, with what.
#[derive(Clone)]
struct Scripted {
    started: Instant,
    /// Seconds since the start, and what is answered from then on. `None`: accept.
    script: Vec<(u64, Option<Answer>)>,
    /// A record with these bytes in it is refused for what it is.
    poison: Option<&'static [u8]>,
    /// Whether gzip is refused.
    refuses_gzip: bool,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    /// Span ids that were taken.
    taken: Vec<u64>,
    /// Time and number of spans of each request.
    requests: Vec<(Duration, usize)>,
    /// Whether each request was compressed.
    gzip: Vec<bool>,
    renewed: usize,
}

/// Ids of the spans in a request, by way of our own reader.
fn ids(request: &[u8]) -> Vec<u64> {
    let nested = |message, number| {
        Fields::of(message)
            .map_while(Result::ok)
            .filter(move |f| f.0 == number)
            .filter_map(|f| f.1.bytes())
    };
    let scopes = nested(request, 1).flat_map(|resource| nested(resource, 2));
    let spans = scopes.flat_map(|scope| nested(scope, 2));
    spans
        .flat_map(|span| nested(span, 2))
        .map(|id| u64::from_be_bytes(id.try_into().unwrap()))
        .collect()
}

impl Transport for Scripted {
    async fn post(&mut self, request: Bytes, gzip: bool) -> Answer {
        let now = self.started.elapsed();
        let ids = ids(&request);
        let mut seen = self.seen.lock().unwrap();
        seen.requests.push((now, ids.len()));
        seen.gzip.push(gzip);
        if gzip && self.refuses_gzip {
            return Answer::Refused { reason: "HTTP 400".into(), encoding: true };
        }
        let answer = self
            .script
            .iter()
            .rev()
            .find(|(from, _)| now.as_secs() >= *from)
            .and_then(|step| step.1.clone());
        if let Some(answer) = answer {
            return answer;
        }
        if self
            .poison
            .is_some_and(|poison| request.windows(poison.len()).any(|window| window == poison))
        {
            return Answer::Refused { reason: "HTTP 400 Bad Request".into(), encoding: true };
        }
        seen.taken.extend(ids);
        Answer::Accepted { rejected: 0, message: String::new() }
    }

    fn renew(&mut self) {
        self.seen.lock().unwrap().renewed += 1;
    }
}

/// A sender with its surroundings.
struct Stage {
    transport: Scripted,
    queue: Arc<Queue>,
    destination: Arc<Destination>,
    losses: Arc<Losses>,
    end: watch::Sender<bool>,
    next_id: u64,
}

impl Stage {
    fn new(script: Vec<(u64, Option<Answer>)>) -> Self {
        Self {
            transport: Scripted {
                started: Instant::now(),
                script,
                poison: None,
                refuses_gzip: false,
                seen: Arc::default(),
            },
            queue: Arc::new(Queue::new(1024 * 1024)),
            destination: Arc::new(Destination::new(
                "otlp",
                "http://collector:4318/v1/traces".into(),
            )),
            losses: Arc::default(),
            end: watch::channel(false).0,
            next_id: 1,
        }
    }

    fn start(&self, compression: Gzip) -> tokio::task::JoinHandle<()> {
        let sender = Sender {
            signal: OtlpSignal::Traces,
            transport: self.transport.clone(),
            queue: Arc::clone(&self.queue),
            destination: Arc::clone(&self.destination),
            losses: Arc::clone(&self.losses),
            pace: Pace::default(),
            compression,
            ending: self.end.subscribe(),
        };
        tokio::spawn(sender.run())
    }

    fn push(&mut self, batch: &crate::telemetry::Batch) {
        let resources = Arc::new(Resources::new(&HostResource::default(), &[]));
        Encoder::new(resources).encode(batch, |request| {
            self.destination.offered.fetch_add(request.items, Relaxed);
            let bytes = Bytes::copy_from_slice(request.bytes);
            let dropped = self.queue.push(Request { bytes, items: request.items, refusals: 0 });
            self.destination.dropped.fetch_add(dropped, Relaxed);
        });
    }

    fn push_spans(&mut self, spans: u64) {
        let batch = generate::spans(self.next_id, spans);
        self.next_id += spans;
        self.push(&batch);
    }

    /// Waits until everything offered is decided; fails after an hour of tokio's time.
    async fn decided(&self) {
        let decided = async {
            while self.destination.offered.load(Relaxed)
                > self.destination.sent.load(Relaxed) + self.destination.dropped.load(Relaxed)
            {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(3600), decided)
            .await
            .expect("the sender does not come to an end");
    }

    fn taken(&self) -> Vec<u64> {
        let mut taken = self.transport.seen.lock().unwrap().taken.clone();
        taken.sort_unstable();
        taken
    }
}

fn hold(reason: &str) -> Option<Answer> {
    Some(Answer::hold(reason))
}

fn retry(reason: &str) -> Option<Answer> {
    Some(Answer::retry(reason))
}

#[tokio::test(start_paused = true)]
async fn minutes_of_any_refusal_then_everything_is_delivered_exactly_once() {
    for (refusal, state) in [
        (hold("HTTP 401 Unauthorized"), "held"),
        (hold("HTTP 403 Forbidden"), "held"),
        (hold("HTTP 404 Not Found"), "held"),
        (hold("gRPC UNAUTHENTICATED"), "held"),
        (hold("invalid peer certificate: UnknownIssuer"), "held"),
        (hold("the destination is no OTLP receiver: it answers with text/html"), "held"),
        (retry("HTTP 503 Service Unavailable"), "backoff"),
        (retry("connection refused"), "backoff"),
        (retry("no answer within 10s"), "backoff"),
    ] {
        let mut stage = Stage::new(vec![(0, refusal.clone()), (155, None)]);
        let _sender = stage.start(Gzip::Off);
        for _ in 0..150 {
            stage.push_spans(3);
            advance(Duration::from_secs(1)).await;
            tokio::task::yield_now().await;
        }
        let row = stage.destination.row();
        assert_eq!(row.state, state, "{refusal:?}");
        assert!(format!("{refusal:?}").contains(&row.reason), "{refusal:?}: {}", row.reason);
        let before = Instant::now();
        stage.decided().await;
        assert!(
            before.elapsed() <= Duration::from_secs(5 + 62),
            "{refusal:?}: {:?}",
            before.elapsed()
        );
        assert_eq!(stage.taken(), (1..=450).collect::<Vec<_>>(), "{refusal:?}");
        let row = stage.destination.row();
        assert_eq!((row.state.as_str(), row.sent, row.dropped, row.queued), ("open", 450, 0, 0));
        let seen = stage.transport.seen.lock().unwrap();
        let early: Vec<_> = seen.requests.iter().filter(|(at, _)| at.as_secs() < 155).collect();
        // Not hammered: at most a first try and then fewer and fewer.
        assert!(early.len() < 60, "{refusal:?}: {}", early.len());
        if state == "held" {
            // No telemetry is shown to a destination that refuses us, only empty requests.
            assert!(early[1..].iter().all(|(_, spans)| *spans == 0), "{refusal:?}: {early:?}");
            assert!(seen.renewed > 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_the_queue_during_an_outage_goes_oldest_first_and_counted() {
    let mut stage = Stage::new(vec![(0, hold("HTTP 401")), (4000, None)]);
    let _sender = stage.start(Gzip::Off);
    for _ in 0..2000 {
        stage.push_spans(1);
        advance(Duration::from_secs(2)).await;
        tokio::task::yield_now().await;
    }
    stage.decided().await;
    let row = stage.destination.row();
    assert!(row.dropped > 0);
    assert_eq!(row.sent + row.dropped, 2000);
    let taken = stage.taken();
    // The one that was in hand when the trouble began, and the newest.
    assert_eq!(taken[0], 1);
    assert_eq!(taken[1..], (2000 - taken.len() as u64 + 2..=2000).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_honoured() {
    let after = Some(Duration::from_secs(120));
    let mut stage =
        Stage::new(vec![(0, Some(Answer::Retry { after, reason: "HTTP 429".into() })), (1, None)]);
    let _sender = stage.start(Gzip::Off);
    stage.push_spans(2);
    stage.decided().await;
    let seen = stage.transport.seen.lock().unwrap();
    assert_eq!(seen.requests.len(), 2);
    assert!((120..=121).contains(&seen.requests[1].0.as_secs()), "{:?}", seen.requests);
}

#[tokio::test(start_paused = true)]
async fn a_poisonous_record_goes_alone_and_does_not_block_the_queue() {
    let mut stage = Stage::new(vec![]);
    stage.transport.poison = Some(b"ECONNRESET");
    let _sender = stage.start(Gzip::Off);
    let mut batch = generate::spans(1, 100);
    batch.spans[63].error = Some("ECONNRESET");
    stage.push(&batch);
    stage.next_id = 101;
    stage.push_spans(5);
    stage.decided().await;
    let row = stage.destination.row();
    assert_eq!((row.sent, row.dropped, stage.losses.refused.load(Relaxed)), (104, 1, 1));
    assert_eq!(stage.taken(), (1..=105).filter(|id| *id != 64).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_refused_as_if_the_destination_were_wrong_does_not_block_the_queue_either()
{
    // A firewall that answers 403 to certain contents, and lets empty requests through.
    #[derive(Clone)]
    struct Firewall(Scripted);
    impl Transport for Firewall {
        async fn post(&mut self, request: Bytes, gzip: bool) -> Answer {
            match self.0.post(request, gzip).await {
                Answer::Refused { .. } => Answer::hold("HTTP 403 Forbidden"),
                answer => answer,
            }
        }
        fn renew(&mut self) {}
    }
    let mut stage = Stage::new(vec![]);
    stage.transport.poison = Some(b"ECONNRESET");
    let mut batch = generate::spans(1, 4);
    batch.spans[2].error = Some("ECONNRESET");
    stage.push(&batch);
    let sender = Sender {
        signal: OtlpSignal::Traces,
        transport: Firewall(stage.transport.clone()),
        queue: Arc::clone(&stage.queue),
        destination: Arc::clone(&stage.destination),
        losses: Arc::clone(&stage.losses),
        pace: Pace::default(),
        compression: Gzip::Off,
        ending: stage.end.subscribe(),
    };
    let _sender = tokio::spawn(sender.run());
    stage.decided().await;
    assert_eq!(stage.taken(), [1, 2, 4]);
    assert_eq!(stage.losses.refused.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn compression_is_switched_off_where_it_is_refused() {
    let mut stage = Stage::new(vec![]);
    stage.transport.refuses_gzip = true;
    let _sender = stage.start(Gzip::Tried);
    stage.push_spans(1);
    stage.decided().await;
    stage.push_spans(1);
    stage.decided().await;
    assert_eq!(stage.taken(), [1, 2]);
    assert_eq!(stage.transport.seen.lock().unwrap().gzip, [true, false, false]);
}

#[tokio::test(start_paused = true)]
async fn compression_that_was_welcome_is_not_blamed_for_a_refusal() {
    let mut stage = Stage::new(vec![]);
    stage.transport.poison = Some(b"ECONNRESET");
    let _sender = stage.start(Gzip::Tried);
    stage.push_spans(1);
    stage.decided().await;
    let mut batch = generate::spans(2, 1);
    batch.spans[0].error = Some("ECONNRESET");
    stage.push(&batch);
    stage.decided().await;
    assert_eq!(stage.transport.seen.lock().unwrap().gzip, [true, true]);
}

#[tokio::test(start_paused = true)]
async fn partial_success_is_counted_and_not_sent_again() {
    let answer = Answer::Accepted { rejected: 2, message: "too old".into() };
    let mut stage = Stage::new(vec![(0, Some(answer))]);
    let _sender = stage.start(Gzip::Off);
    stage.push_spans(5);
    stage.decided().await;
    let row = stage.destination.row();
    assert_eq!((row.sent, row.dropped, stage.losses.rejected.load(Relaxed)), (3, 2, 2));
    assert_eq!(stage.transport.seen.lock().unwrap().requests.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn at_the_end_the_queue_is_delivered_or_given_up_after_one_more_try() {
    let mut stage = Stage::new(vec![]);
    stage.push_spans(1);
    stage.push_spans(1);
    let sender = stage.start(Gzip::Off);
    stage.end.send_replace(true);
    timeout(Duration::from_secs(1), sender).await.unwrap().unwrap();
    assert_eq!(stage.taken(), [1, 2]);

    let mut stage = Stage::new(vec![(0, retry("connection refused"))]);
    let sender = stage.start(Gzip::Off);
    stage.push_spans(1);
    sleep(Duration::from_secs(300)).await;
    let tries = stage.transport.seen.lock().unwrap().requests.len();
    stage.end.send_replace(true);
    timeout(Duration::from_secs(1), sender).await.unwrap().unwrap();
    assert_eq!(stage.transport.seen.lock().unwrap().requests.len(), tries + 1);
}

#[test]
fn pauses_grow_to_their_bound_and_are_spread() {
    let pace = Pace::default();
    let mut backoff = Backoff::default();
    let longest: Vec<u64> = (0..10).map(|_| backoff.next(pace, 1.0).as_secs()).collect();
    assert_eq!(longest, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
    backoff.failures = u32::MAX;
    assert_eq!(backoff.next(pace, 0.5).as_secs(), 30);
    assert_eq!(backoff.next(pace, 0.0), Duration::ZERO);
}
