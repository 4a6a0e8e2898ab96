//! Schemas of the data of events: JSON Schema or a Protobuf message, compiled once and checked for each event.
//!
//! Pure: texts and bytes in, a result out. The gateway decides which events a schema applies to, and how violations are
//! treated; every change of a source compiles its schemas, from a file or over the API.
//!
//! Nothing is fetched: a schema that is not self-contained does not compile. Regular expressions are those of the
//! `regex` crate, which take time linear in the text; a pattern that needs backtracking does not compile.

use weft_proto::v1::schema_rule;

mod json;
pub mod pointer;
mod protobuf;
mod violation;

pub use violation::Violation;

/// A compiled schema.
#[derive(Debug)]
pub struct Schema(Kind);

#[derive(Debug)]
enum Kind {
    Json(json::JsonSchema),
    Protobuf(protobuf::ProtobufSchema),
}

/// Reason why a schema cannot be used, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CompileError(String);

impl Schema {
    /// Compiles a schema. Takes milliseconds for large ones.
    ///
    /// # Errors
    ///
    /// [`CompileError`]: it is not a schema, or refers to another document.
    pub fn compile(schema: &schema_rule::Schema) -> Result<Self, CompileError> {
        match schema {
            schema_rule::Schema::JsonSchema(text) => json::JsonSchema::compile(text).map(Kind::Json),
            schema_rule::Schema::Protobuf(schema) => protobuf::ProtobufSchema::compile(schema).map(Kind::Protobuf),
        }
        .map(Self)
        .map_err(|problem| CompileError(violation::one_line(&problem, violation::TEXT_BYTES_MAX)))
    }

    /// Validates `data`. `is_json` is whether its media type is JSON: a JSON Schema accepts no other type, a Protobuf
    /// message is read by its canonical JSON mapping, or as binary if it is false.
    ///
    /// Takes time and memory proportional to the data, about ten times its size.
    ///
    /// # Errors
    ///
    /// The first [`Violation`].
    pub fn check(&self, data: &[u8], is_json: bool) -> Result<(), Violation> {
        match &self.0 {
            Kind::Json(schema) if is_json => schema.check(data),
            Kind::Json(_) => Err(Violation::whole("its media type is not that of JSON")),
            Kind::Protobuf(schema) if is_json => schema.check_json(data),
            Kind::Protobuf(schema) => schema.check_binary(data),
        }
    }
}

#[cfg(test)]
mod tests;
