//! Real handshakes with certificates made here.

use std::{fs, sync::Arc};

use rcgen::KeyPair;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use weft_nats::options::SecretRef;
use weft_testkit::Authority;

use super::*;

/// Serves with the certificate that an authority signed last.
fn options(authority: &Authority) -> TlsOptions {
    TlsOptions {
        cert: Some(SecretRef::File(authority.cert())),
        key: Some(SecretRef::File(authority.key())),
        ..TlsOptions::default()
    }
}

fn acceptor(authority: &Authority) -> Acceptor {
    Acceptor::open(&options(authority)).unwrap().unwrap()
}

/// A handshake from both ends, with a client that trusts the authority and speaks `protocol`.
async fn shake_hands(
    authority: &Authority,
    acceptor: &Acceptor,
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = async { acceptor.accept(listener.accept().await.unwrap().0).await };
    let (client, _) = tokio::join!(authority.connect(address, protocol), accepted);
    client
}

/// Both protocols are offered; a client that trusts another authority refuses.
#[tokio::test]
async fn clients_that_trust_the_authority_agree_on_a_protocol() {
    let authority = Authority::new();
    let acceptor = acceptor(&authority);
    for protocol in ["h2", "http/1.1"] {
        let client = shake_hands(&authority, &acceptor, protocol).await.unwrap();
        assert_eq!(client.get_ref().1.alpn_protocol(), Some(protocol.as_bytes()));
    }
    assert!(shake_hands(&Authority::new(), &acceptor, "h2").await.is_err());
}

/// A renewed certificate is used for new connections; files that cannot be used change nothing.
#[tokio::test]
async fn a_renewed_certificate_is_used_for_new_connections() {
    let authority = Authority::new();
    let acceptor = acceptor(&authority);
    assert_eq!(acceptor.reload(), Ok(false));
    authority.sign();
    assert_eq!(acceptor.reload(), Ok(true));
    let renewed = CertificateDer::from_pem_file(authority.path("cert.pem")).unwrap();
    fs::write(authority.path("key.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(matches!(acceptor.reload(), Err(TlsError::Unusable(_))));
    let client = shake_hands(&authority, &acceptor, "h2").await.unwrap();
    assert_eq!(client.get_ref().1.peer_certificates().unwrap()[0], renewed);
}

/// With `client_ca` a client without a certificate of that authority is refused, and one with it is served.
#[tokio::test]
async fn clients_show_a_certificate_where_one_is_asked_for() {
    let (authority, other) = (Authority::new(), Authority::new());
    let options = TlsOptions { client_ca: Some(SecretRef::File(authority.ca())), ..options(&authority) };
    let acceptor = Acceptor::open(&options).unwrap().unwrap();
    for (of, is_served) in [(None, false), (Some(&other), false), (Some(&authority), true)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = match of {
            None => authority.client_config(),
            Some(of) => {
                let chain = CertificateDer::pem_file_iter(of.cert()).unwrap().map(Result::unwrap).collect();
                let key = PrivateKeyDer::from_pem_file(of.key()).unwrap();
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_file(authority.ca()).unwrap()).unwrap();
                client::identified(Arc::new(roots), chain, key).unwrap()
            }
        };
        let connect = async {
            let stream = TcpStream::connect(address).await.unwrap();
            TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream).await
        };
        let accepted = async { acceptor.accept(listener.accept().await.unwrap().0).await };
        // The client of TLS 1.3 is done before the server has seen its certificate.
        let (_client, served) = tokio::join!(connect, accepted);
        assert_eq!(served.is_ok(), is_served, "{of:?}");
    }
}

/// Each mistake is reported with its key, in one line, without any part of the private key.
#[test]
fn wrong_files_are_reported_in_one_line() {
    let (authority, other) = (Authority::new(), Authority::new());
    let sound = options(&authority);
    let problem = |options: TlsOptions| Acceptor::open(&options).unwrap_err().to_string();
    let absent = || Some(SecretRef::File(authority.path("absent.pem")));
    let swapped = TlsOptions { cert: sound.key.clone(), key: sound.cert.clone(), ..TlsOptions::default() };
    let keyless = TlsOptions { key: sound.cert.clone(), ..sound.clone() };
    let foreign = TlsOptions { key: options(&other).key, ..sound.clone() };
    for (options, part) in [
        (TlsOptions { key: None, ..sound.clone() }, "both or neither"),
        (TlsOptions { cert: absent(), ..sound.clone() }, "absent.pem"),
        (TlsOptions { key: absent(), ..sound.clone() }, "tls.key"),
        (swapped, "no certificate"),
        (keyless, "no private key"),
        (foreign, "cannot be used"),
        (TlsOptions { client_ca: sound.key.clone(), ..sound.clone() }, "tls.client_ca"),
        (TlsOptions { client_ca: sound.cert.clone(), ..TlsOptions::default() }, "client_ca needs them"),
    ] {
        let problem = problem(options);
        assert!(problem.contains(part) && problem.lines().count() == 1, "{problem}");
    }
    assert!(Acceptor::open(&TlsOptions::default()).unwrap().is_none());
}
