//! Compiles `proto/weft` with protox, so that no `protoc` is needed.

use std::{env, path::PathBuf};

use prost::Message as _;
use prost_types::{DescriptorProto, FileDescriptorSet, field_descriptor_proto::Type};

include!("src/secret_fields.rs");

/// Package of the messages and services that clients call.
const PUBLIC: &str = "weft/v1";
/// Package of records, and of messages between roles.
const INTERNAL: &str = "weft/internal/v1";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=src/secret_fields.rs");
    let files = [PUBLIC, INTERNAL].map(files_of).into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(out.join("weft_all_descriptor.bin"), descriptors.encode_to_vec())?;
    let mut public = descriptors.clone();
    public.file.retain(|file| file.package() != INTERNAL.replace('/', "."));
    std::fs::write(out.join("weft_descriptor.bin"), public.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".weft.v1.Event.data")
        .bytes(".weft.internal.v1.ForwardedEvent.payload")
        .bytes(".weft.v1.PublishRequest.data")
        // `src/redacted.rs` has theirs.
        .skip_debug(messages_with_secrets(&descriptors))
        .compile_fds(descriptors)?;
    Ok(())
}

/// The proto files of a package, by their paths below `proto`, in order.
fn files_of(package: &str) -> std::io::Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(PathBuf::from("proto").join(package))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".proto") {
            files.push(format!("{package}/{name}"));
        }
    }
    files.sort();
    Ok(files)
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
