//! Real handshakes with certificates made here.

use std::{fs, path::PathBuf, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use weft_nats::options::SecretRef;

use super::*;

/// An authority, and a folder with what it has signed last.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { issuer, folder: TempDir::new().unwrap() };
        authority.sign();
        authority
    }

    /// Writes a new certificate for `localhost` and its key.
    fn sign(&self) {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path("cert.pem"), cert.pem()).unwrap();
        fs::write(self.path("key.pem"), key.serialize_pem()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn options(&self) -> TlsOptions {
        let file = |name| Some(SecretRef::File(self.path(name)));
        TlsOptions { cert: file("cert.pem"), key: file("key.pem") }
    }

    fn acceptor(&self) -> Acceptor {
        Acceptor::open(&self.options()).unwrap().unwrap()
    }

    /// A handshake from both ends, with a client that trusts this authority and speaks `protocol`.
    async fn shake_hands(&self, acceptor: &Acceptor, protocol: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.into()];
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from("localhost").unwrap();
        let (client, _) = tokio::join!(connector.connect(name, stream), acceptor.accept(accepted));
        client
    }
}

/// Both protocols are offered; a client that trusts another authority turns away.
#[tokio::test]
async fn clients_that_trust_the_authority_agree_on_a_protocol() {
    let authority = Authority::new();
    let acceptor = authority.acceptor();
    for protocol in ["h2", "http/1.1"] {
        let client = authority.shake_hands(&acceptor, protocol).await.unwrap();
        assert_eq!(client.get_ref().1.alpn_protocol(), Some(protocol.as_bytes()));
    }
    assert!(Authority::new().shake_hands(&acceptor, "h2").await.is_err());
}

/// New files are shown to new connections; files that cannot be used leave everything as it was.
#[tokio::test]
async fn a_renewed_certificate_is_shown_to_new_connections() {
    let authority = Authority::new();
    let acceptor = authority.acceptor();
    assert_eq!(acceptor.reload(), Ok(false));
    authority.sign();
    assert_eq!(acceptor.reload(), Ok(true));
    let renewed = CertificateDer::from_pem_file(authority.path("cert.pem")).unwrap();
    fs::write(authority.path("key.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(matches!(acceptor.reload(), Err(TlsError::Unusable(_))));
    let client = authority.shake_hands(&acceptor, "h2").await.unwrap();
    assert_eq!(client.get_ref().1.peer_certificates().unwrap()[0], renewed);
}

/// Each mistake is named by its key, in one line, without a word of the private key.
#[test]
fn wrong_files_are_told_in_one_line() {
    let (authority, other) = (Authority::new(), Authority::new());
    let sound = authority.options();
    let problem = |options: TlsOptions| Acceptor::open(&options).unwrap_err().to_string();
    let absent = || Some(SecretRef::File(authority.path("absent.pem")));
    let swapped = TlsOptions { cert: sound.key.clone(), key: sound.cert.clone() };
    let keyless = TlsOptions { key: sound.cert.clone(), ..sound.clone() };
    let foreign = TlsOptions { key: other.options().key, ..sound.clone() };
    for (options, part) in [
        (TlsOptions { key: None, ..sound.clone() }, "both or neither"),
        (TlsOptions { cert: absent(), ..sound.clone() }, "absent.pem"),
        (TlsOptions { key: absent(), ..sound.clone() }, "tls.key"),
        (swapped, "no certificate"),
        (keyless, "no private key"),
        (foreign, "cannot be used"),
    ] {
        let problem = problem(options);
        assert!(problem.contains(part) && problem.lines().count() == 1, "{problem}");
    }
    assert!(Acceptor::open(&TlsOptions::default()).unwrap().is_none());
}
