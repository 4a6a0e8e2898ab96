//! `PublishStream`: events are submitted before the last is answered, and answered in order.
//!
//! The first refusal is the last answer, and no event after it is accepted: the events that the sequencer holds by then
//! are in one [`PublishStream`], of which it accepts only a prefix. No event waits for room here: while a stream has its
//! maximum in flight, or the client reads no answers, nothing more is read, and HTTP/2 flow control stops the client.

use std::{pin::pin, sync::Arc};

use futures_util::{
    FutureExt as _, Stream, StreamExt as _,
    future::BoxFuture,
    stream::{FuturesOrdered, unfold},
};
use http::HeaderMap;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tonic::Status;
use weft_proto::v1::{PublishStreamRequest, PublishStreamResponse};

use super::event::{admit, written};
use super::status;
use crate::{
    http::error::{Code, Problem},
    http::state::Api,
    http::webhooks,
    metrics,
    sequencer::{NewEvent, PublishStream, Receipt, SubmitError},
};

/// Events of one stream on their way into the log: enough that each append finds some waiting.
const IN_FLIGHT_EVENTS_MAX: usize = 256;
/// Bytes of their data, above which no further one is read: a sixteenth of what a shard's queue holds, so that one stream
/// does not fill it.
const IN_FLIGHT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The answers to the events of a stream. `place` is held until it ends.
pub(super) fn answers(
    api: Arc<Api>,
    headers: HeaderMap,
    stream: PublishStream,
    sent: impl Stream<Item = Result<PublishStreamRequest, Status>> + Send + Unpin + 'static,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<PublishStreamResponse, Status>> + Send {
    let publishing = Publishing {
        api,
        headers,
        stream,
        sent,
        next: None,
        in_flight: FuturesOrdered::new(),
        in_flight_bytes: 0,
        state: State::Reading,
        _place: place,
    };
    unfold(publishing, async |mut publishing| {
        let answer = publishing.answer().await?;
        Some((answer, publishing))
    })
}

/// A stream at work.
struct Publishing<S> {
    api: Arc<Api>,
    headers: HeaderMap,
    stream: PublishStream,
    sent: S,
    /// The next event, while it may not be submitted yet, and by when its sender has an answer.
    next: Option<(NewEvent, Instant)>,
    in_flight: FuturesOrdered<BoxFuture<'static, Answered>>,
    in_flight_bytes: usize,
    state: State,
    _place: OwnedSemaphorePermit,
}

/// An event has its answer.
struct Answered {
    bytes: usize,
    answer: Result<Receipt, SubmitError>,
}

enum State {
    /// The client may send more.
    Reading,
    /// Nothing more is read. When all in flight is answered it ends: well, or with these last words.
    Ending(Option<Status>),
    Ended,
}

impl<S: Stream<Item = Result<PublishStreamRequest, Status>> + Unpin> Publishing<S> {
    /// The next answer; `None`: there is none any more. Safe to drop: what is in flight stays so.
    async fn answer(&mut self) -> Option<Result<PublishStreamResponse, Status>> {
        let api = Arc::clone(&self.api);
        let mut closing = pin!(api.closing().cancelled());
        loop {
            self.submit_next();
            if self.in_flight.is_empty()
                && let State::Ending(last) = &mut self.state
            {
                let last = last.take();
                self.state = State::Ended;
                return last.map(Err);
            }
            let reading = matches!(self.state, State::Reading);
            let room = self.in_flight.len() < IN_FLIGHT_EVENTS_MAX && self.in_flight_bytes < IN_FLIGHT_BYTES_MAX;
            tokio::select! {
                Some(answered) = self.in_flight.next() => return Some(self.answered(answered)),
                sent = self.sent.next(), if reading && room && self.next.is_none() => self.read(sent),
                () = &mut closing, if reading => {
                    let detail = "the gateway is shutting down; continue at another, after the last receipt";
                    self.end(Some(Problem::new(Code::Draining, detail).into()));
                }
                else => return None,
            }
        }
    }

    fn read(&mut self, sent: Option<Result<PublishStreamRequest, Status>>) {
        match sent {
            Some(Ok(PublishStreamRequest { event: Some(event) })) => match admit(&self.api, &self.headers, event) {
                Ok(event) => self.next = Some((event, self.stream.deadline())),
                Err(problem) => self.end(Some(problem.into())),
            },
            Some(Ok(PublishStreamRequest { event: None })) => {
                self.end(Some(Problem::new(Code::MalformedBody, "the message holds no event").into()));
            }
            Some(Err(status)) => self.end(Some(status::of_transport(status))),
            None => self.end(None),
        }
    }

    /// Submits the next event, if there is one, as soon as it may stand in the line.
    fn submit_next(&mut self) {
        let may =
            |(event, _): &mut (NewEvent, Instant)| self.in_flight.is_empty() || self.stream.joins(&event.workflow);
        let Some((event, deadline)) = self.next.take_if(may) else { return };
        let bytes = event.payload.len();
        match self.stream.submit(event, deadline) {
            Ok(pending) => {
                self.in_flight_bytes += bytes;
                let answered = pending.receipt().map(move |answer| Answered { bytes, answer });
                self.in_flight.push_back(answered.boxed());
            }
            Err(error) => self.end(Some(Problem::from(error).into())),
        }
    }

    fn answered(&mut self, answered: Answered) -> Result<PublishStreamResponse, Status> {
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(answered.bytes);
        match answered.answer {
            Ok(receipt) => {
                webhooks::count(metrics::API_SOURCE, &receipt);
                Ok(PublishStreamResponse { receipt: Some(written(receipt)) })
            }
            Err(error) => {
                // What has no answer by now is not waited for: it is not accepted, or on its way with this one.
                self.stream.cut();
                self.in_flight.clear();
                self.state = State::Ended;
                Err(Problem::from(error).into())
            }
        }
    }

    fn end(&mut self, last: Option<Status>) {
        self.next = None;
        self.state = State::Ending(last);
    }
}
