//! The HTTP API: its routes, what they share, and how requests are answered and refused.

mod access_log;
pub mod body;
pub mod error;
pub mod events;
mod open_streams;
pub mod openapi;
pub mod router;
pub mod since;
pub mod state;
pub mod stream;
pub mod webhooks;
mod wire;

pub use access_log::ACCESS_LOG;
