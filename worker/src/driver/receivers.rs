//! Receivers whose circuit is open, as shown in logs, metrics and the conditions of the process.

use std::collections::HashMap;

use weft_nats::conditions::Conditions;
use weft_proto::ids::{ShardId, SubscriptionUid};

use super::Driver;
use crate::{
    lane::{Cause, Condition},
    metrics::{CIRCUITS, RECEIVER_AWAY, RECEIVER_HELD},
};

/// The receivers of a shard that are shown.
#[derive(Debug)]
pub(super) struct Receivers {
    shard: ShardId,
    conditions: Conditions,
    shown: HashMap<SubscriptionUid, Shown>,
}

#[derive(Debug)]
struct Shown {
    /// The subscription's name when it was shown: clearing it must use the same.
    subscription: String,
    cause: Cause,
}

impl Receivers {
    pub fn new(shard: ShardId, conditions: Conditions) -> Self {
        Self { shard, conditions, shown: HashMap::new() }
    }

    fn show(&mut self, uid: SubscriptionUid, subscription: &str, condition: Option<&Condition>) {
        let before = self.shown.get(&uid).map(|shown| shown.cause);
        let now = condition.map(|condition| condition.cause);
        if before != now
            && let Some(shown) = self.shown.remove(&uid)
        {
            self.clear(&shown);
        }
        let shard = self.shard;
        let Some(condition) = condition else {
            if before.is_some() {
                tracing::info!(%shard, subscription, "receiver is available again");
                metrics::counter!(CIRCUITS, "state" => "closed").increment(1);
            }
            return;
        };
        let shown = self.shown.entry(uid).or_insert_with(|| {
            let reason = &condition.reason;
            match condition.cause {
                Cause::Away => tracing::warn!(%shard, subscription, reason, "receiver is unavailable; its lanes wait"),
                Cause::Held => {
                    tracing::error!(%shard, subscription, reason, "configuration prevents delivery; the subscription waits");
                }
            }
            if before.is_none() {
                metrics::counter!(CIRCUITS, "state" => "open").increment(1);
            }
            let shown = Shown { subscription: subscription.to_owned(), cause: condition.cause };
            gauge(shard, &shown, 1.0);
            shown
        });
        self.conditions.set(&condition_name(shard, shown), Some(text(condition)));
    }

    fn clear(&self, shown: &Shown) {
        gauge(self.shard, shown, 0.0);
        self.conditions.set(&condition_name(self.shard, shown), None);
    }
}

fn condition_name(shard: ShardId, shown: &Shown) -> String {
    format!("shard {shard}: receiver of {}", shown.subscription)
}

fn gauge(shard: ShardId, shown: &Shown, value: f64) {
    let name = match shown.cause {
        Cause::Away => RECEIVER_AWAY,
        Cause::Held => RECEIVER_HELD,
    };
    metrics::gauge!(name, "shard" => shard.to_string(), "subscription" => shown.subscription.clone()).set(value);
}

/// The text on `/readyz`.
fn text(condition: &Condition) -> String {
    let Condition { cause, since, reason, next_probe } = condition;
    match cause {
        Cause::Away => format!("away since {since:.0}: {reason}; called again at {next_probe:.0}"),
        Cause::Held => format!("cannot be called since {since:.0}: {reason}; tried again at {next_probe:.0}"),
    }
}

/// Shows nothing any more: the next owner has its own circuit breakers.
impl Drop for Receivers {
    fn drop(&mut self) {
        self.shown.values().for_each(|shown| self.clear(shown));
    }
}

impl Driver {
    /// Shows the condition of a receiver.
    pub(super) fn show_receiver(&mut self, uid: SubscriptionUid, condition: Option<&Condition>) {
        let name = self.subscriptions.get(&uid).map(|compiled| compiled.subscription.value.name.as_str());
        self.receivers.show(uid, name.unwrap_or_default(), condition);
    }
}
