//! The client: one hyper client per signal, HTTP/1.1 for OTLP/HTTP and HTTP/2 for gRPC.

use std::{error::Error as _, io::Write as _, sync::Arc, time::SystemTime};

use anyhow::Context as _;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http_body_util::{BodyExt as _, Collected, Full, LengthLimitError, Limited};
use hyper::{
    HeaderMap, Method, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER, USER_AGENT},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

use super::{
    answer::{self, Answer},
    grpc,
    options::{Protocol, Target},
    tls,
};

/// Largest answer that is read (OTLP specification: a client must limit it, default 4 MiB).
const MAX_RESPONSE_BYTES: usize = 4 * 1024 * 1024;
/// Largest part of an error's body that is read for its message.
const MAX_ERROR_BYTES: usize = 8 * 1024;

const AGENT: &str = concat!("observer/", env!("CARGO_PKG_VERSION"));

/// Something that delivers requests; the tests have one without a network.
pub(super) trait Transport: Send {
    /// Sends one `Export*ServiceRequest` and waits for what becomes of it.
    fn post(&mut self, request: Bytes, gzip: bool) -> impl Future<Output = Answer> + Send;
    /// Forgets connections and reads certificates again, as something there may have been mended.
    fn renew(&mut self);
}

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Delivers over the network.
pub(super) struct Http {
    target: Arc<Target>,
    client: HttpClient,
}

impl Http {
    /// A client for `target`; fails if its certificates cannot be read.
    pub(super) fn new(target: Arc<Target>) -> anyhow::Result<Self> {
        let client = client(&target)?;
        Ok(Self { target, client })
    }

    async fn exchange(&self, request: Bytes, gzip: bool) -> Answer {
        let body = if gzip { compressed(&request) } else { request };
        let is_grpc = self.target.protocol == Protocol::Grpc;
        let body = if is_grpc { grpc::framed(&body, gzip) } else { body };
        let mut request = hyper::Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        request.uri_mut().clone_from(&self.target.uri);
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if is_grpc {
            grpc::headers(headers, gzip, self.target.timeout);
        } else {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
            if gzip {
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
        }
        for (name, value) in &self.target.headers {
            headers.insert(name, value.clone());
        }
        let response = match self.client.request(request).await {
            Ok(response) => response,
            Err(error) => return failed(&error),
        };
        if is_grpc { grpc_answer(response).await } else { http_answer(response).await }
    }

    /// A server may repeat what it was sent; a credential must not end up in a log.
    fn without_secrets(&self, mut answer: Answer) -> Answer {
        let (Answer::Accepted { message: text, .. }
        | Answer::Retry { reason: text, .. }
        | Answer::Hold { reason: text, .. }
        | Answer::Refused { reason: text, .. }) = &mut answer;
        for (_, value) in &self.target.headers {
            let Ok(value) = value.to_str() else { continue };
            // `Bearer TOKEN`: the token alone is secret too.
            for secret in [value, value.rsplit(' ').next().unwrap_or_default()] {
                if secret.len() >= 4 && text.contains(secret) {
                    *text = text.replace(secret, "***");
                }
            }
        }
        answer
    }
}

impl Transport for Http {
    async fn post(&mut self, request: Bytes, gzip: bool) -> Answer {
        let timeout = self.target.timeout;
        let answer = tokio::time::timeout(timeout, self.exchange(request, gzip))
            .await
            .unwrap_or_else(|_| {
                // Whatever hangs there must not be reused (an HTTP/2 connection would be).
                self.renew();
                Answer::retry(format!("no answer within {timeout:?}"))
            });
        self.without_secrets(answer)
    }

    fn renew(&mut self) {
        match client(&self.target) {
            Ok(client) => self.client = client,
            Err(error) => tracing::warn!("keeping the certificates read before: {error:#}"),
        }
    }
}

fn client(target: &Target) -> anyhow::Result<HttpClient> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(target.timeout));
    let is_tls = target.uri.scheme_str() == Some("https");
    let tls = tls::client_config(&target.tls, is_tls).context("cannot prepare TLS for OTLP")?;
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let is_grpc = target.protocol == Protocol::Grpc;
    let connector = if is_grpc {
        builder.enable_http2().wrap_connector(connector)
    } else {
        builder.enable_http1().wrap_connector(connector)
    };
    let mut client = Client::builder(TokioExecutor::new());
    client
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_max_idle_per_host(1)
        .http2_only(is_grpc);
    Ok(client.build(connector))
}

