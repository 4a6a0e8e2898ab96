//! Output of results: tables for people, JSON for programs.
//!
//! JSON has camelCase names and numbers as numbers. `jsonl` is one object a line, for any form of its payloads;
//! `json` is one array or object; `yaml` is the same in block style. Payloads are printed as they were sent: no number,
//! string or depth is changed. On a terminal, characters that control it or cannot be seen are escaped.

use std::io::{ErrorKind, IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, LineStyle, Table, TableStyle};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use serde::{Serialize, Serializer};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::{json, terminal};
use crate::failure::Failure;

/// A line below the headings and nothing else: easy to read, easy to copy.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));
/// Columns of free text: they alone are shortened where a table is wider than the terminal. Ids never are, so that they
/// can be copied; the other formats have the whole text.
const PROSE: [&str; 6] = ["WHY", "OUTCOME", "DETAIL", "LAST", "RECEIVER", "DESTINATION"];
/// The narrowest that a column of free text becomes, in characters.
const PROSE_CHARS_MIN: usize = 24;
/// Columns that a table leaves out where the terminal is too narrow for all, the first ones first. Ids and states stay.
const DISPENSABLE: [&str; 22] = [
    "CLIENT",
    "BYTES",
    "BODY",
    "ON ID REUSE",
    "SECRETS",
    "REVISION",
    "EPOCH",
    "COMMITTED",
    "SOURCE",
    "DELIVERY ID",
    "FIRST FAILED",
    "OPERATOR",
    "BEHIND",
    "SEQ",
    "ATTEMPTS",
    "TYPE",
    "NEXT ATTEMPT",
    "RECEIVED",
    "SINCE",
    "WHEN",
    "DEAD-LETTERED",
    "STARTED",
];

/// `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns.
    Table,
    /// One array or object.
    Json,
    /// One object a line.
    Jsonl,
    /// One document.
    Yaml,
}

impl Format {
    /// The requested format; else a table on a terminal and `jsonl` in a pipe.
    pub fn or_default(wanted: Option<Self>) -> Self {
        wanted.unwrap_or_else(|| if std::io::stdout().is_terminal() { Self::Table } else { Self::Jsonl })
    }
}

/// Something that is a row of a table.
pub trait Row: Serialize {
    /// The columns' names.
    const HEADINGS: &'static [&'static str];

    /// One cell a column.
    fn cells(&self) -> Vec<String>;
}

/// Prints a list. A reader of the output that has gone away is no failure of the command.
///
/// # Errors
///
/// When stdout cannot be written.
pub fn list<T: Row>(format: Format, rows: &[T]) -> Result<(), Failure> {
    unless_closed(match format {
        Format::Table if rows.is_empty() => {
            say("none");
            Ok(())
        }
        Format::Table => print(&table(T::HEADINGS, rows.iter().map(Row::cells))),
        Format::Json => print_json(&pretty(&rows)?),
        Format::Jsonl => rows.iter().try_for_each(|row| print_json(&compact(row)?)),
        Format::Yaml => print_json(&yaml(&rows)?),
    })
}

/// Prints one thing; `human` is what people get. A reader of the output that has gone away is no failure of the command.
///
/// # Errors
///
/// When stdout cannot be written.
pub fn one<T: Serialize>(format: Format, thing: &T, human: impl FnOnce() -> String) -> Result<(), Failure> {
    unless_closed(match format {
        Format::Table => print(&human()),
        Format::Json => print_json(&pretty(thing)?),
        Format::Jsonl => print_json(&compact(thing)?),
        Format::Yaml => print_json(&yaml(thing)?),
    })
}

/// Prints one of many things that come one by one, without end; `line` is what people get.
///
/// # Errors
///
/// [`Failure::Closed`] if the reader has closed the output, and other errors of stdout.
pub fn next<T: Serialize>(format: Format, thing: &T, line: impl FnOnce() -> String) -> Result<(), Failure> {
    match format {
        Format::Table => print(&line()),
        // An array without end would never be closed.
        Format::Json | Format::Jsonl => print_json(&compact(thing)?),
        Format::Yaml => print_json(&format!("---\n{}", yaml(thing)?)),
    }
}

/// Waits until the reader of stdout has gone away, as `head` does when it has enough. Commands without end wait for it: they
/// may have nothing to write for a long time.
pub async fn closed() {
    let waiting = tokio::task::spawn_blocking(|| {
        let stdout = std::io::stdout();
        // No events are asked for: the end of the reader is an error, which is always reported.
        let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
        loop {
            match poll(&mut watched, None) {
                Err(Errno::INTR) => {}
                polled => return polled.is_ok() && watched[0].revents().intersects(PollFlags::ERR | PollFlags::HUP),
            }
        }
    });
    if !matches!(waiting.await, Ok(true)) {
        // If that cannot be watched, a failed write shows it.
        std::future::pending::<()>().await;
    }
}

