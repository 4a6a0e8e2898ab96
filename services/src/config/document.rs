//! The text of `weft.toml` with its environment twins laid over it, checked key by key, and able to say where a key
//! stands.

use std::{collections::BTreeMap, path::Path};

use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};

use super::{
    ConfigError,
    key_path::{KeyPath, Step},
    schema::{self, Key, Shape},
};

/// Prefix of the names of environment variables for keys.
const VARIABLE_PREFIX: &str = "WEFT_";
/// Separator of the levels of a key in the name of its variable.
const VARIABLE_LEVEL: &str = "__";

/// A parsed file.
#[derive(Debug)]
pub struct Document {
    file: String,
    text: String,
    table: Table,
    /// The variables that have set a key.
    variables: BTreeMap<KeyPath, String>,
}

impl Document {
    /// Parses a file's text; its name is for messages.
    ///
    /// # Errors
    ///
    /// [`ConfigError::At`] when it is not TOML.
    pub fn parse(file: &Path, text: String) -> Result<Self, ConfigError> {
        let file = file.display().to_string();
        match text.parse::<Table>() {
            Ok(table) => Ok(Self { file, text, table, variables: BTreeMap::new() }),
            Err(error) => {
                let line = error.span().map(|span| line_of(&text, span.start));
                Err(ConfigError::At {
                    place: place(&file, line),
                    problem: error.message().lines().collect::<Vec<_>>().join(" "),
                })
            }
        }
    }

    /// Lays environment twins (`WEFT_GATEWAY__LISTEN`) over the file. Other variables are passed over.
    ///
    /// # Errors
    ///
    /// [`ConfigError::At`]: a twin of no key, or a text that is not what its key holds.
    pub fn overlay(&mut self, variables: impl IntoIterator<Item = (String, String)>) -> Result<(), ConfigError> {
        for (name, text) in variables {
            let Some(levels) = name.strip_prefix(VARIABLE_PREFIX).filter(|rest| rest.contains(VARIABLE_LEVEL)) else {
                continue;
            };
            let levels: Vec<String> = levels.split(VARIABLE_LEVEL).map(str::to_ascii_lowercase).collect();
            self.set(&name, &levels, &text).map_err(|problem| ConfigError::At { place: name.clone(), problem })?;
        }
        Ok(())
    }

    fn set(&mut self, variable: &str, levels: &[String], text: &str) -> Result<(), String> {
        let Some((last, sections)) = levels.split_last() else { return Ok(()) };
        let mut keys = schema::ROOT;
        let mut table = &mut self.table;
        let mut path = KeyPath::default();
        for section in sections {
            path = path.key(section);
            keys = match schema::find(keys, section).map(|key| key.shape) {
                Some(Shape::Table(keys)) => keys,
                Some(Shape::Tables(_)) => {
                    return Err(format!("[[{section}]] has no environment twins; write it into the file"));
                }
                Some(_) => return Err(format!("{path} is not a section")),
                None => return Err(unknown(keys, section, &path)),
            };
            let entry = table.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
            table = entry.as_table_mut().ok_or_else(|| format!("{path} is not a section in the file"))?;
        }
        path = path.key(last);
        let key = schema::find(keys, last).ok_or_else(|| unknown(keys, last, &path))?;
        let value = coerce(key.shape, text).map_err(|problem| format!("{path}: {problem}"))?;
        table.insert(last.clone(), value);
        self.variables.insert(path, variable.to_owned());
        Ok(())
    }

    /// Checks that every key is known and part of this version.
    ///
    /// # Errors
    ///
    /// [`ConfigError::At`]: the first that is not, with the nearest known name.
    pub fn check_keys(&self) -> Result<(), ConfigError> {
        check_table(schema::ROOT, &self.table, &KeyPath::default())
            .map_err(|(path, problem)| ConfigError::At { place: self.place(&path), problem })
    }

    /// The values.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Where a value stands: `weft.toml:12`, or the variable that set it. The nearest level that is there where the value
    /// itself is not.
    pub fn place(&self, path: &KeyPath) -> String {
        if let Some(variable) = self.variables.get(path) {
            return variable.clone();
        }
        let start = DeTable::parse(&self.text).ok().and_then(|root| nearest_start(root.get_ref(), path));
        place(&self.file, start.map(|start| line_of(&self.text, start)))
    }
}

/// The byte at which the value begins, or the nearest level above it that is there.
fn nearest_start(root: &DeTable<'_>, path: &KeyPath) -> Option<usize> {
    let mut start = None;
    let mut value = None;
    for step in path.steps() {
        let Some((next_start, next)) = step_into(root, value, step) else { break };
        start = Some(next_start);
        value = Some(next);
    }
    start
}

/// Where a step leads, and at which byte its key or element begins.
fn step_into<'t, 'i>(
    root: &'t DeTable<'i>,
    value: Option<&'t DeValue<'i>>,
    step: &Step,
) -> Option<(usize, &'t DeValue<'i>)> {
    match step {
        Step::Key(name) => {
            let table = match value {
                None => root,
                Some(value) => value.as_table()?,
            };
            let (key, value) = table.iter().find(|(key, _)| key.get_ref().as_ref() == name)?;
            Some((key.span().start, value.get_ref()))
        }
        Step::Index(index) => {
            let element = value?.as_array()?.get(*index)?;
            Some((element.span().start, element.get_ref()))
        }
    }
}

