//! Reading: receivers that are away or held.

use weft_proto::{
    ids::{ShardId, SubscriptionUid},
    internal,
};

use super::tables::{UID_MIN, View, decode, get};

/// State of a receiver that is away or held, as recorded by a shard's owner.
#[derive(Debug, Clone, PartialEq)]
pub struct ReceiverHistory {
    /// The subscription.
    pub uid: SubscriptionUid,
    /// Epoch of the owner that recorded it: each owner finds out independently.
    pub shard: ShardId,
    /// The recorded state.
    pub state: internal::ReceiverState,
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

/// State of the receiver of a subscription in a shard; `None`: available.
pub(super) fn of(view: &View, shard: ShardId, uid: &[u8; 16]) -> Result<Option<internal::ReceiverState>, redb::Error> {
    get(&view.receivers, (shard.0, uid))
}
