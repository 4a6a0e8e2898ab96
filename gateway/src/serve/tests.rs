use std::net::SocketAddr;

use axum::routing::get;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinHandle,
};
use weft_tls::TlsOptions;

use super::*;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(50);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: weft\r\n\r\n";

async fn start(patience: Patience) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
    let router = Router::new().route("/", get(async || "here")).route("/never", get(std::future::pending::<()>));
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &TlsOptions::default()).await.unwrap();
    let address = listener.local_addr;
    let drain = CancellationToken::new();
    (address, drain.clone(), tokio::spawn(serve_with(patience, listener, router, TrustedProxies::default(), drain)))
}

/// What the server sends until it closes the connection.
async fn rest(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = timeout(LONG, socket.read_to_end(&mut bytes)).await.expect("the connection is closed");
    assert!(read.is_ok() || bytes.is_empty(), "{read:?}");
    String::from_utf8(bytes).unwrap()
}

/// Silence, the beginning of either protocol, and half a head: none holds its place.
#[tokio::test]
async fn who_asks_nothing_is_disconnected() {
    let (address, ..) = start(Patience { first_head: SHORT, ..Patience::default() }).await;
    for said in [&b""[..], b"P", b"PRI * HTTP/2.0", &REQUEST[..20]] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(said).await.unwrap();
        assert_eq!(rest(&mut socket).await, "");
    }
}

/// One connection carries many requests, beyond its first patience, and is closed when it has been idle for long.
#[tokio::test]
async fn a_connection_is_kept_while_it_is_used() {
    let patience = Patience { first_head: SHORT, next_head: SHORT * 20, ..Patience::default() };
    let (address, ..) = start(patience).await;
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

/// Who begins in HTTP/2 is answered in it: its first frame is the server's settings.
#[tokio::test]
async fn http_2_is_spoken_too() {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let (address, ..) = start(Patience::default()).await;
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
    let (address, drain, served) = start(Patience { drain: SHORT, ..Patience::default() }).await;
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

/// An HTTP/2 connection that only answers pings is told to go when no request has come for long.
#[tokio::test]
async fn an_idle_http_2_connection_is_closed() {
    let patience = Patience { first_head: SHORT, next_head: SHORT, ..Patience::default() };
    let (address, ..) = start(patience).await;
    let stream = hyper_util::rt::TokioIo::new(TcpStream::connect(address).await.unwrap());
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::get("http://weft/").body(axum::body::Body::empty()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    let ended = timeout(LONG, connection).await.expect("the connection is closed");
    assert!(ended.unwrap().is_ok(), "with leave");
}

/// What is asked on connections that were there when draining began is answered, and the client is told not to ask again.
#[tokio::test]
async fn draining_answers_who_is_there() {
    let (address, drain, served) = start(Patience::default()).await;
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
