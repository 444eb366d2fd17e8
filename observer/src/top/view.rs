//! Draws the state. Above: the header; below: the keys; between: the panes, the focused one the tallest.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Clear, Paragraph, Wrap},
};

use super::{
    Table, Tone, header,
    panes::{self, Pane},
    state::State,
    text::fit,
};

/// Lines of the header.
const HEADER_ROWS: u16 = 3;

/// Lines of the keys.
const FOOTER_ROWS: u16 = 1;

/// Lines of a pane without focus where the terminal is small: its summary, its titles, its first row.
const PANE_ROWS_MIN: u16 = 3;

/// Lines that the focused pane needs before others get any.
const FOCUSED_ROWS_MIN: u16 = 6;

/// Lines of the focused pane that are no rows: name, summary (two), titles.
const FOCUSED_HEAD_ROWS: u16 = 4;

const HELP: &str = "\
tab, shift-tab, or its number  choose a pane
up, down, pgup, pgdn, home, end  scroll it
enter, right  all about the first row shown (findings); up, down: the next; enter, left: back
p  pause: keep what is shown
h  this help
q, esc, ctrl-c  quit

yellow: have a look; red: something is wrong
--once prints the tables, --once --json everything";

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let area = frame.area();
    let [top, middle, bottom] = Layout::vertical([
        Constraint::Length(HEADER_ROWS),
        Constraint::Min(0),
        Constraint::Length(FOOTER_ROWS),
    ])
    .areas(area);
    draw_header(frame, state, top);
    let heights = pane_heights(middle.height, panes::COUNT, state.focus);
    let areas = Layout::vertical(heights.into_iter().map(Constraint::Length)).split(middle);
    for (position, (pane, area)) in panes::all().zip(areas.iter()).enumerate() {
        if let Some(table) = state.tables.get(position) {
            draw_pane(frame, state, (position, &pane), table, *area);
        }
    }
    if let Some(row) = state.details {
        draw_details(frame, state, row, middle);
    }
    draw_footer(frame, state, bottom);
    if state.help {
        draw_help(frame, area);
    }
}

/// Rows that the focused pane shows on a terminal of this height.
pub(super) fn page_rows(height: u16) -> usize {
    let focused = pane_heights(height.saturating_sub(HEADER_ROWS + FOOTER_ROWS), panes::COUNT, 0);
    usize::from(focused.first().map_or(0, |rows| rows.saturating_sub(FOCUSED_HEAD_ROWS)))
}

/// Each pane without focus gets a sixth, the focused one the rest. Where that is too little for all, each gets its first
/// row, or just its summary; else the focused one gets all.
fn pane_heights(height: u16, panes: usize, focus: usize) -> Vec<u16> {
    let others = u16::try_from(panes.saturating_sub(1)).unwrap_or(u16::MAX);
    let fits = |rows: &u16| height >= others.saturating_mul(*rows).saturating_add(FOCUSED_ROWS_MIN);
    let wanted = [(height / 6).max(PANE_ROWS_MIN), PANE_ROWS_MIN, 1];
    let other = wanted.into_iter().find(fits).unwrap_or(0);
    let focused = height - others * other;
    (0..panes).map(|position| if position == focus { focused } else { other }).collect()
}

fn draw_header(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let mut lines = match &state.snapshot {
        Some(snapshot) => {
            header::lines(snapshot).map(|(text, tone)| Line::styled(text, style(tone))).to_vec()
        }
        None => vec![Line::raw("observer: waiting for the first snapshot")],
    };
    if let Some(trouble) = &state.trouble {
        lines.truncate(usize::from(HEADER_ROWS) - 1);
        lines.push(Line::styled(format!("no newer data: {trouble}"), style(Tone::Bad)));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_footer(frame: &mut Frame<'_>, state: &State, area: Rect) {
    let mut spans =
        vec![Span::raw("tab pane   arrows scroll   enter details   p pause   h help   q quit")];
    if state.paused {
        spans.insert(0, Span::styled(" PAUSED ", Style::new().add_modifier(Modifier::REVERSED)));
        spans.insert(1, Span::raw("   "));
    }
    frame.render_widget(Line::from(spans).style(Style::new().add_modifier(Modifier::DIM)), area);
}

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let panes: Vec<_> = panes::all()
        .zip(1..)
        .map(|(pane, number)| format!("{number} {}: {}", pane.name, pane.help))
        .collect();
    let text = format!("{HELP}\n\n{}", panes.join("\n"));
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: false }), area);
}

