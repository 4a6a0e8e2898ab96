//! Control: the gRPC services that operators use, over the history projection, behind keys.
//!
//! - [`service`]: the admin as a component, and the services.
//! - [`console`]: the web page on the same port.
//! - [`deliveries`]: what it asks of the code that delivers.
//! - [`as_of`]: how far an answer is; [`auth`]: who may call what; [`error`]: what is refused, and how; [`convert`]: the log's words as the services'.
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
