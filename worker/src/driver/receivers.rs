//! Receivers that are away or held: in the log, and in a metric of each.

use std::collections::HashMap;

use metrics::gauge;
use weft_proto::ids::{ShardId, SubscriptionUid};

use super::Driver;
use crate::{
    lane::{Cause, Condition},
    metrics::{CIRCUITS, RECEIVER_AWAY, RECEIVER_HELD},
};

/// What has been shown of a shard's receivers. Nothing is shown of one that is called freely.
#[derive(Debug)]
pub(super) struct Receivers {
    shard: ShardId,
    shown: HashMap<SubscriptionUid, Shown>,
}

#[derive(Debug)]
struct Shown {
    /// The subscription's name when it was shown: what takes it back must name the same.
    subscription: String,
    cause: Cause,
}

impl Receivers {
    pub fn new(shard: ShardId) -> Self {
        Self { shard, shown: HashMap::new() }
    }

    fn show(&mut self, uid: SubscriptionUid, subscription: &str, condition: Option<&Condition>) {
        let before = self.shown.get(&uid).map(|shown| shown.cause);
        let now = condition.map(|condition| condition.cause);
        if before == now {
            return;
        }
        if let Some(shown) = self.shown.remove(&uid) {
            self.gauge(&shown, 0.0);
        }
        let shard = self.shard;
        let Some(condition) = condition else {
            tracing::info!(%shard, subscription, "receiver is called freely again");
            metrics::counter!(CIRCUITS, "state" => "closed").increment(1);
            return;
        };
        let reason = &condition.reason;
        match condition.cause {
            Cause::Away => tracing::warn!(%shard, subscription, reason, "receiver is away and its lanes wait"),
            Cause::Held => {
                tracing::error!(%shard, subscription, reason, "subscription cannot be delivered to and its lanes wait");
            }
        }
        if before.is_none() {
            metrics::counter!(CIRCUITS, "state" => "open").increment(1);
        }
        let shown = Shown { subscription: subscription.to_owned(), cause: condition.cause };
        self.gauge(&shown, 1.0);
        self.shown.insert(uid, shown);
    }

    fn gauge(&self, shown: &Shown, value: f64) {
        let name = match shown.cause {
            Cause::Away => RECEIVER_AWAY,
            Cause::Held => RECEIVER_HELD,
        };
        gauge!(name, "shard" => self.shard.to_string(), "subscription" => shown.subscription.clone()).set(value);
    }
}

/// The next owner finds out for itself.
impl Drop for Receivers {
    fn drop(&mut self) {
        for shown in self.shown.values() {
            self.gauge(shown, 0.0);
        }
    }
}

impl Driver {
    /// Shows how a receiver stands.
    pub(super) fn receiver_changed(&mut self, uid: SubscriptionUid, condition: Option<&Condition>) {
        let name = self.subscriptions.get(&uid).map(|compiled| compiled.subscription.value.name.as_str());
        self.receivers.show(uid, name.unwrap_or_default(), condition);
    }
}
