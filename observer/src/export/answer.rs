//! What a destination's answer means for the request, after the OTLP specification (opentelemetry-proto,
//! docs/specification.md: "Failures", "OTLP/HTTP Response", "Throttling").
//!
//! One deliberate deviation: an answer that blames the destination or the credential (401, 403, 404, UNAUTHENTICATED ...)
//! does not drop the request. It is kept and sent once more after the mistake has been mended, which RFC 9110 section
//! 15.5.2 allows for new credentials.

use std::time::{Duration, SystemTime};

use hyper::StatusCode;

use super::wire::{Field, Fields};

/// Longest pause that a destination may ask for.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);
/// Longest part of a server's message that is shown.
const MAX_MESSAGE_CHARS: usize = 200;

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Taken; `rejected` of its items were not (partial success).
    Accepted { rejected: u64, message: String },
    /// Not now: the same request again, not before `after`.
    Retry { after: Option<Duration>, reason: String },
    /// Not here, or not from us. `encoding`: perhaps only for its compression.
    Hold { reason: String, encoding: bool },
    /// Not this request. `encoding`: perhaps only for its compression.
    Refused { reason: String, encoding: bool },
}

impl Answer {
    pub(super) fn hold(reason: impl Into<String>) -> Self {
        Self::Hold { reason: reason.into(), encoding: false }
    }

    pub(super) fn retry(reason: impl Into<String>) -> Self {
        Self::Retry { after: None, reason: reason.into() }
    }

    /// Whether the request could be taken if it were not compressed.
    pub(super) fn may_be_for_encoding(&self) -> bool {
        matches!(self, Self::Hold { encoding: true, .. } | Self::Refused { encoding: true, .. })
    }
}

/// Reads a successful answer: the three `Export*ServiceResponse` look alike.
pub(super) fn accepted(message: &[u8]) -> Answer {
    let mut rejected = 0;
    let mut text = String::new();
    for field in Fields::of(message) {
        let Ok(field) = field else { return not_otlp("a body that is not OTLP") };
        let (1, Field::Bytes(partial_success)) = field else { continue };
        for field in Fields::of(partial_success) {
            match field {
                // An int64: what is negative is nonsense and taken for none.
                Ok((1, Field::Uint(count))) => rejected = u64::try_from(count as i64).unwrap_or(0),
                Ok((2, Field::Bytes(message))) => text = shown(message),
                Ok(_) => {}
                Err(_) => return not_otlp("a body that is not OTLP"),
            }
        }
    }
    Answer::Accepted { rejected, message: text }
}

/// The same from a server that answers in JSON whatever it was asked in.
pub(super) fn accepted_json(body: &[u8]) -> Answer {
    let Ok(serde_json::Value::Object(answer)) = serde_json::from_slice(body) else {
        return not_otlp("a body that is not OTLP");
    };
    let partial = |key: &str| {
        answer.get("partialSuccess")?.as_object()?.iter().find(|(name, _)| name.starts_with(key))
    };
    let rejected = partial("rejected")
        .and_then(|(_, count)| count.as_u64().or_else(|| count.as_str()?.parse().ok()));
    let message =
        partial("errorMessage").and_then(|(_, text)| Some(shown(text.as_str()?.as_bytes())));
    Answer::Accepted { rejected: rejected.unwrap_or(0), message: message.unwrap_or_default() }
}

/// Something else than an OTLP receiver has answered with success: a captive portal, a web server.
pub(super) fn not_otlp(what: &str) -> Answer {
    Answer::hold(format!("the destination is no OTLP receiver: it answers with {what}"))
}

/// Sorts an HTTP status other than success. `message` is what the body says.
pub(super) fn of_status(
    status: StatusCode,
    retry_after: Option<Duration>,
    message: &str,
) -> Answer {
    let reason = match message {
        "" => format!("HTTP {status}"),
        message => format!("HTTP {status}: {message}"),
    };
    match status.as_u16() {
        429 | 502 | 503 | 504 => Answer::Retry { after: retry_after, reason },
        400 | 415 => Answer::Refused { reason, encoding: true },
        413 | 422 => Answer::Refused { reason, encoding: false },
        300..=399 => {
            Answer::hold(format!("{reason}: redirects are not followed, give the address itself"))
        }
        _ => Answer::Hold { reason, encoding: false },
    }
}

