//! Reads a recording back.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::de::IgnoredAny;

use super::{FORMAT, Header, Line, VERSION, write::older};
use crate::snapshot::Snapshot;

/// Longest line that is read; a snapshot with all its tables full has some 4 MiB.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// Why a recording cannot be read, and how to mend it.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("{path}: {error}; name the FILE of `observer run --record FILE`")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It is something else, or its beginning is gone.
    #[error(
        "{path}: no recording of observer: {why}; name the FILE of `observer run --record FILE`"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is missing.
        why: &'static str,
    },
    /// It was made by a later observer.
    #[error(
        "{path}:{line}: format {found}, made by observer {agent_version}; this one reads format {VERSION}: read it with that observer or a later one"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: u64,
        /// The format's version.
        found: u32,
        /// Who made it.
        agent_version: String,
    },
    /// A line is whole and cannot be understood.
    #[error("{path}:{line}: {why}; the lines around it are whole: remove this one to read them")]
    Line {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: u64,
        /// What is wrong.
        why: String,
    },
}

/// A recording, line by line, from its oldest file on.
///
/// A line that ends in its midst is where the agent was killed or the power went: it is left out, and counted in
/// [`Recording::cut`].
#[derive(Debug)]
pub struct Recording {
    header: Header,
    file: Lines,
    next: VecDeque<PathBuf>,
    cut: u64,
    /// The first line, which was read to know whether this is a recording.
    first: Option<Line>,
    /// The disk does not give the rest.
    unreadable: bool,
}

/// Opens a recording: `path`, and before it the older half beside it, if there is one.
///
/// # Errors
/// If it is not there, or no recording, or one of a later format.
pub fn read(path: &Path) -> Result<Recording, ReadError> {
    let mut next: VecDeque<PathBuf> =
        [older(path), path.to_owned()].into_iter().filter(|path| path.exists()).collect();
    let mut file = Lines::open(next.pop_front().unwrap_or_else(|| path.to_owned()))?;
    let (header, cut) = file.header()?;
    let first = Some(Line::Header(Box::new(header.clone())));
    Ok(Recording { header, file, next, cut, first, unreadable: false })
}

impl Recording {
    /// The first header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Lines so far that were cut short and left out.
    pub fn cut(&self) -> u64 {
        self.cut
    }

    /// The snapshots alone.
    pub fn snapshots(&mut self) -> impl Iterator<Item = Result<Arc<Snapshot>, ReadError>> + '_ {
        self.filter_map(|line| match line {
            Ok(Line::Snapshot(snapshot)) => Some(Ok(snapshot)),
            Ok(_other) => None,
            Err(error) => Some(Err(error)),
        })
    }
}

impl Iterator for Recording {
    type Item = Result<Line, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(line) = self.first.take() {
            return Some(Ok(line));
        }
        while !self.unreadable {
            let line = match self.file.next() {
                Ok(Read::Line(line)) => Ok(line),
                Err(error) => Err(error),
                Ok(Read::Cut) => {
                    self.cut += 1;
                    continue;
                }
                Ok(Read::End) => match Lines::open(self.next.pop_front()?) {
                    Ok(file) => {
                        self.file = file;
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            self.unreadable = matches!(line, Err(ReadError::Unreadable { .. }));
            return Some(line);
        }
        None
    }
}

/// What a line was.
enum Read {
    Line(Line),
    Cut,
    End,
}

/// One file.
#[derive(Debug)]
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    number: u64,
    buffer: Vec<u8>,
}

impl Lines {
    fn open(path: PathBuf) -> Result<Self, ReadError> {
        match File::open(&path) {
            Ok(file) => {
                Ok(Self { path, reader: BufReader::new(file), number: 0, buffer: Vec::new() })
            }
            Err(error) => Err(ReadError::Unreadable { path, error }),
        }
    }

    /// The first whole line, and how many before it were cut short.
    fn header(&mut self) -> Result<(Header, u64), ReadError> {
        let mut cut = 0;
        let why = loop {
            match self.next() {
                Ok(Read::Line(Line::Header(header))) => return Ok((*header, cut)),
                Ok(Read::Cut) => cut += 1,
                Ok(Read::End) => break "it has no whole line",
                Ok(Read::Line(_)) | Err(ReadError::Line { .. }) => {
                    break "its first line is no header";
                }
                Err(error) => return Err(error),
            }
        };
        Err(ReadError::Foreign { path: self.path.clone(), why })
    }

    fn next(&mut self) -> Result<Read, ReadError> {
        self.buffer.clear();
        self.number += 1;
        let unreadable = |error| ReadError::Unreadable { path: self.path.clone(), error };
        let mut reader = self.reader.by_ref().take(MAX_LINE_BYTES);
        if reader.read_until(b'\n', &mut self.buffer).map_err(unreadable)? == 0 {
            return Ok(Read::End);
        }
        let text = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
        match serde_json::from_slice(text) {
            Ok(Line::Header(header)) => self.accept(header),
            Ok(line) => Ok(Read::Line(line)),
            Err(_) if is_cut(text) => Ok(Read::Cut),
            Err(error) => Err(self.line_error(error.to_string())),
        }
    }

    fn accept(&self, header: Box<Header>) -> Result<Read, ReadError> {
        if header.format != FORMAT {
            return Err(self.line_error(format!("the format is not {FORMAT}")));
        }
        if header.version > VERSION {
            return Err(ReadError::Version {
                path: self.path.clone(),
                line: self.number,
                found: header.version,
                agent_version: header.agent_version,
            });
        }
        Ok(Read::Line(Line::Header(header)))
    }

    fn line_error(&self, why: String) -> ReadError {
        ReadError::Line { path: self.path.clone(), line: self.number, why }
    }
}

/// Whether a line ends in its midst: the parser has nothing to complain about before its end. After a power cut it may also
/// end in zeroes that never became its text.
fn is_cut(text: &[u8]) -> bool {
    let whole = serde_json::from_slice::<IgnoredAny>(text);
    whole.is_err_and(|error| error.is_eof() || error.column() >= text.len())
        || text.ends_with(b"\0")
}
