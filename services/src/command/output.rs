//! How results are printed: tables for people, JSON for programs.
//!
//! JSON has camelCase names and numbers as numbers. `jsonl` is one object a line, `json` one array or object.

use std::io::{IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, LineStyle, Table, TableStyle};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::exit::Failure;

/// A line below the headings and nothing else: easy to read, easy to copy.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

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
    /// What was asked for; else a table on a terminal and `jsonl` in a pipe.
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

/// Prints a list.
///
/// # Errors
///
/// When stdout is gone.
pub fn list<T: Row>(format: Format, rows: &[T]) -> Result<(), Failure> {
    match format {
        Format::Table => print(&table(T::HEADINGS, rows.iter().map(Row::cells)).to_string()),
        Format::Json => print(&pretty(&rows)?),
        Format::Jsonl => rows.iter().try_for_each(|row| print(&compact(row)?)),
        Format::Yaml => print(&yaml(&rows)?),
    }
}

/// Prints one thing; `human` is what people get.
///
/// # Errors
///
/// When stdout is gone.
pub fn one<T: Serialize>(format: Format, thing: &T, human: impl FnOnce() -> String) -> Result<(), Failure> {
    match format {
        Format::Table => print(&human()),
        Format::Json => print(&pretty(thing)?),
        Format::Jsonl => print(&compact(thing)?),
        Format::Yaml => print(&yaml(thing)?),
    }
}

/// Prints one of many things that come one by one, without end; `line` is what people get.
///
/// # Errors
///
/// When stdout is gone.
pub fn next<T: Serialize>(format: Format, thing: &T, line: impl FnOnce() -> String) -> Result<(), Failure> {
    match format {
        Format::Table => print(&line()),
        // An array without end would never be closed.
        Format::Json | Format::Jsonl => print(&compact(thing)?),
        Format::Yaml => print(&format!("---\n{}", yaml(thing)?)),
    }
}

/// Serializes named numbers as an object, in their order.
///
/// # Errors
///
/// What the serializer says.
pub fn as_map<S: Serializer>(pairs: &[(&'static str, f64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().copied())
}

/// A table in the house style.
pub fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(headings.iter().copied());
    table.add_rows(rows);
    table
}

/// Writes a line to stdout.
///
/// # Errors
///
/// When stdout is gone, as after `| head`.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush());
    written.map_err(|error| Failure::Failed(format!("stdout: {error}")))
}

fn pretty<T: Serialize>(thing: &T) -> Result<String, Failure> {
    serde_json::to_string_pretty(thing).map_err(|error| Failure::of(&error))
}

fn compact<T: Serialize>(thing: &T) -> Result<String, Failure> {
    serde_json::to_string(thing).map_err(|error| Failure::of(&error))
}

fn yaml<T: Serialize>(thing: &T) -> Result<String, Failure> {
    let value = serde_json::to_value(thing).map_err(|error| Failure::of(&error))?;
    let mut text = String::new();
    write_yaml(&value, 0, &mut text);
    Ok(text)
}

/// Block style for what has members, JSON (which YAML includes) for everything else.
fn write_yaml(value: &Value, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, member) in members {
                out.push_str(&format!("{indent}{name}:"));
                write_yaml_member(member, depth + 1, out);
            }
        }
        Value::Array(elements) if !elements.is_empty() => {
            for element in elements {
                let start = out.len();
                write_yaml(element, depth + 1, out);
                // The element's first line carries the dash instead of its last two spaces.
                out.replace_range(start..start + indent.len() + 2, &format!("{indent}- "));
            }
        }
        scalar => out.push_str(&format!("{indent}{scalar}\n")),
    }
}

fn write_yaml_member(value: &Value, depth: usize, out: &mut String) {
    let nested = value.as_object().is_some_and(|members| !members.is_empty())
        || value.as_array().is_some_and(|elements| !elements.is_empty());
    if nested {
        out.push('\n');
        write_yaml(value, depth, out);
    } else {
        out.push_str(&format!(" {value}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_nests_by_indentation() {
        let value = serde_json::json!({"id": "a:b", "n": 7, "none": [], "list": [{"x": 1, "y": [2, 3]}, "s"]});
        let text = "id: \"a:b\"\nlist:\n  - x: 1\n    y:\n      - 2\n      - 3\n  - \"s\"\nn: 7\nnone: []\n";
        assert_eq!(yaml(&value).unwrap(), text);
    }
}
