//! `observer top`: the snapshot on a terminal.

/// One cell of a [`Table`].
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// What is shown.
    pub text: String,
    /// How urgent it looks.
    pub tone: Tone,
}

/// How urgent a cell looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tone {
    /// As usual.
    #[default]
    Plain,
    /// Somebody should look.
    Warn,
    /// Something is wrong.
    Bad,
}

/// A signal's pane: a summary line and rows under titled columns.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// One line above the rows.
    pub summary: String,
    /// Titles and widths in characters; the last column takes what is left.
    pub columns: &'static [(&'static str, u16)],
    /// Rows, as many cells as columns.
    pub rows: Vec<Vec<Cell>>,
}
