//! Headers of a message on its way out.
//!
//! The client's map costs a hash, a table entry and three allocations for each header, again for each copy of the
//! message; a gateway spent a tenth of its time on the fifteen headers of an event. Here they are one text, written as
//! they go over the wire, and one copy of it is made when the message is sent.

use std::fmt::{Display, Write as _};

use async_nats::{HeaderMap, HeaderValue};
use serde::{
    Deserialize as _,
    de::{IntoDeserializer as _, value::StringDeserializer},
};

/// Header lines, `name: value` each, in the order in which they were put.
///
/// Invariant: no value holds a line break, so none ends its line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// Each line with its end.
    lines: String,
}

/// The header by which the server distinguishes messages.
pub const MESSAGE_ID: &str = "Nats-Msg-Id";
/// Separator between name and value.
const COLON: &str = ": ";
/// End of a line.
const END: &str = "\r\n";

impl Headers {
    /// No headers yet, with room for lines of this number of bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { lines: String::with_capacity(bytes) }
    }

    /// Adds a header. A line break in its value is written as a space; of names it is the caller's to know that they are
    /// header names.
    pub fn put(&mut self, name: &str, value: impl Display) {
        put(&mut self.lines, name, value);
    }

    /// Adds a header in the place of any of its name.
    pub fn set(&mut self, name: &str, value: impl Display) {
        self.remove(name);
        self.put(name, value);
    }

    /// Takes a header out, if there is one of this name.
    pub fn remove(&mut self, name: &str) {
        let mut start = 0;
        while let Some(line) = self.lines.get(start..).and_then(|rest| rest.split_inclusive('\n').next()) {
            let end = start + line.len();
            if line.strip_prefix(name).is_some_and(|rest| rest.starts_with(COLON)) {
                self.lines.replace_range(start..end, "");
            } else {
                start = end;
            }
        }
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines.split_terminator(END).filter_map(|line| line.split_once(COLON))
    }

    /// Bytes of all lines.
    pub fn size(&self) -> usize {
        self.lines.len()
    }

    /// As a client reads them.
    pub fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in self.iter() {
            map.append(name, value);
        }
        map
    }

    /// To be handed to the client that sends them, followed by `more`.
    ///
    /// They are one entry, of which the client writes the value as it is: the first header's with all other lines after
    /// its value.
    pub(crate) fn to_wire(&self, more: &[(&str, &dyn Display)]) -> HeaderMap {
        const MORE_BYTES: usize = 160;
        let (name, rest) = self.lines.split_once(COLON).unwrap_or_default();
        let mut value = String::with_capacity(rest.len() + MORE_BYTES);
        value.push_str(rest);
        for (name, more) in more {
            put(&mut value, name, more);
        }
        value.truncate(value.len().saturating_sub(END.len()));
        let mut map = HeaderMap::new();
        match lines_as_value(value).filter(|_| !name.is_empty()) {
            Some(value) => map.insert(name, value),
            None => {
                map = self.to_map();
                more.iter().for_each(|(name, value)| map.append(*name, value.to_string()));
            }
        }
        map
    }
}

/// The client's value types reject line breaks, which would begin an unintended header. Here line breaks are intended,
/// and the text between them has been checked, so the value is made by deserialization, which does not check. `None`:
/// this version of the client checks there, too.
fn lines_as_value(lines: String) -> Option<HeaderValue> {
    let lines: StringDeserializer<serde::de::value::Error> = lines.into_deserializer();
    HeaderValue::deserialize(lines).ok()
}

fn put(lines: &mut String, name: &str, value: impl Display) {
    lines.push_str(name);
    lines.push_str(COLON);
    let start = lines.len();
    // Writing into a string does not fail.
    let _ = write!(lines, "{value}");
    if lines.as_bytes().get(start..).is_some_and(|value| value.iter().any(|byte| matches!(byte, b'\r' | b'\n'))) {
        let clean = lines.split_off(start).replace(['\r', '\n'], " ");
        lines.push_str(&clean);
    }
    lines.push_str(END);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::default();
        pairs.iter().for_each(|(name, value)| headers.put(name, value));
        headers
    }

    #[test]
    fn a_header_replaces_those_of_its_name_only() {
        let mut all = headers(&[("a", "1"), ("aa", "a: 2"), ("b", ""), ("a", "3")]);
        all.set("a", 4);
        assert_eq!(all.iter().collect::<Vec<_>>(), [("aa", "a: 2"), ("b", ""), ("a", "4")]);
        all.remove("b");
        all.remove("c");
        assert_eq!(all.size(), "aa: a: 2\r\na: 4\r\n".len());
        assert_eq!(all.to_map().get("aa").map(HeaderValue::as_str), Some("a: 2"));
    }

    /// No value becomes a separate header.
    #[test]
    fn a_value_does_not_end_its_line() {
        let split = headers(&[("a", "1\r\nNats-Rollup: all")]);
        assert_eq!(split.iter().collect::<Vec<_>>(), [("a", "1  Nats-Rollup: all")]);
    }

    #[test]
    fn what_is_sent_is_every_line() {
        let sent = headers(&[("a", "1"), ("b", "2")]).to_wire(&[("c", &3)]);
        let entries: Vec<_> = sent.iter().map(|(name, values)| (name.to_string(), values.clone())).collect();
        let lines = lines_as_value("1\r\nb: 2\r\nc: 3".to_owned()).expect("a client that checks needs another way");
        assert_eq!(entries, [("a".to_owned(), vec![lines])]);
        assert!(Headers::default().to_wire(&[]).is_empty());
        assert_eq!(Headers::default().to_wire(&[("c", &3)]).get("c").map(HeaderValue::as_str), Some("3"));
    }
}
