//! The gateway while the log comes, goes, and when it drains itself.

use std::time::{Duration, Instant};

use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use weft_gateway::{Gateway, GatewayOptions, service::RunError};

use weft_tls::BindError;

use crate::{
    http::{self, send, webhook},
    mesh::{self, Mesh, PATIENCE},
};

const BODY: &str = r#"{"type":"t","workflow":"w"}"#;

/// Without its log a gateway stays up, reports what is missing, answers 503, and recovers automatically.
#[tokio::test]
async fn a_gateway_waits_for_its_log() {
    let mesh = Mesh::start(1).await;
    let connection = mesh.server.connection("gateway").await;
    mesh.server.kill();
    let mut gateway = mesh::run(connection, mesh.spec.clone()).await;
    gateway.missing_is(|missing| missing.as_deref() == Some("nats: not connected")).await;
    let answer = send(gateway.address, &webhook("shop", "evt_1", BODY)).await.unwrap();
    assert_eq!((answer.status, answer.code()), (503, "starting"));
    assert!(answer.headers.contains_key("retry-after"));
    mesh.server.restart().await;
    gateway.ready().await;
    assert_eq!(send(gateway.address, &webhook("shop", "evt_1", BODY)).await.unwrap().status, 202);
    gateway.drained().await;
}

/// A log that goes away is a 503 in time, a repeat afterwards gets a receipt, and there is one event.
#[tokio::test]
async fn an_outage_is_answered_in_time_and_passes() {
    let mesh = Mesh::start(1).await;
    let mut gateway = mesh.gateway().await;
    assert_eq!(send(gateway.address, &webhook("shop", "evt_1", BODY)).await.unwrap().status, 202);
    mesh.server.kill();
    gateway.missing_is(|missing| missing.as_deref() == Some("nats: not connected")).await;
    let asked = Instant::now();
    let answer = send(gateway.address, &webhook("shop", "evt_2", BODY)).await.unwrap();
    assert_eq!((answer.status, answer.code()), (503, "log_unavailable"));
    assert!(asked.elapsed() < Duration::from_secs(10) && answer.headers.contains_key("retry-after"));
    mesh.server.restart().await;
    gateway.ready().await;
    let repeated = send(gateway.address, &webhook("shop", "evt_2", BODY)).await.unwrap();
    assert!(matches!(repeated.status, 200 | 202), "{repeated:?}");
    assert_eq!(repeated.json["sequenceNumber"], 2);
    gateway.drained().await;
}

/// A log that was made with another number of shards ends the gateway with a line that says so.
#[tokio::test]
async fn another_log_than_configured_ends_it() {
    let mesh = Mesh::start(1).await;
    let gateway = mesh::run(mesh.server.connection("gateway").await, mesh::spec(4)).await;
    let ended = tokio::time::timeout(PATIENCE, gateway.task).await.expect("ends").unwrap();
    let Err(error @ RunError::Log(_)) = ended else { panic!("{ended:?}") };
    assert!(error.to_string().contains('4') && !error.to_string().contains('\n'), "{error}");
}

/// Draining finishes the request in flight, closes the door, and returns.
#[tokio::test]
async fn draining_finishes_what_is_in_flight() {
    let mesh = Mesh::start(1).await;
    let mut gateway = mesh.gateway().await;
    let request = webhook("shop", "evt_1", BODY);
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    socket.write_all(request.head.as_bytes()).await.unwrap();
    let (start, rest) = request.body.split_at(5);
    socket.write_all(start).await.unwrap();
    // The gateway has read the head once another request of a later connection has been answered.
    assert_eq!(send(gateway.address, &webhook("shop", "evt_0", BODY)).await.unwrap().status, 202);
    gateway.drain.cancel();
    gateway.missing_is(|missing| missing.as_deref() == Some("draining")).await;
    socket.write_all(rest).await.unwrap();
    assert_eq!(http::answer(&mut socket).await.unwrap().status, 202);
    let address = gateway.address;
    gateway.drained().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_taken_port_is_told_at_once() {
    let options = GatewayOptions { listen: "127.0.0.1:0".parse().unwrap(), ..GatewayOptions::default() };
    let first = Gateway::bind(options.clone()).await.unwrap();
    let second = Gateway::bind(GatewayOptions { listen: first.local_addr(), ..options }).await;
    assert!(matches!(second, Err(BindError::Listen(error)) if error.kind() == std::io::ErrorKind::AddrInUse));
}
