//! `tls` of a section.

use serde::Deserialize;
use weft_nats::options::SecretRef;

/// `tls = { cert = "file:…", key = "file:…" }`. Empty: the port speaks plain text.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsOptions {
    /// The certificate and those that lead from it to its authority, in PEM, the server's own first.
    pub cert: Option<SecretRef>,
    /// The private key of the certificate, in PEM.
    pub key: Option<SecretRef>,
}
