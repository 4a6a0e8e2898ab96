//! The test server itself: what every other test rests on.

use std::time::Duration;
use weft_testkit::{PATIENCE, TestServer, eventually};

#[tokio::test]
async fn a_killed_server_comes_back_with_its_store() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    let jetstream = connection.jetstream();
    let config = async_nats::jetstream::stream::Config { name: "S".into(), ..Default::default() };
    jetstream.create_stream(config).await.unwrap();
    jetstream.publish("S", "kept".into()).await.unwrap().await.unwrap();

    server.kill();
    assert!(eventually(PATIENCE, async || !connection.is_connected()).await);
    server.restart().await;
    connection.connected().await;
    let mut stream = jetstream.get_stream("S").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 1);
}

#[tokio::test]
async fn a_paused_server_is_silent_until_it_is_resumed() {
    let server = TestServer::start().await;
    let connection = server.connection("test").await;
    server.pause();
    let account = tokio::time::timeout(Duration::from_millis(200), connection.jetstream().query_account()).await;
    assert!(account.is_err(), "a paused server does not answer");
    server.resume();
    assert!(eventually(PATIENCE, async || connection.jetstream().query_account().await.is_ok()).await);
}
