//! In: the way of an event from a sender to the log.
//!
//! verify ([`verify`]) → identify ([`identify`]) → sequence ([`sequencer`]) → answer ([`ingest`]), and the `since` query
//! ([`since`]). Between this crate and the workers only the log passes.

pub mod error;
pub mod identify;
pub mod ingest;
pub mod metrics;
pub mod options;
pub mod router;
pub mod sequencer;
pub mod service;
pub mod since;
pub mod verify;

pub use options::GatewayOptions;
pub use service::Gateway;
