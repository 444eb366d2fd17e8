//! `observer top`: the snapshot on a terminal.
//!
//! Input changes [`state`], [`view`] draws it; both know nothing but snapshots, so that live, paused and (later) recorded
//! data look the same. `--once` prints the same tables as [`text`], or the snapshot as JSON (docs/snapshot-json.md).

pub mod format;
mod header;
pub mod panes;
#[cfg(test)]
pub(crate) mod sample;
mod screen;
mod source;
mod state;
#[cfg(test)]
mod tests;
mod text;
mod view;

use std::{
    io::{self, ErrorKind, Write},
    sync::mpsc::TryRecvError,
    time::Duration,
};

use ratatui::crossterm::event::{self, Event, KeyEventKind};

pub use self::source::{Own, Source};
use self::{
    screen::Screen,
    state::{Flow, State},
};

/// One cell of a [`Table`].
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// What is shown.
    pub text: String,
    /// How urgent it looks.
    pub tone: Tone,
}

/// How urgent a cell looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tone {
    /// As usual.
    #[default]
    Plain,
    /// Somebody should look.
    Warn,
    /// Something is wrong.
    Bad,
}

/// A pane: a summary line and rows under titled columns.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// One line above the rows.
    pub summary: String,
    /// Titles and widths in characters; the last column takes what is left. A title that begins with a blank stands
    /// above numbers, which are aligned to the right.
    pub columns: &'static [(&'static str, u16)],
    /// Rows, as many cells as columns.
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    /// The most urgent tone of any cell.
    pub fn tone(&self) -> Tone {
        self.rows.iter().flatten().map(|cell| cell.tone).max().unwrap_or_default()
    }
}

/// How long the screen waits for a key before it looks for a new snapshot.
const KEY_WAIT: Duration = Duration::from_millis(100);

/// `observer top --once [--json]`: writes one snapshot as text or as one line of JSON.
///
/// # Errors
/// What the source says, and what writing says; a reader that leaves early (`| head`) is no error.
pub fn once(source: Source, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let snapshot = source.one()?;
    let text =
        if json { serde_json::to_string(&*snapshot)? + "\n" } else { text::render(&snapshot) };
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// `observer top`: shows snapshots on the terminal until the user quits.
///
/// # Errors
/// There is no terminal, or it fails. What the source says is shown, and the source asked again.
pub fn run(source: Source) -> anyhow::Result<()> {
    let feed = source.spawn()?;
    let mut screen = Screen::open()?;
    let mut state = State::default();
    let mut changed = true;
    loop {
        if changed {
            screen.draw(|frame| view::draw(frame, &state))?;
        }
        changed = false;
        if event::poll(KEY_WAIT)? {
            changed = true;
            if on_event(&mut state, &event::read()?, screen.page_rows()?) == Flow::Quit {
                return Ok(());
            }
        }
        loop {
            match feed.try_recv() {
                Ok(update) => state.update(update),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    return Err(io::Error::other("the source of snapshots ended").into());
                }
            }
            changed = true;
        }
    }
}

fn on_event(state: &mut State, event: &Event, page: usize) -> Flow {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => state.key(*key, page),
        _ => Flow::Continue,
    }
}
