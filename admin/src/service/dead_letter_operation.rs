//! A call that redrives, resolves or discards dead letters: how far it has come, and its end before it is done.
//!
//! It is the commands of its request, as a replay is.

use tonic::Status;
use weft_catalog::keys::Grant;
use weft_index::history::{ItemProgress, StoredCommand};
use weft_proto::{
    internal::{self, OutcomeKind, command::Action},
    v1::{self, DeadLetterOperationKind, DeadLetterOperationState},
};

use super::{
    command::Call,
    state::{COMMAND_TIMEOUT, LogState},
};
use crate::{
    convert,
    error::{Code, of_history, refuse, unknown},
};

/// Appends a cancellation for each part of a call, and waits for a while until the owners have executed it: milliseconds if
/// the shards have owners.
///
/// # Errors
///
/// NOT_FOUND: no such call is kept; CONFLICT: it is done or cancelled; ID_REUSED, LOG_UNAVAILABLE, STARTING.
pub(super) async fn cancel(
    log: &LogState,
    grant: &Grant,
    asked: v1::CancelDeadLetterOperationRequest,
) -> Result<v1::DeadLetterOperation, Status> {
    let v1::CancelDeadLetterOperationRequest { id, reason, request_id } = asked;
    let call = Call::new(grant, &request_id, &reason)?;
    log.catch_up().await?;
    let mut parts = find(log, &id).await?;
    let is_same = |stored: &Action| matches!(stored, Action::Cancel(cancel) if cancel.operation == id);
    let mut orders = call.stored(log, is_same).await?;
    if orders.is_empty() {
        let problem = match view(log, &id, &parts).await?.state() {
            DeadLetterOperationState::Done => Some("done: there is nothing to cancel"),
            DeadLetterOperationState::Cancelled => Some("cancelled already"),
            DeadLetterOperationState::Running | DeadLetterOperationState::Unspecified => None,
        };
        if let Some(problem) = problem {
            return Err(refuse(Code::Conflict, format!("{id} is {problem}")));
        }
        let order = |part: &StoredCommand| {
            let order = internal::CancelDeadLetters { operation: id.clone(), run: part.run.0 };
            (part.shard, Action::Cancel(order))
        };
        // The call may be appending parts, and stops once it sees the first of these.
        while orders.len() < parts.len() {
            let uncovered = parts.iter().filter(|part| !covers(&orders, part)).map(order).collect();
            orders = call.command(log, &orders, uncovered).await?;
            parts = find(log, &id).await?;
        }
    }
    for order in &orders {
        if !log.carried_out(order, COMMAND_TIMEOUT).await? {
            break;
        }
    }
    view(log, &id, &parts).await
}

/// Whether one of these orders cancels a part.
fn covers(orders: &[StoredCommand], part: &StoredCommand) -> bool {
    let cancels = |order: &StoredCommand| {
        order.shard == part.shard
            && matches!(&order.command.action, Some(Action::Cancel(cancel)) if cancel.run == part.run.0)
    };
    orders.iter().any(cancels)
}

/// The commands of a call.
async fn find(log: &LogState, id: &str) -> Result<Vec<StoredCommand>, Status> {
    let parts = log.history.request(id.to_owned()).await.map_err(of_history)?;
    if parts.is_empty() || !parts.iter().all(|part| kind(part) != DeadLetterOperationKind::Unspecified) {
        let problem = format!("no redrive, resolution or discard of dead letters with the request id {id} is kept");
        return Err(unknown(Code::NotFound, problem));
    }
    Ok(parts)
}

fn kind(part: &StoredCommand) -> DeadLetterOperationKind {
    match &part.command.action {
        Some(Action::Redrive(_)) => DeadLetterOperationKind::Redrive,
        Some(Action::Close(close)) if close.kind() == OutcomeKind::Resolved => DeadLetterOperationKind::Resolve,
        Some(Action::Close(_)) => DeadLetterOperationKind::Discard,
        _ => DeadLetterOperationKind::Unspecified,
    }
}

async fn view(log: &LogState, id: &str, parts: &[StoredCommand]) -> Result<v1::DeadLetterOperation, Status> {
    let items: Vec<_> = parts.iter().flat_map(StoredCommand::items).map(|(item, _)| item).collect();
    let mut operation = v1::DeadLetterOperation {
        id: id.to_owned(),
        selected: u32::try_from(items.len()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    if let Some(first) = parts.first() {
        operation.set_kind(kind(first));
        operation.operator.clone_from(&first.command.operator);
        operation.reason.clone_from(&first.command.reason);
        operation.started_at = convert::milliseconds(first.command.at_ms);
    }
    for state in log.history.item_progress(items).await.map_err(of_history)? {
        *counter(&mut operation, state) += 1;
    }
    let is_cancelled = log.history.is_cancelled(id.to_owned()).await.map_err(of_history)?;
    operation.set_state(match (is_cancelled, operation.pending) {
        (true, _) => DeadLetterOperationState::Cancelled,
        (false, 0) => DeadLetterOperationState::Done,
        (false, _) => DeadLetterOperationState::Running,
    });
    Ok(operation)
}

fn counter(operation: &mut v1::DeadLetterOperation, state: ItemProgress) -> &mut u32 {
    let wanted = match operation.kind() {
        DeadLetterOperationKind::Resolve => OutcomeKind::Resolved,
        DeadLetterOperationKind::Discard => OutcomeKind::Discarded,
        DeadLetterOperationKind::Redrive | DeadLetterOperationKind::Unspecified => OutcomeKind::Delivered,
    };
    match state {
        ItemProgress::Pending => &mut operation.pending,
        ItemProgress::NotApplicable => &mut operation.not_applicable,
        ItemProgress::Settled(OutcomeKind::Cancelled) => &mut operation.cancelled,
        ItemProgress::Settled(kind) if kind == wanted => &mut operation.done,
        ItemProgress::Settled(_) => &mut operation.failed,
    }
}
