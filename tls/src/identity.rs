//! Identity of the server: a certificate chain and its key.

use std::sync::Arc;

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use weft_nats::options::SecretRef;

use crate::options::TlsOptions;

/// Why there is no TLS. One line each, for a person; none quotes a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// One without the other.
    #[error("tls: cert and key belong together: give both or neither; client_ca needs them")]
    Half,
    /// A file or variable cannot be read.
    #[error("tls.{key}: {problem}")]
    Unreadable {
        /// `cert`, `key` or `client_ca`.
        key: &'static str,
        /// The system's error.
        problem: String,
    },
    /// `cert` contains no certificate.
    #[error("tls.cert holds no certificate in PEM (-----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// `key` contains no key.
    #[error("tls.key holds no private key in PEM (-----BEGIN PRIVATE KEY-----)")]
    NoKey,
    /// `client_ca` contains no certificate.
    #[error("tls.client_ca holds no certificate in PEM (-----BEGIN CERTIFICATE-----)")]
    NoAuthority,
    /// Both can be read, but they cannot be used together.
    #[error("tls: certificate and key cannot be used: {0}")]
    Unusable(String),
}

/// Reads and checks both; `None` when the options name neither.
pub(crate) fn read(options: &TlsOptions, provider: &CryptoProvider) -> Result<Option<Arc<CertifiedKey>>, TlsError> {
    let (cert, key) = match (&options.cert, &options.key) {
        (None, None) if options.client_ca.is_some() => return Err(TlsError::Half),
        (None, None) => return Ok(None),
        (Some(cert), Some(key)) => (pem("cert", cert)?, pem("key", key)?),
        _ => return Err(TlsError::Half),
    };
    let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or(TlsError::NoCertificate)?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| TlsError::NoKey)?;
    let identity = CertifiedKey::from_der(chain, key, provider);
    identity.map(Arc::new).map(Some).map_err(|error| TlsError::Unusable(error.to_string()))
}

/// The authorities that clients have to be certified by; `None`: clients need no certificate.
pub(crate) fn authorities(options: &TlsOptions) -> Result<Option<RootCertStore>, TlsError> {
    let Some(authorities) = &options.client_ca else { return Ok(None) };
    let text = pem("client_ca", authorities)?;
    let certificates = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates.map_err(|_| TlsError::NoAuthority)?);
    if added == 0 { Err(TlsError::NoAuthority) } else { Ok(Some(roots)) }
}

fn pem(key: &'static str, secret: &SecretRef) -> Result<String, TlsError> {
    let secret = secret.resolve().map_err(|problem| TlsError::Unreadable { key, problem })?;
    Ok(secret.expose().to_owned())
}
