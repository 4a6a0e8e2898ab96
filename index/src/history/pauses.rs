//! Who has paused a lane or a subscription, and why: by the newest order on COMMANDS that was taken.

use weft_proto::{
    ids::ShardId,
    v1::{self, LaneAction, command::Action},
};

use super::{
    apply::uid_of,
    names::Subscriptions,
    tables::{COMMANDED, UID_MIN, Uid, View, get},
};

/// What the catalog's records call the pause of a subscription.
const PAUSED: &str = "paused";

/// Why nothing of a lane is attempted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pause {
    /// The key's name; empty where COMMANDS no longer holds the order.
    pub operator: String,
    /// The operator's words, or those of the catalog.
    pub reason: String,
    /// When, in unix milliseconds; 0: not known.
    pub at_ms: i64,
    /// All of the subscription is paused, and not only this lane.
    pub of_subscription: bool,
}

/// What a command pauses: a lane by its workflow and uid, a subscription by its name and the nil uid, which is none's.
pub(super) fn key(command: &v1::Command) -> Option<(String, Uid)> {
    match command.action.as_ref()? {
        Action::Lane(order) if order.action() == LaneAction::Pause => {
            Some((order.workflow_id.clone(), uid_of(&order.subscription)?))
        }
        Action::Catalog(edit) => {
            let paused = edit.changes.iter().any(|change| change.action == PAUSED);
            paused.then(|| (edit.name.clone(), UID_MIN))
        }
        _ => None,
    }
}

/// The pause of a lane that its shard's owner says is paused.
pub(super) fn of_lane(view: &View, shard: ShardId, workflow: &str, uid: &Uid) -> Result<Pause, redb::Error> {
    let carried_out = view.marks.get((COMMANDED, shard.0))?.map_or(0, |mark| mark.value());
    for row in view.pauses.range((workflow, uid, 0)..=(workflow, uid, carried_out))?.rev() {
        let seq = row?.0.value().2;
        // One that found the lane paused already has changed nothing.
        if view.refused.get((shard.0, seq, 0, uid))?.is_none()
            && let Some(command) = get::<_, v1::Command>(&view.commands, (shard.0, seq))?
        {
            return Ok(Pause::by(command));
        }
    }
    Ok(Pause::default())
}

/// The pause of a subscription that delivers nothing.
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
    let command: Option<v1::Command> = match newest {
        Some((key, _)) => get(&view.commands, (records.0, key.value().2))?,
        None => None,
    };
    // The catalog is the truth: an order that gave another reason is not the one that it stands on.
    let pause = command.filter(|command| command.reason == *reason).map(Pause::by).unwrap_or_default();
    Ok(Pause { reason: reason.clone(), of_subscription: true, ..pause })
}

impl Pause {
    fn by(command: v1::Command) -> Self {
        let v1::Command { operator, reason, at_ms, .. } = command;
        Self { operator, reason, at_ms, of_subscription: false }
    }
}
