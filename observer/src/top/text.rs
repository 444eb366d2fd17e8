//! `observer top --once`: the same tables as plain text.

use super::{Table, header, panes};
use crate::snapshot::Snapshot;

/// Rows printed of each table; the JSON form has all.
const ROWS_MAX: usize = 20;

/// Header, and a table each pane with the details of its rows.
pub(super) fn render(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    for (line, _) in header::lines(snapshot) {
        text += &clean(&line);
        text.push('\n');
    }
    for pane in panes::all() {
        let shown = (pane.table)(snapshot);
        text += &table(pane.name, &shown);
        for row in 0..shown.rows.len().min(ROWS_MAX) {
            text += &details(&(pane.details)(snapshot, row));
        }
    }
    text
}

/// The first line as a title, those below it indented. One line alone says no more than its row.
fn details(lines: &[String]) -> String {
    let mut text = String::new();
    let lines = if lines.len() > 1 { lines } else { &[] };
    for (position, line) in lines.iter().enumerate() {
        text += if position == 0 { "\n" } else { "  " };
        text += &clean(line);
        text.push('\n');
    }
    text
}

fn table(name: &str, table: &Table) -> String {
    let mut text = format!("\n{name}: {}\n", clean(&table.summary));
    if table.rows.is_empty() {
        return text;
    }
    text += &line(table, table.columns.iter().map(|(title, _)| title.trim_start()));
    for row in table.rows.iter().take(ROWS_MAX) {
        text += &line(table, row.iter().map(|cell| cell.text.as_str()));
    }
    if table.rows.len() > ROWS_MAX {
        text += &format!("... and {} more (--once --json has all)\n", table.rows.len() - ROWS_MAX);
    }
    text
}

fn line<'a>(table: &Table, cells: impl Iterator<Item = &'a str>) -> String {
    let last = table.columns.len().saturating_sub(1);
    let mut text = String::new();
    for (position, (cell, (title, width))) in cells.zip(table.columns).enumerate() {
        let cell = clean(cell);
        text += &if position == last {
            cell
        } else {
            fit(&cell, usize::from(*width), title.starts_with(' ')) + " "
        };
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// The text in exactly `width` characters.
pub(super) fn fit(text: &str, width: usize, to_the_right: bool) -> String {
    let cut = text.chars().count() > width;
    let text: String = text
        .chars()
        .take(if cut { width.saturating_sub(1) } else { width })
        .chain(cut.then_some('…'))
        .collect();
    if to_the_right { format!("{text:>width$}") } else { format!("{text:<width$}") }
}

/// A process may give itself a name that commands the terminal.
fn clean(text: &str) -> String {
    text.replace(char::is_control, "?")
}
