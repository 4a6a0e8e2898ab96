//! The statements of a destination: inserts into a table, or the user's SQL with named parameters. Pure.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;
use weft_proto::v1;

/// Default table.
const TABLE: &str = "weft_events";
/// Table of the highest epoch of each shard that has written.
const FENCE: &str = "weft_fence";
/// Table of the events that the user's SQL was run for.
const DELIVERED: &str = "weft_delivered";
/// Name of the serial column.
const POSITION: &str = "position";
/// Largest statement.
const SQL_BYTES_MAX: usize = 64 * 1024;
/// Longest name of PostgreSQL.
const NAME_BYTES_MAX: usize = 63;
/// First words of statements that would end the transaction.
const TRANSACTION_WORDS: [&str; 9] =
    ["begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release", "prepare"];

/// A field of an event: a column of the table, or a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    EventId,
    WorkflowId,
    SequenceNumber,
    PreviousEventId,
    Type,
    Source,
    Time,
    ReceivedAt,
    Data,
}

impl Field {
    pub const ALL: [Self; 9] = [
        Self::EventId,
        Self::WorkflowId,
        Self::SequenceNumber,
        Self::PreviousEventId,
        Self::Type,
        Self::Source,
        Self::Time,
        Self::ReceivedAt,
        Self::Data,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::EventId => "event_id",
            Self::WorkflowId => "workflow_id",
            Self::SequenceNumber => "sequence_number",
            Self::PreviousEventId => "previous_event_id",
            Self::Type => "type",
            Self::Source => "source",
            Self::Time => "time",
            Self::ReceivedAt => "received_at",
            Self::Data => "data",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }

    /// Type of its parameter.
    pub const fn sql_type(self) -> Type {
        match self {
            Self::EventId | Self::PreviousEventId => Type::UUID,
            Self::WorkflowId | Self::Type | Self::Source => Type::TEXT,
            Self::SequenceNumber => Type::INT8,
            Self::Time | Self::ReceivedAt => Type::TIMESTAMPTZ,
            Self::Data => Type::JSONB,
        }
    }

    const fn definition(self) -> &'static str {
        match self {
            Self::EventId => "uuid PRIMARY KEY",
            Self::PreviousEventId => "uuid",
            Self::WorkflowId | Self::Type | Self::Source => "text NOT NULL",
            Self::SequenceNumber => "bigint NOT NULL",
            Self::Time | Self::ReceivedAt => "timestamptz NOT NULL",
            Self::Data => "jsonb",
        }
    }
}

/// True in a transaction of ours. Statements are sent without waiting for the start of their transaction: should that fail,
/// they have no effect, where each would otherwise be a separate transaction, without the fence.
pub(super) const IN_TRANSACTION: &str = "current_setting('weft.transaction', true) = 'on'";

/// Effect of an event.
#[derive(Debug, Clone)]
pub(super) enum Effect {
    /// A row of a table.
    Insert(TableInsert),
    /// The user's statement.
    Sql(UserSql),
}

impl Effect {
    /// The statement for one event, and the field of each of its parameters.
    pub fn planned(&self) -> (String, Vec<Field>) {
        match self {
            Self::Insert(insert) => (insert.single(), insert.fields().collect()),
            Self::Sql(sql) => (sql.text.clone(), sql.fields.clone()),
        }
    }
}

/// Inserts into a table, each event once by its id.
#[derive(Debug, Clone)]
pub(super) struct TableInsert {
    table: String,
    /// Fields that have a column, with its name in quotes.
    columns: Vec<(Field, String)>,
}

/// The user's statement, with numbered parameters.
#[derive(Debug, Clone)]
pub(super) struct UserSql {
    pub text: String,
    /// The field of each parameter.
    pub fields: Vec<Field>,
}

/// The statements of a destination.
#[derive(Debug, Clone)]
pub(super) struct Statements {
    pub effect: Effect,
    /// Names in quotes.
    pub fence: String,
    pub delivered: String,
    /// Statements that create the tables that are missing.
    pub create: Vec<String>,
}

