//! Reading: commands by their request, and their progress.

use weft_nats::commands::skip_decision;
use weft_proto::{
    ids::{Run, ShardId, StreamSeq, SubscriptionUid},
    internal::{self, OutcomeKind, command::Action},
    v1::DeadLetterReason,
};

use super::{
    apply::base_request_id,
    tables::{COMMANDED, DeliveryRow, View, decode, get},
};

/// One item of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandItem {
    /// The event's shard.
    pub shard: ShardId,
    /// The event's place in EVENTS.
    pub seq: StreamSeq,
    /// The subscription.
    pub uid: SubscriptionUid,
    /// The command: its COMMANDS sequence.
    pub run: Run,
}

/// Progress of one item of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemProgress {
    /// Waiting, or being attempted.
    Pending,
    /// It was not in the state that the command names.
    NotApplicable,
    /// Settled.
    Settled(OutcomeKind),
}

/// A stored command.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredCommand {
    /// The shard that it is for.
    pub shard: ShardId,
    /// Its place in the shard's COMMANDS: the run of what it asks for.
    pub run: Run,
    /// The command.
    pub command: internal::Command,
}

impl StoredCommand {
    /// Its items in order, each with its stored form. Malformed items are left out, as the shard's owner
    /// leaves them out.
    pub fn items(&self) -> impl Iterator<Item = (CommandItem, &internal::RedriveItem)> {
        let items = match &self.command.action {
            Some(Action::Redrive(redrive)) => &redrive.items[..],
            Some(Action::Replay(replay)) => &replay.items[..],
            Some(Action::Close(close)) => &close.items[..],
            // Records of completed changes.
            Some(
                Action::Catalog(_)
                | Action::Retry(_)
                | Action::Lane(_)
                | Action::ReplayOrder(_)
                | Action::Cancel(_)
                | Action::DiscardSubscription(_)
                | Action::Adopt(_)
                | Action::Erase(_),
            )
            | None => &[],
        };
        items.iter().filter_map(|item| {
            let uid = SubscriptionUid::from_slice(&item.subscription)?;
            Some((CommandItem { shard: self.shard, seq: StreamSeq(item.sequence), uid, run: self.run }, item))
        })
    }
}

/// The first command of a call, by the keys alone: the one of the lowest shard under the id itself, or what is kept of the
/// others.
pub(super) fn first(view: &View, request_id: &str) -> Result<Option<(ShardId, Run)>, redb::Error> {
    for row in view.requests.range((request_id, 0)..(end_of(request_id).as_str(), 0))? {
        let (key, seq) = row?;
        let ((id, shard), seq) = (key.value(), seq.value());
        if base_request_id(id) == request_id && view.commands.get((shard, seq))?.is_some() {
            return Ok(Some((ShardId(shard), Run(seq))));
        }
    }
    Ok(None)
}

/// The end of the keys of a call. The parts' ids begin with the request's id and the separator; other ids in the range belong to
/// other requests.
fn end_of(request_id: &str) -> String {
    format!("{request_id}{}", char::from_u32(super::PART_SEPARATOR as u32 + 1).unwrap_or('\u{10ffff}'))
}

/// The commands of a request, by the operator's request id; empty if it is unknown.
pub(super) fn request(view: &View, request_id: &str) -> Result<Vec<StoredCommand>, redb::Error> {
    let end = end_of(request_id);
    let mut commands = Vec::new();
    for row in view.requests.range((request_id, 0)..(end.as_str(), 0))? {
        let (key, seq) = row?;
        let ((id, shard), seq) = (key.value(), seq.value());
        if base_request_id(id) == request_id
            && let Some(command) = get(&view.commands, (shard, seq))?
        {
            commands.push(StoredCommand { shard: ShardId(shard), run: Run(seq), command });
        }
    }
    commands.sort_by_key(|command| (command.shard, command.run));
    Ok(commands)
}

/// Progress of each item, in the order given.
pub(super) fn progress(view: &View, items: &[CommandItem]) -> Result<Vec<ItemProgress>, redb::Error> {
    items.iter().map(|item| item_progress(view, item)).collect()
}

