//! Arbitrary data against schemas: it is judged, and a violation is one printable line of a bounded length.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use weft_proto::v1::{ProtobufSchema, schema_rule};
use weft_schema::Schema;

/// The longest violation, in bytes.
const VIOLATION_BYTES_MAX: usize = 520;

/// Each kind of keyword, a recursion, and formats that are checked.
const JSON: &str = r##"{
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": ["object", "array", "string"],
    "properties": {
        "id": { "type": "string", "pattern": "^o-[0-9]+$", "maxLength": 12 },
        "at": { "format": "date-time" },
        "mail": { "format": "email" },
        "uri": { "format": "uri-reference" },
        "ip": { "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }] },
        "cents": { "type": "integer", "minimum": 1, "multipleOf": 5 },
        "state": { "enum": ["new", "paid", null, 1.5] },
        "lines": { "items": { "$ref": "#" }, "uniqueItems": true, "contains": { "type": "object" } }
    },
    "patternProperties": { "^x-": { "$ref": "#" } },
    "dependencies": { "mail": ["id"] },
    "propertyNames": { "maxLength": 40 },
    "if": { "required": ["cents"] },
    "then": { "required": ["id"] },
    "oneOf": [{ "maxProperties": 3 }, { "minProperties": 2, "items": { "$ref": "#" } }]
}"##;

static SCHEMAS: LazyLock<Vec<Schema>> = LazyLock::new(|| {
    // Our own messages: lists, maps, enums, oneofs, well-known types and recursion through Any.
    let protobuf = |message: &str| {
        let descriptor_set = weft_proto::FILE_DESCRIPTOR_SET.to_vec();
        schema_rule::Schema::Protobuf(ProtobufSchema { descriptor_set, message: message.into() })
    };
    let schemas = [schema_rule::Schema::JsonSchema(JSON.into()), protobuf("weft.v1.Source"), protobuf("weft.v1.Event")];
    schemas.iter().map(|schema| Schema::compile(schema).expect("a schema")).collect()
});

fuzz_target!(|data: &[u8]| {
    for schema in SCHEMAS.iter() {
        for is_json in [true, false] {
            let Err(violation) = schema.check(data, is_json) else { continue };
            let text = violation.to_string();
            assert!(text.len() <= VIOLATION_BYTES_MAX && !text.contains(char::is_control), "{text:?}");
        }
    }
});
