//! Cuts an encoded request in two, so that one bad record does not take the others with it.

use bytes::Bytes;

use super::{
    OtlpSignal,
    queue::Request,
    wire::{Fields, Malformed, Writer},
};

/// Halves of `request` by its records; `None` if it has one only (or cannot be read, which does not happen to requests
/// that we wrote).
pub(super) fn halves(signal: OtlpSignal, request: &Request) -> Option<(Request, Request)> {
    let records = records(&request.bytes).ok()?;
    if records < 2 {
        return None;
    }
    let half = |from: usize, to: usize| {
        let (bytes, items) = part(signal, &request.bytes, from, to).ok()?;
        Some(Request { bytes, items, refusals: 0 })
    };
    Some((half(0, records / 2)?, half(records / 2, records)?))
}

/// Fields of a message in order, undecoded numbers left out: none of the envelopes has any.
fn nested(message: &[u8]) -> Result<Vec<(u64, &[u8])>, Malformed> {
    let fields = Fields::of(message).collect::<Result<Vec<_>, _>>()?;
    Ok(fields.into_iter().filter_map(|(number, field)| Some((number, field.bytes()?))).collect())
}

/// Field of a resource's scopes, and of a scope's records: the same in all three signals.
const INNER: u64 = 2;

fn records(request: &[u8]) -> Result<usize, Malformed> {
    let mut count = 0;
    for (_, resource) in nested(request)? {
        for (_, scope) in nested(resource)?.into_iter().filter(|field| field.0 == INNER) {
            count += nested(scope)?.iter().filter(|field| field.0 == INNER).count();
        }
    }
    Ok(count)
}

/// The records `from..to` with what is around them, and how many items they have.
fn part(
    signal: OtlpSignal,
    request: &[u8],
    from: usize,
    to: usize,
) -> Result<(Bytes, u64), Malformed> {
    let mut w = Writer::default();
    let mut items = 0;
    // Backwards, as the writer does.
    let mut index = records(request)?;
    for (number, resource) in nested(request)?.into_iter().rev() {
        let (outside, before) = (w.len(), items);
        for (number, scope) in nested(resource)?.into_iter().rev() {
            if number != INNER {
                w.bytes_always(number, scope);
                continue;
            }
            let (outside, before) = (w.len(), items);
            for (number, record) in nested(scope)?.into_iter().rev() {
                if number != INNER {
                    w.bytes_always(number, record);
                    continue;
                }
                index -= 1;
                if (from..to).contains(&index) {
                    w.bytes_always(number, record);
                    items += items_of(signal, record)?;
                }
            }
            if items > before { w.close(number, outside) } else { w.rewind(outside) }
        }
        if items > before { w.close(number, outside) } else { w.rewind(outside) }
    }
    Ok((Bytes::copy_from_slice(w.written()), items))
}

/// Data points of a metric (field 1 of its gauge, sum or histogram); anything else is one item.
fn items_of(signal: OtlpSignal, record: &[u8]) -> Result<u64, Malformed> {
    if signal != OtlpSignal::Metrics {
        return Ok(1);
    }
    let data = nested(record)?.into_iter().filter(|field| matches!(field.0, 5 | 7 | 9));
    let points =
        data.map(|(_, data)| Ok(nested(data)?.iter().filter(|field| field.0 == 1).count() as u64));
    points.sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::export::{
        encode::Encoder,
        generate,
        resource::{HostResource, Resources},
    };

    proptest! {
        #[test]
        fn halves_have_the_items_of_the_whole_and_end_with_single_records(batch in generate::batch()) {
            let resources = Arc::new(Resources::new(&HostResource::default(), &[]));
            let mut requests = Vec::new();
            Encoder::new(resources).encode(&batch, |r| {
                let request = Request { bytes: Bytes::copy_from_slice(r.bytes), items: r.items, refusals: 2 };
                requests.push((r.signal, request));
            });
            for (signal, whole) in requests {
                let mut singles = Vec::new();
                let mut work = vec![whole.clone()];
                while let Some(request) = work.pop() {
                    match halves(signal, &request) {
                        Some((a, b)) => {
                            prop_assert_eq!(a.items + b.items, request.items);
                            prop_assert!(a.items > 0 && b.items > 0 && a.bytes.len() < request.bytes.len());
                            work.extend([b, a]);
                        }
                        None => singles.push(request),
                    }
                }
                prop_assert_eq!(singles.len(), records(&whole.bytes).unwrap());
                prop_assert_eq!(singles.iter().map(|request| request.items).sum::<u64>(), whole.items);
                // Nothing is lost or added: each record stands in the whole as it stands in its part.
                for single in singles {
                    let resource = nested(&single.bytes).unwrap()[0].1;
                    let scope = nested(resource).unwrap().into_iter().find(|field| field.0 == INNER).unwrap().1;
                    let record = nested(scope).unwrap().into_iter().find(|field| field.0 == INNER).unwrap().1;
                    prop_assert!(whole.bytes.windows(record.len()).any(|window| window == record));
                }
            }
        }

        #[test]
        fn any_bytes_are_split_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let request = Request { bytes: bytes.into(), items: 1, refusals: 0 };
            if let Some((a, b)) = halves(OtlpSignal::Metrics, &request) {
                prop_assert!(a.bytes.len() + b.bytes.len() <= 4 * request.bytes.len());
            }
        }
    }
}
