//! `tls` of a section.

use serde::Deserialize;
use weft_nats::options::SecretRef;

/// `tls = { cert = "file:…", key = "file:…", client_ca = "file:…" }`. Empty: plain text.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsOptions {
    /// The certificate chain in PEM, the server's certificate first.
    pub cert: Option<SecretRef>,
    /// The private key of the certificate, in PEM.
    pub key: Option<SecretRef>,
    /// Authorities in PEM. With them a client has to show a certificate of one of them.
    pub client_ca: Option<SecretRef>,
}
