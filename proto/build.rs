//! Compiles `proto/weft/v1` with protox, so that no `protoc` is needed.

use std::{env, path::PathBuf};

use prost::Message as _;
use prost_types::{DescriptorProto, FileDescriptorSet, field_descriptor_proto::Type};

include!("src/secret_fields.rs");

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=src/secret_fields.rs");
    let descriptors = protox::compile(
        [
            "weft/v1/audit_service.proto",
            "weft/v1/catalog.proto",
            "weft/v1/catalog_service.proto",
            "weft/v1/dead_letter_service.proto",
            "weft/v1/event.proto",
            "weft/v1/event_handler.proto",
            "weft/v1/event_service.proto",
            "weft/v1/forward.proto",
            "weft/v1/ingest_service.proto",
            "weft/v1/log.proto",
            "weft/v1/receiver.proto",
            "weft/v1/rejected_service.proto",
            "weft/v1/replay_service.proto",
            "weft/v1/shard_service.proto",
            "weft/v1/stats_service.proto",
            "weft/v1/workflow_service.proto",
        ],
        ["proto"],
    )?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(out.join("weft_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".weft.v1.Event.data")
        .bytes(".weft.v1.ForwardedEvent.payload")
        .bytes(".weft.v1.PublishRequest.data")
        // `src/redacted.rs` has theirs.
        .skip_debug(messages_with_secrets(&descriptors))
        .compile_fds(descriptors)?;
    Ok(())
}

/// The full names of the messages with a field of [`SECRET_FIELDS`].
fn messages_with_secrets(descriptors: &FileDescriptorSet) -> Vec<String> {
    fn walk(prefix: &str, message: &DescriptorProto, found: &mut Vec<String>) {
        let name = format!("{prefix}.{}", message.name());
        let secret = message
            .field
            .iter()
            .any(|field| SECRET_FIELDS.contains(&field.name()) && matches!(field.r#type(), Type::String | Type::Bytes));
        message.nested_type.iter().for_each(|nested| walk(&name, nested, found));
        if secret {
            found.push(name);
        }
    }
    let mut found = Vec::new();
    for file in &descriptors.file {
        let package = format!(".{}", file.package());
        file.message_type.iter().for_each(|message| walk(&package, message, &mut found));
    }
    found
}
