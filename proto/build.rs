//! Compiles `proto/weft/v1` with protox, so that no `protoc` is needed.

use std::{env, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(
        [
            "weft/v1/catalog.proto",
            "weft/v1/catalog_service.proto",
            "weft/v1/dead_letter_service.proto",
            "weft/v1/event.proto",
            "weft/v1/event_service.proto",
            "weft/v1/forward.proto",
            "weft/v1/ingest_service.proto",
            "weft/v1/log.proto",
            "weft/v1/rejected_service.proto",
        ],
        ["proto"],
    )?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(out.join("weft_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".weft.v1.Event.data")
        .bytes(".weft.v1.ForwardedEvent.payload")
        .bytes(".weft.v1.PublishRequest.data")
        .compile_fds(descriptors)?;
    Ok(())
}
