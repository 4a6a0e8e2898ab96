//! TLS with receivers whose certificate is not trusted.

use weft_proto::v1::AttemptClass;
use weft_tls::{Acceptor, TlsOptions, testing::Authority};
use weft_worker::lane::{AttemptEnd, AttemptResult};

use super::{http1::Process, http2::trusting};

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
