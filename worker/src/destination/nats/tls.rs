//! TLS of a connection to a NATS server. The client is given the addresses of the server that were checked in place of its
//! name, so the name that the certificate must be for is set here.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use url::Host;
use weft_proto::v1::ClientTls;

use super::super::tls::{self, Trust};

/// Verifies certificates for one name, with any address.
#[derive(Debug)]
struct NamedServer {
    name: ServerName<'static>,
    inner: Arc<WebPkiServerVerifier>,
}

/// The configuration for a server of this name.
///
/// # Errors
///
/// The problem, in one line. No text quotes a key.
pub(super) fn config(tls: &ClientTls, host: &Host<String>) -> Result<ClientConfig, String> {
    let mut config = tls::client_config(tls, Trust::Own).map_err(|invalid| invalid.to_string())?;
    let roots = tls::roots(&tls.ca, Trust::Own).map_err(|invalid| invalid.to_string())?;
    let inner = WebPkiServerVerifier::builder_with_provider(roots, Arc::new(ring::default_provider())).build();
    let inner = inner.map_err(|error| error.to_string())?;
    let name = match host {
        Host::Domain(name) => ServerName::try_from(name.clone()).map_err(|error| error.to_string())?,
        Host::Ipv4(address) => ServerName::from(std::net::IpAddr::from(*address)),
        Host::Ipv6(address) => ServerName::from(std::net::IpAddr::from(*address)),
    };
    config.dangerous().set_certificate_verifier(Arc::new(NamedServer { name, inner }));
    Ok(config)
}

impl ServerCertVerifier for NamedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _address: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.inner.verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