/// Sorts a gRPC status (grpc.io/docs/guides/status-codes). `retry_delay`: from RetryInfo, if there was one.
pub(super) fn of_grpc(code: u32, message: &str, retry_delay: Option<Duration>) -> Answer {
    let name = grpc_name(code);
    let reason =
        if message.is_empty() { format!("gRPC {name}") } else { format!("gRPC {name}: {message}") };
    match name {
        "RESOURCE_EXHAUSTED" | "OUT_OF_RANGE" if says_too_large(message) => {
            Answer::Refused { reason, encoding: false }
        }
        "RESOURCE_EXHAUSTED" if retry_delay.is_none() => Answer::hold(reason),
        "CANCELLED" | "DEADLINE_EXCEEDED" | "ABORTED" | "OUT_OF_RANGE" | "UNAVAILABLE"
        | "DATA_LOSS" | "RESOURCE_EXHAUSTED" => {
            Answer::Retry { after: retry_delay.map(|delay| delay.min(MAX_RETRY_AFTER)), reason }
        }
        "INVALID_ARGUMENT" => Answer::Refused { reason, encoding: false },
        "UNIMPLEMENTED" => Answer::Hold { reason, encoding: true },
        _ => Answer::hold(reason),
    }
}

/// The words of grpc-go, grpc-java, grpc-core and tonic for a message above their limit.
fn says_too_large(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["larger than max", "exceeds maximum", "too large", "exceeds the maximum"]
        .iter()
        .any(|words| message.contains(words))
}

fn grpc_name(code: u32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES.get(code as usize).copied().unwrap_or("UNKNOWN")
}

/// `Retry-After` (RFC 9110 section 10.2.3): seconds or a date. Nonsense is none; what is too long is cut.
pub(super) fn retry_after(value: &[u8], now: SystemTime) -> Option<Duration> {
    let text = str::from_utf8(value).ok()?.trim();
    let after = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(after.min(MAX_RETRY_AFTER))
}

/// Message of a `google.rpc.Status`, the body of OTLP errors.
pub(super) fn status_message(body: &[u8]) -> Option<String> {
    Fields::of(body).map_while(Result::ok).find_map(|field| match field {
        (2, Field::Bytes(message)) => Some(shown(message)),
        _ => None,
    })
}

/// The delay that `google.rpc.RetryInfo` asks for, from among the details of a `google.rpc.Status`.
pub(super) fn retry_info(status: &[u8]) -> Option<Duration> {
    let nested = |message, number| {
        Fields::of(message)
            .map_while(Result::ok)
            .filter(move |field| field.0 == number)
            .filter_map(|field| field.1.bytes())
    };
    let info = nested(status, 3).find(|any| {
        nested(any, 1).any(|type_url| type_url == b"type.googleapis.com/google.rpc.RetryInfo")
    })?;
    let delay = nested(info, 2).find_map(|info| nested(info, 1).next())?;
    let number = |wanted| {
        Fields::of(delay).map_while(Result::ok).find_map(|field| match field {
            (number, Field::Uint(value)) if number == wanted => u64::try_from(value as i64).ok(),
            _ => None,
        })
    };
    let nanos = u32::try_from(number(2).unwrap_or(0)).unwrap_or(0).min(999_999_999);
    let delay = Duration::new(number(1).unwrap_or(0), nanos);
    // "If no delay or a delay of 0 is given, the client uses its own backoff."
    (!delay.is_zero()).then_some(delay)
}

