//! Certificates for tests, and a client that trusts them.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use weft_nats::options::SecretRef;

use weft_tls::{TlsOptions, client::trusting};

/// Names and addresses of this machine.
const NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

/// An authority, and a folder with its newest certificate.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// None of this fails on a machine that can run tests.
#[expect(clippy::missing_panics_doc, reason = "of tests")]
#[expect(clippy::new_without_default, reason = "each is another")]
impl Authority {
    /// A new one, with a certificate for this machine.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        let authority = Self { issuer, folder: TempDir::new().expect("a temporary folder") };
        fs::write(authority.ca(), authority.issuer.pem()).expect("the folder is ours");
        authority.sign();
        authority
    }

    /// Writes a new certificate and its key.
    pub fn sign(&self) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(NAMES.map(str::to_owned)).expect("sound names");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        fs::write(self.cert(), cert.pem()).expect("the folder is ours");
        fs::write(self.key(), key.serialize_pem()).expect("the folder is ours");
    }

    /// The certificate of the authority.
    pub fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// The certificate that it signed last.
    pub fn cert(&self) -> PathBuf {
        self.path("cert.pem")
    }

    /// The key of that certificate.
    pub fn key(&self) -> PathBuf {
        self.path("key.pem")
    }

    /// A file in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        Path::join(self.folder.path(), name)
    }

    /// Serves with the certificate that it signed last.
    pub fn options(&self) -> TlsOptions {
        TlsOptions { cert: Some(SecretRef::File(self.cert())), key: Some(SecretRef::File(self.key())), client_ca: None }
    }

    /// A client's TLS that trusts only this authority.
    pub fn client_config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a sound certificate");
        trusting(Arc::new(roots)).expect("the provider has ciphers")
    }

    /// A server's options with the certificate of the authority itself, as of a self-signed one.
    pub fn self_signed_options(&self) -> TlsOptions {
        let key = self.path("ca-key.pem");
        fs::write(&key, self.issuer.key().serialize_pem()).expect("the folder is ours");
        TlsOptions { cert: Some(SecretRef::File(self.ca())), key: Some(SecretRef::File(key)), client_ca: None }
    }

    /// Connects to this machine as a client that trusts only this authority and speaks only `protocol`.
    ///
    /// # Errors
    ///
    /// The error of TLS or of the connection.
    pub async fn connect(&self, to: SocketAddr, protocol: &str) -> io::Result<TlsStream<TcpStream>> {
        let mut config = self.client_config();
        config.alpn_protocols = vec![protocol.into()];
        let name = ServerName::try_from(NAMES[0]).expect("a sound name");
        TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(to).await?).await
    }
}
