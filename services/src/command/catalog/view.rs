//! Entries as the commands print them: fields as `weft.toml` calls them, in camelCase for programs.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;
use weft_catalog::{entry::Entry, fields::Field, keys::scope_name};
use weft_proto::v1;

use crate::command::{
    output::{self, Row},
    view::{Receiver, Time, when},
};

/// Fields that only programs get: nothing that an operator types or reads depends on them.
const INTERNAL: [&str; 2] = ["uid", "starts"];

/// An entry: what it says, and what the catalog knows of it.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Shown {
    value: Map<String, Value>,
    /// The fields, for people.
    #[serde(skip)]
    rows: Vec<(String, String)>,
}

impl Shown {
    fn new<T: Entry>(head: &[(&str, Value)], entry: &T, tail: &[(&str, Value)]) -> Self {
        let field = |(key, value): &(&str, Value)| Field { key: (*key).to_owned(), value: value.clone() };
        let fields = head.iter().map(field).chain(entry.fields()).chain(tail.iter().map(field));
        let mut shown = Self { value: Map::new(), rows: Vec::new() };
        for Field { key, value } in fields.filter(|field| !field.value.is_null()) {
            if !INTERNAL.contains(&key.as_str()) {
                shown.rows.push((key.clone(), text_of(&key, &value)));
            }
            let levels: Vec<_> = key.split('.').collect();
            put(&mut shown.value, &levels, value);
        }
        shown
    }

    /// With another field, such as a key that is shown once.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.value.insert(key.to_owned(), value.into());
        self
    }

    /// With one field more.
    pub fn with_field(mut self, key: &str, text: String) -> Self {
        self.rows.push((key.to_owned(), text.clone()));
        self.with(key, text)
    }

    /// For people: a line a field.
    pub fn human(&self) -> String {
        output::fields(self.rows.iter().map(|(key, text)| (key, text.clone())))
    }

    fn cell(&self, key: &str) -> String {
        self.rows.iter().find(|(name, _)| name == key).map_or_else(|| "-".to_owned(), |(_, text)| text.clone())
    }
}

/// A value for people: lists without JSON's brackets, times with their age.
fn text_of(key: &str, value: &Value) -> String {
    match value {
        Value::Array(list) => list.iter().map(|value| text_of("", value)).collect::<Vec<_>>().join(", "),
        Value::String(text) => match text.parse() {
            Ok(time) if key.ends_with("_at") => when(Some(&Time(time))),
            _ => text.clone(),
        },
        value => value.to_string(),
    }
}

/// Puts a value where its name's levels lead; a number is a place in a list.
fn put(object: &mut Map<String, Value>, levels: &[&str], value: Value) {
    match levels {
        [] => {}
        [name] => drop(object.insert(camel_case(name), value)),
        [name, place] if place.bytes().all(|byte| byte.is_ascii_digit()) => {
            if let Value::Array(list) = object.entry(camel_case(name)).or_insert_with(|| json!([])) {
                list.push(value);
            }
        }
        [name, rest @ ..] => {
            if let Value::Object(inner) = object.entry(camel_case(name)).or_insert_with(|| json!({})) {
                put(inner, rest, value);
            }
        }
    }
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let mut text = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at_checked(1).unwrap_or((word, ""));
        text.push_str(&first.to_ascii_uppercase());
        text.push_str(rest);
    }
    text
}

fn time(ms: i64) -> Value {
    match Timestamp::from_millisecond(ms) {
        Ok(time) if ms != 0 => Time(time).to_string().into(),
        _ => Value::Null,
    }
}

/// A source.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Source(pub Shown);

impl From<v1::SourceView> for Source {
    fn from(view: v1::SourceView) -> Self {
        let source = view.source.unwrap_or_default();
        let name = [("name", source.name.as_str().into())];
        Self(Shown::new(&name, &source, &[("revision", view.revision.into())]))
    }
}

impl Row for Source {
    const HEADINGS: &'static [&'static str] = &["NAME", "SCHEME", "SECRETS", "BODY", "ON ID REUSE", "REVISION"];

    fn cells(&self) -> Vec<String> {
        ["name", "verify.scheme", "verify.secrets", "body", "on_id_reuse", "revision"]
            .map(|key| self.0.cell(key))
            .into()
    }
}

/// A subscription.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Subscription(pub Shown);

impl From<v1::SubscriptionView> for Subscription {
    fn from(view: v1::SubscriptionView) -> Self {
        let subscription = view.subscription.unwrap_or_default();
        let receivers: Vec<_> = view.receivers.into_iter().map(Receiver::from).collect();
        let receiver = match &receivers[..] {
            [] => Value::Null,
            all => all.iter().map(Receiver::human).collect::<Vec<_>>().join("; ").into(),
        };
        let name = [("name", subscription.name.as_str().into())];
        let uid = Uuid::from_slice(&subscription.uid).map_or(Value::Null, |uid| uid.to_string().into());
        let tail = [
            ("uid", uid),
            ("starts", subscription.starts.as_slice().into()),
            ("created_at", time(subscription.created_at_ms)),
            ("revision", view.revision.into()),
            ("receiver", receiver),
        ];
        let shown = Shown::new(&name, &subscription, &tail);
        Self(if receivers.is_empty() { shown } else { shown.with("receivers", json!(receivers)) })
    }
}

