//! The schemas of a source: within their bounds, and compiling.

use weft_proto::v1::{SchemaMode, SchemaRule, Source, schema_rule::Schema};

use super::PATTERN_BYTES_MAX;

/// The most rules of a source: an event's type is compared with each until one matches.
const RULES_MAX: usize = 64;
/// The largest schema, in bytes: far above what people write, and compiled within milliseconds.
const SCHEMA_BYTES_MAX: usize = 256 * 1024;
/// The most that all schemas of a source may weigh, in bytes: a source is one message of the catalog, and must fit into
/// what a server takes at its default with room for the rest.
const SCHEMAS_BYTES_MAX: usize = 512 * 1024;

/// Checks the schemas, each by compiling it.
pub(super) fn check_schemas(source: &Source) -> Result<(), String> {
    let rules = &source.schemas;
    if rules.len() > RULES_MAX {
        return Err(format!("schema: {} rules; {RULES_MAX} are the most; use patterns with *", rules.len()));
    }
    for (index, rule) in rules.iter().enumerate() {
        check_rule(rule).map_err(|problem| format!("schema[{index}]: {problem}"))?;
    }
    let bytes: usize = rules.iter().map(bytes).sum();
    if bytes > SCHEMAS_BYTES_MAX {
        return Err(format!("schema: {bytes} bytes in all; {SCHEMAS_BYTES_MAX} are the most"));
    }
    Ok(())
}

fn check_rule(rule: &SchemaRule) -> Result<(), String> {
    if !(1..=PATTERN_BYTES_MAX).contains(&rule.r#type.len()) {
        return Err(format!("type: {:?} is empty or longer than {PATTERN_BYTES_MAX} bytes", rule.r#type));
    }
    if rule.mode() == SchemaMode::Unspecified {
        return Err("mode is missing: say warn, reject or quarantine".into());
    }
    let Some(schema) = &rule.schema else {
        return Err("say json_schema, or protobuf with message".into());
    };
    let bytes = bytes(rule);
    if bytes > SCHEMA_BYTES_MAX {
        return Err(format!("is {bytes} bytes large; {SCHEMA_BYTES_MAX} are the most"));
    }
    weft_schema::Schema::compile(schema).map(drop).map_err(|problem| problem.to_string())
}

fn bytes(rule: &SchemaRule) -> usize {
    match &rule.schema {
        Some(Schema::JsonSchema(text)) => text.len(),
        Some(Schema::Protobuf(schema)) => schema.descriptor_set.len(),
        None => 0,
    }
}
