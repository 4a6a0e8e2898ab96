//! Control: the gRPC services that operators use, over the history projection, behind a bearer token.
//!
//! This crate knows nothing of gateways and workers: it reads the log's projections and appends commands.

pub mod auth;
pub mod error;
pub mod options;
pub mod service;

pub use options::AdminOptions;
pub use service::Admin;
