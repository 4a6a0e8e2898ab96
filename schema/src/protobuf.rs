//! Protobuf: data that decodes completely as a message; unknown fields are tolerated.

use prost_reflect::{Cardinality, DescriptorPool, DeserializeOptions, DynamicMessage, Kind, MessageDescriptor};
use serde_path_to_error::{Path, Segment};
use weft_proto::v1;

use crate::{json::unreadable, violation::Violation};

#[derive(Debug)]
pub(crate) struct ProtobufSchema(MessageDescriptor);

impl ProtobufSchema {
    pub fn compile(schema: &v1::ProtobufSchema) -> Result<Self, String> {
        let pool = DescriptorPool::decode(schema.descriptor_set.as_slice()).map_err(|error| {
            format!("is not a descriptor set with everything that it imports (protoc --include_imports -o): {error}")
        })?;
        pool.get_message_by_name(&schema.message)
            .map(Self)
            .ok_or_else(|| format!("message {:?} is not in the descriptor set", schema.message))
    }

    /// By the canonical JSON mapping.
    pub fn check_json(&self, data: &[u8]) -> Result<(), Violation> {
        let options = DeserializeOptions::new().deny_unknown_fields(false);
        let mut json = serde_json::Deserializer::from_slice(data);
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
        let decoded = DynamicMessage::deserialize_with_options(self.0.clone(), tracked, &options);
        match decoded.and_then(|_| json.end()) {
            Ok(()) => Ok(()),
            // The decoder's message quotes the value.
            Err(error) if error.is_data() => {
                let path = track.path();
                Err(Violation::at(&pointer(&path), &format!("value is not {}", expected(&self.0, &path))))
            }
            Err(error) => Err(unreadable(&error)),
        }
    }

    pub fn check_binary(&self, data: &[u8]) -> Result<(), Violation> {
        // The decoder's message names fields and wire types, never a value.
        DynamicMessage::decode(self.0.clone(), data)
            .map(drop)
            .map_err(|error| Violation::whole(&format!("is not a {}: {error}", self.0.full_name())))
    }
}

/// The path as an RFC 6901 pointer.
fn pointer(path: &Path) -> String {
    let token = |segment: &Segment| match segment {
        Segment::Seq { index } => index.to_string(),
        Segment::Map { key } => key.replace('~', "~0").replace('/', "~1"),
        Segment::Enum { .. } | Segment::Unknown => "?".to_owned(),
    };
    path.iter().map(|segment| format!("/{}", token(segment))).collect()
}

/// The type that the message requires at the path: the violated rule.
fn expected(message: &MessageDescriptor, path: &Path) -> String {
    let mut wanted = Kind::Message(message.clone());
    let mut list = false;
    for segment in path.iter() {
        match (segment, &wanted) {
            // An element of a list, or a value of a map: the field's kind is already that of its elements.
            (Segment::Seq { .. }, _) if list => list = false,
            (Segment::Map { .. }, Kind::Message(entry)) if entry.is_map_entry() => {
                wanted = entry.map_entry_value_field().kind();
            }
            (Segment::Map { key }, Kind::Message(message)) => {
                let field = message.get_field_by_json_name(key).or_else(|| message.get_field_by_name(key));
                // Unknown fields are tolerated, so this one is within a well-known type.
                let Some(field) = field else { break };
                list = field.cardinality() == Cardinality::Repeated && !field.is_map();
                wanted = field.kind();
            }
            _ => break,
        }
    }
    let name = match wanted {
        Kind::Message(message) if message.is_map_entry() => "map".to_owned(),
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(values) => format!("{} (enum)", values.full_name()),
        scalar => format!("{scalar:?}"),
    };
    if list { format!("a list of {name}") } else { format!("a {name}") }
}
