//! The error of a response of the JetStream API or of a publish ack.

use serde::Deserialize;

/// As in `server/errors.json` of nats-server.
#[derive(Debug, Deserialize)]
pub(crate) struct ApiError {
    /// As in HTTP.
    #[serde(default)]
    pub code: u16,
    /// The number of the error.
    #[serde(default)]
    pub err_code: u64,
    /// For a person.
    #[serde(default)]
    pub description: String,
}
