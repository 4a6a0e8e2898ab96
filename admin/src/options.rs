//! `[admin]`.

use std::net::SocketAddr;

use serde::Deserialize;
use weft_nats::options::SecretRef;

/// `[admin]`: the gRPC services.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminOptions {
    /// Where the services listen. Port 0: a free one.
    pub listen: SocketAddr,
    /// The bearer token with every scope. None: `weft up` makes one.
    pub token: Option<SecretRef>,
}

impl Default for AdminOptions {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9080)), token: None }
    }
}