/// Whether the shard's owner has executed a command.
pub(super) fn is_carried_out(view: &View, shard: ShardId, command: Run) -> Result<bool, redb::Error> {
    Ok(view.marks.get((COMMANDED, shard.0))?.is_some_and(|mark| mark.value() >= command.0))
}

/// Whether an item was not in the state that its command names.
pub(super) fn is_refused(view: &View, item: &CommandItem) -> Result<bool, redb::Error> {
    let CommandItem { shard, seq, uid, run } = item;
    Ok(view.refused.get((shard.0, run.0, seq.0, uid.as_bytes()))?.is_some())
}

/// An operator's decision about a delivery that still applies: resolved or discarded.
///
/// Attempts and redrives in progress at the time do not revoke it, a later redrive or replay does. Events that a
/// cancelled replay left undelivered are not decisions.
pub(super) fn decisions(view: &View, items: &[CommandItem]) -> Result<Vec<Option<OutcomeKind>>, redb::Error> {
    items.iter().map(|item| decision(view, item)).collect()
}

fn decision(view: &View, item: &CommandItem) -> Result<Option<OutcomeKind>, redb::Error> {
    let CommandItem { shard, seq, uid, .. } = item;
    let key = |run| (shard.0, seq.0, uid.as_bytes(), run);
    for row in view.deliveries.range(key(0)..=key(u64::MAX))?.rev() {
        let (key, row) = row?;
        let (.., run) = key.value();
        let row: DeliveryRow = decode(row.value())?;
        let Some(outcome) = row.outcome else { continue };
        let kind = outcome.kind();
        if kind == OutcomeKind::Cancelled {
            continue;
        }
        if !matches!(kind, OutcomeKind::Resolved | OutcomeKind::Discarded) {
            return Ok(None);
        }
        let command: Option<internal::Command> = get(&view.commands, (shard.0, run))?;
        let is_replay = matches!(command.and_then(|command| command.action), Some(Action::Replay(_)));
        if !is_replay {
            return Ok(Some(kind));
        }
    }
    Ok(None)
}

/// The operator who settled a delivery, and the reason; empty if no operator did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// The key's name.
    pub operator: String,
    /// The reason of the command, if the outcome names its command or quotes it.
    pub reason: String,
}

impl Decision {
    /// The decision in an outcome.
    pub(super) fn of(view: &View, shard: u32, outcome: &internal::Outcome) -> Result<Self, redb::Error> {
        if outcome.reason() == DeadLetterReason::Skipped {
            let (operator, reason) = skip_decision(&outcome.operator, &outcome.last_error);
            return Ok(Self { operator: operator.to_owned(), reason: reason.to_owned() });
        }
        if outcome.operator.is_empty() {
            return Ok(Self::default());
        }
        let command: Option<internal::Command> = get(&view.commands, (shard, outcome.run))?;
        // The reason of a replay is not the reason of discarding its rest.
        let closes = command.filter(|command| matches!(command.action, Some(Action::Close(_))));
        let reason = closes.map(|command| command.reason).unwrap_or_default();
        Ok(Self { operator: outcome.operator.clone(), reason })
    }
}

fn item_progress(view: &View, item: &CommandItem) -> Result<ItemProgress, redb::Error> {
    let CommandItem { shard, seq, uid, run } = item;
    if is_refused(view, item)? {
        return Ok(ItemProgress::NotApplicable);
    }
    let row = view.deliveries.get((shard.0, seq.0, uid.as_bytes(), run.0))?;
    let row: Option<DeliveryRow> = row.map(|row| decode(row.value())).transpose()?;
    let outcome = row.and_then(|row| row.outcome);
    if let Some(outcome) = outcome {
        return Ok(ItemProgress::Settled(outcome.kind()));
    }
    let state: Option<internal::SubscriptionState> = get(&view.subscriptions, (shard.0, uid.as_bytes()))?;
    // Unsettled deliveries of a deleted subscription are discarded.
    let closed = state.is_some_and(|state| state.closed);
    Ok(if closed { ItemProgress::Settled(OutcomeKind::Discarded) } else { ItemProgress::Pending })
}
