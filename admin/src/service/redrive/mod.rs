//! Redriving dead letters: selected here, commanded on COMMANDS, executed by the shards' owners, followed in the
//! history.

use std::pin::Pin;

use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use weft_catalog::keys::Grant;
use weft_index::history::DeadLetter;
use weft_proto::{
    internal::{self, command::Action},
    v1,
};

use super::{
    command::{Call, cut, is_complete, item, without_stored},
    selection::Selection,
    shares::Place,
    state::LogState,
};

mod progress;

use progress::{Ends, Progress};

/// Response stream of `RedriveDeadLetters`.
pub(super) type Responses = Pin<Box<dyn Stream<Item = Result<v1::RedriveDeadLettersResponse, Status>> + Send>>;

/// Selects, commands, and streams the progress.
///
/// # Errors
///
/// BAD_QUERY, NOT_FOUND for an unknown id, LOG_UNAVAILABLE, STARTING.
pub(super) async fn redrive(
    log: &LogState,
    grant: &Grant,
    request: v1::RedriveDeadLettersRequest,
    draining: CancellationToken,
    place: Place,
) -> Result<Responses, Status> {
    let call = Call::new(grant, &request.request_id, &request.reason)?;
    let what = Selection::of(request.ids, request.filter, request.all)?;
    log.catch_up().await?;
    if request.dry_run {
        return Ok(dry_run(&call.request_id, what.select(log, grant).await?));
    }
    let mut commands = call.stored(log, |action| matches!(action, Action::Redrive(_))).await?;
    if !is_complete(&commands) {
        let items = what.select(log, grant).await?.iter().map(item).collect();
        let items = without_stored(items, &commands);
        commands =
            call.command(log, &commands, cut(&items, |items| Action::Redrive(internal::Redrive { items }))).await?;
    }
    let ended = grant.clone().ended().boxed();
    Ok(Progress::new(log.history.clone(), call.request_id, &commands, Ends { draining, ended }, place).into_responses())
}

/// The dead letters that a redrive would select.
fn dry_run(request_id: &str, selected: Vec<DeadLetter>) -> Responses {
    let first = v1::RedriveDeadLettersResponse {
        selected: u32::try_from(selected.len()).unwrap_or(u32::MAX),
        request_id: request_id.to_owned(),
        ..Default::default()
    };
    let each = first.clone();
    let items = selected.into_iter().map(move |dead_letter| v1::RedriveDeadLettersResponse {
        id: dead_letter.id().to_string(),
        status: v1::RedriveStatus::from(dead_letter.status).into(),
        ..each.clone()
    });
    stream::iter(std::iter::once(first).chain(items).map(Ok)).boxed()
}
