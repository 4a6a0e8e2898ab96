//! The gateway: takes events from senders into the log.
//!
//! A request passes [`http::body`], `weft_schemes`, [`identify`], [`schema`] and [`sequencer`] before it is answered;
//! [`http::webhooks`] calls them in this order. [`http::since`] and [`http::stream`] read. With an API key,
//! [`http::events`] accepts CloudEvents and [`rpc`] gRPC. [`http::error`] lists the refusals; [`rejected`] keeps
//! refused requests. [`forwarding`] lets one of several gateways append for all. Gateways and workers share nothing but
//! the log.

pub mod admission;
pub mod auth;
pub mod budget;
pub mod forwarding;
pub mod http;
pub mod identify;
pub mod metrics;
pub mod options;
mod own_events;
pub mod rejected;
mod requests;
pub mod rpc;
mod sample;
pub mod schema;
pub mod sequencer;
pub mod service;
pub mod sources;

pub use http::ACCESS_LOG;
pub use options::GatewayOptions;
pub use service::Gateway;