fn compressed(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    match encoder.write_all(bytes).and_then(|()| encoder.finish()) {
        Ok(compressed) => compressed.into(),
        // Writing to memory does not fail; and an empty message is one that every server understands.
        Err(_) => Bytes::new(),
    }
}

/// No answer: a wrong certificate is for somebody to mend, all else may pass.
fn failed(error: &hyper_util::client::legacy::Error) -> Answer {
    let mut reason = error.to_string();
    let mut is_tls = false;
    let mut source = error.source();
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        is_tls |= is_from_tls(cause);
        source = cause.source();
    }
    let reason = answer::shown(reason.as_bytes());
    if is_tls { Answer::hold(reason) } else { Answer::retry(reason) }
}

/// An io::Error does not name what it wraps as its source, so look inside; hyper-rustls wraps twice.
fn is_from_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let inside = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
    error.is::<rustls::Error>() || inside.is_some_and(|inside| is_from_tls(inside))
}

type Read = Result<Collected<Bytes>, Answer>;

async fn read(body: Incoming) -> Read {
    Limited::new(body, MAX_RESPONSE_BYTES).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            // Not retryable (specification): the data may well have been taken.
            let reason = format!("the answer is larger than {MAX_RESPONSE_BYTES} bytes");
            Answer::Refused { reason, encoding: false }
        } else {
            Answer::retry(format!("the answer broke off: {error}"))
        }
    })
}

async fn http_answer(response: Response<Incoming>) -> Answer {
    let status = response.status();
    let kind = response.headers().get(CONTENT_TYPE).cloned();
    let kind = kind.as_ref().and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let is_protobuf =
        kind.starts_with("application/x-protobuf") || kind.starts_with("application/protobuf");
    if !status.is_success() {
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| answer::retry_after(value.as_bytes(), SystemTime::now()));
        let message = error_message(response.into_body(), is_protobuf, kind).await;
        return answer::of_status(status, retry_after, &message);
    }
    match read(response.into_body()).await {
        Err(answer) => answer,
        Ok(body) => {
            let body = body.to_bytes();
            if body.is_empty() || is_protobuf || kind.is_empty() {
                answer::accepted(&body)
            } else if kind.starts_with("application/json") {
                answer::accepted_json(&body)
            } else {
                answer::not_otlp(&answer::shown(kind.as_bytes()))
            }
        }
    }
}

/// What the body of an error says, if it says so briefly.
async fn error_message(body: Incoming, is_protobuf: bool, kind: &str) -> String {
    let body = match Limited::new(body, MAX_ERROR_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return String::new(),
    };
    if is_protobuf {
        answer::status_message(&body).unwrap_or_default()
    } else if kind.starts_with("text/plain") || kind.starts_with("application/json") {
        answer::shown(&body)
    } else {
        String::new()
    }
}

async fn grpc_answer(response: Response<Incoming>) -> Answer {
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        return grpc::of_http_status(head.status);
    }
    // An answer without a message has its status among the headers ("Trailers-Only").
    if let Some(answer) = grpc::refusal(&head.headers) {
        return answer;
    }
    let kind = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if !kind.starts_with(b"application/grpc") {
        return answer::not_otlp(&answer::shown(kind));
    }
    let body = match read(body).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let empty = HeaderMap::new();
    let trailers = body.trailers().cloned().unwrap_or(empty);
    match grpc::refusal(&trailers) {
        Some(answer) => answer,
        None if !trailers.contains_key(grpc::STATUS)
            && !head.headers.contains_key(grpc::STATUS) =>
        {
            Answer::retry("the answer broke off: no grpc-status")
        }
        None => grpc::unframed(&body.to_bytes()).map_or_else(|answer| answer, answer::accepted),
    }
}