/// A server's text as it may be shown: bounded, without control characters.
pub(super) fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(8 * MAX_MESSAGE_CHARS)]);
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_MESSAGE_CHARS)
        .collect();
    clean.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::wire::Writer;

    #[test]
    fn retry_after_takes_seconds_and_dates_and_no_nonsense() {
        let now = httpdate::parse_http_date("Fri, 01 Jul 2022 12:00:00 GMT").unwrap();
        let check = |text: &str, want: Option<u64>| {
            assert_eq!(retry_after(text.as_bytes(), now), want.map(Duration::from_secs), "{text}");
        };
        check("2", Some(2));
        check(" 120 ", Some(120));
        check("0", Some(0));
        check("1000000000", Some(600));
        check("99999999999999999999999999", Some(600));
        check("Fri, 01 Jul 2022 12:00:30 GMT", Some(30));
        check("Fri, 01 Jul 2022 11:00:00 GMT", Some(0));
        check("Fri, 01 Jul 2050 12:00:00 GMT", Some(600));
        check("soon", None);
        check("-1", None);
        check("", None);
        check("1.5", None);
    }

    #[test]
    fn statuses_are_sorted_as_documented() {
        let check = |status: u16, want: &str| {
            let answer = of_status(StatusCode::from_u16(status).unwrap(), None, "");
            assert!(format!("{answer:?}").starts_with(want), "{status}: {answer:?}");
        };
        [429, 502, 503, 504].into_iter().for_each(|status| check(status, "Retry"));
        [400, 413, 415, 422].into_iter().for_each(|status| check(status, "Refused"));
        [301, 307, 401, 403, 404, 405, 407, 500, 501, 505]
            .into_iter()
            .for_each(|status| check(status, "Hold"));
    }

    #[test]
    fn grpc_statuses_are_sorted_as_documented() {
        let check = |code, message, delay: Option<u64>, want: &str| {
            let answer = of_grpc(code, message, delay.map(Duration::from_secs));
            assert!(format!("{answer:?}").starts_with(want), "{code} {message}: {answer:?}");
        };
        [1, 4, 10, 11, 14, 15]
            .into_iter()
            .for_each(|code| check(code, "", None, "Retry { after: None"));
        [2, 5, 6, 7, 9, 12, 13, 16, 99].into_iter().for_each(|code| check(code, "", None, "Hold"));
        check(3, "", None, "Refused");
        check(8, "quota", None, "Hold");
        check(8, "quota", Some(7), "Retry { after: Some(7s)");
        check(8, "quota", Some(10_000), "Retry { after: Some(600s)");
        check(8, "grpc: received message larger than max (5 vs. 4)", None, "Refused");
        check(11, "Error, decoded message length too large: found 5 bytes", None, "Refused");
        check(14, "", Some(3), "Retry { after: Some(3s)");
    }

    #[test]
    fn partial_success_is_counted_and_nonsense_is_no_success() {
        let mut w = Writer::default();
        w.message(1, |w| {
            w.bytes(2, b"too old\x1b[2J");
            w.uint(1, 3);
        });
        assert_eq!(
            accepted(w.written()),
            Answer::Accepted { rejected: 3, message: "too old [2J".into() }
        );
        assert_eq!(accepted(b""), Answer::Accepted { rejected: 0, message: String::new() });
        assert!(matches!(accepted(b"<html>hello</html>"), Answer::Hold { .. }));
        let json = br#"{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"too old"}}"#;
        assert_eq!(
            accepted_json(json),
            Answer::Accepted { rejected: 3, message: "too old".into() }
        );
        let json = br#"{"partialSuccess":null}"#;
        assert_eq!(accepted_json(json), Answer::Accepted { rejected: 0, message: String::new() });
        assert!(matches!(accepted_json(b"[]"), Answer::Hold { .. }));
    }

    #[test]
    fn retry_info_is_found_among_the_details() {
        let with = |seconds, nanos| {
            let mut w = Writer::default();
            w.message(3, |w| {
                w.message(2, |w| {
                    w.message(1, |w| {
                        w.uint(2, nanos);
                        w.uint(1, seconds);
                    });
                });
                w.bytes(1, b"type.googleapis.com/google.rpc.RetryInfo");
            });
            w.message(3, |w| w.bytes(1, b"type.googleapis.com/google.rpc.QuotaFailure"));
            w.bytes(2, b"slow down");
            w.uint(1, 8);
            retry_info(w.written())
        };
        assert_eq!(with(2, 500_000_000), Some(Duration::from_millis(2500)));
        assert_eq!(with(0, 0), None);
        assert_eq!(with(-1i64 as u64, 0), None);
        assert_eq!(retry_info(b"\xff\xff"), None);
    }
}
