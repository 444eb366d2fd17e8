//! What the screen shows, changed by keys and by new snapshots only.

use std::sync::Arc;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{Table, panes, source::Update};
use crate::snapshot::Snapshot;

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Continue,
    Quit,
}

/// All of the screen's state.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The snapshot on the screen.
    pub(super) snapshot: Option<Arc<Snapshot>>,
    /// Its tables, one a pane, made once a snapshot.
    pub(super) tables: Vec<Table>,
    /// Why there is no newer snapshot.
    pub(super) trouble: Option<String>,
    /// Position of the pane that has the keys.
    pub(super) focus: usize,
    /// First row shown of each pane.
    pub(super) scroll: Vec<usize>,
    /// Keep what is shown.
    pub(super) paused: bool,
    /// Show the keys.
    pub(super) help: bool,
    /// Show all of this row of the focused pane.
    pub(super) details: Option<usize>,
}

impl State {
    /// Takes a new snapshot, unless paused.
    pub(super) fn update(&mut self, update: Update) {
        match update {
            Ok(snapshot) => {
                self.trouble = None;
                if !self.paused {
                    self.tables = panes::all().map(|pane| (pane.table)(&snapshot)).collect();
                    self.scroll.resize(self.tables.len(), 0);
                    self.snapshot = Some(snapshot);
                }
            }
            Err(trouble) => self.trouble = Some(trouble),
        }
    }

    /// Does what a key asks for; `page` is how many rows the focused pane shows.
    pub(super) fn key(&mut self, key: KeyEvent, page: usize) -> Flow {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => return Flow::Quit,
            KeyCode::Char('h' | '?') => self.help = !self.help,
            KeyCode::Esc | KeyCode::Char('q') if self.help => self.help = false,
            KeyCode::Esc | KeyCode::Char('q') | KeyCode::Left | KeyCode::Enter
                if self.details.is_some() =>
            {
                self.details = None;
            }
            KeyCode::Esc | KeyCode::Char('q') => return Flow::Quit,
            KeyCode::Char('p') => self.paused = !self.paused,
            KeyCode::Tab => self.focus_on((self.focus + 1) % panes::COUNT),
            KeyCode::BackTab => self.focus_on((self.focus + panes::COUNT - 1) % panes::COUNT),
            KeyCode::Char(digit @ '1'..='9') => self.focus_on(digit as usize - '1' as usize),
            KeyCode::Enter | KeyCode::Right if self.details.is_none() => self.open(),
            KeyCode::Up | KeyCode::Char('k') => self.scroll_by(page, |row| row.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.scroll_by(page, |row| row + 1),
            KeyCode::PageUp => self.scroll_by(page, |row| row.saturating_sub(page)),
            KeyCode::PageDown => self.scroll_by(page, |row| row + page),
            KeyCode::Home => self.scroll_by(page, |_| 0),
            KeyCode::End => self.scroll_by(page, |_| usize::MAX),
            _ => {}
        }
        Flow::Continue
    }

    fn focus_on(&mut self, position: usize) {
        if position < panes::COUNT {
            (self.focus, self.details) = (position, None);
        }
    }

    /// Shows all of the first row on the screen, if there is more to it.
    fn open(&mut self) {
        let row = self.scroll.get(self.focus).copied().unwrap_or(0);
        self.details = Some(row).filter(|row| !self.details_of(*row).is_empty());
    }

    /// All that is known of a row of the focused pane.
    pub(super) fn details_of(&self, row: usize) -> Vec<String> {
        match (panes::all().nth(self.focus), &self.snapshot) {
            (Some(pane), Some(snapshot)) => (pane.details)(snapshot, row),
            _ => Vec::new(),
        }
    }

    /// Moves the focused pane, whose last page is the end; or, with one row open, to another row.
    fn scroll_by(&mut self, page: usize, to: impl FnOnce(usize) -> usize) {
        let rows = self.tables.get(self.focus).map_or(0, |table| table.rows.len());
        if let Some(row) = self.details {
            self.details = Some(to(row).min(rows.saturating_sub(1)));
            return;
        }
        if let Some(scroll) = self.scroll.get_mut(self.focus) {
            *scroll = to(*scroll).min(rows.saturating_sub(page));
        }
    }
}
