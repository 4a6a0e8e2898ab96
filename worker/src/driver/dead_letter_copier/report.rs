//! Shows copies that cannot be made: as a condition of the process, and in metrics.

use weft_nats::conditions::Conditions;
use weft_proto::ids::SubscriptionUid;

use super::backlog::CopyProblems;
use crate::{
    log::Log,
    metrics::{COPIES_REFUSED, COPIES_WAITING},
};

/// Refused copies that are listed.
const NAMED_MAX: usize = 3;

/// Shows the problems of one shard, until it is dropped.
#[derive(Debug)]
pub(super) struct Report {
    conditions: Conditions,
    name: String,
    shard: String,
    shown: CopyProblems,
}

impl Report {
    pub fn new(log: &Log, conditions: Conditions) -> Self {
        let shard = log.shard.to_string();
        Self {
            conditions,
            name: format!("shard {shard}: copies of dead letters"),
            shard,
            shown: CopyProblems::default(),
        }
    }

    /// Shows problems; `name` returns the name of a subscription.
    pub fn show(&mut self, problems: CopyProblems, name: impl Fn(SubscriptionUid) -> String) {
        if problems == self.shown {
            return;
        }
        self.conditions.set(&self.name, text(&problems, name));
        self.gauges(problems.waiting, problems.refused.len());
        self.shown = problems;
    }

    fn gauges(&self, waiting: usize, refused: usize) {
        metrics::gauge!(COPIES_WAITING, "shard" => self.shard.clone()).set(waiting as f64);
        metrics::gauge!(COPIES_REFUSED, "shard" => self.shard.clone()).set(refused as f64);
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.conditions.set(&self.name, None);
        self.gauges(0, 0);
    }
}

/// The text of the condition; `None`: there is no problem.
fn text(problems: &CopyProblems, name: impl Fn(SubscriptionUid) -> String) -> Option<String> {
    let CopyProblems { waiting, failing, refused } = problems;
    let mut parts = Vec::new();
    if let Some((uid, problem)) = failing.first() {
        let others =
            if failing.len() > 1 { format!(" and {} more subscriptions", failing.len() - 1) } else { String::new() };
        parts.push(format!("{waiting} wait: {}{others}: {problem}", name(*uid)));
    }
    if !refused.is_empty() {
        let named = refused.iter().take(NAMED_MAX).map(|state| {
            let outcome = state.outcome.clone().unwrap_or_default();
            let of = SubscriptionUid::from_slice(&outcome.subscription).map(&name).unwrap_or_default();
            format!("{of}, sequence {}: {}", outcome.sequence, state.problem)
        });
        parts.push(format!(
            "{} are refused by DLQ ({}); their events stay in EVENTS, at most for its retention: redrive, resolve or discard \
             these dead letters, or raise the limit",
            refused.len(),
            named.collect::<Vec<_>>().join("; ")
        ));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}
