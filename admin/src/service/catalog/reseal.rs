//! `Reseal`: every entry of the catalog sealed with the first master key, with its progress.
//!
//! It continues when the caller hangs up: sealed entries stay sealed, and a repeated call has less to do.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _, stream::unfold};
use tokio::sync::mpsc;
use tonic::Status;
use weft_catalog::{Resealed, edit::record};
use weft_proto::v1;

use super::mutation::{Mutation, of_edit};
use crate::{
    error::{Code, refuse},
    service::{shares::Place, state::LogState},
};

/// Response stream of `Reseal`.
pub(super) type Responses = Pin<Box<dyn Stream<Item = Result<v1::ResealResponse, Status>> + Send>>;

/// Responses that may wait for the caller; progress beyond them is left out, the last response is not.
const WAITING_MAX: usize = 16;

/// Records the call, seals, and streams the progress.
///
/// # Errors
///
/// ID_REUSED, STARTING, LOG_UNAVAILABLE.
pub(super) async fn run(log: LogState, mutation: Mutation, key_id: String, place: Place) -> Result<Responses, Status> {
    if mutation.recorded(&log).await?.is_none() {
        record(&log.connection, log.layout, mutation.stamp(), 0, mutation.edit()).await.map_err(of_edit)?;
    }
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let response = v1::ResealResponse { key_id, request_id: mutation.stamp().request_id.clone(), ..Default::default() };
    // Ends alone: its rounds are bounded, and each of its requests has a time-out.
    tokio::spawn(async move {
        let _place = place;
        let said = |Resealed { sealed, remaining }| {
            let (sealed, remaining) = (sealed as u64, remaining as u64);
            let _ = sender.try_send(Ok(v1::ResealResponse { sealed, remaining, ..response.clone() }));
        };
        let last = match log.catalog.reseal_with_first_key(said).await {
            Ok(sealed) => {
                tracing::info!(sealed, key = response.key_id, "the catalog is sealed with the first master key");
                Ok(v1::ResealResponse { sealed: sealed as u64, remaining: 0, done: true, ..response.clone() })
            }
            Err(error) => Err(refuse(Code::LogUnavailable, error.to_string())),
        };
        // Fails only if the caller has gone.
        let _ = sender.send(last).await;
    });
    Ok(unfold(receiver, async |mut receiver| receiver.recv().await.map(|response| (response, receiver))).boxed())
}
