//! Dead letters that an operator closes: resolved, or discarded.

use tonic::Status;
use weft_catalog::keys::Grant;
use weft_index::history::{CommandItem, ItemProgress, StoredCommand};
use weft_proto::{
    internal::{self, OutcomeKind, command::Action},
    v1,
};

use super::{
    command::{Call, cut, is_complete, item, without_stored},
    selection::Selection,
    state::{COMMAND_TIMEOUT, LogState},
};
use crate::error::of_history;

/// A request to resolve or discard dead letters.
pub(super) struct CloseRequest {
    pub kind: OutcomeKind,
    pub ids: Vec<String>,
    pub filter: Option<v1::DeadLetterFilter>,
    pub all: bool,
    pub reason: String,
    pub request_id: String,
    pub dry_run: bool,
}

impl From<v1::ResolveDeadLettersRequest> for CloseRequest {
    fn from(request: v1::ResolveDeadLettersRequest) -> Self {
        let v1::ResolveDeadLettersRequest { ids, filter, all, reason, request_id, dry_run } = request;
        Self { kind: OutcomeKind::Resolved, ids, filter, all, reason, request_id, dry_run }
    }
}

impl From<v1::DiscardDeadLettersRequest> for CloseRequest {
    fn from(request: v1::DiscardDeadLettersRequest) -> Self {
        let v1::DiscardDeadLettersRequest { ids, filter, all, reason, request_id, dry_run } = request;
        Self { kind: OutcomeKind::Discarded, ids, filter, all, reason, request_id, dry_run }
    }
}

/// Selects, commands, and waits for a while: milliseconds if the shards have owners.
///
/// # Errors
///
/// BAD_QUERY, NOT_FOUND for an unknown id, ID_REUSED, LOG_UNAVAILABLE, STARTING.
pub(super) async fn close(
    log: &LogState,
    grant: &Grant,
    asked: CloseRequest,
) -> Result<v1::CloseDeadLettersResponse, Status> {
    let call = Call::new(grant, &asked.request_id, &asked.reason)?;
    let what = Selection::of(asked.ids, asked.filter, asked.all)?;
    log.catch_up().await?;
    if asked.dry_run {
        let selected = count(what.select(log, grant).await?.len());
        return Ok(v1::CloseDeadLettersResponse { selected, request_id: call.request_id, ..Default::default() });
    }
    let kind = asked.kind;
    let is_same = |action: &Action| matches!(action, Action::Close(close) if close.kind() == kind);
    let mut commands = call.stored(log, is_same).await?;
    if !is_complete(&commands) {
        let items = what.select(log, grant).await?.iter().map(item).collect();
        let items = without_stored(items, &commands);
        let close = |items| Action::Close(internal::CloseDeadLetters { items, kind: kind.into() });
        commands = call.command(log, &commands, cut(&items, close)).await?;
    }
    for command in &commands {
        if !log.carried_out(command, COMMAND_TIMEOUT).await? {
            break;
        }
    }
    let items: Vec<CommandItem> = commands.iter().flat_map(StoredCommand::items).map(|(item, _)| item).collect();
    let selected = count(items.len());
    let mut answer = v1::CloseDeadLettersResponse { selected, request_id: call.request_id, ..Default::default() };
    for state in log.history.item_progress(items).await.map_err(of_history)? {
        match state {
            ItemProgress::Settled(_) => answer.closed += 1,
            ItemProgress::NotApplicable => answer.not_applicable += 1,
            ItemProgress::Pending => answer.pending += 1,
        }
    }
    Ok(answer)
}

fn count(items: usize) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX)
}