impl Statements {
    /// The statements of a destination.
    ///
    /// # Errors
    ///
    /// The problem and the fix, in one line.
    pub fn new(postgres: &v1::PostgresDestination) -> Result<Self, String> {
        let sql = postgres.sql.trim();
        if !sql.is_empty() && (!postgres.table.is_empty() || !postgres.columns.is_empty()) {
            return Err("table and columns do not go with sql, which names its own".into());
        }
        let table = if postgres.table.is_empty() { TABLE } else { postgres.table.as_str() };
        let (schema, name) = table_name(table)?;
        let qualified = |name: &str| format!("{schema}{}", quoted(name));
        let (fence, delivered) = (qualified(FENCE), qualified(DELIVERED));
        let mut create = vec![format!(
            "CREATE TABLE IF NOT EXISTS {fence} (subscription uuid, shard integer, epoch bigint NOT NULL, \
             PRIMARY KEY (subscription, shard))"
        )];
        let effect = if sql.is_empty() {
            let (insert, definition) = table_insert(qualified(name), &postgres.columns)?;
            create.insert(0, definition);
            Effect::Insert(insert)
        } else {
            create.push(format!(
                "CREATE TABLE IF NOT EXISTS {delivered} (subscription uuid, event_id uuid, \
                 delivered_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (subscription, event_id))"
            ));
            Effect::Sql(user_sql(sql)?)
        };
        Ok(Self { effect, fence, delivered, create })
    }
}

