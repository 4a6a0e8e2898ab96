//! One client that means ill, and the others that are served all the same.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

use crate::{
    http::{Answer, answer, post, send, webhook},
    mesh::{Mesh, PATIENCE},
};
use weft_testkit::eventually;

const BODY: &str = r#"{"type":"t","workflow":"w"}"#;
/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(30);

/// A webhook from another address of this machine.
async fn from_elsewhere(to: SocketAddr, id: &str) -> Answer {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut socket = socket.connect(to).await.unwrap();
    let request = webhook("shop", id, BODY);
    socket.write_all(&[request.head.as_bytes(), &request.body].concat()).await.unwrap();
    answer(&mut socket).await.unwrap()
}

/// Bodies that stop before their end hold a share of the memory, not all of it, and not for long: other addresses are
/// served at once, the same one within seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_cannot_take_the_memory_for_bodies() {
    const BODIES: usize = 300;
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let to = gateway.address;
    let mut stuck = JoinSet::new();
    for _ in 0..BODIES {
        stuck.spawn(async move {
            let mut socket = TcpStream::connect(to).await.unwrap();
            let mut head = post("shop", &[], "").head.replace("content-length: 0", "content-length: 1000000");
            head += &" ".repeat(990_000);
            // Those that find no room are answered while they send.
            let _ = socket.write_all(head.as_bytes()).await;
            let sent = Instant::now();
            let code = answer(&mut socket).await.map(|answer| answer.code().to_owned());
            assert!(sent.elapsed() < BODY_TIME, "none holds it as long as a body may take");
            code
        });
    }
    let first = stuck.join_next().await.unwrap().unwrap().unwrap();
    assert!(first == "overloaded" || first == "request_timeout", "the share is used up: {first}");
    for n in 0..20 {
        assert_eq!(from_elsewhere(to, &format!("elsewhere-{n}")).await.status, 202);
    }
    let served = eventually(PATIENCE, async || {
        send(to, &webhook("shop", "meanwhile", BODY)).await.is_ok_and(|answer| matches!(answer.status, 200 | 202))
    });
    assert!(served.await);
    let codes: Vec<_> = stuck.join_all().await.into_iter().flatten().collect();
    assert!(codes.iter().all(|code| code == "overloaded" || code == "request_timeout"), "{codes:?}");
}

async fn http_2(to: SocketAddr) -> SendRequest<Body> {
    let stream = TokioIo::new(TcpStream::connect(to).await.unwrap());
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// A request whose body never ends.
fn stuck(headers: usize) -> http::Request<Body> {
    let never = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"{")) }).chain(stream::pending());
    let request = http::Request::post("http://weft/api/v1/webhooks/shop");
    let request = (0..headers).fold(request, |request, _| request.header("x", "y"));
    request.body(Body::from_stream(never)).unwrap()
}

/// Compressed headers cost their sender a byte each and the gateway a hundred times as much: there is a bound on their
/// number, as for HTTP/1, and on what the requests of an address hold together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_over_http_2_are_bounded() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let mut sender = http_2(gateway.address).await;
    for headers in [101, 400] {
        assert_eq!(sender.send_request(stuck(headers)).await.unwrap().status(), 431, "{headers}");
    }
    // The list is larger than the settings allow, so that the request gets nowhere.
    assert!(!sender.send_request(stuck(1800)).await.is_ok_and(|response| response.status() != 431));
    let mut held = JoinSet::new();
    for _ in 0..8 {
        let mut sender = http_2(gateway.address).await;
        for _ in 0..250 {
            let answer = sender.send_request(stuck(95));
            held.spawn(async move { answer.await.map(|response| response.status().as_u16()) });
        }
        held.spawn(async move {
            std::future::pending::<()>().await;
            drop(sender);
            Ok(0)
        });
    }
    let refused = async {
        while let Some(answered) = held.join_next().await {
            if answered.unwrap().is_ok_and(|status| status == 503) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("the share is used up");
    for n in 0..20 {
        assert_eq!(from_elsewhere(gateway.address, &format!("elsewhere-{n}")).await.status, 202);
    }
}

/// A connection that has shown no credentials may have few requests at a time; others wait and are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_over_one_connection_are_answered() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let sender = http_2(gateway.address).await;
    let mut answers = JoinSet::new();
    for n in 0..300 {
        let signed = webhook("shop", &format!("evt_{n}"), BODY);
        let mut request = http::Request::post("http://weft/api/v1/webhooks/shop");
        for (name, value) in signed.head.lines().filter_map(|line| line.split_once(": ")) {
            if name.starts_with("webhook-") {
                request = request.header(name, value);
            }
        }
        let mut sender = sender.clone();
        answers
            .spawn(async move { sender.send_request(request.body(Body::from(BODY)).unwrap()).await.unwrap().status() });
    }
    assert!(answers.join_all().await.iter().all(|status| *status == 202));
}
