//! The terminal, given back as it was however the program ends.

use std::io::{self, IsTerminal};

use anyhow::{Context, bail};
use ratatui::{DefaultTerminal, Frame};

use super::view;

/// An alternate screen in raw mode. Dropping it restores the terminal; a panic does too, through the hook that
/// [`ratatui::try_init`] installs, since the release build aborts without dropping.
pub(super) struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    pub(super) fn open() -> anyhow::Result<Self> {
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            bail!(
                "`observer top` needs a terminal; use `observer top --once` in scripts and pipes"
            );
        }
        Ok(Self { terminal: ratatui::try_init().context("cannot set up the terminal")? })
    }

    pub(super) fn draw(&mut self, render: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(render).map(|_| ())
    }

    /// Rows that the focused pane shows, to scroll by.
    pub(super) fn page_rows(&self) -> io::Result<usize> {
        self.terminal.size().map(|size| view::page_rows(size.height))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}
