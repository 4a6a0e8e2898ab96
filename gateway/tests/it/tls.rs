//! HTTPS, with certificates made here and real handshakes.

use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use weft_gateway::{Gateway, GatewayOptions};
use weft_testkit::Authority;
use weft_tls::{BindError, TlsError, TlsOptions};

use crate::{
    http::{answer, send, webhook},
    mesh::Mesh,
};

const BODY: &str = r#"{"type":"t","workflow":"w"}"#;

fn options(tls: TlsOptions) -> GatewayOptions {
    GatewayOptions { tls, ..GatewayOptions::default() }
}

/// A webhook over TLS is accepted; a client that sends no TLS or nothing at all does not block others, and a client that
/// trusts another authority closes the connection.
#[tokio::test]
async fn webhooks_come_over_tls() {
    let mesh = Mesh::start(1).await;
    let authority = Authority::new();
    let gateway = mesh.gateway_with(options(authority.options())).await;
    let _silent = TcpStream::connect(gateway.address).await.unwrap();
    assert!(send(gateway.address, &webhook("shop", "plain", BODY)).await.is_err());
    let mut stream = authority.connect(gateway.address, "http/1.1").await.unwrap();
    let request = webhook("shop", "evt_1", BODY);
    stream.write_all(request.head.as_bytes()).await.unwrap();
    stream.write_all(&request.body).await.unwrap();
    assert_eq!(answer(&mut stream).await.unwrap().status, 202);
    let stream = authority.connect(gateway.address, "h2").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert!(Authority::new().connect(gateway.address, "h2").await.is_err());
    drop(stream);
    gateway.drained().await;
}

/// A certificate that cannot be used is found before anything is served.
#[tokio::test]
async fn a_certificate_of_another_key_is_refused_at_once() {
    let (authority, other) = (Authority::new(), Authority::new());
    let tls = TlsOptions { key: other.options().key, ..authority.options() };
    let listen = "127.0.0.1:0".parse().unwrap();
    let bound = Gateway::bind(GatewayOptions { listen, ..options(tls) }).await;
    assert!(matches!(bound, Err(BindError::Tls(TlsError::Unusable(_)))), "{bound:?}");
}
