//! JSON text to values and back.
//!
//! A parser of our own, because the texts of events hold what others refuse: numbers beyond the range of doubles, and lone
//! surrogates, which read as U+FFFD. Doubles are read to the nearest one and written with the fewest digits that name it.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;

use crate::{
    time,
    value::{Key, Map, Value},
};

/// Levels of lists and maps in each other. Each takes a part of the stack of a thread.
const DEPTH_MAX: usize = 128;

/// The value of a JSON text. Of members with the same name the last counts.
pub(crate) fn read(text: &[u8]) -> Result<Value, String> {
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(0)?;
    reader.skip_space();
    if reader.at == text.len() { Ok(value) } else { Err(reader.problem()) }
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn problem(&self) -> String {
        format!("data is not JSON at byte {}", self.at)
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// Skips white space, and a byte if it follows.
    fn take(&mut self, byte: u8) -> bool {
        self.skip_space();
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), String> {
        if self.take(byte) { Ok(()) } else { Err(self.problem()) }
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > DEPTH_MAX {
            return Err(format!("data is nested more than {DEPTH_MAX} deep"));
        }
        self.skip_space();
        match self.peek() {
            Some(b'{') => self.map(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => Ok(Value::String(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => {
                for (word, value) in [("null", Value::Null), ("true", Value::Bool(true)), ("false", Value::Bool(false))]
                {
                    if self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word.as_bytes())) {
                        self.at += word.len();
                        return Ok(value);
                    }
                }
                Err(self.problem())
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, String> {
        self.at += 1;
        let mut map = Map::new();
        if !self.take(b'}') {
            loop {
                self.skip_space();
                let key = Key::String(self.string()?);
                self.expect(b':')?;
                let value = self.value(depth + 1)?;
                map.insert(key, value);
                if self.take(b'}') {
                    break;
                }
                self.expect(b',')?;
            }
        }
        Ok(Value::Map(Arc::new(map)))
    }

    fn list(&mut self, depth: usize) -> Result<Value, String> {
        self.at += 1;
        let mut list = Vec::new();
        if !self.take(b']') {
            loop {
                list.push(self.value(depth + 1)?);
                if self.take(b']') {
                    break;
                }
                self.expect(b',')?;
            }
        }
        Ok(Value::list(list))
    }

    fn number(&mut self) -> Result<Value, String> {
        let start = self.at;
        let digits = |reader: &mut Self| {
            let first = reader.at;
            while matches!(reader.peek(), Some(b'0'..=b'9')) {
                reader.at += 1;
            }
            reader.at > first
        };
        self.at += usize::from(self.peek() == Some(b'-'));
        let has_zero = self.peek() == Some(b'0');
        let first = self.at;
        let mut is_number = digits(self) && !(has_zero && self.at > first + 1);
        let mut is_whole = true;
        if self.peek() == Some(b'.') {
            self.at += 1;
            is_whole = false;
            is_number &= digits(self);
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            is_whole = false;
            is_number &= digits(self);
        }
        let text = self.text.get(start..self.at).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default();
        let whole = || text.parse().map(Value::Int).or_else(|_| text.parse().map(Value::Uint)).ok();
        let value = is_whole.then(whole).flatten().or_else(|| text.parse().map(Value::Double).ok());
        value.filter(|_| is_number).ok_or_else(|| self.problem())
    }

    /// A string, from its first quote.
    fn string(&mut self) -> Result<Arc<str>, String> {
        if self.peek() != Some(b'"') {
            return Err(self.problem());
        }
        self.at += 1;
        let mut decoded = String::new();
        loop {
            let rest = self.text.get(self.at..).unwrap_or_default();
            let end = memchr::memchr2(b'"', b'\\', rest).ok_or_else(|| self.problem())?;
            let plain = rest.get(..end).unwrap_or_default();
            if plain.iter().any(|byte| *byte < 0x20) {
                return Err(self.problem());
            }
            let plain = std::str::from_utf8(plain).map_err(|_| self.problem())?;
            self.at += end + 1;
            if rest.get(end) == Some(&b'"') {
                if decoded.is_empty() {
                    return Ok(plain.into());
                }
                decoded.push_str(plain);
                return Ok(decoded.into());
            }
            decoded.push_str(plain);
            self.escape(&mut decoded)?;
        }
    }

    /// An escape, after its backslash.
    fn escape(&mut self, decoded: &mut String) -> Result<(), String> {
        let byte = self.peek().ok_or_else(|| self.problem())?;
        self.at += 1;
        decoded.push(match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = self.unit().ok_or_else(|| self.problem())?;
                self.character(unit)
            }
            _ => return Err(self.problem()),
        });
        Ok(())
    }

    /// The four hexadecimal digits of an escape.
    fn unit(&mut self) -> Option<u16> {
        let digits = std::str::from_utf8(self.text.get(self.at..self.at + 4)?).ok()?;
        let unit = u16::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?;
        self.at += 4;
        Some(unit)
    }

    /// The character of a UTF-16 unit and the low surrogate that may follow.
    fn character(&mut self, unit: u16) -> char {
        let is_high = (0xD800..0xDC00).contains(&unit);
        let after = self.at;
        if is_high && self.text.get(self.at..).is_some_and(|rest| rest.starts_with(b"\\u")) {
            self.at += 2;
            let low = self.unit().filter(|low| (0xDC00..0xE000).contains(low));
            if let Some(character) = low.and_then(|low| char::decode_utf16([unit, low]).next()?.ok()) {
                return character;
            }
            self.at = after;
        }
        char::from_u32(unit.into()).unwrap_or(char::REPLACEMENT_CHARACTER)
    }
}

/// The JSON text of a value, of at most `bytes_max` bytes.
pub(crate) fn write(value: &Value, bytes_max: usize) -> Result<Bytes, String> {
    let mut out = Vec::new();
    put(value, &mut out, bytes_max)?;
    Ok(out.into())
}

/// Values may share parts, so the text can be far longer than they are large: each part is checked.
fn put(value: &Value, out: &mut Vec<u8>, bytes_max: usize) -> Result<(), String> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        Value::Int(value) => out.extend_from_slice(value.to_string().as_bytes()),
        Value::Uint(value) => out.extend_from_slice(value.to_string().as_bytes()),
        // As Rust writes it for debugging: with the fewest digits, and an exponent where it is shorter.
        Value::Double(value) if value.is_finite() => out.extend_from_slice(format!("{value:?}").as_bytes()),
        Value::Double(_) => return Err("the result has a number that is not finite, which JSON cannot hold".into()),
        Value::String(text) => put_string(text, out),
        Value::Bytes(bytes) => {
            if bytes.len() / 3 * 4 > bytes_max {
                return Err(too_long(bytes_max));
            }
            put_string(&STANDARD.encode(bytes), out);
        }
        Value::Timestamp(time) => put_string(&time.to_string(), out),
        Value::Duration(duration) => put_string(&time::duration_text(*duration), out),
        Value::Type(_) => return Err("the result has a type, which JSON cannot hold".into()),
        Value::List(list) => {
            out.push(b'[');
            for (index, element) in list.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                put(element, out, bytes_max)?;
            }
            out.push(b']');
        }
        Value::Map(map) => {
            out.push(b'{');
            for (index, (key, member)) in map.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                match key {
                    Key::String(text) => put_string(text, out),
                    Key::Bool(value) => put_string(&value.to_string(), out),
                    Key::Int(value) => put_string(&value.to_string(), out),
                    Key::Uint(value) => put_string(&value.to_string(), out),
                }
                out.push(b':');
                put(member, out, bytes_max)?;
            }
            out.push(b'}');
        }
    }
    if out.len() > bytes_max { Err(too_long(bytes_max)) } else { Ok(()) }
}

fn too_long(bytes_max: usize) -> String {
    format!("the result is longer than {bytes_max} bytes")
}

fn put_string(text: &str, out: &mut Vec<u8>) {
    let start = out.len();
    if serde_json::to_writer(&mut *out, text).is_err() {
        // A string into a Vec: there is nothing that could fail.
        out.truncate(start);
        out.extend_from_slice(b"\"\"");
    }
}
