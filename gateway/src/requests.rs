//! Requests of admins over NATS for an event to be taken, and their answers.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use prost::Message as _;
use tokio_util::sync::CancellationToken;
use weft_nats::{
    async_nats::{Message, Subject},
    connect::Connection,
    subject::RETRY_QUEUE,
};
use weft_proto::v1::RetriedRejected;

use crate::{http::error::Problem, sequencer::Receipt};

/// Requests at a time. Admins ask one by one, so this bounds what a mistake of theirs costs.
const CONCURRENCY: usize = 8;
/// Between two tries to subscribe, which fail only when the client has ended.
const SUBSCRIBE_RETRY: Duration = Duration::from_millis(500);
/// Prefixes of reply subjects: a client's inbox, and the server's reply to a request of another account.
const REPLIES: [&str; 2] = ["_INBOX", "_R_."];

/// Answers requests on `subject` until `closing`. `take` returns the id of the request's item and its receipt.
pub async fn serve<Taken>(
    connection: &Connection,
    subject: &'static str,
    take: impl Fn(Bytes) -> Taken,
    closing: CancellationToken,
) where
    Taken: Future<Output = (String, Result<Receipt, Problem>)>,
{
    let requests = loop {
        match connection.client().queue_subscribe(subject, RETRY_QUEUE.to_owned()).await {
            Ok(requests) => break requests,
            Err(error) => tracing::debug!(%error, subject, "requests of admins are not subscribed to"),
        }
        tokio::select! {
            () = tokio::time::sleep(SUBSCRIBE_RETRY) => {}
            () = closing.cancelled() => return,
        }
    };
    requests
        .take_until(closing.cancelled())
        .for_each_concurrent(CONCURRENCY, |Message { payload, reply, .. }| {
            let taken = take(payload);
            answer(connection, reply, taken)
        })
        .await;
}

async fn answer(
    connection: &Connection,
    reply: Option<Subject>,
    taken: impl Future<Output = (String, Result<Receipt, Problem>)>,
) {
    // An answer goes to who asked and nowhere else: neither into a stream, nor to a consumer that delivers here.
    let Some(reply) = reply.filter(|reply| REPLIES.iter().any(|prefix| reply.starts_with(prefix))) else {
        return;
    };
    let (id, taken) = taken.await;
    let mut answer = RetriedRejected { id, ..RetriedRejected::default() };
    match taken {
        Ok(receipt) => {
            answer.event_id = receipt.event_id.to_string();
            answer.duplicate = receipt.duplicate;
        }
        Err(problem) => {
            answer.code = problem.code().as_str().to_owned();
            answer.detail = problem.detail().to_owned();
        }
    }
    if let Err(error) = connection.client().publish(reply, answer.encode_to_vec().into()).await {
        tracing::debug!(%error, "an answer to an admin is not sent");
    }
}
