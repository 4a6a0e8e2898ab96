//! TLS of clients: the certificate authorities that they trust.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore,
    client::WantsClientCert,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use rustls_native_certs::CertificateResult;

use crate::TlsError;

/// A client's TLS 1.2 and 1.3 that trusts the system's authorities, see [`system_roots`].
///
/// # Errors
///
/// [`TlsError::Unusable`]: the cryptography of this build supports no TLS version.
pub fn client_config() -> Result<ClientConfig, TlsError> {
    trusting(system_roots())
}

/// The system's authorities (or those in `SSL_CERT_FILE` and `SSL_CERT_DIR`); if there is none, such as in a minimal
/// container image, those of Mozilla, which are built in. They are read once in the life of the process.
pub fn system_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let file = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
        if let Some(problem) = file.as_deref().and_then(unreadable) {
            tracing::warn!("SSL_CERT_FILE: {problem}; certificates of receivers are checked without it");
        }
        Arc::new(roots(rustls_native_certs::load_native_certs()))
    });
    Arc::clone(roots)
}

/// A client's TLS that trusts `roots` only.
///
/// # Errors
///
/// As [`client_config`].
pub fn trusting(roots: Arc<RootCertStore>) -> Result<ClientConfig, TlsError> {
    Ok(builder(roots)?.with_no_client_auth())
}

/// As [`trusting`], for a client with a certificate.
///
/// # Errors
///
/// [`TlsError::Unusable`]: as [`client_config`], or `key` is not the key of the first certificate.
pub fn identified(
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, TlsError> {
    builder(roots)?.with_client_auth_cert(chain, key).map_err(|error| TlsError::Unusable(error.to_string()))
}

fn builder(roots: Arc<RootCertStore>) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Unusable(error.to_string()))?;
    Ok(builder.with_root_certificates(roots))
}

/// Why a file of authorities cannot be read; `None`: it can.
fn unreadable(file: &Path) -> Option<String> {
    fs::read(file).err().map(|error| format!("file {}: {error}", file.display()))
}

/// The authorities that were found, or the built-in ones if none can be used.
fn roots(found: CertificateResult) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let (usable, unusable) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let errors = found.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        tracing::warn!(
            unusable,
            errors,
            "no usable CA certificates on this system; using the built-in ones of Mozilla"
        );
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

#[cfg(test)]
mod tests {
    use rustls_native_certs::load_certs_from_paths;
    use weft_testkit::Authority;

    use super::*;

    fn subjects(file: &Path) -> usize {
        roots(load_certs_from_paths(Some(file), None)).len()
    }

    #[test]
    fn a_store_without_a_usable_certificate_is_replaced_by_the_built_in_one() {
        let authority = Authority::new();
        assert_eq!(subjects(&authority.ca()), 1, "only what the system trusts");
        let built_in = webpki_roots::TLS_SERVER_ROOTS.len();
        let garbage = authority.path("garbage.pem");
        fs::write(&garbage, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        for file in [Path::new("/dev/null"), &authority.path("missing.pem"), &garbage] {
            assert_eq!(subjects(file), built_in, "{}", file.display());
        }
        let missing = authority.path("missing.pem");
        assert!(unreadable(&missing).unwrap().contains(&missing.display().to_string()));
        assert_eq!(unreadable(&authority.ca()), None);
    }
}
