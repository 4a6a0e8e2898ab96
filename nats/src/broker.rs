//! Requests that an admin carries out for users whose own account may not: subscribers create consumers on EVENTS,
//! workers make room in a full stream and pause subscriptions. Each request is checked against what its sender is allowed.
//!
//! Where all roles connect with one user, nothing answers for subscribers, who then ask JetStream itself.

use std::time::Duration;

use async_nats::{Message, client::RequestErrorKind};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    catalog::Catalog,
    connect::Connection,
    subject::{Layout, PAUSE_REQUESTS, ROOM_REQUESTS, TAIL_REQUESTS},
};

mod consumers;
pub mod pause;
pub mod room;

/// The queue group of the admins: one of them answers.
const QUEUE: &str = "admin";
/// Requests of one kind that are carried out at the same time; others are refused at once, so that no queue grows.
const CONCURRENT_MAX: usize = 16;
/// The largest request, in bytes: a consumer's configuration with some hundred filters.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// How long an admin may take for its answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The pause before subscriptions that have ended are made again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Carries requests out until `stop`, with the rights of the catalog's connection, which is an admin's. Requests come on a
/// connection of their own, so that a flood of them slows down nothing else.
pub async fn serve(catalog: Catalog, layout: Layout, stop: CancellationToken) {
    let requests = match catalog.connection().sibling("weft-broker").await {
        Ok(requests) => requests,
        // The same options have made the other connection.
        Err(error) => return tracing::error!(%error, "requests of other roles are not answered"),
    };
    let room = room::Loans::new(catalog.connection().clone(), layout);
    let serving = async {
        loop {
            requests.connected().await;
            if let Err(error) = answer_requests(&catalog, &requests, layout, &room).await {
                tracing::warn!(%error, "requests of other roles are not answered for a moment");
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    };
    tokio::select! {
        () = serving => {}
        () = stop.cancelled() => {}
    }
}

async fn answer_requests(
    catalog: &Catalog,
    requests: &Connection,
    layout: Layout,
    room: &room::Loans,
) -> Result<(), async_nats::SubscribeError> {
    let client = requests.client();
    let subscribe = async |subject: String| client.queue_subscribe(subject, QUEUE.to_owned()).await;
    let mut consumers = subscribe(format!("{TAIL_REQUESTS}.>")).await?;
    let mut loans = subscribe(ROOM_REQUESTS.to_owned()).await?;
    let mut pauses = subscribe(PAUSE_REQUESTS.to_owned()).await?;
    let (mut creating, mut others) = (JoinSet::new(), JoinSet::new());
    loop {
        tokio::select! {
            Some(_) = creating.join_next() => {}
            Some(_) = others.join_next() => {}
            Some(message) = consumers.next() => {
                let Some(reply) = message.reply.clone() else { continue };
                if creating.len() >= CONCURRENT_MAX || message.payload.len() > REQUEST_BYTES_MAX {
                    let refusal = consumers::refusal(429, "too many or too large requests to create consumers");
                    let _ = client.publish(reply, refusal).await;
                    continue;
                }
                let (admin, client) = (catalog.connection().clone(), client.clone());
                creating.spawn(async move {
                    let answer = consumers::create(&admin, layout, &message).await;
                    let _ = client.publish(reply, answer).await;
                });
            }
            Some(message) = loans.next(), if others.len() < CONCURRENT_MAX => {
                let (room, client) = (room.clone(), client.clone());
                others.spawn(async move { respond(&client, &message, room.request(&message).await).await });
            }
            Some(message) = pauses.next(), if others.len() < CONCURRENT_MAX => {
                let (catalog, client) = (catalog.clone(), client.clone());
                others.spawn(async move { respond(&client, &message, pause::carry_out(&catalog, &message).await).await });
            }
            else => return Ok(()),
        }
    }
}

/// An admin's answer to another role.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    /// Why it was not done; `None`: it was.
    problem: Option<String>,
}

async fn respond(client: &async_nats::Client, request: &Message, done: Result<(), String>) {
    let Some(reply) = request.reply.clone() else { return };
    let answer = serde_json::to_vec(&Answer { problem: done.err() }).unwrap_or_default();
    // The client has ended otherwise; the requester tries again.
    let _ = client.publish(reply, answer.into()).await;
}

/// Why a request was not carried out.
#[derive(Debug)]
enum AskError {
    /// No admin listens.
    NoAdmin,
    /// An admin could not, or did not answer in time.
    Failed(String),
}

/// Asks an admin.
async fn ask(connection: &Connection, subject: String, payload: Vec<u8>) -> Result<(), AskError> {
    if !connection.is_connected() {
        return Err(AskError::Failed("not connected".into()));
    }
    let request = async_nats::Request::new().payload(Bytes::from(payload)).timeout(Some(ANSWER_MAX));
    let answer = connection.client().send_request(subject, request).await.map_err(|error| match error.kind() {
        RequestErrorKind::NoResponders => AskError::NoAdmin,
        _ => AskError::Failed(format!("an admin does not answer: {error}")),
    })?;
    match serde_json::from_slice(&answer.payload) {
        Ok(Answer { problem: None }) => Ok(()),
        Ok(Answer { problem: Some(problem) }) => Err(AskError::Failed(problem)),
        Err(error) => Err(AskError::Failed(format!("an admin answers nonsense: {error}"))),
    }
}
