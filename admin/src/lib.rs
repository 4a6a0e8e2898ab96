//! The admin: the gRPC services that operators use, over the history projection, authenticated by API keys.
//!
//! - [`service`]: the admin as a component, and the services.
//! - [`console`]: the web page on the same port.
//! - [`deliveries`]: what it asks of the code that delivers.
//! - [`as_of`]: the position of the log up to which an answer is complete; [`auth`]: who may call what; [`error`]: refusals and their
//!   codes; [`convert`]: log records as gRPC messages.
//!
//! This crate knows nothing of gateways and workers: it reads the log's projections and appends commands.

pub mod as_of;
pub mod auth;
pub mod console;
pub mod convert;
pub mod deliveries;
pub mod error;
mod metrics;
pub mod options;
pub mod service;

pub use options::AdminOptions;
pub use service::Admin;
