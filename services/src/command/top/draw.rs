//! The state of `weft top` on the screen. Pure.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::Line,
    widgets::{Paragraph, Row, Table, TableState, Tabs},
};

use super::app::{App, View};
use crate::command::{
    stats::{Latencies, Percentiles, Stats, bytes, seconds},
    terminal,
};

const KEYS: &str = "q quit  tab/1/2/3 view  ↑↓ select  s sort  r reverse  / filter  enter event  p period";
const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, app: &App) {
    let parts =
        Layout::vertical([Constraint::Length(4), Constraint::Length(1), Constraint::Min(1), Constraint::Length(1)]);
    let [summary, tabs, list, keys] = parts.areas(frame.area());
    frame.render_widget(Paragraph::new(header(app)), summary);
    let at = View::ALL.iter().position(|view| *view == app.view);
    let titles = View::ALL.map(|view| {
        if view == View::Lanes { format!("{} ({})", view.name(), app.stuck()) } else { view.name().to_owned() }
    });
    frame.render_widget(Tabs::new(titles).select(at).highlight_style(REVERSED), tabs);
    match &app.open {
        Some((text, above)) => {
            let lines = text.lines().skip(*above).map(|line| Line::raw(terminal::line(line).into_owned()));
            frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), list);
        }
        None => draw_rows(frame, app, list),
    }
    frame.render_widget(Paragraph::new(footer(app)), keys);
}

fn header(app: &App) -> Vec<Line<'static>> {
    let Some(stats) = app.current() else { return vec![Line::raw("waiting for the admin …")] };
    let length = stats.length();
    let rate = |count: u64| format!("{:.1}/s", count as f64 / length);
    let total = stats.total;
    let period = seconds(app.period().as_secs_f64());
    let rates = format!(
        "weft  last {period}  accepted {}  delivered {}  refused {}  retries {}  dead letters {}",
        rate(total.accepted),
        rate(total.delivered),
        rate(total.rejected),
        rate(total.retried),
        total.dead_lettered,
    );
    let Latencies { accept, wait, deliver, total } = stats.latencies;
    let stages = [("accept", accept), ("wait", wait), ("deliver", deliver), ("total", total)].map(stage).join("   ");
    vec![
        Line::styled(rates, BOLD),
        Line::raw(stages),
        Line::raw(streams(stats)),
        Line::styled(app.problem.clone(), BOLD),
    ]
}

fn stage((name, durations): (&str, Percentiles)) -> String {
    if durations.count == 0 {
        return format!("{name} -");
    }
    format!("{name} p50 {} p99 {}", seconds(durations.p50_seconds), seconds(durations.p99_seconds))
}

fn streams(stats: &Stats) -> String {
    let shown = stats.streams.iter().map(|stream| match stream.bytes_max {
        Some(max) => format!("{} {:.0} % of {}", stream.stream, stream.bytes as f64 * 100.0 / max as f64, bytes(max)),
        None => format!("{} {}", stream.stream, bytes(stream.bytes)),
    });
    shown.collect::<Vec<_>>().join("   ")
}

fn draw_rows(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let rows = app.rows();
    let headings = app.view.headings();
    let width = |column: usize, heading: &str| {
        let cells = rows.iter().filter_map(|row| row.cells.get(column)).map(|cell| cell.chars().count());
        cells.max().unwrap_or(0).max(heading.len() + 1)
    };
    let last = headings.len().saturating_sub(1);
    let constraint = |(column, heading): (usize, &&str)| {
        let wanted = u16::try_from(width(column, heading)).unwrap_or(u16::MAX);
        // The last column is free text: it has what is left.
        if column == last { Constraint::Fill(1) } else { Constraint::Length(wanted) }
    };
    let widths: Vec<_> = headings.iter().enumerate().map(constraint).collect();
    let sign = if app.descending { "▼" } else { "▲" };
    let heading = headings
        .iter()
        .enumerate()
        .map(|(column, heading)| if column == app.sort { format!("{heading}{sign}") } else { (*heading).to_owned() });
    let heading = Row::new(heading.collect::<Vec<_>>()).style(BOLD);
    let shown = rows
        .iter()
        .map(|row| Row::new(row.cells.iter().map(|cell| terminal::line(cell).into_owned()).collect::<Vec<_>>()));
    let table = Table::new(shown, widths).header(heading).column_spacing(2).row_highlight_style(REVERSED);
    let mut state = TableState::default().with_selected((!rows.is_empty()).then_some(app.selected));
    frame.render_stateful_widget(table, area, &mut state);
}

fn footer(app: &App) -> Line<'static> {
    if app.is_typing {
        return Line::styled(format!("filter: {}▏  enter keeps it, esc clears it", app.filter), BOLD);
    }
    if app.filter.is_empty() { Line::raw(KEYS) } else { Line::raw(format!("filter: {}  {KEYS}", app.filter)) }
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend, crossterm::event::KeyCode};

    use super::*;
    use crate::command::top::app::tests::app;

    fn screen(app: &App, columns: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(columns, 14)).unwrap();
        terminal.draw(|frame| draw(frame, app)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let line = |row| (0..columns).map(|column| buffer[(column, row)].symbol().to_owned()).collect::<String>();
        (0..14).map(line).map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_screen_shows_rates_and_rows() {
        let mut app = app();
        let text = screen(&app, 120);
        for part in ["accepted 10.0/s", "delivered 5.0/s", "stuck lanes (2)", "audit", "90", "q quit"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        app.key(KeyCode::Char('2').into());
        assert!(screen(&app, 120).contains("order-1"));
        app.open("evil\u{202e}text\nsecond line".into());
        let text = screen(&app, 120);
        assert!(text.contains("second line") && !text.contains('\u{202e}'), "{text}");
    }

    /// Any size of terminal is drawn.
    #[test]
    fn a_narrow_screen_is_drawn() {
        for columns in [1, 10, 40, 60] {
            screen(&app(), columns);
        }
    }
}
