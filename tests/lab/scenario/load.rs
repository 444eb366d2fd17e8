//! Load for scenarios: clients inside the stage, and programs of their own that `lab load` is.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use clap::Subcommand;

use crate::stage::Stage;

/// What a load did.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// Requests that were answered.
    pub done: u64,
    /// Requests that were not.
    pub failed: u64,
}

/// Requests that wait for a client; what comes beyond is not sent, as by a proxy with a full queue.
const MAX_WAITING: usize = 64;

/// Longest wait for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Posts `bytes` to a path at the stage's rate until the run is over. The rate is kept whatever becomes of the requests,
/// as long as `clients` of them at a time are enough for it.
pub fn post(stage: &Stage, port: u16, path: &str, bytes: usize, clients: usize) -> Sent {
    let (done, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let (queue, jobs) = mpsc::sync_channel::<()>(MAX_WAITING);
    let jobs = Mutex::new(jobs);
    let body = vec![b'i'; bytes];
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                while jobs.lock().is_ok_and(|jobs| jobs.recv().is_ok()) {
                    let answered = !stage.is_over() && post_once(port, path, &body).is_ok();
                    if answered { &done } else { &failed }.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        stage.at_rate(stage.rate(), |_| {
            if queue.try_send(()).is_err() {
                failed.fetch_add(1, Ordering::Relaxed);
            }
        });
        drop(queue);
    });
    Sent { done: done.into_inner(), failed: failed.into_inner() }
}

fn post_once(port: u16, path: &str, body: &[u8]) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let length = body.len();
    write!(stream, "POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n")?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let good = answer.starts_with(b"HTTP/1.1 200") || answer.starts_with(b"HTTP/1.0 200");
    if good { Ok(()) } else { Err(std::io::Error::other("no good answer")) }
}

/// Programs of their own.
#[derive(Subcommand)]
pub enum Load {
    /// Takes memory at an even rate and touches it.
    Grow {
        /// MiB a second.
        rate: f64,
        /// MiB at which it stops to grow.
        most: u64,
    },
    /// Reads a file page by page, in no order, again and again.
    Scan {
        /// The file.
        file: PathBuf,
    },
    /// Works for a part of each 100 ms, and for a larger one from second to second.
    Poll {
        /// Percent more a second.
        rate: f64,
    },
}

/// Runs one until it is killed.
pub fn run(load: &Load) -> std::io::Result<()> {
    match load {
        Load::Grow { rate, most } => grow(*rate, *most),
        Load::Scan { file } => scan(file),
        Load::Poll { rate } => super::cpu_realtime_hog::poll(*rate),
    }
}

fn grow(rate: f64, most: u64) -> std::io::Result<()> {
    let mut held = Vec::new();
    loop {
        if (held.len() as u64) < most {
            held.push(vec![1_u8; 1 << 20]);
        }
        // sleep: the pace of the growth
        std::thread::sleep(Duration::from_secs_f64(1.0 / rate));
    }
}

const PAGE: u64 = 4096;

fn scan(path: &Path) -> std::io::Result<()> {
    let file = File::open(path)?;
    let pages = file.metadata()?.len() / PAGE;
    let mut page = [0; PAGE as usize];
    for index in 0..pages {
        file.read_exact_at(&mut page, index * PAGE)?;
    }
    println!("warm");
    // A linear congruential generator (Knuth's MMIX): which page comes next is nothing that read-ahead could guess.
    let mut state = 1_u64;
    loop {
        for _ in 0..SCAN_PAGES {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            file.read_exact_at(&mut page, (state >> 33) % pages * PAGE)?;
        }
        // sleep: a server that reads files has a rest between two requests
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Pages that one request of the scanning program reads.
const SCAN_PAGES: u32 = 16;