impl Row for Subscription {
    const HEADINGS: &'static [&'static str] =
        &["NAME", "TYPES", "SOURCES", "DESTINATION", "PAUSED", "REVISION", "RECEIVER"];

    fn cells(&self) -> Vec<String> {
        let destination = ["destination.url", "destination.subject", "destination.name"].map(|key| self.0.cell(key));
        let destination = destination.into_iter().find(|cell| cell != "-").unwrap_or_else(|| "-".to_owned());
        let cell = |key| if key == "destination" { destination.clone() } else { self.0.cell(key) };
        ["name", "types", "sources", "destination", "paused", "revision", "receiver"].map(cell).into()
    }
}

/// An API key, without the key itself.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Key(pub Shown);

impl From<v1::ApiKeyView> for Key {
    fn from(view: v1::ApiKeyView) -> Self {
        let key = view.key.unwrap_or_default();
        let used = Time::of(view.last_used_at.as_ref()).map_or(Value::Null, |time| time.to_string().into());
        let tail =
            [("created_at", time(key.created_at_ms)), ("last_used_at", used), ("revision", view.revision.into())];
        Self(Shown::new(&[("id", key.id.as_str().into())], &key, &tail))
    }
}

impl Row for Key {
    const HEADINGS: &'static [&'static str] = &["ID", "NAME", "SCOPES", "SOURCES", "EXPIRES", "LAST USED"];

    fn cells(&self) -> Vec<String> {
        ["id", "name", "scopes", "sources", "expires_at", "last_used_at"].map(|key| self.0.cell(key)).into()
    }
}

/// Something that has been removed.
#[derive(Debug, Serialize)]
pub struct Deleted<'a> {
    /// `source`, `subscription` or `key`.
    pub kind: &'a str,
    /// Its name, or a key's id.
    pub name: &'a str,
    /// Always `deleted`.
    pub action: &'a str,
}

impl<'a> Deleted<'a> {
    /// Of that kind and name.
    pub fn new(kind: &'a str, name: &'a str) -> Self {
        Self { kind, name, action: "deleted" }
    }

    /// For people.
    pub fn human(&self) -> String {
        format!("{} {} is deleted", self.kind, self.name)
    }
}

/// The scope of that name.
///
/// # Errors
///
/// Which there are.
pub fn parse_scope(text: &str) -> Result<v1::Scope, String> {
    const SCOPES: [v1::Scope; 4] = [v1::Scope::Ingest, v1::Scope::Read, v1::Scope::Operate, v1::Scope::Admin];
    let found = SCOPES.into_iter().find(|scope| scope_name(*scope) == text);
    found.ok_or_else(|| format!("scopes are {}", SCOPES.map(scope_name).join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_is_nested_and_in_camel_case() {
        let http = v1::HttpDestination {
            url: "https://a.example/".into(),
            secrets: vec![String::new()],
            format: 1,
            ..Default::default()
        };
        let subscription = v1::Subscription {
            name: "billing".into(),
            types: vec!["order.*".into()],
            timeout_ms: 15_000,
            retry: Some(v1::Retry { max_retries: 3, ..v1::Retry::default() }),
            destination: Some(v1::Destination { kind: Some(v1::destination::Kind::Http(http)) }),
            ..v1::Subscription::default()
        };
        let view = v1::SubscriptionView { subscription: Some(subscription), revision: 7, receivers: vec![] };
        let value = serde_json::to_value(Subscription::from(view)).unwrap();
        assert_eq!((&value["name"], &value["revision"]), (&json!("billing"), &json!(7)));
        assert_eq!((&value["destination"]["secrets"], &value["timeout"]), (&json!(1), &json!("15s")));
        assert_eq!((&value["retry"]["maxRetries"], value.get("createdAt")), (&json!(3), None));
    }

    #[test]
    fn tables_have_no_json_and_ages() {
        let key = v1::ApiKey {
            name: "ci".into(),
            sources: vec!["a".into(), "b".into()],
            created_at_ms: 1,
            ..v1::ApiKey::default()
        };
        let shown = Key::from(v1::ApiKeyView { key: Some(key), ..v1::ApiKeyView::default() });
        let text = shown.0.human();
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        assert!(line("sources").ends_with(" a, b"), "{text}");
        assert!(
            line("created_at").contains("1970-01-01T00:00:00.001Z (") && line("created_at").ends_with("d ago)"),
            "{text}"
        );
        assert_eq!(serde_json::to_value(&shown).unwrap()["createdAt"], "1970-01-01T00:00:00.001Z");
        let subscription = v1::Subscription { uid: vec![7; 16], starts: vec![1], ..v1::Subscription::default() };
        let view = v1::SubscriptionView { subscription: Some(subscription), ..v1::SubscriptionView::default() };
        let shown = Subscription::from(view);
        assert!(!shown.0.human().contains("starts"), "{}", shown.0.human());
        assert_eq!(serde_json::to_value(&shown).unwrap()["starts"], json!([1]));
    }

    #[test]
    fn scopes_have_names() {
        assert_eq!(parse_scope("operate"), Ok(v1::Scope::Operate));
        assert!(parse_scope("root").unwrap_err().contains("ingest, read, operate, admin"));
    }
}
