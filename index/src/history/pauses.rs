//! Operator and reason of a paused lane or subscription, from the newest pause on COMMANDS that was carried out.

use weft_proto::{
    ids::ShardId,
    internal::{self, LaneAction, command::Action},
};

use super::{
    names::Subscriptions,
    tables::{COMMANDED, UID_MIN, Uid, View, get},
};

/// The action of a pause in the catalog's records.
const PAUSED: &str = "paused";

/// Why a lane is paused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pause {
    /// The key's name; empty where COMMANDS no longer holds the order.
    pub operator: String,
    /// The operator's reason, or the catalog's.
    pub reason: String,
    /// Unix milliseconds; 0: not known.
    pub at_ms: i64,
    /// All of the subscription is paused, and not only this lane.
    pub of_subscription: bool,
}

/// The key of a pause: workflow and uid of a lane, or name and nil uid of a subscription.
pub(super) fn key(command: &internal::Command) -> Option<(String, Uid)> {
    match command.action.as_ref()? {
        Action::Lane(order) if order.action() == LaneAction::Pause => {
            let uid: Uid = order.subscription[..].try_into().ok()?;
            Some((order.workflow_id.clone(), uid))
        }
        Action::Catalog(edit) => {
            let paused = edit.changes.iter().any(|change| change.action == PAUSED);
            paused.then(|| (edit.name.clone(), UID_MIN))
        }
        _ => None,
    }
}

/// The pause of a lane that is paused alone.
pub(super) fn of_lane(view: &View, shard: ShardId, workflow: &str, uid: &Uid) -> Result<Pause, redb::Error> {
    let carried_out = view.marks.get((COMMANDED, shard.0))?.map_or(0, |mark| mark.value());
    for row in view.pauses.range((workflow, uid, 0)..=(workflow, uid, carried_out))?.rev() {
        let seq = row?.0.value().2;
        // A pause of a lane that was paused already changed nothing.
        if view.refused.get((shard.0, seq, 0, uid))?.is_none()
            && let Some(command) = get::<_, internal::Command>(&view.commands, (shard.0, seq))?
        {
            return Ok(Pause::by(command));
        }
    }
    Ok(Pause::default())
}

/// The pause of all lanes of a subscription.
pub(super) fn of_subscription(
    view: &View,
    subscriptions: &Subscriptions,
    records: ShardId,
    uid: &Uid,
) -> Result<Pause, redb::Error> {
    let Some(subscription) = subscriptions.get(uid) else {
        let reason = "the subscription is missing from the catalog".to_owned();
        return Ok(Pause { reason, of_subscription: true, ..Pause::default() });
    };
    let (name, reason) = (subscription.name.as_str(), &subscription.pause_reason);
    let newest = view.pauses.range((name, &UID_MIN, 0)..=(name, &UID_MIN, u64::MAX))?.next_back().transpose()?;
    let command: Option<internal::Command> = match newest {
        Some((key, _)) => get(&view.commands, (records.0, key.value().2))?,
        None => None,
    };
    // The catalog decides: a record with another reason is not of the pause that it states.
    let pause = command.filter(|command| command.reason == *reason).map(Pause::by).unwrap_or_default();
    Ok(Pause { reason: reason.clone(), of_subscription: true, ..pause })
}

impl Pause {
    fn by(command: internal::Command) -> Self {
        let internal::Command { operator, reason, at_ms, .. } = command;
        Self { operator, reason, at_ms, of_subscription: false }
    }
}
