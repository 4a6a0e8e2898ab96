//! JSON as it was sent: members and elements as parts of the text, never parsed and written again.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use weft_nats::rfc3339;
use weft_schema::pointer;

use super::malformed;
use crate::http::error::{Code, Problem};

/// Members of one event: CloudEvents define eight, and some extensions.
const MEMBERS_MAX: usize = 64;
/// Characters of a sender's text that a detail repeats.
const QUOTED_CHARS_MAX: usize = 40;

/// A body as text.
pub(super) fn text(body: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(body).map_err(|_| malformed("the body is not UTF-8"))
}

/// The members of an object; of several with one name the last.
pub(super) fn members(text: &str) -> Result<BTreeMap<String, &str>, Problem> {
    let mut parser = serde_json::Deserializer::from_str(text);
    let (members, count) = parser
        .deserialize_map(Members)
        .and_then(|found| parser.end().map(|()| found))
        .map_err(|error| not_this("a JSON object", &error))?;
    if count > MEMBERS_MAX {
        return Err(malformed(format!("an event has at most {MEMBERS_MAX} members")));
    }
    Ok(members)
}

/// The elements of an array.
pub(super) fn elements(text: &str, max: usize) -> Result<Vec<&str>, Problem> {
    let mut parser = serde_json::Deserializer::from_str(text);
    let (elements, count) = parser
        .deserialize_seq(Elements { max })
        .and_then(|found| parser.end().map(|()| found))
        .map_err(|error| not_this("a JSON array", &error))?;
    if count > max {
        return Err(Problem::new(Code::BodyTooLarge, format!("a batch holds at most {max} events")));
    }
    Ok(elements)
}

/// The text of a string, number or boolean. `None`: null, which is the same as nothing.
pub(super) fn scalar(name: &str, value: &str) -> Result<Option<String>, Problem> {
    match pointer::scalar(value.as_bytes(), "") {
        Some(text) => Ok(Some(text.into_owned())),
        None if value.trim() == "null" => Ok(None),
        None => Err(malformed(format!("{} is neither a string nor a number nor a boolean", quoted(name)))),
    }
}

/// A point in time.
pub(super) fn time(text: &str) -> Result<Timestamp, Problem> {
    rfc3339::parse(text).map_err(|problem| malformed(format!("time {} {problem}", quoted(text))))
}

/// A sender's text as part of a detail.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(QUOTED_CHARS_MAX).collect::<String>())
}

fn not_this(what: &str, error: &serde_json::Error) -> Problem {
    malformed(format!("not {what} (line {}, column {})", error.line(), error.column()))
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = (BTreeMap<String, &'de str>, usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut given: A) -> Result<Self::Value, A::Error> {
        let (mut members, mut count) = (BTreeMap::new(), 0);
        while count < MEMBERS_MAX
            && let Some((name, value)) = given.next_entry::<String, &RawValue>()?
        {
            members.insert(name, value.get());
            count += 1;
        }
        while given.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok((members, count))
    }
}

struct Elements {
    max: usize,
}

impl<'de> Visitor<'de> for Elements {
    type Value = (Vec<&'de str>, usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut given: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while elements.len() < self.max
            && let Some(element) = given.next_element::<&RawValue>()?
        {
            elements.push(element.get());
        }
        let mut count = elements.len();
        while given.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok((elements, count))
    }
}
