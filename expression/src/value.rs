//! Values of CEL.

use std::sync::Arc;

use bytes::Bytes;
use indexmap::IndexMap;
use jiff::{SignedDuration, Timestamp};

/// Members in the order in which they were written.
pub(crate) type Map = IndexMap<Key, Value>;

/// A value. Cloning takes no memory.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Bytes),
    List(Arc<Vec<Value>>),
    Map(Arc<Map>),
    Timestamp(Timestamp),
    Duration(SignedDuration),
    Type(&'static str),
}

/// Key of a map. Numbers that are equal are the same key: `Uint` holds only those beyond `i64`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Arc<str>),
}

/// Types by the names that expressions use.
pub(crate) const TYPES: [&str; 10] =
    ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"];

impl Value {
    pub fn string(text: &str) -> Self {
        Self::String(text.into())
    }

    pub fn list(elements: Vec<Self>) -> Self {
        Self::List(Arc::new(elements))
    }

    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Type(_) => "type",
        }
    }

    /// An `int`, or a `uint` where no `int` holds the value; `None` where neither does.
    pub fn of_whole(value: i128) -> Option<Self> {
        i64::try_from(value).map(Self::Int).or_else(|_| u64::try_from(value).map(Self::Uint)).ok()
    }

    /// The key that it names in a map; `None` if no map has such a key.
    pub fn key(&self) -> Option<Key> {
        match self {
            Self::Bool(value) => Some(Key::Bool(*value)),
            Self::Int(value) => Some(Key::Int(*value)),
            Self::Uint(value) => Some(i64::try_from(*value).map_or(Key::Uint(*value), Key::Int)),
            Self::Double(value) => whole(*value).and_then(|value| value.key()),
            Self::String(text) => Some(Key::String(Arc::clone(text))),
            _ => None,
        }
    }
}

impl Key {
    /// Length of the text that a look-up hashes.
    pub fn text_len(&self) -> usize {
        match self {
            Self::String(text) => text.len(),
            Self::Bool(_) | Self::Int(_) | Self::Uint(_) => 0,
        }
    }
}

impl From<&Key> for Value {
    fn from(key: &Key) -> Self {
        match key {
            Key::Bool(value) => Self::Bool(*value),
            Key::Int(value) => Self::Int(*value),
            Key::Uint(value) => Self::Uint(*value),
            Key::String(text) => Self::String(Arc::clone(text)),
        }
    }
}

/// Beyond every `int` and `uint`, and exact as a double.
pub(crate) const BEYOND: f64 = 18_446_744_073_709_551_616.0;

/// A double without a fraction as an integer, if one holds it.
#[allow(clippy::cast_possible_truncation)]
pub(crate) fn whole(value: f64) -> Option<Value> {
    (value.trunc() == value && value.abs() < BEYOND).then(|| Value::of_whole(value as i128)).flatten()
}
