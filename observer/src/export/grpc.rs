//! gRPC over HTTP/2, as much as unary calls need (github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md).

use std::time::Duration;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::{BufMut as _, Bytes, BytesMut};
use hyper::{
    HeaderMap, StatusCode,
    header::{CONTENT_TYPE, HeaderName, HeaderValue, TE},
};

use super::answer::{self, Answer};

/// Header or trailer with the status.
pub(super) const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Length-Prefixed-Message: compressed flag, length, message.
const PREFIX_BYTES: usize = 5;

/// "Implementations MUST accept padded and un-padded values" of `-bin` headers.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The message with its prefix.
pub(super) fn framed(message: &[u8], compressed: bool) -> Bytes {
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    frame.put_u8(u8::from(compressed));
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// The message of an answer's body; an empty body is an empty message.
pub(super) fn unframed(body: &[u8]) -> Result<&[u8], Answer> {
    let Some((prefix, message)) = body.split_first_chunk::<PREFIX_BYTES>() else {
        return if body.is_empty() {
            Ok(body)
        } else {
            Err(answer::not_otlp("half a gRPC message"))
        };
    };
    let [compressed, length @ ..] = *prefix;
    // We offer no encoding, so a compressed answer cannot come.
    match message.get(..u32::from_be_bytes(length) as usize) {
        Some(message) if compressed == 0 => Ok(message),
        _ => Err(answer::not_otlp("a broken gRPC message")),
    }
}

/// Headers of a call.
pub(super) fn headers(headers: &mut HeaderMap, compressed: bool, timeout: Duration) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    if compressed {
        headers.insert("grpc-encoding", HeaderValue::from_static("gzip"));
    }
    // At most eight digits; the settings' bound of an hour has seven in milliseconds.
    if let Ok(value) = HeaderValue::from_str(&format!("{}m", timeout.as_millis().min(99_999_999))) {
        headers.insert("grpc-timeout", value);
    }
}

/// The answer that a status other than OK means; `None` if it is OK or absent.
pub(super) fn refusal(headers: &HeaderMap) -> Option<Answer> {
    let status = headers.get(STATUS)?;
    let code = status.to_str().ok().and_then(|code| code.parse().ok()).unwrap_or(2);
    if code == 0 {
        return None;
    }
    let message = headers
        .get("grpc-message")
        .map(|text| percent_decoded(text.as_bytes()))
        .unwrap_or_default();
    let details =
        headers.get("grpc-status-details-bin").and_then(|details| BASE64.decode(details).ok());
    let delay = details.as_deref().and_then(answer::retry_info);
    Some(answer::of_grpc(code, &answer::shown(&message), delay))
}

/// What stands between us and the service has answered (doc/http-grpc-status-mapping.md).
pub(super) fn of_http_status(status: StatusCode) -> Answer {
    answer::of_status(status, None, "not from the gRPC service")
}

/// `grpc-message` is percent-encoded; what is not is taken as it is.
fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let hex = after.first_chunk::<2>().and_then(|hex| str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if *first == b'%' => {
                decoded.push(byte);
                rest = &after[2..];
            }
            _ => {
                decoded.push(*first);
                rest = after;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_frame_gives_its_message_back(message in prop::collection::vec(any::<u8>(), 0..300), cut in 0..400usize) {
            let frame = framed(&message, false);
            prop_assert_eq!(unframed(&frame).unwrap(), &message[..]);
            let cut = cut.min(frame.len());
            prop_assert!(unframed(&frame[..cut]).is_err() || cut == 0 || cut == frame.len());
            prop_assert!(unframed(&framed(&message, true)).is_err());
        }
    }

    #[test]
    fn a_refusal_is_read_with_its_message() {
        let mut headers = HeaderMap::new();
        assert_eq!(refusal(&headers), None);
        headers.insert(STATUS, HeaderValue::from_static("0"));
        assert_eq!(refusal(&headers), None);
        headers.insert(STATUS, HeaderValue::from_static("16"));
        headers.insert("grpc-message", HeaderValue::from_static("token%20expired%"));
        assert_eq!(refusal(&headers), Some(Answer::hold("gRPC UNAUTHENTICATED: token expired%")));
        headers.insert(STATUS, HeaderValue::from_static("what"));
        assert!(matches!(refusal(&headers), Some(Answer::Hold { .. })));
    }
}
