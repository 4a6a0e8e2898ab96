//! The server on real sockets.

use std::{net::SocketAddr, time::Duration};

use axum::routing::get;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinHandle,
};
use weft_tls::TlsOptions;

use axum::Router;
use tokio::{net::TcpStream, time::timeout};
use tokio_util::sync::CancellationToken;
use weft_tls::Listener;

use crate::{Connections, Options, options::Timeouts, server::serve_with, transport::Linger};

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(50);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: weft\r\n\r\n";

async fn start(timeouts: Timeouts) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
    let router = Router::new().route("/", get(async || "here")).route("/never", get(std::future::pending::<()>));
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &TlsOptions::default()).await.unwrap();
    let address = listener.local_addr;
    let drain = CancellationToken::new();
    let options = Options::new("test", Connections { max: 1000, per_network: 500 });
    (address, drain.clone(), tokio::spawn(serve_with(timeouts, listener, router, options, drain)))
}

/// Reads until the server closes the connection.
async fn rest(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = timeout(LONG, socket.read_to_end(&mut bytes)).await.expect("the connection is closed");
    assert!(read.is_ok() || bytes.is_empty(), "{read:?}");
    String::from_utf8(bytes).unwrap()
}

/// Silence, the beginning of either protocol, and half a head: none keeps the connection open.
#[tokio::test]
async fn a_client_without_a_request_is_disconnected() {
    let (address, ..) = start(Timeouts { first_head: SHORT, ..Timeouts::default() }).await;
    for said in [&b""[..], b"P", b"PRI * HTTP/2.0", &REQUEST[..20]] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(said).await.unwrap();
        assert_eq!(rest(&mut socket).await, "");
    }
}

/// One connection carries many requests, beyond its first time-out, and is closed when it has been idle for long.
#[tokio::test]
async fn a_connection_is_kept_while_it_is_used() {
    let timeouts = Timeouts { first_head: SHORT, next_head: SHORT * 20, ..Timeouts::default() };
    let (address, ..) = start(timeouts).await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    let began = tokio::time::Instant::now();
    let mut asked = 0;
    while began.elapsed() < SHORT * 3 {
        socket.write_all(REQUEST).await.unwrap();
        asked += 1;
        let mut answer = Vec::new();
        while !answer.ends_with(b"here") {
            answer.push(socket.read_u8().await.unwrap());
        }
    }
    assert!(asked > 1);
    assert_eq!(rest(&mut socket).await, "");
}

/// A client that begins with HTTP/2 is answered in it: the first frame is the server's settings.
#[tokio::test]
async fn http_2_is_spoken_too() {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let (address, ..) = start(Timeouts::default()).await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    socket.write_all(&SETTINGS).await.unwrap();
    let mut frame = [0; 9];
    timeout(LONG, socket.read_exact(&mut frame)).await.expect("an answer").unwrap();
    assert_eq!(frame[3], SETTINGS[3]);
}

/// A request that does not end is given up when draining has lasted long enough; an idle connection at once.
#[tokio::test]
async fn draining_ends() {
    let (address, drain, served) = start(Timeouts { drain: SHORT, ..Timeouts::default() }).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    let mut stuck = TcpStream::connect(address).await.unwrap();
    stuck.write_all(b"GET /never HTTP/1.1\r\nhost: weft\r\n\r\n").await.unwrap();
    idle.write_all(REQUEST).await.unwrap();
    let mut first = [0; 1];
    idle.read_exact(&mut first).await.unwrap();
    drain.cancel();
    timeout(LONG, served).await.expect("ends").unwrap();
    assert!(rest(&mut idle).await.ends_with("here"));
    assert_eq!(rest(&mut stuck).await, "");
}

/// An HTTP/2 connection that only answers pings is closed when no request has come for long.
#[tokio::test]
async fn an_idle_http_2_connection_is_closed() {
    let timeouts = Timeouts { first_head: SHORT, next_head: SHORT, ..Timeouts::default() };
    let (address, ..) = start(timeouts).await;
    let stream = hyper_util::rt::TokioIo::new(TcpStream::connect(address).await.unwrap());
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::get("http://weft/").body(axum::body::Body::empty()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    let ended = timeout(LONG, connection).await.expect("the connection is closed");
    assert!(ended.unwrap().is_ok(), "closed by GOAWAY");
}

/// Requests on connections that were open when draining began are answered, with `Connection: close`.
#[tokio::test]
async fn draining_answers_open_connections() {
    let (address, drain, served) = start(Timeouts::default()).await;
    let mut sockets = Vec::new();
    for _ in 0..50 {
        sockets.push(TcpStream::connect(address).await.unwrap());
    }
    drain.cancel();
    for mut socket in sockets {
        socket.write_all(REQUEST).await.unwrap();
        let answer = rest(&mut socket).await.to_ascii_lowercase();
        assert!(answer.ends_with("here") && answer.contains("connection: close"), "{answer}");
    }
    timeout(LONG, served).await.expect("ends").unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

/// Idle connections of one address do not exclude new ones: the one that has been idle longest is closed.
#[tokio::test]
async fn idle_connections_are_evicted() {
    let router = Router::new().route("/", get(async || "here"));
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &TlsOptions::default()).await.unwrap();
    let address = listener.local_addr;
    let options = Options::new("test", Connections { max: 8, per_network: 4 });
    tokio::spawn(serve_with(Timeouts::default(), listener, router, options, CancellationToken::new()));
    let ask = async || {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(REQUEST).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"here") {
            answer.push(timeout(LONG, socket.read_u8()).await.expect("an answer").unwrap());
        }
        socket
    };
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(ask().await);
    }
    assert_eq!(rest(&mut idle[0]).await, "", "the first one is closed");
}

/// A client that continues to send after its answer, or falls silent, does not keep its connection.
#[tokio::test]
async fn lingering_ends() {
    for (linger, sends_on) in
        [(Linger { total: SHORT * 4, idle: LONG }, true), (Linger { total: LONG, idle: SHORT }, false)]
    {
        let (address, ..) = start(Timeouts { linger, ..Timeouts::default() }).await;
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"GET / HTTP/1.1\r\nhost: weft\r\ncontent-length: 99000000\r\n\r\n").await.unwrap();
        let answer = rest(&mut socket).await;
        assert!(answer.ends_with("here"), "answered, and the sending side closed: {answer}");
        let began = tokio::time::Instant::now();
        if !sends_on {
            // Only an error of writing shows that the other side was closed, and writing would keep it open.
            tokio::time::sleep(SHORT * 4).await;
        }
        while socket.write_all(&[b' '; 1000]).await.is_ok() {
            assert!(began.elapsed() < LONG, "still open");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(began.elapsed() < LONG / 4, "{:?}", began.elapsed());
    }
}

/// Ports without a configured answer use plain text.
#[tokio::test]
async fn malformed_requests_are_answered_in_plain_text() {
    let (address, ..) = start(Timeouts::default()).await;
    for (said, status) in [
        (&b"nonsense\r\n\r\n"[..], "400"),
        (b"POST / HTTP/1.1\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "400"),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "501"),
    ] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(said).await.unwrap();
        let answer = rest(&mut socket).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains("text/plain"), "{answer}");
    }
}
