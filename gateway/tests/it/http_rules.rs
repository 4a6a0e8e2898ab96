//! Requirements of RFC 9112 on a server, on bare sockets.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use weft_gateway::{GatewayOptions, options::RateLimits};

use crate::{
    http::{Answer, Request, answer, post, send, webhook},
    mesh::{BODY_BYTES_MAX, Mesh, PATIENCE},
};

const BODY: &str = r#"{"type":"t","workflow":"w"}"#;

/// The answer to these bytes, on a connection that the server must close.
async fn say(to: SocketAddr, bytes: &[u8]) -> Answer {
    let mut socket = TcpStream::connect(to).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    timeout(PATIENCE, answer(&mut socket)).await.expect("the connection is closed").unwrap()
}

/// Another length in each header means another end of the request to a proxy than to us; and what codes the body of
/// another is not implemented.
#[tokio::test]
async fn conflicting_lengths_and_unknown_codings_are_refused() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let head = |more: &str| format!("POST /api/v1/webhooks/shop HTTP/1.1\r\nhost: weft\r\n{more}\r\n");
    let chunked = format!("{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len());
    for both in [
        "transfer-encoding: chunked\r\ncontent-length: 4\r\n",
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "content-length: 4\r\nx: y\r\ntransfer-encoding: gzip, chunked\r\n",
    ] {
        let refused = say(gateway.address, (head(both) + &chunked).as_bytes()).await;
        assert_eq!((refused.status, refused.code()), (400, "bad_request"), "{both}");
        assert_eq!(refused.headers["connection"], "close");
    }
    // Behind another request on the same connection too.
    let first = webhook("shop", "evt_1", BODY);
    let first = first.head.replace("connection: close\r\n", "") + BODY;
    let chain = first + &head("transfer-encoding: chunked\r\ncontent-length: 4\r\n") + &chunked;
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    socket.write_all(chain.as_bytes()).await.unwrap();
    let mut answers = String::new();
    timeout(PATIENCE, socket.read_to_string(&mut answers)).await.expect("closed").unwrap();
    assert!(answers.starts_with("HTTP/1.1 202") && answers.contains("HTTP/1.1 400"), "{answers}");
    for coding in ["gzip, chunked", "x, chunked"] {
        let request = head(&format!("transfer-encoding: {coding}\r\n")) + &chunked;
        let refused = say(gateway.address, request.as_bytes()).await;
        assert_eq!((refused.status, refused.code()), (501, "not_implemented"), "{coding}");
    }
    let only = webhook("shop", "evt_2", BODY);
    let only = only.head.replace(&format!("content-length: {}", BODY.len()), "transfer-encoding: chunked") + &chunked;
    assert_eq!(say(gateway.address, only.as_bytes()).await.status, 202);
}

/// A malformed request is answered like every refusal, and counts like one.
#[tokio::test]
async fn unreadable_heads_are_problems_and_count() {
    let mesh = Mesh::start(1).await;
    let rate_limit = RateLimits { per_ip: "6/h".parse().unwrap(), ..RateLimits::default() };
    let gateway = mesh.gateway_with(GatewayOptions { rate_limit, ..GatewayOptions::default() }).await;
    let too_long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(70 * 1024));
    let too_many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(101));
    for (bytes, status, code) in [
        ("nonsense\r\n\r\n", 400, "bad_request"),
        ("GET / HTTP/1.1\r\nhost : weft\r\n\r\n", 400, "bad_request"),
        ("POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400, "bad_request"),
        (&*too_long, 431, "headers_too_large"),
        (&too_many, 431, "headers_too_large"),
    ] {
        let refused = say(gateway.address, bytes.as_bytes()).await;
        assert_eq!((refused.status, refused.code()), (status, code), "{refused:?}");
        assert_eq!(refused.headers["x-content-type-options"], "nosniff");
    }
    assert_eq!(say(gateway.address, b"nonsense\r\n\r\n").await.status, 400);
    assert_eq!(say(gateway.address, b"nonsense\r\n\r\n").await.code(), "rate_limited");
}

/// A client that sends all of a body before it reads sees the answer instead of a reset, as with Go's server: the gateway
/// continues to read for a while after it has answered.
#[tokio::test]
async fn a_refusal_of_a_large_body_reaches_its_sender() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let body = " ".repeat(20 * BODY_BYTES_MAX);
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let length = format!("content-length: {}", body.len());
    let request = |path: &str| post(path, &[], &body);
    let coded =
        Request { head: request("shop").head.replace(&length, "transfer-encoding: chunked"), body: chunked.into() };
    for (request, status) in [(request("shop"), 413), (coded, 413), (request("unlisted"), 404)] {
        for _ in 0..5 {
            let refused = timeout(PATIENCE, send(gateway.address, &request)).await.unwrap();
            assert_eq!(refused.expect("no reset").status, status);
        }
    }
}

/// A body that is announced to be too large is refused before it comes.
#[tokio::test]
async fn a_refusal_does_not_wait_for_the_body() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let head = post("shop", &[], "").head.replace("content-length: 0", "content-length: 99000000");
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    timeout(PATIENCE, socket.read_exact(&mut status)).await.expect("it is answered").unwrap();
    assert_eq!(&status, b"HTTP/1.1 413");
    let mut rest = Vec::new();
    timeout(PATIENCE, socket.read_to_end(&mut rest)).await.expect("the sending side is closed").unwrap();
}

/// A path with a slash at its end is the path without it; bad percent-encoding names nothing.
#[tokio::test]
async fn paths_are_read_as_they_are_meant() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh.gateway().await;
    for (path, status, workflow) in [
        ("shop/", 202, "w"),
        ("shop/other/", 202, "other"),
        ("shop/a%2Fb", 202, "a/b"),
        ("shop/100%25", 202, "100%"),
        ("shop/a%", 400, "invalid_workflow"),
        ("shop/%zz", 400, "invalid_workflow"),
        ("shop/%e2%80%ae", 400, "invalid_workflow"),
        ("shop/a%e2%80%8bb", 400, "invalid_workflow"),
    ] {
        let answer = send(gateway.address, &webhook(path, &path.replace('.', "-"), BODY)).await.unwrap();
        let found = answer.json[if status == 202 { "workflowId" } else { "code" }].as_str();
        assert_eq!((answer.status, found), (status, Some(workflow)), "{path}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    }
}
