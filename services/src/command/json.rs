//! JSON text to JSON and YAML text, without reading the values: numbers keep their spelling and their size, strings
//! their escapes, objects their order and their repeated names. Nesting is bounded by memory alone.
//!
//! Every function takes text that is valid JSON, as a serializer wrote it.

use std::borrow::Cow;

use super::terminal;

/// Levels that YAML shows in block style. Below, it is JSON, which YAML includes: indentation grows with the square of the
/// depth.
const BLOCK_LEVELS: usize = 32;
/// The longest name that YAML takes without `?` before it, in bytes: readers look 1,024 characters ahead.
const SIMPLE_KEY_BYTES: usize = 512;
/// Plain words that YAML 1.1 or 1.2 reads as something else than a string.
const RESERVED: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];

/// The same value in one line, without white space between its parts.
pub fn compact(text: &str) -> Cow<'_, str> {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
    if !text.as_bytes().iter().any(is_space) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find([' ', '\t', '\r', '\n', '"']) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let len = if from.starts_with('"') { string_len(from) } else { 1 };
        let (token, after) = from.split_at(len);
        if from.starts_with('"') {
            out.push_str(token);
        }
        rest = after;
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The same value as a YAML document, with a line feed at its end.
pub fn yaml(text: &str) -> String {
    let text = compact(text);
    let mut out = String::with_capacity(text.len() * 2);
    write_block(&mut Scan(&text), 0, true, &mut out);
    out
}

/// Scanner of a JSON text without the white space between its parts.
struct Scan<'a>(&'a str);

impl<'a> Scan<'a> {
    fn starts_container(&self) -> bool {
        self.0.starts_with(['{', '[']) && !self.0.starts_with("{}") && !self.0.starts_with("[]")
    }

    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Takes a comma; whether there was one. Else takes what closes the container.
    fn goes_on(&mut self) -> bool {
        self.take(1) == ","
    }

    fn string(&mut self) -> &'a str {
        self.take(string_len(self.0))
    }

    /// One value, however deep.
    fn value(&mut self) -> &'a str {
        let (mut depth, mut len) = (0usize, 0);
        let bytes = self.0.as_bytes();
        while let Some(byte) = bytes.get(len) {
            match byte {
                b'"' => len += string_len(&self.0[len..]),
                b'{' | b'[' => (depth, len) = (depth + 1, len + 1),
                b'}' | b']' if depth == 0 => break,
                b'}' | b']' => (depth, len) = (depth - 1, len + 1),
                b',' if depth == 0 => break,
                _ => len += 1,
            }
            if depth == 0 && matches!(byte, b'"' | b'}' | b']') {
                break;
            }
        }
        self.take(len)
    }
}

/// The length of the string that a text starts with, quotes included.
fn string_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Writes a value: containers in block style for some levels, everything else as JSON. `own_line`: nothing of its first
/// line is written yet.
fn write_block(scan: &mut Scan<'_>, level: usize, own_line: bool, out: &mut String) {
    if !scan.starts_container() || level >= BLOCK_LEVELS {
        if !own_line {
            out.push(' ');
        }
        write_flow(scan.value(), out);
        out.push('\n');
        return;
    }
    let is_object = scan.take(1) == "{";
    let mut indented = !own_line || level == 0;
    if !own_line {
        out.push('\n');
    }
    loop {
        if indented {
            out.push_str(&"  ".repeat(level));
        }
        indented = true;
        if is_object {
            write_key(scan.string(), level, out);
            scan.take(1);
            write_block(scan, level + 1, false, out);
        } else {
            // The element's first line has the dash in place of its last two columns of indentation.
            out.push_str("- ");
            write_block(scan, level + 1, true, out);
        }
        if !scan.goes_on() {
            return;
        }
    }
}

/// A name and its colon.
fn write_key(quoted: &str, level: usize, out: &mut String) {
    let name = quoted.get(1..quoted.len() - 1).unwrap_or_default();
    let word = name.starts_with(|char: char| char.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(name));
    if quoted.len() > SIMPLE_KEY_BYTES {
        out.push_str("? ");
        write_string(quoted, out);
        out.push('\n');
        out.push_str(&"  ".repeat(level));
    } else if word {
        out.push_str(name);
    } else {
        write_string(quoted, out);
    }
    out.push(':');
}

/// JSON as YAML takes it in flow style: strings within YAML's own characters, long names marked.
fn write_flow(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(at) = rest.find('"') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let (string, after) = from.split_at(string_len(from));
        if after.starts_with(':') && string.len() > SIMPLE_KEY_BYTES {
            out.push_str("? ");
        }
        write_string(string, out);
        rest = after;
    }
    out.push_str(rest);
}

