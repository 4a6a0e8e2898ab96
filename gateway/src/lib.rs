//! In: the way of an event from a sender to the log.
//!
//! [`body`] → [`verify`] → [`identify`] → [`schema`] → [`sequencer`] → the answer, as [`ingest`] strings them together;
//! and reading: [`since`], [`stream`]. With an API key, [`events`] takes CloudEvents and [`rpc`] gRPC. Refusals are
//! [`error`]'s; what was refused is kept in [`rejected`]. Between this crate and the workers only the log passes.

pub mod admission;
pub mod auth;
pub mod body;
pub mod budget;
pub mod error;
pub mod events;
pub mod forwarding;
pub mod identify;
pub mod ingest;
pub mod metrics;
pub mod openapi;
pub mod options;
pub mod readiness;
pub mod rejected;
pub mod router;
pub mod rpc;
pub mod schema;
pub mod sequencer;
pub mod service;
pub mod since;
pub mod sources;
pub mod stream;

pub use options::GatewayOptions;
pub use service::Gateway;