/// Prints a text that is complete in itself. A reader of the output that has gone away is no failure of the command.
///
/// # Errors
///
/// When stdout cannot be written.
pub fn text(text: &str) -> Result<(), Failure> {
    unless_closed(print(text))
}

fn unless_closed(result: Result<(), Failure>) -> Result<(), Failure> {
    match result {
        Err(Failure::Closed) => Ok(()),
        result => result,
    }
}

/// Prints a notice on stderr, in one line.
pub fn notice(text: &str) {
    say(&format!("weft: {text}"));
}

/// Writes a line to stderr. A closed stderr is no failure of the command.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", terminal::line(text));
}

/// Serializes named numbers as an object, in their order.
///
/// # Errors
///
/// The error of the serializer.
pub fn as_map<S: Serializer>(pairs: &[(&'static str, f64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().copied())
}

/// A table in the house style: a row a line. Where it is wider than the terminal, columns of free text are shortened.
pub fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let columns = std::io::stdout().is_terminal().then(|| Table::new().width()).flatten();
    table_within(headings, rows, columns.map(usize::from))
}

fn table_within(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>, columns: Option<usize>) -> String {
    let clean = |cells: Vec<String>| cells.iter().map(|cell| terminal::line(cell).into_owned()).collect::<Vec<_>>();
    let mut rows: Vec<Vec<String>> = rows.into_iter().map(clean).collect();
    let mut headings = headings.to_vec();
    let mut left_out = Vec::new();
    if let Some(columns) = columns {
        left_out = leave_out(&mut headings, &mut rows, columns);
        shorten(&headings, &mut rows, columns);
    }
    let mut table = Table::new();
    table.load_style(STYLE).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.iter().copied());
    table.add_rows(rows);
    // Cells are padded to their column's width, the last ones as well.
    let mut lines: Vec<_> = table.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
    if !left_out.is_empty() {
        lines.push(format!("(without {}; -o json has all)", left_out.join(", ")));
    }
    lines.join("\n")
}

/// Removes columns until a row fits into `columns` with its free text as short as it gets. Returns the removed headings.
fn leave_out(headings: &mut Vec<&str>, rows: &mut [Vec<String>], columns: usize) -> Vec<String> {
    let mut left_out = Vec::new();
    for heading in DISPENSABLE {
        if least_width(headings, rows) <= columns {
            break;
        }
        let Some(column) = headings.iter().position(|known| *known == heading) else { continue };
        headings.remove(column);
        rows.iter_mut().filter(|row| column < row.len()).for_each(|row| drop(row.remove(column)));
        left_out.push(heading.to_owned());
    }
    left_out
}

/// Width of a row whose free text is as short as it gets.
fn least_width(headings: &[&str], rows: &[Vec<String>]) -> usize {
    let width = |(column, heading): (usize, &&str)| {
        let widest = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width()).max().unwrap_or(0);
        let least = if PROSE.contains(heading) { widest.min(PROSE_CHARS_MIN) } else { widest };
        least.max(heading.width()) + 3
    };
    headings.iter().enumerate().map(width).sum()
}

/// Shortens the cells of free text so that a row fits into `columns`, but not below [`PROSE_CHARS_MIN`].
fn shorten(headings: &[&str], rows: &mut [Vec<String>], columns: usize) {
    let width =
        |column: usize| rows.iter().map(|row| row.get(column).map_or(0, |cell| cell.width())).max().unwrap_or(0);
    let widths: Vec<_> =
        headings.iter().enumerate().map(|(column, heading)| width(column).max(heading.width())).collect();
    let is_prose = |column: usize| headings.get(column).is_some_and(|heading| PROSE.contains(heading));
    // A space on each side of a cell, and one between cells.
    let total: usize = widths.iter().map(|width| width + 3).sum();
    let (prose, others): (Vec<_>, Vec<_>) = (0..headings.len()).partition(|column| is_prose(*column));
    if total <= columns || prose.is_empty() {
        return;
    }
    let taken: usize = others.iter().map(|column| widths[*column] + 3).sum();
    let each = (columns.saturating_sub(taken) / prose.len()).saturating_sub(3).max(PROSE_CHARS_MIN);
    for row in rows {
        for (column, cell) in row.iter_mut().enumerate() {
            if is_prose(column) && cell.width() > each {
                *cell = beginning(cell, each - 1);
            }
        }
    }
}

/// The beginning of a text that is at most `columns` wide, marked as cut. Some characters are two columns wide.
fn beginning(text: &str, columns: usize) -> String {
    let mut taken = 0;
    let fits = |char: &char| {
        taken += char.width().unwrap_or(0);
        taken <= columns
    };
    text.chars().take_while(fits).chain(['…']).collect()
}