/// A JSON string that YAML readers take for the same: control characters escaped, pairs of surrogates joined.
fn write_string(quoted: &str, out: &mut String) {
    // C1 controls but for NEL, and noncharacters, are not YAML's; the separators break its lines.
    let outside = |char: char| {
        matches!(char, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
    };
    let text = terminal::escape(quoted, outside);
    let mut rest = &*text;
    while let Some(at) = rest.find('\\') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        if let Some(char) = surrogate_pair(from) {
            out.push(char);
            rest = &from[12..];
        } else if let Some(after) = from.strip_prefix("\\/") {
            // Readers of YAML 1.1 do not know this escape.
            out.push('/');
            rest = after;
        } else {
            let (escape, after) = from.split_at(from.len().min(2));
            out.push_str(escape);
            rest = after;
        }
    }
    out.push_str(rest);
}

/// The character that two escapes stand for, where YAML wants one.
fn surrogate_pair(text: &str) -> Option<char> {
    let unit = |escape: &str| u16::from_str_radix(escape.strip_prefix("\\u")?, 16).ok();
    let units = [unit(text.get(0..6)?)?, unit(text.get(6..12)?)?];
    if !(0xd800..0xdc00).contains(&units[0]) {
        return None;
    }
    char::decode_utf16(units).next()?.ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, value::RawValue};

    use super::*;

    #[test]
    fn compact_json_is_one_line() {
        let pretty = "{\r\n \"a b\" : [ 1.10 ,\t-0 , 1e400,9007199254740993 ],\"q\\\" \\\\\":\" \\n \" }\n";
        assert_eq!(compact(pretty), r#"{"a b":[1.10,-0,1e400,9007199254740993],"q\" \\":" \n "}"#);
        assert!(matches!(compact("[1,2]"), Cow::Borrowed("[1,2]")));
        assert_eq!(compact(" "), "");
    }

    #[test]
    fn yaml_nests_by_indentation_in_the_order_of_the_members() {
        let json = r#"{"id": "a:b", "max": 7, "none": [], "list": [{"x": 1, "z": [2, 3]}, [4, [5]], "s"], "": {}}"#;
        let text = "id: \"a:b\"\nmax: 7\nnone: []\nlist:\n  - x: 1\n    z:\n      - 2\n      - 3\n  - - 4\n    - - 5\n  - \"s\"\n\"\": {}\n";
        assert_eq!(yaml(json), text);
        assert_eq!(yaml("[]"), "[]\n");
        assert_eq!(yaml("1"), "1\n");
    }

    #[test]
    fn yaml_keeps_every_number_and_every_escape() {
        let json = r#"{"a":9007199254740993,"b":12345678901234567890123,"c":1e400,"d":-0,"e":1.10,"f":"a\u0000b","g":"\ud800"}"#;
        let text = "a: 9007199254740993\nb: 12345678901234567890123\nc: 1e400\nd: -0\ne: 1.10\nf: \"a\\u0000b\"\ng: \"\\ud800\"\n";
        assert_eq!(yaml(json), text);
    }

    #[test]
    fn yaml_spells_names_and_strings_as_its_readers_take_them() {
        assert_eq!(yaml(r#"{"no":1,"a b":2,"1":3}"#), "\"no\": 1\n\"a b\": 2\n\"1\": 3\n");
        assert_eq!(yaml("[\"\u{7f}\u{9b}\u{2028}\"]"), "- \"\\u007f\\u009b\\u2028\"\n");
        assert_eq!(yaml(r#"["\ud83c\udf89","a\/b","\\ud83c\\/"]"#), "- \"🎉\"\n- \"a/b\"\n- \"\\\\ud83c\\\\/\"\n");
        let long = "k".repeat(2000);
        assert_eq!(yaml(&format!(r#"{{"{long}":1}}"#)), format!("? \"{long}\"\n: 1\n"));
    }

    #[test]
    fn depth_has_no_bound() {
        let depth = 100_000;
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let json = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            assert_eq!(compact(&json), json);
            let text = yaml(&json);
            assert!(text.len() < 2 * json.len() && text.contains(&format!("1{}", close.repeat(100))));
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from)
        ];
        leaf.prop_recursive(6, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((".*", inner), 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect()))
            ]
        })
    }

    proptest! {
        /// Pretty-printed text comes back as a serializer writes it in one line.
        #[test]
        fn compact_is_the_same_value(value in json()) {
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(compact(&pretty).into_owned(), serde_json::to_string(&value).unwrap());
        }

        /// No valid JSON makes it panic, and every scalar is in the document.
        #[test]
        fn yaml_takes_any_json(text in "[ \\[\\]{}:,\"a1.\\\\u-]{0,40}") {
            if serde_json::from_str::<&RawValue>(&text).is_ok() {
                prop_assert!(yaml(&text).ends_with('\n'));
            }
        }

        #[test]
        fn yaml_of_any_value_has_a_line_for_each_member(value in json()) {
            let text = yaml(&serde_json::to_string_pretty(&value).unwrap());
            prop_assert!(text.ends_with('\n'));
        }
    }
}
