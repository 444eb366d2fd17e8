//! The thread that writes the recording. The sampler leaves it a tick and goes on; a disk that does not answer costs ticks,
//! which are counted, and nothing else.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{Header, Line, Spans};
use crate::{
    line_file::LineFile,
    queue_thread::{Items, QueueThread},
    snapshot::{Loss, Snapshot},
    telemetry::Batch,
};

/// Ticks that wait for a slow disk; the oldest goes first and is counted. Half a minute, and some MiB on a busy host.
const MAX_WAITING: usize = 32;

/// How every recording begins.
const MAGIC: &[u8] = br#"{"header":{"format":"observer-recording""#;

/// The sampler's end of the thread.
#[derive(Debug)]
pub struct Recorder {
    queue: QueueThread<(Arc<Snapshot>, Arc<Batch>)>,
    unrecorded: Arc<Unrecorded>,
}

/// What is not in the recording.
#[derive(Debug, Default)]
struct Unrecorded {
    /// Lines that could not be written.
    unwritten: AtomicU64,
    /// Bytes of the older file that went for newer ones.
    rolled_bytes: AtomicU64,
}

impl Recorder {
    /// Opens the recording, or goes on with one, and starts the thread.
    ///
    /// # Errors
    /// If the file cannot be written or is something else.
    pub fn start(path: &Path, max_bytes: u64, header: Header) -> Result<Self> {
        let file = Rolling::open(path, max_bytes, &header)?;
        Self::spawn(file).context("cannot start the thread that records")
    }

    pub(super) fn spawn(mut file: Rolling) -> io::Result<Self> {
        let unrecorded = Arc::<Unrecorded>::default();
        let of_thread = Arc::clone(&unrecorded);
        let work = move |ticks| of_thread.write_all(ticks, &mut file);
        Ok(Self { queue: QueueThread::start("recorder", MAX_WAITING, work)?, unrecorded })
    }

    /// Hands over a tick.
    pub fn offer(&self, snapshot: Arc<Snapshot>, batch: Arc<Batch>) {
        self.queue.offer((snapshot, batch));
    }

    /// What is not in the recording.
    pub fn losses(&self) -> Vec<Loss> {
        let row = |stage: &str, count| Loss { stage: stage.to_owned(), count };
        vec![
            row("record.queue", self.queue.late()),
            row("record.write", self.unrecorded.unwritten.load(Relaxed)),
            row("record.rolled_bytes", self.unrecorded.rolled_bytes.load(Relaxed)),
        ]
    }

    /// Ends the thread once it has written what it has; false if it did not come to that within this time.
    pub fn finish(&self, within: Duration) -> bool {
        self.queue.finish(within)
    }
}

impl Unrecorded {
    fn write_all(&self, ticks: Items<(Arc<Snapshot>, Arc<Batch>)>, file: &mut Rolling) {
        let mut failing = false;
        for (snapshot, batch) in ticks {
            let written = self.write(file, snapshot, &batch);
            match &written {
                Ok(()) if failing => tracing::info!("recording again"),
                Err(error) if !failing => tracing::warn!(
                    "cannot record to {}: {error}; the agent goes on and tries again with every tick",
                    file.path.display()
                ),
                _ => {}
            }
            failing = written.is_err();
        }
    }

    /// Writes the lines of a tick; each is tried, and the first error told.
    fn write(&self, file: &mut Rolling, snapshot: Arc<Snapshot>, batch: &Batch) -> io::Result<()> {
        let events = batch.events.iter().map(|event| Line::Event(Box::new(event.into())));
        let spans = (!batch.spans.is_empty()).then(|| Line::Spans(Spans::from(batch)));
        let mut result = Ok(());
        for line in events.chain(spans).chain([Line::Snapshot(snapshot)]) {
            match file.append(&line) {
                Ok(rolled_bytes) => drop(self.rolled_bytes.fetch_add(rolled_bytes, Relaxed)),
                Err(error) => {
                    self.unwritten.fetch_add(1, Relaxed);
                    result = result.and(Err(error));
                }
            }
        }
        result.and(file.lines.sync())
    }
}

/// Two files, the older one `.1`: each at most half of the bound.
#[derive(Debug)]
pub(super) struct Rolling {
    path: PathBuf,
    half_bytes: u64,
    header: Vec<u8>,
    lines: LineFile,
    buffer: Vec<u8>,
}

impl Rolling {
    pub(super) fn open(path: &Path, max_bytes: u64, header: &Header) -> Result<Self> {
        let cannot = || format!("cannot record to {} (--record)", path.display());
        refuse_others(path).with_context(cannot)?;
        let mut header = serde_json::to_vec(&Line::Header(Box::new(header.clone())))?;
        header.push(b'\n');
        let mut rolling = Self {
            path: path.to_owned(),
            half_bytes: max_bytes / 2,
            header,
            lines: LineFile::new(path.to_owned(), 0o600),
            buffer: Vec::new(),
        };
        rolling.begin().with_context(cannot)?;
        Ok(rolling)
    }

    /// Writes a header where this agent's lines begin.
    fn begin(&mut self) -> io::Result<()> {
        self.lines.open()?;
        let before = self.lines.len();
        self.make_room(self.header.len() as u64)?;
        if before > 0 && self.lines.len() == before {
            self.lines.append(&self.header)?;
        }
        self.lines.sync()
    }

    #[cfg(test)]
    pub(super) fn for_tests(lines: LineFile) -> Self {
        Self {
            path: PathBuf::new(),
            half_bytes: 1 << 20,
            header: b"{}\n".to_vec(),
            lines,
            buffer: Vec::new(),
        }
    }

    /// Appends a line; the bytes of an older file that went for it.
    fn append(&mut self, line: &Line) -> io::Result<u64> {
        self.buffer.clear();
        serde_json::to_writer(&mut self.buffer, line)?;
        self.buffer.push(b'\n');
        let rolled_bytes = self.make_room(self.buffer.len() as u64)?;
        self.lines.append(&self.buffer)?;
        Ok(rolled_bytes)
    }

    /// Begins a new file if these bytes do not fit into the present one.
    fn make_room(&mut self, bytes: u64) -> io::Result<u64> {
        if bytes + self.header.len() as u64 > self.half_bytes {
            let why = "a line larger than half of record.max";
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        let mut rolled_bytes = 0;
        self.lines.open()?;
        if self.lines.len() + bytes > self.half_bytes {
            let older = older(&self.path);
            rolled_bytes = fs::metadata(&older).map_or(0, |old| old.len());
            fs::rename(&self.path, &older)?;
            self.lines = LineFile::new(self.path.clone(), 0o600);
            self.lines.open()?;
        }
        if self.lines.len() == 0 {
            self.lines.append(&self.header)?;
        }
        Ok(rolled_bytes)
    }
}

/// Where the older half of a recording is.
pub(super) fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// A recording goes on where it ended; anything else is not overwritten.
fn refuse_others(path: &Path) -> Result<()> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    ensure!(metadata.is_file(), "it is no regular file; name a file");
    let mut start = Vec::new();
    File::open(path)?.take(MAGIC.len() as u64).read_to_end(&mut start)?;
    ensure!(
        MAGIC.starts_with(&start),
        "it exists and is no recording of observer; name another file"
    );
    Ok(())
}
