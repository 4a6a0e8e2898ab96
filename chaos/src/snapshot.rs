//! Snapshots of streams by the server's own protocol, as `nats stream backup` and `nats stream restore` use it.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

/// Longest time for one step.
const STEP_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a chunk.
const CHUNK_BYTES: u64 = 128 * 1024;

/// A stream at one moment.
#[derive(Debug)]
pub struct Snapshot {
    stream: String,
    config: Value,
    state: Value,
    chunks: Vec<Bytes>,
}

/// Connects to any of the servers.
pub async fn connect(servers: Vec<String>) -> anyhow::Result<Client> {
    let client = async_nats::ConnectOptions::new().name("chaos-snapshots").connect(servers);
    client.await.map_err(|error| anyhow!("NATS: {error}"))
}

impl Snapshot {
    /// Reads a stream as it is now.
    ///
    /// # Errors
    ///
    /// When the stream has no leader, or its leader changes meanwhile.
    pub async fn take(client: &Client, stream: &str) -> anyhow::Result<Self> {
        let inbox = client.new_inbox();
        let mut incoming = client.subscribe(inbox.clone()).await?;
        let request = json!({ "deliver_subject": inbox, "no_consumers": true, "chunk_size": CHUNK_BYTES });
        let answer = ask(client, format!("$JS.API.STREAM.SNAPSHOT.{stream}"), &request).await?;
        let mut chunks = Vec::new();
        loop {
            let message = tokio::time::timeout(STEP_PATIENCE, incoming.next()).await.context("no chunk")?;
            let message = message.context("the end of a subscription")?;
            if message.payload.is_empty() {
                break;
            }
            chunks.push(message.payload);
            // The server sends on once it is answered.
            if let Some(reply) = message.reply {
                client.publish(reply, Bytes::new()).await?;
            }
        }
        let (config, state) = (answer["config"].clone(), answer["state"].clone());
        Ok(Self { stream: stream.to_owned(), config, state, chunks })
    }

    /// Deletes the stream and puts this in its place.
    ///
    /// # Errors
    ///
    /// When the server refuses it.
    pub async fn restore(&self, client: &Client) -> anyhow::Result<()> {
        ask(client, format!("$JS.API.STREAM.DELETE.{}", self.stream), &json!({})).await?;
        let request = json!({ "config": self.config, "state": self.state });
        let answer = ask(client, format!("$JS.API.STREAM.RESTORE.{}", self.stream), &request).await?;
        let subject = answer["deliver_subject"].as_str().context("no deliver_subject")?.to_owned();
        for chunk in &self.chunks {
            request_bytes(client, subject.clone(), chunk.clone()).await?;
        }
        let created = request_bytes(client, subject, Bytes::new()).await?;
        check(&serde_json::from_slice(&created)?)
    }
}

async fn ask(client: &Client, subject: String, request: &Value) -> anyhow::Result<Value> {
    let answer = request_bytes(client, subject.clone(), request.to_string().into()).await?;
    let answer = serde_json::from_slice(&answer)?;
    check(&answer).context(subject)?;
    Ok(answer)
}

async fn request_bytes(client: &Client, subject: String, payload: Bytes) -> anyhow::Result<Bytes> {
    let request = async_nats::Request::new().payload(payload).timeout(Some(STEP_PATIENCE));
    let answer = client.send_request(subject.clone(), request).await.map_err(|error| anyhow!("{subject}: {error}"))?;
    Ok(answer.payload)
}

fn check(answer: &Value) -> anyhow::Result<()> {
    match answer.get("error") {
        Some(error) => bail!("{error}"),
        None => Ok(()),
    }
}
