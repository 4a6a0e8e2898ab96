//! What the data of an event must be: a JSON Schema or a Protobuf message, compiled once and checked per event.
//!
//! Pure: texts and bytes in, a verdict out. Which events a schema is for, and what becomes of those that break it, is
//! the gateway's; that a schema compiles is asked by everyone who takes a source, from a file or over the API.
//!
//! Nothing is ever fetched: a schema is whole in itself, or does not compile. Regular expressions are those of the
//! `regex` crate, which take time linear in the text; what needs backtracking does not compile.

use weft_proto::v1::schema_rule;

mod json;
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

/// Why a schema cannot be used: one line that says what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CompileError(String);

impl Schema {
    /// Compiles a schema. Takes milliseconds for large ones.
    ///
    /// # Errors
    ///
    /// [`CompileError`]: it is not a schema, or refers to something outside of itself.
    pub fn compile(schema: &schema_rule::Schema) -> Result<Self, CompileError> {
        match schema {
            schema_rule::Schema::JsonSchema(text) => json::JsonSchema::compile(text).map(Kind::Json),
            schema_rule::Schema::Protobuf(schema) => protobuf::ProtobufSchema::compile(schema).map(Kind::Protobuf),
        }
        .map(Self)
        .map_err(|problem| CompileError(violation::one_line(&problem, violation::TEXT_BYTES_MAX)))
    }

    /// Whether `data` is what the schema says. `is_json` tells its media type: a JSON Schema takes nothing else, a
    /// Protobuf message is read by its canonical JSON mapping, and as binary where it is false.
    ///
    /// Takes time and memory proportional to the data, some ten times its size.
    ///
    /// # Errors
    ///
    /// [`Violation`]: the first that was found.
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
