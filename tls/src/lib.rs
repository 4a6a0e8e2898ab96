//! The port of a role: bound, and with TLS if the configuration names a certificate.
//!
//! - [`options`]: `tls = { cert = "file:…", key = "file:…" }`.
//! - `identity`: certificate and key, read and checked against each other.
//! - [`acceptor`]: the server's side of the handshake, and certificates that are renewed while it runs.
//! - [`listener`]: a bound port and its acceptor.
//! - [`client`]: the authorities that clients trust.
//!
//! This crate knows no application protocol.

pub mod acceptor;
pub mod client;
mod identity;
pub mod listener;
pub mod options;
#[cfg(test)]
mod tests;

pub use acceptor::Acceptor;
pub use identity::TlsError;
pub use listener::{BindError, Listener};
pub use options::TlsOptions;
