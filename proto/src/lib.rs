//! The contracts of Weft: the protobuf messages and services of package `weft.v1`, the records of `weft.internal.v1`, the
//! identifiers that every crate shares, and how services say what they refuse.
//!
//! This crate knows no other crate of the house, and nothing of NATS, redb or HTTP.

pub mod ids;
mod redacted;
pub mod rpc;
pub mod words;

pub use redacted::SECRET_MASK;

/// Generated from `proto/weft/v1/*.proto`: what clients call.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("weft.v1");
}

/// Generated from `proto/weft/internal/v1/*.proto`: the records of the log, and what the roles send each other.
#[allow(missing_docs, clippy::all)]
pub mod internal {
    mod v1 {
        tonic::include_proto!("weft.internal.v1");
    }
    pub use v1::*;
}

/// The encoded `FileDescriptorSet` of [`v1`], for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/weft_descriptor.bin"));

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::FILE_DESCRIPTOR_SET;

    /// Clients generate code from what reflection describes: nothing of the log's records is among it, and nothing in it needs them.
    #[test]
    fn the_descriptors_are_those_of_what_clients_call() {
        let files = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap().file;
        assert!(files.iter().any(|file| file.name() == "weft/v1/event_service.proto"));
        for file in files {
            assert!(!file.name().contains("internal"), "{}", file.name());
            assert!(!file.dependency.iter().any(|name| name.contains("internal")), "{}", file.name());
        }
    }
}
