//! An OTLP receiver over HTTP that can refuse, and that keeps what it took, as JSON lines of the same form as `--out`.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use opentelemetry_proto::tonic::collector::{
    logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
    trace::v1::ExportTraceServiceRequest,
};
use prost::Message;
use serde::Serialize;

use crate::monotonic_ns;

/// What has happened so far.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// Status of every answer; 200 takes the request.
    answer: u16,
    /// Requests that were taken, one JSON line each.
    pub lines: Vec<String>,
    /// Requests that were refused.
    pub refused: u64,
    /// By the monotonic clock, when the first one was refused.
    pub first_refused_ns: Option<u64>,
    /// When the first one was taken after one had been refused.
    pub taken_again_ns: Option<u64>,
}

/// A running receiver. Its threads end with the process.
pub struct Collector {
    seen: Arc<Mutex<Seen>>,
}

impl Collector {
    /// Listens on a port of the loopback interface, and takes everything.
    pub fn start(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
        let seen = Arc::new(Mutex::new(Seen { answer: 200, ..Seen::default() }));
        let collector = Self { seen: Arc::clone(&seen) };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&seen);
                // A client that goes away is no fault of the receiver's.
                std::thread::spawn(move || serve(&stream, &seen).ok());
            }
        });
        collector
    }

    /// Answers with this status from now on.
    pub fn answer(&self, status: u16) {
        lock(&self.seen).answer = status;
    }

    /// What has happened so far.
    pub fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves a connection until the client closes it.
fn serve(stream: &TcpStream, seen: &Mutex<Seen>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let Some((path, length)) = read_head(&mut reader)? else { return Ok(()) };
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let status = lock(seen).take(&path, &body)?;
        let head = format!("HTTP/1.1 {status} -\r\nContent-Type: application/x-protobuf\r\n");
        (&*stream).write_all(format!("{head}Content-Length: 0\r\n\r\n").as_bytes())?;
    }
}

/// Path and length of the body; none at the end of the connection.
fn read_head(reader: &mut impl io::BufRead) -> io::Result<Option<(String, usize)>> {
    let (mut path, mut length) = (None, 0);
    for line in reader.lines() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        match line.split_once(": ") {
            None => path = line.split(' ').nth(1).map(str::to_owned),
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().map_err(io::Error::other)?;
            }
            Some(_) => {}
        }
    }
    Ok(path.map(|path| (path, length)))
}

impl Seen {
    fn take(&mut self, path: &str, body: &[u8]) -> io::Result<u16> {
        if self.answer != 200 {
            self.refused += 1;
            self.first_refused_ns.get_or_insert_with(monotonic_ns);
            return Ok(self.answer);
        }
        self.lines.push(match path {
            "/v1/traces" => json::<ExportTraceServiceRequest>(body),
            "/v1/metrics" => json::<ExportMetricsServiceRequest>(body),
            "/v1/logs" => json::<ExportLogsServiceRequest>(body),
            _ => Err(io::Error::other(format!("no such path: {path}"))),
        }?);
        if self.refused > 0 {
            self.taken_again_ns.get_or_insert_with(monotonic_ns);
        }
        Ok(200)
    }
}

fn json<T: Message + Default + Serialize>(body: &[u8]) -> io::Result<String> {
    let request = T::decode(body).map_err(io::Error::other)?;
    serde_json::to_string(&request).map_err(io::Error::other)
}
