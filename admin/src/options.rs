//! `[admin]`.

use std::net::SocketAddr;

use serde::Deserialize;
use weft_nats::options::SecretRef;
use weft_tls::TlsOptions;

/// `[admin]`: the gRPC services.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminOptions {
    /// Where the services listen. Port 0: a free one.
    pub listen: SocketAddr,
    /// The bearer token with every scope. None: `weft up` makes one.
    pub token: Option<SecretRef>,
    /// Certificate and key. Empty: plain text.
    pub tls: TlsOptions,
}

impl Default for AdminOptions {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9080)), token: None, tls: TlsOptions::default() }
    }
}