impl TableInsert {
    pub fn fields(&self) -> impl Iterator<Item = Field> + '_ {
        self.columns.iter().map(|(field, _)| *field)
    }

    /// A statement that is never run: its parameters have the types of the columns.
    pub fn probe(&self) -> String {
        let values = (1..=self.columns.len()).map(|number| format!("${number}"));
        format!(
            "INSERT INTO {} ({}) VALUES ({})",
            self.table,
            self.column_list(),
            values.collect::<Vec<_>>().join(", ")
        )
    }

    /// The statement for one event.
    fn single(&self) -> String {
        format!("{} ON CONFLICT ({}) DO NOTHING", self.probe(), self.event_id_column())
    }

    /// Inserts any number of events, in order: each parameter is an array of one column's values.
    pub fn batched(&self, types: &[Type]) -> String {
        let arrays = types
            .iter()
            .enumerate()
            .map(|(index, column)| format!("${}::{}.{}[]", index + 1, quoted(column.schema()), quoted(column.name())));
        format!(
            "INSERT INTO {} ({}) SELECT * FROM unnest({}) WHERE {IN_TRANSACTION} ON CONFLICT ({}) DO NOTHING",
            self.table,
            self.column_list(),
            arrays.collect::<Vec<_>>().join(", "),
            self.event_id_column(),
        )
    }

    fn event_id_column(&self) -> String {
        let event_id = self.columns.iter().find(|(field, _)| *field == Field::EventId);
        event_id.map_or_else(|| quoted(Field::EventId.name()), |(_, column)| column.clone())
    }

    fn column_list(&self) -> String {
        self.columns.iter().map(|(_, column)| column.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// The insert, and the statement that creates its table.
fn table_insert(table: String, renamed: &[v1::PostgresColumn]) -> Result<(TableInsert, String), String> {
    let mut names = BTreeMap::new();
    for v1::PostgresColumn { field, column } in renamed {
        if field != POSITION && Field::of_name(field).is_none() {
            return Err(format!("columns: {field:?} is no field; known: {POSITION}, {}", known(", ", "")));
        }
        if names.insert(field.as_str(), column.as_str()).is_some() {
            return Err(format!("columns: {field:?} is named twice"));
        }
        if !column.is_empty() {
            check_name(column).map_err(|problem| format!("columns: {problem}"))?;
        }
    }
    let name_of = |field: &'static str| names.get(field).copied().unwrap_or(field);
    if name_of(Field::EventId.name()).is_empty() {
        return Err("columns: event_id needs a column, with a unique index: by it each event is inserted once".into());
    }
    let mut definitions = Vec::new();
    if !name_of(POSITION).is_empty() {
        definitions.push(format!("{} bigserial", quoted(name_of(POSITION))));
    }
    let mut columns = Vec::new();
    for field in Field::ALL {
        let name = name_of(field.name());
        if name.is_empty() {
            continue;
        }
        if columns.iter().any(|(_, other)| *other == quoted(name)) {
            return Err(format!("columns: two fields have the column {name:?}"));
        }
        definitions.push(format!("{} {}", quoted(name), field.definition()));
        columns.push((field, quoted(name)));
    }
    let definition = format!("CREATE TABLE IF NOT EXISTS {table} ({})", definitions.join(", "));
    Ok((TableInsert { table, columns }, definition))
}

/// The schema in quotes with its dot, or nothing; and the table.
fn table_name(name: &str) -> Result<(String, &str), String> {
    let (schema, table) = match name.split_once('.') {
        Some((schema, table)) => (Some(schema), table),
        None => (None, name),
    };
    if let Some(schema) = schema {
        check_name(schema).map_err(|problem| format!("table: {problem}"))?;
    }
    if table.contains('.') {
        return Err(format!("table: {name:?} has more than one dot; write schema.table"));
    }
    check_name(table).map_err(|problem| format!("table: {problem}"))?;
    Ok((schema.map_or_else(String::new, |schema| format!("{}.", quoted(schema))), table))
}

fn check_name(name: &str) -> Result<(), String> {
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(format!("{name:?} is not a name of 1 to {NAME_BYTES_MAX} bytes"))
}

/// An identifier in quotes: it is taken as it is written, upper case included.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn known(separator: &str, prefix: &str) -> String {
    Field::ALL.map(|field| format!("{prefix}{}", field.name())).join(separator)
}

/// The user's statement with `$1` for the first named parameter and so on.
fn user_sql(sql: &str) -> Result<UserSql, String> {
    if sql.len() > SQL_BYTES_MAX {
        return Err(format!("sql is longer than {} KiB; call a function", SQL_BYTES_MAX / 1024));
    }
    let first = sql.split(|character: char| !character.is_ascii_alphabetic()).next().unwrap_or_default();
    if TRANSACTION_WORDS.iter().any(|word| first.eq_ignore_ascii_case(word)) {
        return Err(format!("sql: {first} is not allowed: the statement runs in a transaction of Weft's"));
    }
    let mut text = String::with_capacity(sql.len());
    let mut fields = Vec::new();
    let mut rest = sql;
    while let Some(character) = rest.chars().next() {
        let length = skipped(rest, text.chars().next_back()).unwrap_or_else(|| match character {
            // A cast or an assignment.
            ':' if rest[1..].starts_with([':', '=']) => 2,
            _ => 0,
        });
        if length > 0 {
            text.push_str(&rest[..length]);
            rest = &rest[length..];
            continue;
        }
        rest = &rest[character.len_utf8()..];
        if character == '$' && rest.starts_with(|next: char| next.is_ascii_digit()) {
            return Err(format!("sql: numbered parameters are not used; known: {}", known(", ", ":")));
        }
        let name_length = rest.find(|next: char| !(next.is_ascii_alphanumeric() || next == '_')).unwrap_or(rest.len());
        if character != ':' || name_length == 0 || rest.starts_with(|next: char| next.is_ascii_digit()) {
            text.push(character);
            continue;
        }
        let (name, after) = rest.split_at(name_length);
        let field =
            Field::of_name(name).ok_or_else(|| format!("sql: :{name} is no parameter; known: {}", known(", ", ":")))?;
        let index = fields.iter().position(|other| *other == field).unwrap_or_else(|| {
            fields.push(field);
            fields.len() - 1
        });
        text.push_str(&format!("${}", index + 1));
        rest = after;
    }
    Ok(UserSql { text, fields })
}

/// Length of the literal, quoted name or comment that `text` starts with; `None`: it starts with none.
fn skipped(text: &str, before: Option<char>) -> Option<usize> {
    let end_of = |from: usize, end: &str| text[from..].find(end).map_or(text.len(), |at| from + at + end.len());
    if text.starts_with("--") {
        return Some(end_of(2, "\n"));
    }
    if text.starts_with("/*") {
        return Some(comment(text));
    }
    let in_word = before.is_some_and(|before| before.is_alphanumeric() || before == '_' || before == '$');
    let escaped = text.starts_with(['e', 'E']) && text[1..].starts_with('\'') && !in_word;
    if escaped {
        return Some(1 + literal(&text[1..], '\'', true));
    }
    match text.chars().next()? {
        '\'' => Some(literal(text, '\'', false)),
        '"' => Some(literal(text, '"', false)),
        '$' if !in_word => {
            let tag_end = text[1..].find('$')? + 2;
            let tag = &text[..tag_end];
            let is_tag = tag[1..tag_end - 1].chars().all(|character| character.is_alphanumeric() || character == '_')
                && !tag[1..].starts_with(|character: char| character.is_ascii_digit());
            is_tag.then(|| end_of(tag_end, tag))
        }
        _ => None,
    }
}

/// Length of a literal in quotes; two quotes stand for one.
fn literal(text: &str, quote: char, backslash: bool) -> usize {
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, character)) = chars.next() {
        if backslash && character == '\\' {
            chars.next();
        } else if character == quote && chars.next_if(|(_, next)| *next == quote).is_none() {
            return at + 1;
        }
    }
    text.len()
}

