//! Control: the gRPC services that operators use, over the history projection, behind a bearer token.
//!
//! - [`service`]: the admin as a component, and the services.
//! - [`deliveries`]: what it asks of the code that delivers.
//! - [`auth`]: the bearer token; [`error`]: what is refused, and how; [`convert`]: the log's words as the services'.
//!
//! This crate knows nothing of gateways and workers: it reads the log's projections and appends commands.

pub mod auth;
pub mod convert;
pub mod deliveries;
pub mod error;
pub mod options;
pub mod service;

pub use options::AdminOptions;
pub use service::Admin;
