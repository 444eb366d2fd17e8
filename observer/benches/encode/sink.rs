//! The receiving end, in a process of its own: takes traces over HTTP/1.1 and gRPC, and counts the spans.

use std::{
    convert::Infallible,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Request, Response, body::Incoming, header::CONTENT_TYPE, service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use observer::export::wire::Fields;

/// Makes the benchmark be the sink.
pub(crate) const ARGUMENT: &str = "--sink";

static SPANS: AtomicU64 = AtomicU64::new(0);

/// The running sink; ends with the benchmark.
pub(crate) struct Sink {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Sink {
    pub(crate) fn start() -> Self {
        let this = std::env::current_exe().unwrap();
        let mut child = Command::new(this).arg(ARGUMENT).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, address: line.trim().parse().unwrap() }
    }

    /// Spans that have come so far.
    pub(crate) fn count(&self) -> u64 {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream
            .write_all(b"GET /count HTTP/1.1\r\nhost: sink\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.rsplit("\r\n").next().unwrap().parse().unwrap()
    }
}

/// Prints the address, then serves until killed.
pub(crate) fn serve() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                let connection = auto::Builder::new(TokioExecutor::new());
                connection.serve_connection(TokioIo::new(stream), service_fn(answer)).await.ok();
            });
        }
    });
}

async fn answer(
    request: Request<Incoming>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let is_grpc = request
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let asks = request.uri().path() == "/count";
    let body = request.into_body().collect().await.unwrap().to_bytes();
    SPANS.fetch_add(spans(if is_grpc { &body[5..] } else { &body }), Relaxed);
    let kind = if is_grpc { "application/grpc" } else { "application/x-protobuf" };
    let body = if asks {
        SPANS.load(Relaxed).to_string().into()
    } else {
        Bytes::from_static(&[0; 5][..if is_grpc { 5 } else { 0 }])
    };
    let trailers = async move {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", 0.into());
        is_grpc.then_some(Ok(trailers))
    };
    let response = Response::builder().header(CONTENT_TYPE, kind);
    let length = body.len();
    let response = if is_grpc { response } else { response.header("content-length", length) };
    Ok(response.body(Full::new(body).with_trailers(trailers)).unwrap())
}

/// Spans of a request: field 2 of the scopes, which are field 2 of the resources, which are field 1.
fn spans(request: &[u8]) -> u64 {
    let nested = |message, number| {
        Fields::of(message)
            .map_while(Result::ok)
            .filter(move |f| f.0 == number)
            .filter_map(|f| f.1.bytes())
    };
    let scopes = nested(request, 1).flat_map(|resource| nested(resource, 2));
    scopes.map(|scope| nested(scope, 2).count() as u64).sum()
}
