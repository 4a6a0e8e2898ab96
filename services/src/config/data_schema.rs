//! `schema = [{ … }]` of a source as people write it: what the data of its events must be.

use serde::Deserialize;
use weft_proto::v1::{ProtobufSchema, SchemaMode, SchemaRule, schema_rule::Schema};

use super::{KeyPath, Problem};

/// In front of the path of a file. As with secrets, a relative path counts from the folder that the process runs in.
const FILE: &str = "file:";

#[derive(Debug, Deserialize)]
pub(super) struct SchemaForm {
    r#type: String,
    json_schema: Option<String>,
    protobuf: Option<String>,
    message: Option<String>,
    mode: ModeForm,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModeForm {
    Warn,
    Reject,
    Quarantine,
}

impl SchemaForm {
    /// The rule, with the content of its file. Whether it compiles is checked with the rest of the source.
    pub(super) fn into_rule(self, path: &KeyPath) -> Result<SchemaRule, Problem> {
        let schema = match (self.json_schema, self.protobuf, self.message) {
            (Some(json), None, None) => Schema::JsonSchema(json_text(json, &path.key("json_schema"))?),
            (None, Some(protobuf), Some(message)) => {
                let descriptor_set = descriptor_set(&protobuf, &path.key("protobuf"))?;
                Schema::Protobuf(ProtobufSchema { descriptor_set, message })
            }
            _ => return Err((path.clone(), "say either json_schema, or protobuf and message".into())),
        };
        let mode = match self.mode {
            ModeForm::Warn => SchemaMode::Warn,
            ModeForm::Reject => SchemaMode::Reject,
            ModeForm::Quarantine => SchemaMode::Quarantine,
        };
        Ok(SchemaRule { r#type: self.r#type, schema: Some(schema), mode: mode.into() })
    }
}

/// A JSON Schema: a file's, or the text itself.
fn json_text(written: String, path: &KeyPath) -> Result<String, Problem> {
    match written.strip_prefix(FILE) {
        None => Ok(written),
        Some(file) => std::fs::read_to_string(file).map_err(|error| unreadable(path, file, &error)),
    }
}

/// A descriptor set. Always a file's: it is binary.
fn descriptor_set(written: &str, path: &KeyPath) -> Result<Vec<u8>, Problem> {
    let Some(file) = written.strip_prefix(FILE) else {
        let problem = "is not file:PATH; make the file with: protoc --include_imports -o order.binpb order.proto";
        return Err((path.clone(), problem.into()));
    };
    std::fs::read(file).map_err(|error| unreadable(path, file, &error))
}

fn unreadable(path: &KeyPath, file: &str, error: &std::io::Error) -> Problem {
    (path.clone(), format!("schema file {file}: {error}"))
}