fn place(file: &str, line: Option<usize>) -> String {
    match line {
        Some(line) => format!("{file}:{line}"),
        None => file.to_owned(),
    }
}

/// The line, from 1, of a byte.
fn line_of(text: &str, byte: usize) -> usize {
    text.bytes().take(byte).filter(|byte| *byte == b'\n').count() + 1
}

fn unknown(keys: &'static [Key], name: &str, path: &KeyPath) -> String {
    match schema::nearest(keys, name) {
        Some(nearest) => format!("unknown key {path}; did you mean {nearest}?"),
        None => {
            let names: Vec<_> = keys.iter().map(|key| key.name).collect();
            format!("unknown key {path}; known here: {}", names.join(", "))
        }
    }
}

fn check_table(keys: &'static [Key], table: &Table, path: &KeyPath) -> Result<(), (KeyPath, String)> {
    for (name, value) in table {
        let path = path.key(name);
        let Some(key) = schema::find(keys, name) else {
            let problem = unknown(keys, name, &path);
            return Err((path, problem));
        };
        match (key.shape, value) {
            (Shape::Table(keys) | Shape::TextOrTable(keys), Value::Table(table)) => check_table(keys, table, &path)?,
            (Shape::Tables(keys), Value::Array(tables)) => {
                for (index, table) in tables.iter().enumerate() {
                    if let Value::Table(table) = table {
                        check_table(keys, table, &path.index(index))?;
                    }
                }
            }
            // A value of another type is refused by the typed options, which say what they want instead.
            _ => {}
        }
    }
    Ok(())
}

/// The value that a variable's text stands for.
fn coerce(shape: Shape, text: &str) -> Result<Value, String> {
    let text = text.trim();
    match shape {
        Shape::Text | Shape::Duration | Shape::Size | Shape::Rate | Shape::TextOrTable(_) => {
            Ok(Value::String(text.to_owned()))
        }
        Shape::Integer => text.parse().map(Value::Integer).map_err(|_| format!("{text:?} is not a whole number")),
        Shape::Float => text.parse().map(Value::Float).map_err(|_| format!("{text:?} is not a number")),
        Shape::Bool => text.parse().map(Value::Boolean).map_err(|_| format!("{text:?} is neither true nor false")),
        Shape::List => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Ok(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
        }
        Shape::Table(_) | Shape::Tables(_) | Shape::Map => Err("is a section; set one of its keys".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        Document::parse(Path::new("weft.toml"), text.to_owned()).unwrap()
    }

    fn overlaid(text: &str, name: &str, value: &str) -> Result<Document, String> {
        let mut document = document(text);
        document.overlay([(name.to_owned(), value.to_owned())]).map_err(|error| error.to_string())?;
        Ok(document)
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_one() {
        let error = document("data = \"x\"\n\n[gateway]\nlissten = \"127.0.0.1:1\"\n").check_keys().unwrap_err();
        assert_eq!(error.to_string(), "weft.toml:4: unknown key gateway.lissten; did you mean listen?");
        let text = "[[source]]\nname = \"a\"\n[[source]]\nname = \"b\"\nverify = { scheme = \"none\", secret = [] }\n";
        let error = document(text).check_keys().unwrap_err();
        assert_eq!(error.to_string(), "weft.toml:5: unknown key source[1].verify.secret; did you mean secrets?");
    }

    #[test]
    fn what_is_not_toml_is_one_line() {
        let error = Document::parse(Path::new("weft.toml"), "a = 1\nb = = 2\n".into()).unwrap_err().to_string();
        assert!(error.starts_with("weft.toml:2: "), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn environment_twins_take_the_type_of_their_key() {
        let shards = overlaid("[log]\nshards = 1\n", "WEFT_LOG__SHARDS", "4").unwrap();
        assert_eq!(shards.table()["log"]["shards"].as_integer(), Some(4));
        let password = overlaid("", "WEFT_NATS__PASSWORD", "0123").unwrap();
        assert_eq!(password.table()["nats"]["password"].as_str(), Some("0123"));
        let networks = overlaid("", "WEFT_WORKER__ALLOW_NETWORKS", "10.0.0.0/8, ::1/128").unwrap();
        assert_eq!(networks.table()["worker"]["allow_networks"].as_array().map(Vec::len), Some(2));
        assert!(overlaid("", "WEFT_LOG", "debug").unwrap().table().is_empty());
    }

    #[test]
    fn wrong_environment_twins_are_named() {
        let misspelt = overlaid("", "WEFT_GATEWAY__LISTN", "x").unwrap_err();
        assert_eq!(misspelt, "WEFT_GATEWAY__LISTN: unknown key gateway.listn; did you mean listen?");
        let mistyped = overlaid("", "WEFT_LOG__SHARDS", "many").unwrap_err();
        assert_eq!(mistyped, "WEFT_LOG__SHARDS: log.shards: \"many\" is not a whole number");
        assert!(overlaid("", "WEFT_SOURCE__NAME", "x").unwrap_err().contains("no environment twins"));
    }

    #[test]
    fn a_value_of_the_environment_is_placed_there() {
        let document = overlaid("[log]\nshards = 1\n", "WEFT_LOG__SHARDS", "4").unwrap();
        let log = KeyPath::default().key("log");
        assert_eq!(document.place(&log.key("shards")), "WEFT_LOG__SHARDS");
        assert_eq!(document.place(&log.key("replicas")), "weft.toml:1");
    }
}
