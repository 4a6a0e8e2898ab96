//! `TailEvents`: a tail of the log as a stream of answers.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _, stream::unfold};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use weft_catalog::keys::Grant;
use weft_nats::{cursor::Cursor, scan::Filter};
use weft_proto::v1;

use super::{
    shares::Place,
    state::{LogState, draining},
};
use crate::{auth, convert, error::of_scan};

/// Response stream of `TailEvents`.
pub(super) type Responses = Pin<Box<dyn Stream<Item = Result<v1::TailEventsResponse, Status>> + Send>>;

/// Starts a tail after `cursor`, which ends with the caller's key. `place` is held while it lasts.
///
/// # Errors
///
/// CURSOR_EXPIRED if events after the cursor are no longer kept; LOG_UNAVAILABLE.
pub(super) async fn open(
    log: &LogState,
    filter: Filter,
    cursor: Cursor,
    grant: Grant,
    stop: CancellationToken,
    place: Place,
) -> Result<Responses, Status> {
    let tail = log.tails.open(filter, cursor).await.map_err(of_scan)?;
    let responses = unfold(Some((tail, Box::pin(grant.ended()), stop, place)), async |open| {
        let (mut tail, mut ended, stop, place) = open?;
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => Err(draining()),
            () = &mut ended => Err(auth::ended()),
            next = tail.next() => next.map_err(of_scan),
        };
        match next {
            Ok(stored) => {
                let (event, cursor) = (Some(convert::event(stored.event.clone())), tail.cursor().to_string());
                Some((Ok(v1::TailEventsResponse { event, cursor }), Some((tail, ended, stop, place))))
            }
            Err(status) => Some((Err(status), None)),
        }
    });
    Ok(responses.boxed())
}
