//! JSON text to values and back.

use proptest::prelude::*;
use serde_json::Value as Json;

use super::result;

#[track_caller]
fn stays(text: &str) {
    assert_eq!(result("data", text), Ok(text.to_owned()));
}

#[track_caller]
fn becomes(text: &str, expected: &str) {
    assert_eq!(result("data", text), Ok(expected.to_owned()), "{text}");
}

#[track_caller]
fn is_refused(text: &str) {
    let error = result("data", text).unwrap_err();
    assert!(error.starts_with("1:1: data is not JSON at byte "), "{text}: {error}");
}

#[test]
fn order_integers_and_doubles_stay() {
    stays(r#"{"b":1,"a":[true,false,null],"":{}}"#);
    stays("[9007199254740993,-9223372036854775808,18446744073709551615,0,0.1,1.0,1e300,5e-324,-0.0]");
    stays(r#""é😀\n\"\\""#);
}

/// A transform changes these although it only copies `data`.
#[test]
fn spellings_and_what_json_readers_disagree_on_change() {
    becomes(" { \"a\" : 1.50 , \"b\" : [ 1 , 2 ] } ", r#"{"a":1.5,"b":[1,2]}"#);
    becomes(r#"{"a":1,"b":2,"a":3}"#, r#"{"a":3,"b":2}"#);
    becomes("[18446744073709551616,1E2,-0,1e-400,0.1000000000000000055511]", "[1.8446744073709552e19,100.0,0,0.0,0.1]");
    becomes(r#""\u00e9\ud83d\ude00\/\u0041\ud800x\udc00""#, "\"é😀/A\u{fffd}x\u{fffd}\"");
    let error = result("data", "[1e400]").unwrap_err();
    assert_eq!(error, "1:1: the result has a number that is not finite, which JSON cannot hold");
    assert_eq!(result("data[0] > 1e308 && data[0] == data[0]", "[1e400]"), Ok("true".into()));
}

#[test]
fn other_texts_are_refused() {
    for text in [
        "",
        "tru",
        "[1,]",
        "{\"a\":1,}",
        "01",
        "1.",
        ".5",
        "+1",
        "1e",
        "-",
        "\"a",
        "\"\n\"",
        "\"\\x\"",
        "\"\\u12\"",
        "[1 2]",
        "{1:2}",
        "nul",
        "1 2",
        "\"\\u+123\"",
        "[",
        "{",
        "{\"a\"}",
        "NaN",
    ] {
        is_refused(text);
    }
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    assert_eq!(result("data", &deep), Err("1:1: data is nested more than 128 deep".into()));
    let deep = format!("{}1{}", "[".repeat(128), "]".repeat(128));
    stays(&deep);
}

/// Texts of any JSON value.
fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<i64>().prop_map(|value| value.to_string()),
        any::<u64>().prop_map(|value| value.to_string()),
        any::<f64>().prop_filter("finite", |value| value.is_finite()).prop_map(|value| format!("{value:?}")),
        ".{0,8}".prop_map(|text| Json::from(text).to_string()),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        let key = "[a-e]{1,2}".prop_map(|text| Json::from(text).to_string());
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(|list| format!("[{}]", list.join(" , "))),
            proptest::collection::vec((key, inner), 0..5).prop_map(|members| {
                let members: Vec<_> = members.iter().map(|(key, value)| format!("{key}: {value}")).collect();
                format!("{{ {} }}", members.join(","))
            }),
        ]
    })
}

proptest! {
    /// The value is that which another parser finds, and writing it again changes nothing more.
    #[test]
    fn a_copy_has_the_same_value(text in json()) {
        let copy = result("data", &text).unwrap();
        let (read, written): (Json, Json) = (serde_json::from_str(&text).unwrap(), serde_json::from_str(&copy).unwrap());
        prop_assert!(same(&read, &written), "{} {}", text, copy);
        prop_assert_eq!(result("data", &copy).unwrap(), copy);
    }

    /// Any bytes are read or refused as another parser does, which knows no lone surrogates and no infinite numbers.
    #[test]
    fn any_text_is_read_or_refused(text in r#"[\[\]{}:,"\\u0-9eE.+\- truefalsn\n]{0,24}"#) {
        let read = result("data == data", &text);
        if serde_json::from_str::<Json>(&text).is_ok() {
            prop_assert!(read.is_ok(), "{:?}", read);
        }
    }
}

/// Equal but for the last digit of doubles, which the other parser reads less exactly.
fn same(one: &Json, other: &Json) -> bool {
    match (one, other) {
        (Json::Number(one), Json::Number(other)) if one.is_f64() => {
            let (one, other) = (one.as_f64().unwrap(), other.as_f64().unwrap());
            (one - other).abs() <= one.abs() * 1e-15
        }
        (Json::Array(one), Json::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Json::Object(one), Json::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, one)| other.get(key).is_some_and(|other| same(one, other)))
        }
        _ => one == other,
    }
}
