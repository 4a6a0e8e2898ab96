//! Consumers of a stream: how tests see them, and use them up.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use weft_nats::{
    async_nats::jetstream::{consumer::pull, stream::ConsumerError},
    connect::Connection,
};

/// Gives a stream `count` more consumers, which nothing reads from.
///
/// # Panics
///
/// When the server refuses one.
pub async fn add_consumers(connection: &Connection, stream: &str, count: u64) {
    let made = stream::iter(0..count).map(|_| try_add_consumer(connection, stream));
    let failed = made.buffer_unordered(32).filter_map(async |made| made.err()).collect::<Vec<_>>().await;
    assert!(failed.is_empty(), "{failed:?}");
}

/// Gives a stream one more consumer, which nothing reads from.
///
/// # Errors
///
/// The server's error.
pub async fn try_add_consumer(connection: &Connection, stream: &str) -> Result<(), ConsumerError> {
    let name = Some(format!("other-{}", uuid::Uuid::new_v4().simple()));
    let config = pull::Config { name, memory_storage: true, ..pull::Config::default() };
    connection.jetstream().create_consumer_on_stream(config, stream).await.map(drop)
}

/// The names of a stream's consumers.
///
/// # Panics
///
/// When the server does not answer.
pub async fn consumer_names(connection: &Connection, stream: &str) -> Vec<String> {
    let stream = connection.jetstream().get_stream(stream).await.expect("the stream");
    stream.consumer_names().try_collect().await.expect("names")
}
