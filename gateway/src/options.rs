//! `[gateway]`.

use std::net::SocketAddr;

use serde::Deserialize;

/// `[gateway]`: the HTTP API.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayOptions {
    /// Where the HTTP API listens. Port 0: a free one.
    pub listen: SocketAddr,
    /// The largest body taken, at most 8 MiB. A body of exactly this size is taken.
    pub max_body: bytesize::ByteSize,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8080)), max_body: bytesize::ByteSize::mib(1) }
    }
}
