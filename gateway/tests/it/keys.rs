//! API keys over running gateways: each change counts everywhere within a second.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use weft_catalog::{Catalog, keys};
use weft_proto::v1::{ApiKey, Scope};
use weft_testkit::{eventually, master_key};

use crate::{
    http::{Request, events, get, send},
    mesh::{Mesh, PATIENCE, Running},
};

/// The contract allows a second for a change to take effect; a busy machine needs more, and far less than any interval at
/// which a gateway could ask.
const LIVE: Duration = Duration::from_secs(5);

fn publish(key: &str, source: &str, workflow: &str) -> Request {
    let body = json!({ "type": "t", "workflowId": workflow, "source": source, "data": 1 }).to_string();
    events(&[("content-type", "application/json")], body).with_key(key)
}

fn read(key: &str) -> Request {
    get("/api/v1/webhooks/events").with_key(key)
}

/// Whether all gateways answer with this status, and this code of a refusal, within a second.
async fn everywhere(gateways: &[Running], request: Request, status: u16, code: &str) -> bool {
    eventually(LIVE, async || {
        for gateway in gateways {
            let answer = send(gateway.address, &request).await.unwrap();
            if answer.status != status || (!code.is_empty() && answer.code() != code) {
                return false;
            }
        }
        true
    })
    .await
}

/// Made, narrowed, expired, revoked: no gateway is asked or restarted, and each follows within a second.
#[tokio::test]
async fn keys_are_live_everywhere_within_a_second() {
    let mesh = Mesh::start(1).await;
    let gateways = [mesh.gateway().await, mesh.gateway().await];
    let catalog = Catalog::new(mesh.connection.clone(), master_key());
    let scopes = vec![Scope::Ingest.into(), Scope::Read.into()];
    let (made, text) = keys::make(ApiKey { scopes, ..ApiKey::default() }, Timestamp::now());
    let key = text.expose();
    assert!(everywhere(&gateways, read(key), 401, "key_invalid").await, "not made yet");
    let revision = catalog.put_key(&made, 0).await.unwrap();
    assert!(everywhere(&gateways, read(key), 200, "").await, "made");
    assert!(everywhere(&gateways, publish(key, "orders", "order-1"), 202, "").await);

    let narrowed = ApiKey {
        scopes: vec![Scope::Ingest.into()],
        sources: vec!["orders".into()],
        workflow_prefixes: vec!["order-".into()],
        ..made.clone()
    };
    let revision = catalog.put_key(&narrowed, revision).await.unwrap();
    assert!(everywhere(&gateways, read(key), 403, "scope_missing").await, "narrowed");
    assert!(everywhere(&gateways, publish(key, "stock", "order-1"), 403, "out_of_scope").await);
    assert!(everywhere(&gateways, publish(key, "orders", "user-1"), 403, "out_of_scope").await);
    assert!(everywhere(&gateways, publish(key, "orders", "order-1"), 202, "").await);

    let soon = Timestamp::now().as_millisecond() + 500;
    let revision = catalog.put_key(&ApiKey { expires_at_ms: soon, ..narrowed }, revision).await.unwrap();
    let expired = eventually(PATIENCE, async || Timestamp::now().as_millisecond() > soon).await;
    assert!(expired && everywhere(&gateways, publish(key, "orders", "order-1"), 401, "key_invalid").await, "expired");
    let revision = catalog.put_key(&made, revision).await.unwrap();
    assert!(everywhere(&gateways, read(key), 200, "").await, "prolonged");
    catalog.delete_key(&made.id, revision).await.unwrap();
    assert!(everywhere(&gateways, read(key), 401, "key_invalid").await, "revoked");
}

/// A stream that was opened with a key ends with it, and its use is known.
#[tokio::test]
async fn a_stream_ends_with_its_key() {
    let mesh = Mesh::start(1).await;
    let gateways = [mesh.gateway().await];
    let catalog = Catalog::new(mesh.connection.clone(), master_key());
    let wanted = ApiKey { scopes: vec![Scope::Read.into()], ..ApiKey::default() };
    let (made, key) = keys::make(wanted, Timestamp::now());
    let revision = catalog.put_key(&made, 0).await.unwrap();
    assert!(everywhere(&gateways, read(key.expose()), 200, "").await);
    let used = async || catalog.read().await.unwrap().keys_used.contains_key(&made.id);
    assert!(eventually(PATIENCE, used).await);

    let mut socket = TcpStream::connect(gateways[0].address).await.unwrap();
    let head = format!("GET /api/v1/events/stream HTTP/1.0\r\nx-api-key: {}\r\n\r\n", key.expose());
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut begun = [0; 12];
    socket.read_exact(&mut begun).await.unwrap();
    assert_eq!(&begun, b"HTTP/1.0 200");
    catalog.delete_key(&made.id, revision).await.unwrap();
    let mut rest = String::new();
    timeout(PATIENCE, socket.read_to_string(&mut rest)).await.expect("it ends").unwrap();
    assert!(rest.contains("key_invalid"), "{rest}");
}
