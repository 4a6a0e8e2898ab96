//! Requests that an admin carries out for users whose own account may not: subscribers create consumers on EVENTS,
//! workers make room in a full stream, drop what is settled, pause subscriptions, and remove copies of erased events. Each
//! request is checked against what its sender is allowed. Those of workers have a tag under the mesh's master key: the
//! password of a NATS user, which is all that the server asks for, is not enough.
//!
//! Where all roles connect with one user, nothing answers for subscribers, who then ask JetStream itself.

use std::time::Duration;

use async_nats::{HeaderMap, Message, client::RequestErrorKind};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    connect::Connection,
    subject::{COPY_REQUESTS, Layout, PAUSE_REQUESTS, ROOM_REQUESTS, TAIL_REQUESTS, TRIM_REQUESTS},
    tags::Tags,
};

mod consumers;
pub mod copies;
pub mod room;
pub mod trim;

/// The queue group of the admins: one of them answers.
const QUEUE: &str = "admin";
/// Requests of one kind that are carried out at the same time; others are refused at once, so that no queue grows.
const CONCURRENT_MAX: usize = 16;
/// The largest request, in bytes: a consumer's configuration with some hundred filters.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// How long an admin may take for its answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Purpose that the key for the tags of workers' requests is derived for.
pub const TAG_PURPOSE: &str = "admin";
/// The header of a tag.
const TAG: &str = "weft-tag";
/// The pause before subscriptions that have ended are made again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Carries requests out until `stop`, with the rights of an admin's connection, which `admin` has; `pause` carries out those
/// to pause a subscription. Requests come on a separate connection, so that a flood of them slows down nothing else.
pub async fn serve<F, Done>(admin: Requests, layout: Layout, pause: F, stop: CancellationToken)
where
    F: Fn(Message) -> Done,
    Done: Future<Output = Result<(), String>> + Send + 'static,
{
    let incoming = match admin.connection.sibling("weft-admin-requests").await {
        Ok(incoming) => incoming,
        // The same options have made the other connection.
        Err(error) => return tracing::error!(%error, "requests of other roles are not answered"),
    };
    let room = room::Loans::new(admin.connection.clone(), layout);
    let serving = async {
        loop {
            incoming.connected().await;
            if let Err(error) = answer_requests(&admin, incoming.client(), layout, &room, &pause).await {
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

async fn answer_requests<F, Done>(
    admin: &Requests,
    client: &async_nats::Client,
    layout: Layout,
    room: &room::Loans,
    pause: &F,
) -> Result<(), async_nats::SubscribeError>
where
    F: Fn(Message) -> Done,
    Done: Future<Output = Result<(), String>> + Send + 'static,
{
    let subscribe = async |subject: String| client.queue_subscribe(subject, QUEUE.to_owned()).await;
    let mut consumers = subscribe(format!("{TAIL_REQUESTS}.>")).await?;
    let mut loans = subscribe(ROOM_REQUESTS.to_owned()).await?;
    let mut trims = subscribe(TRIM_REQUESTS.to_owned()).await?;
    let mut pauses = subscribe(PAUSE_REQUESTS.to_owned()).await?;
    let mut copies = subscribe(COPY_REQUESTS.to_owned()).await?;
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
                let (admin, client) = (admin.connection.clone(), client.clone());
                creating.spawn(async move {
                    let answer = consumers::create(&admin, layout, &message).await;
                    let _ = client.publish(reply, answer).await;
                });
            }
            Some(message) = loans.next(), if others.len() < CONCURRENT_MAX => {
                let (room, client, admin) = (room.clone(), client.clone(), admin.clone());
                others.spawn(async move {
                    let done = async { admin.check(&message)?; room.request(&message).await };
                    respond(&client, &message, done.await).await;
                });
            }
            Some(message) = trims.next(), if others.len() < CONCURRENT_MAX => {
                let (admin, client) = (admin.clone(), client.clone());
                others.spawn(async move {
                    let done = async { admin.check(&message)?; trim::carry_out(&admin.connection, layout, &message).await };
                    respond(&client, &message, done.await).await;
                });
            }
            Some(message) = copies.next(), if others.len() < CONCURRENT_MAX => {
                let (admin, client) = (admin.clone(), client.clone());
                others.spawn(async move {
                    let done = async { admin.check(&message)?; copies::carry_out(&admin.connection, layout, &message).await };
                    respond(&client, &message, done.await).await;
                });
            }
            Some(message) = pauses.next(), if others.len() < CONCURRENT_MAX => {
                let (client, checked) = (client.clone(), admin.check(&message));
                let done = pause(message.clone());
                others.spawn(async move {
                    let done = async { checked?; done.await };
                    respond(&client, &message, done.await).await;
                });
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
pub enum AskError {
    /// No admin listens.
    NoAdmin,
    /// An admin could not, or did not answer in time.
    Failed(String),
}

/// Asks an admin for what a worker's own user may not do. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Requests {
    connection: Connection,
    tags: Tags,
}

impl Requests {
    /// Through a connection, tagged with the key derived for [`TAG_PURPOSE`].
    pub fn new(connection: Connection, tags: Tags) -> Self {
        Self { connection, tags }
    }

    /// Refuses a request that was not tagged by a process with the master key.
    fn check(&self, request: &Message) -> Result<(), String> {
        let tag = request.headers.as_ref().and_then(|headers| headers.get(TAG));
        let holds = tag.is_some_and(|tag| self.tags.holds(&request.subject, &request.payload, tag.as_str()));
        if holds { Ok(()) } else { Err("the request is not tagged with this mesh's master key".into()) }
    }

    /// Asks an admin, and waits until it has been done.
    ///
    /// # Errors
    ///
    /// [`AskError`].
    pub async fn ask(&self, subject: String, payload: Vec<u8>) -> Result<(), AskError> {
        if !self.connection.is_connected() {
            return Err(AskError::Failed("not connected".into()));
        }
        let mut headers = HeaderMap::new();
        headers.insert(TAG, self.tags.tag(&subject, &payload));
        let request = async_nats::Request::new().headers(headers).payload(Bytes::from(payload));
        let request = request.timeout(Some(ANSWER_MAX));
        let answer = self.connection.client().send_request(subject, request).await;
        let answer = answer.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => AskError::NoAdmin,
            _ => AskError::Failed(format!("an admin does not answer: {error}")),
        })?;
        match serde_json::from_slice(&answer.payload) {
            Ok(Answer { problem: None }) => Ok(()),
            Ok(Answer { problem: Some(problem) }) => Err(AskError::Failed(problem)),
            Err(error) => Err(AskError::Failed(format!("an admin answers nonsense: {error}"))),
        }
    }
}
