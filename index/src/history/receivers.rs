//! Reading: receivers that are not called freely.

use weft_proto::{
    ids::{ShardId, SubscriptionUid},
    v1::{self, ReceiverCondition},
};

use super::tables::{UID_MIN, View, decode, get};

/// How a shard's owner sees a receiver that is away or held.
#[derive(Debug, Clone, PartialEq)]
pub struct ReceiverHistory {
    /// Whose.
    pub uid: SubscriptionUid,
    /// Which owner says so: each finds out for itself.
    pub shard: ShardId,
    /// What it says.
    pub state: v1::ReceiverState,
}

impl ReceiverHistory {
    /// As the contract writes it.
    pub fn state(&self) -> &'static str {
        state_name(&self.state)
    }
}

/// As the contract writes it.
pub fn state_name(state: &v1::ReceiverState) -> &'static str {
    match state.condition() {
        ReceiverCondition::Away => "away",
        ReceiverCondition::Held => "held",
        ReceiverCondition::Available | ReceiverCondition::Unspecified => "available",
    }
}

/// All receivers that are away or held, by shard.
pub(super) fn all(view: &View) -> Result<Vec<ReceiverHistory>, redb::Error> {
    let mut receivers = Vec::new();
    for row in view.receivers.range((0, &UID_MIN)..)? {
        let (key, value) = row?;
        let (shard, uid) = key.value();
        let uid = SubscriptionUid::from_bytes(*uid);
        receivers.push(ReceiverHistory { uid, shard: ShardId(shard), state: decode(value.value())? });
    }
    Ok(receivers)
}

/// How the receiver of a subscription stands in a shard; `None`: it is called freely.
pub(super) fn of(view: &View, shard: ShardId, uid: &[u8; 16]) -> Result<Option<v1::ReceiverState>, redb::Error> {
    get(&view.receivers, (shard.0, uid))
}
