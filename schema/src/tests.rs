use proptest::prelude::*;
use prost::Message as _;
use protox::file::{File, FileResolver, GoogleFileResolver};
use weft_proto::v1;

use super::*;

fn json(schema: &str) -> Result<Schema, CompileError> {
    Schema::compile(&schema_rule::Schema::JsonSchema(schema.into()))
}

fn broken(schema: &str, data: &str) -> String {
    json(schema).unwrap().check(data.as_bytes(), true).unwrap_err().to_string()
}

const ORDER: &str = r##"{
    "type": "object",
    "required": ["id"],
    "properties": {
        "id": { "type": "string", "pattern": "^o-[0-9]+$" },
        "lines": { "type": "array", "items": { "$ref": "#/$defs/line" } }
    },
    "$defs": { "line": { "properties": { "cents": { "type": "integer", "minimum": 1 } } } }
}"##;

/// A violation names place and rule, and no value: values may be secret.
#[test]
fn a_violation_names_path_and_rule_and_never_the_value() {
    assert_eq!(json(ORDER).unwrap().check(br#"{"id":"o-1","lines":[{"cents":5}],"more":1}"#, true), Ok(()));
    assert_eq!(broken(ORDER, "{}"), r#"(root): "id" is a required property (rule /required)"#);
    let text = broken(ORDER, r#"{"id":"s3cret"}"#);
    assert_eq!(text, r#"/id: value does not match "^o-[0-9]+$" (rule /properties/id/pattern)"#);
    let text = broken(ORDER, r#"{"id":"o-1","lines":[{},{"cents":-7}]}"#);
    assert_eq!(text, "/lines/1/cents: value is less than the minimum of 1 (rule /$defs/line/properties/cents/minimum)");
}

/// No keyword's message contains the value.
#[test]
fn no_keyword_prints_the_value() {
    for schema in [
        r#"{"type":"integer"}"#,
        r#"{"enum":[1,2]}"#,
        r#"{"const":1}"#,
        r#"{"maxLength":3}"#,
        r#"{"not":{"type":"string"}}"#,
        r#"{"anyOf":[{"type":"integer"},{"maxLength":1}]}"#,
        r#"{"oneOf":[{"type":"integer"},{"maxLength":1}]}"#,
        r#"{"allOf":[{"pattern":"^x$"}]}"#,
        r#"{"if":{"type":"string"},"then":{"minLength":100}}"#,
        r#"{"$schema":"http://json-schema.org/draft-07/schema#","format":"ipv4"}"#,
        r#"{"$schema":"http://json-schema.org/draft-07/schema#","contentEncoding":"base64"}"#,
        r#"{"$schema":"http://json-schema.org/draft-07/schema#","contentMediaType":"application/json"}"#,
        "false",
    ] {
        let text = broken(schema, r#""s3cret-!""#);
        assert!(!text.contains("s3cret"), "{schema}: {text}");
    }
    for schema in [
        r#"{"contains":{"type":"integer"}}"#,
        r#"{"uniqueItems":true}"#,
        r#"{"maxItems":1}"#,
        r#"{"prefixItems":[{}],"items":false}"#,
        r#"{"prefixItems":[{}],"unevaluatedItems":false}"#,
        r#"{"items":{"type":"integer"}}"#,
    ] {
        let text = broken(schema, r#"["s3cret","s3cret"]"#);
        assert!(!text.contains("s3cret"), "{schema}: {text}");
    }
    for schema in [
        r#"{"additionalProperties":false}"#,
        r#"{"additionalProperties":{"type":"integer"}}"#,
        r#"{"unevaluatedProperties":false}"#,
        r#"{"propertyNames":{"maxLength":1}}"#,
        r#"{"dependentRequired":{"name":["other"]}}"#,
        r#"{"maxProperties":0}"#,
    ] {
        let text = broken(schema, r#"{"name":"s3cret"}"#);
        assert!(!text.contains("s3cret"), "{schema}: {text}");
    }
}

/// Nothing is fetched, from the network or from a disk, and the refusal states the alternative.
#[test]
fn a_reference_to_the_outside_does_not_compile() {
    for outside in ["https://example.com/a.json", "file:///etc/passwd", "other.json#/x"] {
        let problem = json(&format!(r#"{{"properties":{{"a":{{"$ref":"{outside}"}}}}}}"#)).unwrap_err().to_string();
        assert!(problem.contains("nothing is fetched: put the referenced schema below $defs"), "{problem}");
        assert_eq!(problem.lines().count(), 1);
    }
    assert!(json(r##"{"$ref":"#/$defs/none"}"##).is_err());
}

#[test]
fn what_is_no_schema_does_not_compile() {
    for (schema, says) in [
        ("{", "is not JSON"),
        ("7", "7 is not of types"),
        (r#"{"properties":{"a":{"type":"strnig"}}}"#, "at /properties/a/type"),
        // Only a backtracking engine could run it, for as long as a sender likes.
        (r#"{"pattern":"(a)\\1"}"#, "regex"),
        (r#"{"pattern":"(?=a)b"}"#, "regex"),
    ] {
        let problem = json(schema).unwrap_err().to_string();
        assert!(problem.contains(says), "{schema}: {problem}");
    }
    let schema = v1::ProtobufSchema { descriptor_set: b"\xff".to_vec(), message: "a.B".into() };
    let problem = Schema::compile(&schema_rule::Schema::Protobuf(schema)).unwrap_err().to_string();
    assert!(problem.contains("is not a descriptor set"), "{problem}");
    let problem = order("shop.v1.Order2").unwrap_err().to_string();
    assert_eq!(problem, r#"message "shop.v1.Order2" is not in the descriptor set"#);
}

/// Data that is hostile to a parser is a violation, not a fault: deep, huge or not JSON.
#[test]
fn hostile_data_is_answered() {
    let any = json("true").unwrap();
    let deep = [vec![b'['; 200_000], vec![b']'; 200_000]].concat();
    let problem = any.check(&deep, true).unwrap_err().to_string();
    assert!(problem.contains("nested more than 127 deep"), "{problem}");
    for data in [&b""[..], b"{", b"1e999", b"\"\xff\"", b"{} {}"] {
        let problem = any.check(data, true).unwrap_err().to_string();
        assert!(problem.contains("is not JSON"), "{problem}");
    }
    assert_eq!(any.check(b"{}", false).unwrap_err().path(), "(root)");
}

/// Recursion is bounded by the parser's maximum depth.
#[test]
fn schemas_that_refer_to_themselves_come_to_an_end() {
    let tree = json(r##"{"type":"object","additionalProperties":{"$ref":"#"}}"##).unwrap();
    let deep = format!("{}1{}", r#"{"a":"#.repeat(120), "}".repeat(120));
    assert!(tree.check(deep.as_bytes(), true).is_err());
    for circle in [
        r##"{"$ref":"#"}"##,
        r##"{"allOf":[{"$ref":"#"}]}"##,
        r##"{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}}"##,
        r##"{"$dynamicAnchor":"x","anyOf":[{"$dynamicRef":"#x"}]}"##,
    ] {
        assert_eq!(json(circle).unwrap().check(b"{}", true), Ok(()), "{circle}");
    }
    let nested = format!("{}true{}", r#"{"not":"#.repeat(120), "}".repeat(120));
    let _ = json(&nested).unwrap().check(b"1", true);
}

const ORDER_PROTO: &str = r#"
    syntax = "proto3";
    package shop.v1;
    import "google/protobuf/timestamp.proto";
    message Order {
      string id = 1;
      int64 total_cents = 2;
      repeated Line lines = 3;
      map<string, int32> stock = 4;
      google.protobuf.Timestamp at = 5;
      State state = 6;
    }
    message Line { uint32 count = 1; Order next = 2; }
    enum State { NEW = 0; PAID = 1; }
"#;

/// The one file, and Google's own.
struct Files;

impl FileResolver for Files {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        if name == "order.proto" {
            File::from_source(name, ORDER_PROTO)
        } else {
            GoogleFileResolver::new().open_file(name)
        }
    }
}

fn order(message: &str) -> Result<Schema, CompileError> {
    let mut compiler = protox::Compiler::with_file_resolver(Files);
    compiler.include_imports(true).open_file("order.proto").unwrap();
    let descriptor_set = compiler.file_descriptor_set().encode_to_vec();
    let schema = v1::ProtobufSchema { descriptor_set, message: message.into() };
    Schema::compile(&schema_rule::Schema::Protobuf(schema))
}

/// JSON is checked by the canonical mapping, and the violation names the field and its type.
#[test]
fn protobuf_takes_json_by_its_mapping() {
    let order = order("shop.v1.Order").unwrap();
    let good = r#"{"id":"o-1","totalCents":"5","lines":[{"count":2}],"stock":{"a":1},"at":"2026-11-21T02:00:00Z",
        "state":"PAID","unknown":{"x":[1]}}"#;
    assert_eq!(order.check(good.as_bytes(), true), Ok(()));
    assert_eq!(order.check(br#"{"total_cents":5}"#, true), Ok(()), "the proto's own names are taken, too");
    for (data, says) in [
        (r#"{"id":["s3cret"]}"#, "/id: value is not a string"),
        (r#"{"totalCents":"s3cret"}"#, "/totalCents: value is not a int64"),
        (r#"{"lines":{"s3cret":1}}"#, "/lines: value is not a list of shop.v1.Line"),
        (r#"{"lines":[{},{"count":-1}]}"#, "/lines/1/count: value is not a uint32"),
        (r#"{"lines":[{"next":{"id":1}}]}"#, "/lines/0/next/id: value is not a string"),
        (r#"{"stock":{"a~/":"s3cret"}}"#, "/stock/a~0~1: value is not a int32"),
        (r#"{"at":"s3cret"}"#, "/at: value is not a google.protobuf.Timestamp"),
        (r#""s3cret""#, "(root): value is not a shop.v1.Order"),
        (r#"{"id":"#, "(root): is not JSON that a schema can check, at line 1 column 6"),
        (r#"{} {}"#, "(root): is not JSON that a schema can check, at line 1 column 4"),
    ] {
        assert_eq!(order.check(data.as_bytes(), true).unwrap_err().to_string(), says, "{data}");
    }
    let deep = format!("{}{}", r#"{"lines":[{"next":"#.repeat(200), "}]}".repeat(200));
    assert!(order.check(deep.as_bytes(), true).is_err());
}

/// Other data is checked by the wire format.
#[test]
fn protobuf_takes_binary() {
    let order = order("shop.v1.Order").unwrap();
    assert_eq!(order.check(b"\x0a\x03o-1\x10\x05", false), Ok(()));
    assert_eq!(order.check(b"", false), Ok(()), "a message of defaults");
    assert_eq!(order.check(b"\xf8\x07\x01", false), Ok(()), "a field that is not known");
    for data in [&b"\x0a\x10s3cret"[..], b"\x0a\x02\xff\xfe", b"\x08\x01", b"\xff"] {
        let text = order.check(data, false).unwrap_err().to_string();
        assert!(text.starts_with("(root): is not a shop.v1.Order: ") && !text.contains("s3cret"), "{text}");
    }
}

proptest! {
    /// A check of any data returns, and a violation is one printable line of bounded length without the value.
    #[test]
    fn a_violation_is_one_bounded_line(names in proptest::collection::vec("\\PC{0,200}|[\\x00-\\x1f]{1,20}", 1..5)) {
        let schema = json(r##"{"additionalProperties":{"$ref":"#"},"type":"object"}"##).unwrap();
        let data = names.iter().rev().fold(serde_json::json!("s3cret-value"), |inner, name| {
            serde_json::json!({ name: inner })
        });
        let text = schema.check(data.to_string().as_bytes(), true).unwrap_err().to_string();
        prop_assert!(text.len() <= 2 * violation::TEXT_BYTES_MAX + 2);
        prop_assert!(!text.contains(char::is_control) && !text.contains("s3cret"));
    }

    #[test]
    fn binary_garbage_is_answered(data in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = order("shop.v1.Order").unwrap().check(&data, false);
    }

    #[test]
    fn a_line_is_cut_at_a_character(text in "\\PC{0,60}", bytes_max in 3usize..40) {
        let line = violation::one_line(&text, bytes_max);
        prop_assert!(line.len() <= bytes_max);
        prop_assert!(line == text || line.ends_with('…') && text.starts_with(line.trim_end_matches('…')));
    }
}
