//! Subscriptions that the log knows and the catalog has lost: found, adopted, or discarded.

use tonic::Status;
use weft_catalog::{Orphan, Snapshot, keys::Grant, orphans};
use weft_index::history::{CommandItem, LaneFilter};
use weft_proto::{
    ids::{ShardId, StreamSeq, SubscriptionUid},
    internal::{self, command::Action},
    v1,
};

use crate::{
    error::{Code, of_history, refuse},
    service::{
        HISTORY_TIMEOUT,
        command::Call,
        state::{COMMAND_TIMEOUT, LogState},
    },
};

/// Lanes that are counted of one orphan.
const LANES_MAX: usize = 1000;

/// The orphans of the log at this moment.
///
/// # Errors
///
/// LOG_UNAVAILABLE, STARTING: the history lags.
pub(super) async fn now(log: &LogState, snapshot: &Snapshot) -> Result<Vec<Orphan>, Status> {
    let open = log.history.unknown_subscriptions_now(snapshot, HISTORY_TIMEOUT).await.map_err(of_history)?;
    Ok(orphans(&open, snapshot, log.layout))
}

/// The orphans of the log, as far as the history has read.
///
/// # Errors
///
/// STARTING or LOG_UNAVAILABLE while the history lags or has no log; INTERNAL where its file cannot be read.
pub(super) async fn all(log: &LogState, snapshot: &Snapshot) -> Result<Vec<Orphan>, Status> {
    let open = log.history.unknown_subscriptions(snapshot).await.map_err(of_history)?;
    Ok(orphans(&open, snapshot, log.layout))
}

/// The orphan of this name or uid.
///
/// # Errors
///
/// NOT_FOUND; BAD_QUERY where several have the name.
pub(super) async fn find(log: &LogState, snapshot: &Snapshot, named: &str) -> Result<Orphan, Status> {
    let uid = named.parse::<SubscriptionUid>().ok();
    let all = now(log, snapshot).await?;
    let mut found: Vec<_> = all.into_iter().filter(|orphan| Some(orphan.uid) == uid || orphan.name == named).collect();
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => {
            let message =
                format!("no subscription {named} is missing from the catalog; weft subscription list shows which are");
            Err(refuse(Code::NotFound, message))
        }
        _ => {
            let uids: Vec<_> = found.iter().map(|orphan| orphan.uid.to_string()).collect();
            Err(refuse(Code::BadQuery, format!("several have had the name {named}; use one of {}", uids.join(", "))))
        }
    }
}

/// The answer for an orphan.
///
/// # Errors
///
/// STARTING or LOG_UNAVAILABLE while the history lags or has no log; INTERNAL where its file cannot be read.
pub(super) async fn view(log: &LogState, orphan: &Orphan) -> Result<v1::OrphanedSubscription, Status> {
    let filter = LaneFilter { subscription: Some(orphan.name.clone()), ..LaneFilter::default() };
    let page = log.history.lanes(filter, None, LANES_MAX).await.map_err(of_history)?;
    let lanes = page.lanes.iter().filter(|lane| lane.uid == orphan.uid).count();
    Ok(v1::OrphanedSubscription {
        name: orphan.name.clone(),
        uid: orphan.uid.to_string(),
        types: orphan.types.clone(),
        sources: orphan.sources.clone(),
        shards: shards(orphan).map(|shard| shard.0).collect(),
        lanes: u32::try_from(lanes).unwrap_or(u32::MAX),
    })
}

/// The shards whose owners know an orphan.
fn shards(orphan: &Orphan) -> impl Iterator<Item = ShardId> {
    let known = orphan.starts.iter().enumerate().filter(|(_, start)| **start > 0);
    known.filter_map(|(shard, _)| u32::try_from(shard).ok().map(ShardId))
}

/// Commands the owners of the shards to close an orphan, and waits for a while.
///
/// # Errors
///
/// NOT_FOUND, BAD_QUERY, ID_REUSED, LOG_UNAVAILABLE, STARTING.
pub(super) async fn discard(
    log: &LogState,
    grant: &Grant,
    asked: &v1::DiscardSubscriptionRequest,
) -> Result<v1::DiscardSubscriptionResponse, Status> {
    let call = Call::new(grant, &asked.request_id, &asked.reason)?;
    let is_same = |action: &Action| matches!(action, Action::DiscardSubscription(discard) if discard.subscription_name == asked.orphan);
    let mut answer = v1::DiscardSubscriptionResponse { request_id: call.request_id.clone(), ..Default::default() };
    let mut commands = call.stored(log, is_same).await?;
    if commands.is_empty() {
        if asked.reason.trim().is_empty() && !asked.dry_run {
            return Err(refuse(Code::BadQuery, "reason is missing: what is pending is discarded, say why"));
        }
        let orphan = find(log, &*log.snapshot().await?, &asked.orphan).await?;
        answer.orphan = Some(view(log, &orphan).await?);
        if asked.dry_run {
            return Ok(answer);
        }
        let discard = internal::DiscardSubscription {
            subscription: orphan.uid.to_vec(),
            // As it was named, so that a repeated call is recognised.
            subscription_name: asked.orphan.clone(),
        };
        let actions = shards(&orphan).map(|shard| (shard, Action::DiscardSubscription(discard.clone())));
        commands = call.command(log, &[], actions.collect()).await?;
    }
    for stored in &commands {
        let Some(Action::DiscardSubscription(discard)) = &stored.command.action else { continue };
        let Some(uid) = SubscriptionUid::from_slice(&discard.subscription) else { continue };
        let item = CommandItem { shard: stored.shard, seq: StreamSeq(0), uid, run: stored.run };
        if !log.carried_out(stored, COMMAND_TIMEOUT).await? {
            answer.pending += 1;
        } else if log.history.is_refused(item).await.map_err(of_history)? {
            answer.not_applicable += 1;
        } else {
            answer.closed += 1;
        }
    }
    Ok(answer)
}
