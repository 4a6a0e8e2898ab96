//! TLS with receivers: certificates that are trusted and not, on both sides.

use std::{fs, path::PathBuf, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsAcceptor;
use weft_proto::v1::{AttemptClass, ClientTls};
use weft_testkit::Authority;
use weft_tls::{Acceptor, TlsOptions};
use weft_worker::lane::{AttemptEnd, AttemptResult};

use super::{
    changed, destinations,
    http1::{OK, Process, read_request},
    http2::trusting,
};

async fn handshake(options: &TlsOptions, process: impl FnOnce(&str) -> Process) -> AttemptEnd {
    let acceptor = Acceptor::open(options).unwrap().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (connection, _) = listener.accept().await.unwrap();
        drop(acceptor.accept(connection).await);
    });
    process(&url).deliver().await
}

#[tokio::test]
async fn an_untrusted_certificate_is_named_in_words_and_not_counted() {
    let (ours, other) = (Authority::new(), Authority::new());
    for (options, words) in [
        (other.options(), "authority that is not trusted here"),
        (ours.self_signed_options(), "certificate is that of a certificate authority"),
    ] {
        let end = handshake(&options, |url| trusting(&ours, url)).await;
        assert_eq!((end.result, end.class), (AttemptResult::Unreachable, AttemptClass::Tls), "{}", end.error);
        assert!(end.error.contains(words), "{}", end.error);
    }
    // With the authorities of this system, or those that are built in.
    let end = handshake(&ours.options(), Process::new).await;
    assert_eq!((end.result, end.class), (AttemptResult::Unreachable, AttemptClass::Tls), "{}", end.error);
}

/// A receiver's side of TLS, for HTTP/1.1 only, which may want a client certificate of the same authority.
pub(super) fn acceptor(authority: &Authority, is_mutual: bool) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().unwrap();
    let builder = if is_mutual {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_file_iter(authority.ca()).unwrap().map(Result::unwrap));
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let chain = CertificateDer::pem_file_iter(authority.cert()).unwrap().collect::<Result<_, _>>().unwrap();
    let config = builder.with_single_cert(chain, PrivateKeyDer::from_pem_file(authority.key()).unwrap());
    TlsAcceptor::from(Arc::new(config.unwrap()))
}

/// A receiver that wants a client certificate of this authority.
async fn mutual(authority: &Authority) -> String {
    let acceptor = acceptor(authority, true);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut connection = acceptor.accept(connection).await.ok()?;
                while read_request(&mut connection).await.is_some() {
                    connection.write_all(OK.as_bytes()).await.ok()?;
                }
                Some(())
            });
        }
    });
    url
}

/// Guards: a destination's own authority and client certificate are used for it, and for no other destination of the process.
#[tokio::test]
async fn a_destination_has_its_own_authority_and_certificate() {
    let (ours, other) = (Authority::new(), Authority::new());
    let url = mutual(&ours).await;
    let read = |path: PathBuf| fs::read_to_string(path).unwrap();
    let tls = |ca: &Authority, client: Option<&Authority>| ClientTls {
        ca: read(ca.ca()),
        cert: client.map(|client| read(client.cert())).unwrap_or_default(),
        key: client.map(|client| read(client.key())).unwrap_or_default(),
    };
    let process =
        |tls: ClientTls| Process::with_subscription(destinations(), changed(&url, |http| http.tls = Some(tls)));
    let end = process(tls(&ours, Some(&ours))).deliver().await;
    assert_eq!(end.result, AttemptResult::Delivered, "{}", end.error);
    for (tls, what) in [
        (tls(&ours, None), "without a certificate"),
        (tls(&ours, Some(&other)), "with one of another authority"),
        (tls(&other, Some(&ours)), "trusting another authority"),
    ] {
        let end = process(tls).deliver().await;
        assert_ne!(end.result, AttemptResult::Delivered, "{what}");
    }
    // In one process, with and without the certificate: connections are not shared.
    let destinations = destinations();
    let with = changed(&url, |http| http.tls = Some(tls(&ours, Some(&ours))));
    let without = changed(&url, |http| http.tls = Some(tls(&ours, None)));
    let (with, without) = (destinations.make(&with).unwrap(), destinations.make(&without).unwrap());
    let delivery = super::delivery();
    assert_eq!(with.deliver(std::slice::from_ref(&delivery)).await.count, 1);
    assert_eq!(without.deliver(&[delivery]).await.count, 0);
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_named() {
    let subscription = changed("https://localhost/", |http| {
        http.tls = Some(ClientTls { ca: "junk".into(), ..Default::default() });
    });
    let problem = destinations().make(&subscription).map(drop).unwrap_err();
    assert!(problem.to_string().contains("ca holds no certificate"), "{problem}");
}
