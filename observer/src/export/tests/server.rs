//! A receiver for tests that takes OTLP over HTTP/1.1 and gRPC, and misbehaves by a script.

use std::{
    convert::Infallible,
    io::Read as _,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Request, Response,
    body::{Body, Frame, Incoming},
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::{Interval, interval},
};
use tokio_rustls::TlsAcceptor;

/// How one request is answered.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    /// Taken, as its protocol says it.
    Ok,
    /// An HTTP answer: status, headers, body.
    Http(u16, &'static [(&'static str, &'static str)], Vec<u8>),
    /// A gRPC status: code, message, `google.rpc.Status` in the details.
    Grpc(u32, &'static str, Option<Vec<u8>>),
    /// gRPC headers and no trailers.
    GrpcCut,
    /// Never.
    Hang,
    /// Success, but a byte of its body every 20 ms, for ever.
    Trickle,
    /// Success with a body of so many bytes.
    Huge(usize),
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Got {
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    /// Without compression and gRPC's prefix.
    pub(super) body: Bytes,
    pub(super) gzip: bool,
    /// Whether it was answered with [`Reply::Ok`].
    pub(super) taken: bool,
}

type Script = Box<dyn FnMut(&Got) -> Reply + Send>;

#[derive(Clone)]
struct Shared {
    got: Arc<Mutex<Vec<Got>>>,
    script: Arc<Mutex<Script>>,
}

/// A listening server; ends when dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    shared: Shared,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Listens on a free port and answers each request as `script` says.
    pub(super) async fn start(script: impl FnMut(&Got) -> Reply + Send + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), None, script)
    }

    /// The first requests are answered with `faults`, all others taken.
    pub(super) async fn failing(faults: Vec<Reply>) -> Self {
        let mut faults = faults.into_iter();
        Self::start(move |_| faults.next().unwrap_or(Reply::Ok)).await
    }

    pub(super) fn on(
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        script: impl FnMut(&Got) -> Reply + Send + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let shared = Shared { got: Arc::default(), script: Arc::new(Mutex::new(Box::new(script))) };
        let task = tokio::spawn(accept(listener, tls, shared.clone()));
        Self { address, shared, task }
    }

    pub(super) fn got(&self) -> Vec<Got> {
        self.shared.got.lock().unwrap().clone()
    }

    /// Bodies of the requests with telemetry that were taken.
    pub(super) fn taken(&self) -> Vec<Got> {
        self.got().into_iter().filter(|got| got.taken && !got.body.is_empty()).collect()
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Shared) {
    // Dropped with this task, and all connections with it.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (shared, tls) = (shared.clone(), tls.clone());
        connections.spawn(async move {
            match tls {
                None => serve(stream, shared).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, shared).await;
                    }
                }
            }
        });
    }
}

async fn serve<S>(stream: S, shared: Shared)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| answer(request, shared.clone()));
    auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
        .ok();
}

async fn answer(
    request: Request<Incoming>,
    shared: Shared,
) -> Result<Response<Reluctant>, Infallible> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return std::future::pending().await };
    let mut body = body.to_bytes();
    let is_grpc = head.headers.get(CONTENT_TYPE).is_some_and(|kind| kind == "application/grpc");
    let mut gzip = head.headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding == "gzip");
    if is_grpc {
        gzip = body[0] == 1;
        assert_eq!(u32::from_be_bytes(*body[1..].first_chunk().unwrap()) as usize, body.len() - 5);
        body = body.slice(5..);
    }
    if gzip {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
        body = plain.into();
    }
    let mut got =
        Got { path: head.uri.path().to_owned(), headers: head.headers, body, gzip, taken: false };
    let reply = (shared.script.lock().unwrap())(&got);
    got.taken = matches!(reply, Reply::Ok);
    shared.got.lock().unwrap().push(got);
    let kind = if is_grpc { "application/grpc" } else { "application/x-protobuf" };
    let ok = Response::builder().header(CONTENT_TYPE, kind);
    let response = match reply {
        Reply::Ok if is_grpc => grpc(0, "", None),
        Reply::Ok => ok.body(Reluctant::Whole(Bytes::new())),
        Reply::Http(status, headers, body) => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(*name, *value);
            }
            response.body(Reluctant::Whole(body.into()))
        }
        Reply::Grpc(code, message, details) => grpc(code, message, details),
        Reply::GrpcCut => ok.body(Reluctant::Whole(Bytes::from_static(&[0; 5]))),
        Reply::Hang => std::future::pending().await,
        Reply::Trickle => ok.body(Reluctant::Drops(interval(Duration::from_millis(20)))),
        Reply::Huge(bytes) => ok.body(Reluctant::Whole(vec![0; bytes].into())),
    };
    Ok(response.unwrap())
}

fn grpc(
    code: u32,
    message: &'static str,
    details: Option<Vec<u8>>,
) -> hyper::http::Result<Response<Reluctant>> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code));
    trailers.insert("grpc-message", HeaderValue::from_static(message));
    if let Some(details) = details {
        use base64::Engine as _;
        let details = base64::engine::general_purpose::STANDARD_NO_PAD.encode(details);
        trailers
            .insert(HeaderName::from_static("grpc-status-details-bin"), details.parse().unwrap());
    }
    let mut response = Response::builder().header(CONTENT_TYPE, "application/grpc");
    if code == 0 {
        return response
            .body(Reluctant::Trailed(Some(Bytes::from_static(&[0; 5])), Some(trailers)));
    }
    // A refusal usually comes without a body: its status stands in the only header block.
    if let Some(headers) = response.headers_mut() {
        headers.extend(trailers);
    }
    response.body(Reluctant::Whole(Bytes::new()))
}

/// A body that comes at once, drop by drop, or with trailers.
enum Reluctant {
    Whole(Bytes),
    Drops(Interval),
    Trailed(Option<Bytes>, Option<HeaderMap>),
}

impl Body for Reluctant {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Drops(interval) => interval
                .poll_tick(context)
                .map(|_| Some(Ok(Frame::data(Bytes::from_static(b"\x0a"))))),
            Self::Trailed(data, trailers) => Poll::Ready(
                data.take()
                    .map(Frame::data)
                    .or_else(|| trailers.take().map(Frame::trailers))
                    .map(Ok),
            ),
        }
    }
}

/// A connection that is accepted and closed at once.
pub(super) async fn slam(listener: &TcpListener) {
    let (stream, _): (TcpStream, _) = listener.accept().await.unwrap();
    drop(stream);
}