/// Length of a comment; comments nest.
fn comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(sql: &str) -> (String, Vec<Field>) {
        let UserSql { text, fields } = user_sql(sql).unwrap();
        (text, fields)
    }

    #[test]
    fn named_parameters_become_numbered_ones() {
        let (text, fields) = numbered("INSERT INTO o VALUES (:workflow_id, :data->>'x', :workflow_id::uuid)");
        assert_eq!(text, "INSERT INTO o VALUES ($1, $2->>'x', $1::uuid)");
        assert_eq!(fields, [Field::WorkflowId, Field::Data]);
        for unchanged in [
            "SELECT ':data', \":data\", $$:data$$, $a$ :data $$ $a$, E'\\':data', 'it''s :data'",
            "SELECT 1 -- :data\n, 2 /* :data /* :data */ :data */",
            "SELECT x::data, f(a := 1), b[1 : 2], 'é:data'",
        ] {
            assert_eq!(numbered(unchanged), (unchanged.to_owned(), vec![]));
        }
        assert_eq!(numbered("SELECT e':type' || :type").0, "SELECT e':type' || $1");
        assert_eq!(numbered("SELECT name':type', :type").0, "SELECT name':type', $1");
    }

    #[test]
    fn what_no_statement_of_a_delivery_can_be_is_refused() {
        for (sql, named) in [
            ("SELECT :order_id", ":order_id is no parameter"),
            ("SELECT $1", "numbered parameters"),
            ("COMMIT", "COMMIT is not allowed"),
            ("rollback; DROP TABLE x", "rollback is not allowed"),
        ] {
            let problem = user_sql(sql).unwrap_err();
            assert!(problem.contains(named), "{sql}: {problem}");
        }
        for (table, columns, named) in [
            ("a.b.c", vec![], "more than one dot"),
            ("", vec![("event_id", "")], "event_id needs a column"),
            ("", vec![("nonsense", "x")], "no field"),
            ("", vec![("data", "type")], "two fields"),
            ("", vec![("data", "a"), ("data", "b")], "named twice"),
        ] {
            let columns = columns
                .into_iter()
                .map(|(field, column): (&str, &str)| v1::PostgresColumn { field: field.into(), column: column.into() });
            let postgres =
                v1::PostgresDestination { table: table.into(), columns: columns.collect(), ..Default::default() };
            let problem = Statements::new(&postgres).unwrap_err();
            assert!(problem.contains(named), "{problem}");
        }
        let both = v1::PostgresDestination { table: "t".into(), sql: "SELECT 1".into(), ..Default::default() };
        assert!(Statements::new(&both).is_err());
    }

    #[test]
    fn names_are_quoted_and_columns_are_renamed() {
        let columns = [("position", ""), ("event_id", "id"), ("previous_event_id", ""), ("data", "Body \"x\"")];
        let columns = columns.map(|(field, column)| v1::PostgresColumn { field: field.into(), column: column.into() });
        let postgres =
            v1::PostgresDestination { table: "app.events".into(), columns: columns.into(), ..Default::default() };
        let statements = Statements::new(&postgres).unwrap();
        let Effect::Insert(insert) = &statements.effect else { panic!("{statements:?}") };
        assert_eq!(
            insert.batched(&[Type::UUID, Type::TEXT]),
            "INSERT INTO \"app\".\"events\" (\"id\", \"workflow_id\", \"sequence_number\", \"type\", \"source\", \
             \"time\", \"received_at\", \"Body \"\"x\"\"\") SELECT * FROM unnest($1::\"pg_catalog\".\"uuid\"[], \
             $2::\"pg_catalog\".\"text\"[]) WHERE current_setting('weft.transaction', true) = 'on' \
             ON CONFLICT (\"id\") DO NOTHING"
        );
        assert_eq!(statements.fence, "\"app\".\"weft_fence\"");
        assert!(!statements.create[0].contains("bigserial"), "{:?}", statements.create);
    }
}
