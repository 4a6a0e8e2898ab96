//! The contracts of Weft: the protobuf messages and services of package `weft.v1`, the identifiers that every crate
//! shares, and how services say what they refuse.
//!
//! This crate knows no other crate of the house, and nothing of NATS, redb or HTTP.

pub mod ids;
mod redacted;
pub mod rpc;

pub use redacted::SECRET_MASK;

/// Generated from `proto/weft/v1/*.proto`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("weft.v1");
}

/// The encoded `FileDescriptorSet` of [`v1`], for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/weft_descriptor.bin"));