/// One row with all that is known of it.
fn draw_details(frame: &mut Frame<'_>, state: &State, row: usize, area: Rect) {
    let lines = state.details_of(row);
    let text = if lines.is_empty() { "it is gone".to_owned() } else { lines.join("\n") };
    let text = format!("row {}\n\n{}", row + 1, text);
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: false }), area);
}

fn draw_pane(
    frame: &mut Frame<'_>,
    state: &State,
    (position, pane): (usize, &Pane),
    table: &Table,
    area: Rect,
) {
    let focused = position == state.focus;
    let title = format!(" {} {} ", position + 1, pane.name);
    let title = Span::styled(title, style(table.tone()).add_modifier(Modifier::REVERSED));
    let summary_rows = if focused { FOCUSED_HEAD_ROWS - 2 } else { 0 };
    let [title_area, summary_area, table_area] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(summary_rows),
        Constraint::Min(0),
    ])
    .areas(area);
    if focused {
        frame.render_widget(
            Line::from(vec![title, Span::raw(place(state, position, table))]),
            title_area,
        );
        let summary = Paragraph::new(table.summary.as_str()).wrap(Wrap { trim: true });
        frame.render_widget(summary.style(Style::new().add_modifier(Modifier::BOLD)), summary_area);
    } else {
        frame.render_widget(
            Line::from(vec![title, Span::raw(" "), Span::raw(&table.summary)]),
            title_area,
        );
    }
    draw_rows(frame, table, state.scroll.get(position).copied().unwrap_or(0), table_area);
}

/// Where in a long table the focused pane stands.
fn place(state: &State, position: usize, table: &Table) -> String {
    match (table.rows.len(), state.scroll.get(position).copied().unwrap_or(0)) {
        (0, _) => String::new(),
        (rows, scroll) => format!(" from row {} of {rows}", (scroll + 1).min(rows)),
    }
}

fn draw_rows(frame: &mut Frame<'_>, table: &Table, scroll: usize, area: Rect) {
    let visible = usize::from(area.height.saturating_sub(1));
    let first = scroll.min(table.rows.len().saturating_sub(visible));
    let titles = table
        .columns
        .iter()
        .map(|(title, _)| (title.trim_start(), Style::new().add_modifier(Modifier::DIM)));
    let rows = table.rows.iter().skip(first).take(visible);
    let rows =
        rows.map(|row| line(table, row.iter().map(|cell| (cell.text.as_str(), style(cell.tone)))));
    let lines: Vec<_> = std::iter::once(line(table, titles)).chain(rows).collect();
    frame.render_widget(Paragraph::new(lines), area);
}

fn line<'a>(table: &Table, cells: impl Iterator<Item = (&'a str, Style)>) -> Line<'a> {
    let last = table.columns.len().saturating_sub(1);
    let mut spans = Vec::with_capacity(2 * table.columns.len());
    for (position, ((text, style), (title, width))) in cells.zip(table.columns).enumerate() {
        if position == last {
            spans.push(Span::styled(text, style));
        } else {
            spans.push(Span::styled(fit(text, usize::from(*width), title.starts_with(' ')), style));
            spans.push(Span::raw(" "));
        }
    }
    Line::from(spans)
}

fn style(tone: Tone) -> Style {
    match tone {
        Tone::Plain => Style::new(),
        Tone::Warn => Style::new().fg(Color::Yellow),
        Tone::Bad => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
    }
}
