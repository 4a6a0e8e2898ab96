//! TLS of connections to PostgreSQL, with rustls.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_postgres::{
    config::SslNegotiation,
    tls::{ChannelBinding, TlsConnect},
};
use tokio_rustls::TlsConnector;

use super::dsn::{Dsn, Verification};

/// ALPN protocol of a handshake without the negotiation of PostgreSQL.
const ALPN: &[u8] = b"postgresql";

/// TLS for one connection.
pub(super) struct Connect {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Connect {
    /// TLS as a connection string asks for it; `system` trusts the authorities of the system.
    ///
    /// # Errors
    ///
    /// The problem of the configuration, in one line.
    pub async fn new(
        dsn: &Dsn,
        host: &str,
        system: impl FnOnce() -> Result<ClientConfig, String>,
    ) -> Result<Self, String> {
        let mut config = match (&dsn.verification, &dsn.root_certificates) {
            (Verification::Host, None) => system()?,
            (Verification::Authority, None) => return Err(VERIFY_CA_WITHOUT_ROOTS.into()),
            (Verification::Off, _) => with_verifier(Arc::new(Lenient::new(None)))?,
            (verification, Some(file)) => {
                let pem =
                    tokio::fs::read(file).await.map_err(|error| format!("sslrootcert {}: {error}", file.display()))?;
                let verifier =
                    verifier(&pem).map_err(|problem| format!("sslrootcert {}: {problem}", file.display()))?;
                let host = *verification == Verification::Host;
                with_verifier(if host { verifier } else { Arc::new(Lenient::new(Some(verifier))) })?
            }
        };
        config.alpn_protocols.clear();
        if dsn.config.get_ssl_negotiation() == SslNegotiation::Direct {
            config.alpn_protocols.push(ALPN.to_vec());
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("{host} is no name of a host"))?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }
}

const VERIFY_CA_WITHOUT_ROOTS: &str =
    "sslmode=verify-ca needs sslrootcert: any certificate of a public authority would do; use verify-full";

fn with_verifier(verifier: Arc<dyn ServerCertVerifier>) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

fn verifier(pem: &[u8]) -> Result<Arc<WebPkiServerVerifier>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok);
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(certificates);
    if usable == 0 {
        return Err("it holds no certificate of an authority in PEM".into());
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()))
        .build()
        .map_err(|error| error.to_string())
}

/// Accepts a certificate for any host: of these authorities, or every one as `sslmode=require` of libpq does.
#[derive(Debug)]
struct Lenient {
    authorities: Option<Arc<WebPkiServerVerifier>>,
    provider: CryptoProvider,
}

impl Lenient {
    fn new(authorities: Option<Arc<WebPkiServerVerifier>>) -> Self {
        Self { authorities, provider: ring::default_provider() }
    }
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authorities) = &self.authorities else { return Ok(ServerCertVerified::assertion()) };
        match authorities.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The name is checked last.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl TlsConnect<TcpStream> for Connect {
    type Stream = Stream;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Stream>>;

    fn connect(self, stream: TcpStream) -> Self::Future {
        Box::pin(async move { self.connector.connect(self.name, stream).await.map(|stream| Stream(Box::new(stream))) })
    }
}

/// A connection with TLS.
pub(super) struct Stream(Box<tokio_rustls::client::TlsStream<TcpStream>>);

impl tokio_postgres::tls::TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }
}
