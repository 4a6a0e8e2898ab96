//! JSON Schema, of the draft that its `$schema` names; 2020-12 by default.

use jsonschema::{PatternOptions, Retrieve, Uri, ValidationError, Validator, error::ValidationErrorKind};
use serde_json::Value;

use crate::violation::Violation;

/// Maximum size of a compiled regular expression, in bytes: the default of the `regex` crate, set explicitly because schemas
/// come from outside.
const REGEX_BYTES_MAX: usize = 10 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct JsonSchema(Validator);

impl JsonSchema {
    pub fn compile(text: &str) -> Result<Self, String> {
        let schema: Value = serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))?;
        jsonschema::options()
            .with_retriever(Outside)
            .with_pattern_options(PatternOptions::regex().size_limit(REGEX_BYTES_MAX))
            .build(&schema)
            .map(Self)
            .map_err(|error| explain(&error))
    }

    pub fn check(&self, data: &[u8]) -> Result<(), Violation> {
        let value: Value = serde_json::from_slice(data).map_err(|error| unreadable(&error))?;
        let Err(error) = self.0.validate(&value) else { return Ok(()) };
        let (path, rule) = (error.instance_path().as_str(), error.schema_path().as_str());
        Err(Violation::at(path, &format!("{} (rule {rule})", error.masked())))
    }
}

/// Refuses every reference to another document.
struct Outside;

impl Retrieve for Outside {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        Err(format!("{uri} is outside of the schema").into())
    }
}

/// The error's text with that of its sources: the text of a failed reference does not say why.
fn explain(error: &ValidationError<'_>) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    if matches!(error.kind(), ValidationErrorKind::Referencing(_)) {
        text.push_str("; nothing is fetched: put the referenced schema below $defs");
    }
    match error.instance_path().as_str() {
        "" => text,
        path => format!("at {path}: {text}"),
    }
}

/// The violation of unparsable JSON, without the text.
pub(crate) fn unreadable(error: &serde_json::Error) -> Violation {
    let place = format!("line {} column {}", error.line(), error.column());
    // The parser reports this only in its message.
    let message = if error.to_string().starts_with("recursion limit") {
        format!("is nested more than 127 deep at {place}")
    } else {
        format!("is not JSON that a schema can check, at {place}")
    };
    Violation::whole(&message)
}
