//! RFC 6901 pointers into JSON text, answered with the bytes of the text itself.
//!
//! A receiver gets the bytes that the sender signed: a value that a pointer names is cut out of the text, never parsed and
//! written again, so numbers keep their digits and objects their order. Of several members with one name the last
//! counts, as in most parsers. Depth costs no stack: values that are passed over are skipped iteratively, and each step
//! of a pointer is a separate pass.

use std::borrow::Cow;

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

/// Whether the text is one JSON value in UTF-8, with nothing but white space around it.
pub fn is_json(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
}

/// How many levels of objects and arrays lie within each other in a JSON text: 0 for a number. Of a text that is not JSON,
/// nothing useful.
pub fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'"' | b'{' | b'[' | b'}' | b']')) {
        let byte = rest.get(at).copied();
        rest = rest.get(at + 1..).unwrap_or_default();
        match byte {
            Some(b'"') => rest = after_string(rest),
            Some(b'{' | b'[') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            _ => depth = depth.saturating_sub(1),
        }
    }
    deepest
}

/// The text after a string of which the first quote has been read.
fn after_string(mut text: &[u8]) -> &[u8] {
    while let Some(at) = memchr::memchr2(b'"', b'\\', text) {
        let escape = text.get(at) == Some(&b'\\');
        text = text.get(at + 1 + usize::from(escape)..).unwrap_or_default();
        if !escape {
            return text;
        }
    }
    &[]
}

/// The text of the value that `pointer` names in `text`. The empty pointer names the whole text.
///
/// `None` when `text` is not JSON, `pointer` is not a pointer, or nothing is there.
pub fn find<'a>(text: &'a [u8], pointer: &str) -> Option<&'a str> {
    let whole = std::str::from_utf8(text).ok()?;
    let mut value: &RawValue = serde_json::from_str(whole).ok()?;
    if pointer.is_empty() {
        return Some(value.get());
    }
    for token in pointer.strip_prefix('/')?.split('/') {
        let token = unescape(token)?;
        let mut deserializer = serde_json::Deserializer::from_str(value.get());
        value = Step { token: &token }.deserialize(&mut deserializer).ok()??;
    }
    Some(value.get())
}

/// The value that `pointer` names, as the text that a header or a rule would hold: a string without its quotes and
/// escapes, a number or boolean as it is written. `None` also for null, objects and arrays.
pub fn scalar<'a>(text: &'a [u8], pointer: &str) -> Option<Cow<'a, str>> {
    let value = find(text, pointer)?;
    match value.as_bytes().first()? {
        b'"' => serde_json::Deserializer::from_str(value).deserialize_str(Text).ok(),
        b'{' | b'[' | b'n' => None,
        _ => Some(Cow::Borrowed(value)),
    }
}

/// Whether a text is a pointer: empty, or tokens that each begin with `/` and escape `~` as `~0` and `/` as `~1`.
pub fn is_pointer(pointer: &str) -> bool {
    pointer.is_empty()
        || pointer.strip_prefix('/').is_some_and(|tokens| tokens.split('/').all(|token| unescape(token).is_some()))
}

/// A token without its escapes; `None` when a `~` stands before anything but `0` and `1`.
fn unescape(token: &str) -> Option<Cow<'_, str>> {
    if !token.contains('~') {
        return Some(Cow::Borrowed(token));
    }
    let mut plain = String::with_capacity(token.len());
    let mut chars = token.chars();
    while let Some(char) = chars.next() {
        plain.push(match char {
            '~' => match chars.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            },
            other => other,
        });
    }
    Some(Cow::Owned(plain))
}

/// One step of a pointer: the member or element that the token names.
struct Step<'t> {
    token: &'t str,
}

impl<'de> DeserializeSeed<'de> for Step<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Step<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object or an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(Name(name)) = members.next_key()? {
            if name == self.token {
                found = Some(members.next_value()?);
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let wanted = index(self.token);
        let mut found = None;
        let mut at = 0;
        while let Some(element) = elements.next_element::<&RawValue>()? {
            if wanted == Some(at) {
                found = Some(element);
            }
            at += 1;
        }
        Ok(found)
    }
}

