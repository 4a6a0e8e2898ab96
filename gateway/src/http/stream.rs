//! `GET /api/v1/events/stream`: history and then live events, as Server-Sent Events.
//!
//! One [`Tail`] of the log is both, so there is no seam; all streams of a gateway share one reader per shard. Each event's
//! `id` is the cursor after it; a client that connects again with `Last-Event-ID` continues exactly there. A heartbeat
//! carries the cursor too, so that a client whose filter takes few events does not fall back far when it reconnects.
//!
//! Little is buffered for a slow client: it falls behind the shared reader and reads the log at its own speed. A stream
//! whose client takes nothing for 30 s is ended; its last frame is the cursor to continue from.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream::unfold;
use http::{HeaderMap, HeaderValue, header};
use tokio::{
    sync::{
        OwnedSemaphorePermit,
        mpsc::{self, OwnedPermit},
    },
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use weft_catalog::keys::Grant;
use weft_nats::{cursor::Cursor, scan, tail::Tail};
use weft_proto::v1::Scope;

use crate::{
    admission::Client,
    http::error::{Code, Problem},
    http::since::{Pairs, Wanted, in_time, pairs, resolve},
    http::state::Api,
};

mod frame;
#[cfg(test)]
mod tests;

/// Without an event for so long a heartbeat is sent: proxies cut connections that are silent for a minute.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a client may take nothing.
const STALL_MAX: Duration = Duration::from_secs(30);
/// Frames on their way to a client; the last place is kept for the last words.
const FRAMES_AHEAD: usize = 4;
/// Reconnection delay that clients are given, in milliseconds.
const RECONNECT_MS: u64 = 1000;

/// The events after a cursor and those to come, as Server-Sent Events.
///
/// Each event's `id` is the cursor after it.
///
/// # Errors
///
/// A [`Problem`].
#[utoipa::path(
    get,
    path = "/api/v1/events/stream",
    tag = "read",
    security(("apiKey" = []), ("bearer" = [])),
    params(
        ("since" = Option<String>, Query, description = "A cursor, or an event id; absent: from the oldest event kept"),
        ("workflowId" = Option<String>, Query, description = "Only this workflow"),
        ("type" = Option<String>, Query, description = "Only types that this pattern takes; `*` is any run of characters"),
        ("source" = Option<String>, Query, description = "Only this source"),
        ("subscription" = Option<String>, Query, description = "Only what this subscription takes"),
        ("Last-Event-ID" = Option<String>, Header, description = "As `since`, and before it"),
    ),
    responses((status = 200, description = "Envelopes", body = String, content_type = "text/event-stream"))
)]
pub async fn stream(
    State(api): State<Arc<Api>>,
    client: Client,
    headers: HeaderMap,
    query: Result<Query<Pairs>, QueryRejection>,
) -> Result<Response, Problem> {
    let grant = api.authorize(&client, &headers, Scope::Read)?;
    let wanted = Wanted::read(&api, &grant, pairs(query)?)?;
    let since = last_event_id(&headers).or(wanted.since);
    let place = api.streams.place()?;
    let log = api.log()?;
    let tail = in_time(async {
        let cursor = match &since {
            Some(text) => resolve(log, text).await?,
            None => scan::oldest(&log.connection, log.layout).await?,
        };
        Ok(log.tails.open(wanted.filter, cursor).await?)
    })
    .await?;
    let (frames, taken) = mpsc::channel(FRAMES_AHEAD);
    // The channel is new: there is room.
    let last_words = frames.clone().try_reserve_owned().map_err(|_| Problem::new(Code::Internal, "no room"))?;
    // Ends with its client, by `closing`, or when the log has nothing more to say.
    tokio::spawn(feed(tail, frames, last_words, api.streams.closing().clone(), grant, place));
    let body = Body::from_stream(unfold(taken, async |mut taken| {
        let frame: Bytes = taken.recv().await?;
        Some((Ok::<_, Infallible>(frame), taken))
    }));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((headers, body).into_response())
}

/// The last cursor that a reconnecting client has seen; empty: none.
fn last_event_id(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("last-event-id")?.to_str().ok()?;
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

/// Why a stream ends.
enum End {
    /// The client has gone.
    Gone,
    /// With these last words.
    Told(Problem),
}

/// Hands events on until the stream ends, and says why.
async fn feed(
    tail: Tail,
    frames: mpsc::Sender<Bytes>,
    last_words: OwnedPermit<Bytes>,
    closing: CancellationToken,
    grant: Grant,
    _place: OwnedSemaphorePermit,
) {
    let mut feed = Feed::new(tail, frames, STALL_MAX);
    let end = tokio::select! {
        end = feed.run(&closing) => end,
        () = grant.ended() => End::Told(Problem::new(Code::KeyInvalid, "the key was revoked or changed, or has expired")),
    };
    if let End::Told(problem) = end {
        last_words.send(frame::problem(&feed.cursor, &problem));
    }
}

/// A tail on its way to a client.
struct Feed {
    tail: Tail,
    frames: mpsc::Sender<Bytes>,
    /// Behind everything that the client has been sent or does not want.
    cursor: Cursor,
    /// How long the client may take nothing.
    stall_max: Duration,
}

impl Feed {
    fn new(tail: Tail, frames: mpsc::Sender<Bytes>, stall_max: Duration) -> Self {
        Self { cursor: tail.cursor().clone(), tail, frames, stall_max }
    }

    async fn run(&mut self, closing: &CancellationToken) -> End {
        let mut frame = frame::reconnect(RECONNECT_MS);
        loop {
            match timeout(self.stall_max, self.frames.send(frame)).await {
                Ok(Ok(())) => self.cursor = self.tail.cursor().clone(),
                Ok(Err(_)) => return End::Gone,
                Err(_) => {
                    let detail = format!("nothing was taken for {:?}; connect again", self.stall_max);
                    return End::Told(Problem::new(Code::Overloaded, detail));
                }
            }
            frame = tokio::select! {
                biased;
                () = closing.cancelled() => {
                    return End::Told(Problem::new(Code::Draining, "the gateway is shutting down; connect again"));
                }
                () = self.frames.closed() => return End::Gone,
                next = self.tail.next() => match next {
                    Ok(stored) => frame::event(self.tail.cursor(), &stored.event),
                    Err(error) => return End::Told(error.into()),
                },
                () = sleep(HEARTBEAT) => frame::heartbeat(self.tail.cursor()),
            };
        }
    }
}
