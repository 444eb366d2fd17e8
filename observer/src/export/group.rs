//! Puts the items of a batch in the order in which OTLP nests them: by subject, and metric points by metric.

use std::cmp::Ordering;

use crate::telemetry::Subject;

/// Items of one kind, as both encoders see them.
pub(super) trait Items {
    /// How many.
    fn len(&self) -> usize;
    /// What an item is about.
    fn subject(&self, index: usize) -> &Subject;
    /// Whether an item can be encoded.
    fn is_valid(&self, _index: usize) -> bool {
        true
    }
    /// Order among the items of one subject.
    fn order(&self, _a: usize, _b: usize) -> Ordering {
        Ordering::Equal
    }
    /// Whether two items of one subject go into one record.
    fn share_record(&self, _a: usize, _b: usize) -> bool {
        false
    }
}

/// Place of an item: what it is about, then where it stands in the batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Pid and start time; zeros for the host.
    subject: (u32, u64),
    index: u32,
}

impl Place {
    pub(super) fn index(self) -> usize {
        self.index as usize
    }
}

/// Items sorted by subject. Its memory is kept from batch to batch.
#[derive(Debug, Default)]
pub(super) struct Order {
    places: Vec<Place>,
}

impl Order {
    /// Sorts `items`, and returns their places and how many could not be encoded.
    pub(super) fn sort(&mut self, items: &impl Items) -> (&[Place], u64) {
        self.places.clear();
        let valid = (0..items.len()).filter(|&index| items.is_valid(index));
        self.places.extend(
            valid.map(|index| Place {
                subject: identity(items.subject(index)),
                index: index as u32,
            }),
        );
        self.places.sort_unstable_by(|a, b| {
            a.subject
                .cmp(&b.subject)
                .then_with(|| items.order(a.index(), b.index()))
                .then_with(|| a.index.cmp(&b.index))
        });
        (&self.places, (items.len() - self.places.len()) as u64)
    }
}

/// Most items in one record, so that a metric with very many series can be split over requests.
const MAX_RECORD_ITEMS: usize = 1024;

/// How many of `places` have the subject of the first one. For the end, give them reversed.
pub(super) fn same_subject<'a>(places: impl IntoIterator<Item = &'a Place>) -> usize {
    let mut subject = None;
    places
        .into_iter()
        .take_while(|place| *subject.get_or_insert(place.subject) == place.subject)
        .count()
}

/// How many of `places`, all of one subject, make up one record with the first one. For the end, give them reversed.
pub(super) fn same_record<'a>(
    items: &impl Items,
    places: impl IntoIterator<Item = &'a Place>,
) -> usize {
    let mut places = places.into_iter();
    let Some(first) = places.next() else { return 0 };
    let same = places.take_while(|place| items.share_record(first.index(), place.index()));
    1 + same.take(MAX_RECORD_ITEMS - 1).count()
}

fn identity(subject: &Subject) -> (u32, u64) {
    match subject {
        Subject::Host => (0, 0),
        Subject::Process(process) => (process.pid, process.start_unix_ns),
    }
}