/// Names and values, a line each.
pub fn fields<N: AsRef<str>>(rows: impl IntoIterator<Item = (N, String)>) -> String {
    let rows: Vec<_> = rows.into_iter().collect();
    let width = rows.iter().map(|(name, _)| name.as_ref().chars().count()).max().unwrap_or(0);
    let line = |(name, value): &(N, String)| format!("{:<width$}  {}", name.as_ref(), terminal::line(value));
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Writes lines for people to stdout.
fn print(text: &str) -> Result<(), Failure> {
    write(&terminal::lines(text))
}

/// Writes JSON or YAML to stdout.
fn print_json(text: &str) -> Result<(), Failure> {
    if std::io::stdout().is_terminal() { write(&terminal::lines(text)) } else { write(text) }
}

fn write(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{}", text.trim_end_matches('\n')).and_then(|()| stdout.flush());
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::Failed(format!("stdout: {error}")),
    })
}

fn pretty<T: Serialize>(thing: &T) -> Result<String, Failure> {
    serde_json::to_string_pretty(thing).map_err(|error| Failure::of(&error))
}

fn compact<T: Serialize>(thing: &T) -> Result<String, Failure> {
    let text = serde_json::to_string(thing).map_err(|error| Failure::of(&error))?;
    Ok(json::compact(&text).into_owned())
}

fn yaml<T: Serialize>(thing: &T) -> Result<String, Failure> {
    let text = serde_json::to_string(thing).map_err(|error| Failure::of(&error))?;
    Ok(json::yaml(&text))
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    #[derive(Serialize)]
    struct Thing<'a> {
        id: u32,
        data: &'a RawValue,
    }

    #[test]
    fn a_payload_of_several_lines_is_one_line_of_jsonl() {
        let data = serde_json::from_str("{\n  \"a\": 1.10,\r\n \"b\": \"x y\"\n}").unwrap();
        assert_eq!(compact(&Thing { id: 1, data }).unwrap(), r#"{"id":1,"data":{"a":1.10,"b":"x y"}}"#);
        assert_eq!(yaml(&Thing { id: 1, data }).unwrap(), "id: 1\ndata:\n  a: 1.10\n  b: \"x y\"\n");
    }

    #[test]
    fn tables_shorten_free_text_and_never_ids() {
        let id = "billing:adc8ac26-5f51-590c-a093-d32f0b5c22c7";
        let row = || vec![id.to_owned(), "no connection\u{1b}: ".repeat(20)];
        let wide = table_within(&["ID", "WHY"], [row()], None);
        assert!(wide.contains(&row()[1].trim_end().replace('\u{1b}', "\\u001b")), "{wide}");
        let narrow = table_within(&["ID", "WHY"], [row()], Some(80));
        let lines: Vec<_> = narrow.lines().collect();
        assert_eq!(lines.len(), 3, "{narrow}");
        assert!(lines[2].contains(id) && lines[2].ends_with('…') && lines[2].chars().count() <= 80, "{narrow}");
        let ids = table_within(&["ID", "WORKFLOW"], [vec![id.to_owned(), id.to_owned()]], Some(20));
        assert!(ids.lines().last().unwrap().contains(&format!("{id}   {id}")), "{ids}");
    }

    #[test]
    fn narrow_tables_leave_out_columns_and_name_them() {
        let id = "adc8ac26-5f51-590c-a093-d32f0b5c22c7";
        let row =
            || [id, "delivered", "order.paid", "shop", "answered 500 for some reason"].map(str::to_owned).to_vec();
        let headings = ["EVENT", "STATUS", "TYPE", "SOURCE", "LAST"];
        let wide = table_within(&headings, [row()], Some(140));
        assert!(wide.contains("order.paid") && wide.contains("shop") && !wide.contains("(without"), "{wide}");
        let narrow = table_within(&headings, [row()], Some(80));
        assert!(narrow.contains(id) && narrow.contains("delivered") && narrow.contains("answered"), "{narrow}");
        assert!(
            !narrow.contains("order.paid") && narrow.ends_with("(without SOURCE, TYPE; -o json has all)"),
            "{narrow}"
        );
    }

    /// Wide characters count as two columns: a line of them does not wrap either.
    #[test]
    fn wide_characters_fit_a_narrow_terminal() {
        let table = table_within(&["ID", "WHY"], [vec!["1".to_owned(), "注文".repeat(40)]], Some(60));
        assert!(table.lines().all(|line| line.width() <= 60) && table.ends_with('…'), "{table}");
    }

    #[test]
    fn fields_are_aligned() {
        let text = fields([("id", "a\u{202e}b".to_owned()), ("source", "shop".to_owned())]);
        assert_eq!(text, "id      a\\u202eb\nsource  shop");
    }
}