/// An array index: digits without a leading zero.
fn index(token: &str) -> Option<usize> {
    let plain = token.bytes().all(|byte| byte.is_ascii_digit()) && (token == "0" || !token.starts_with('0'));
    if plain { token.parse().ok() } else { None }
}

/// A member's name, borrowed where it has no escapes.
struct Name<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text).map(Self)
    }
}

struct Text;

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// The document and the answers of RFC 6901, section 5.
    #[test]
    fn pointers_name_what_the_rfc_says() {
        let text = br#"{"foo":["bar","baz"],"":0,"a/b":1,"c%d":2,"e^f":3,"g|h":4,"i\\j":5,"k\"l":6," ":7,"m~n":8}"#;
        for (pointer, value) in [
            ("/foo", r#"["bar","baz"]"#),
            ("/foo/0", r#""bar""#),
            ("/", "0"),
            ("/a~1b", "1"),
            ("/c%d", "2"),
            ("/e^f", "3"),
            ("/g|h", "4"),
            ("/i\\j", "5"),
            ("/k\"l", "6"),
            ("/ ", "7"),
            ("/m~0n", "8"),
        ] {
            assert_eq!(find(text, pointer), Some(value), "{pointer}");
        }
        for nothing in ["foo", "/foo/2", "/foo/00", "/foo/-", "/foo/+1", "/m~n", "/m~2n", "/foo/0/x"] {
            assert_eq!(find(text, nothing), None, "{nothing}");
        }
    }

    #[test]
    fn depth_is_that_of_arrays_and_objects() {
        for (text, levels) in [
            ("1", 0),
            (r#""[{""#, 0),
            ("[]", 1),
            (r#"{"a":[1,{"b":[]}],"c":{}}"#, 4),
            (r#"{"a\"[{":"\\","b":[]}"#, 2),
            (r#"["\\\"]",[["#, 3),
            ("", 0),
        ] {
            assert_eq!(depth(text.as_bytes()), levels, "{text}");
        }
        assert_eq!(depth("[".repeat(100_000).as_bytes()), 100_000);
    }

    #[test]
    fn a_value_keeps_its_bytes() {
        let text = br#" { "n" : 1.50e+02, "o" : { "b":1 ,"a":2 }, "o2": "\u0041\n" } "#;
        assert_eq!(find(text, "/n"), Some("1.50e+02"));
        assert_eq!(find(text, "/o"), Some(r#"{ "b":1 ,"a":2 }"#));
        assert_eq!(scalar(text, "/o2").as_deref(), Some("A\n"));
        assert_eq!(scalar(text, "/o"), None);
    }

    #[test]
    fn hostile_texts_are_answered() {
        let deep = [vec![b'['; 200_000], vec![b']'; 200_000]].concat();
        assert!(is_json(&deep));
        assert_eq!(find(&deep, "/0/0/0").map(str::len), Some(399_994));
        assert_eq!(find(br#"{"a":1,"a":2}"#, "/a"), Some("2"));
        for bad in [&b""[..], b"{", b"{} {}", b"\xef\xbb\xbf{}", b"\"\xff\"", b"{a:1}", b"\"\n\""] {
            assert!(!is_json(bad), "{bad:?}");
            assert_eq!(find(bad, "/a"), None);
        }
    }

    proptest! {
        /// A pointer finds what it finds in the parsed value.
        #[test]
        fn finds_what_a_parsed_value_has(names in proptest::collection::vec("[a~/0-2]{0,3}", 1..4), at in 0usize..3) {
            let inner = names.iter().rev().fold(Value::from(7), |value, name| serde_json::json!({ name: value, "x": 1 }));
            let document = serde_json::json!([1, inner, null]);
            let tokens: Vec<String> = names.iter().map(|name| name.replace('~', "~0").replace('/', "~1")).collect();
            let pointer = format!("/{at}/{}", tokens.join("/"));
            let text = document.to_string();
            let found = find(text.as_bytes(), &pointer).map(|value| serde_json::from_str::<Value>(value).unwrap());
            prop_assert_eq!(found.as_ref(), document.pointer(&pointer));
        }
    }
}
