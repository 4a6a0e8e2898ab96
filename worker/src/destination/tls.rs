//! TLS of destinations: trusted authorities and the client's certificate, from the PEM texts of the catalog.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use weft_proto::v1::ClientTls;
use weft_tls::{TlsError, client};

/// Why a destination's TLS settings cannot be used. No text quotes a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTls {
    /// `ca` holds no usable certificate.
    #[error("ca holds no certificate of an authority in PEM (-----BEGIN CERTIFICATE-----)")]
    Authority,
    /// One without the other.
    #[error("cert and key belong together: give both or neither")]
    Half,
    /// `cert` holds no certificate.
    #[error("cert holds no certificate in PEM (-----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// `key` holds no private key.
    #[error("key holds no private key in PEM (-----BEGIN PRIVATE KEY-----)")]
    NoKey,
    /// They cannot be used together, or this build has no TLS.
    #[error(transparent)]
    Unusable(#[from] TlsError),
}

/// Which authorities a client trusts besides those of `ca`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trust {
    /// None: `ca` replaces the system's.
    Own,
    /// The system's: for an endpoint of another party, such as an authorization server.
    OwnAndSystem,
}

/// A client's TLS by `tls`. It names no ALPN protocols.
///
/// # Errors
///
/// [`InvalidTls`].
pub fn client_config(tls: &ClientTls, trust: Trust) -> Result<ClientConfig, InvalidTls> {
    let roots = roots(&tls.ca, trust)?;
    match (tls.cert.is_empty(), tls.key.is_empty()) {
        (true, true) => Ok(client::trusting(roots)?),
        (false, false) => {
            let chain = certificates(&tls.cert).ok_or(InvalidTls::NoCertificate)?;
            let key = PrivateKeyDer::from_pem_slice(tls.key.as_bytes()).map_err(|_| InvalidTls::NoKey)?;
            Ok(client::identified(roots, chain, key)?)
        }
        _ => Err(InvalidTls::Half),
    }
}

/// The authorities that a client trusts.
pub(super) fn roots(ca: &str, trust: Trust) -> Result<Arc<RootCertStore>, InvalidTls> {
    if ca.is_empty() {
        return Ok(client::system_roots());
    }
    let mut roots = match trust {
        Trust::Own => RootCertStore::empty(),
        Trust::OwnAndSystem => client::system_roots().as_ref().clone(),
    };
    let (usable, _) = roots.add_parsable_certificates(certificates(ca).ok_or(InvalidTls::Authority)?);
    if usable == 0 { Err(InvalidTls::Authority) } else { Ok(Arc::new(roots)) }
}

/// The certificates of a PEM text; `None`: there is none.
fn certificates(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>().ok()?;
    (!certificates.is_empty()).then_some(certificates)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use weft_testkit::Authority;

    use super::*;

    fn read(path: PathBuf) -> String {
        fs::read_to_string(path).unwrap()
    }

    /// Guards: what is wrong with a destination's certificates is said in words, and no key is quoted.
    #[test]
    fn wrong_settings_are_named() {
        let (one, other) = (Authority::new(), Authority::new());
        let (ca, cert, key) = (read(one.ca()), read(one.cert()), read(one.key()));
        let config = |ca: &str, cert: &str, key: &str| {
            let tls = ClientTls { ca: ca.into(), cert: cert.into(), key: key.into() };
            client_config(&tls, Trust::Own).map(drop)
        };
        assert_eq!(config("", "", ""), Ok(()));
        assert_eq!(config(&ca, "", ""), Ok(()));
        assert_eq!(config("", &cert, &key), Ok(()));
        assert_eq!(config("junk", "", ""), Err(InvalidTls::Authority));
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(config(garbage, "", ""), Err(InvalidTls::Authority));
        assert_eq!(config("", &cert, ""), Err(InvalidTls::Half));
        assert_eq!(config("", "", &key), Err(InvalidTls::Half));
        assert_eq!(config("", &key, &key), Err(InvalidTls::NoCertificate));
        assert_eq!(config("", &cert, &cert), Err(InvalidTls::NoKey));
        let unusable = config("", &cert, &read(other.key())).unwrap_err();
        assert!(matches!(unusable, InvalidTls::Unusable(_)), "{unusable}");
    }
}
