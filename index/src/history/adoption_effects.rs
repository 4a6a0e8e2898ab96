//! Reading: the effects of an adoption, as far as the history knows.

use std::collections::BTreeSet;

use weft_proto::ids::{EventId, ShardId, StreamSeq};

use super::{
    names::Subscriptions,
    tables::{DeadRow, DeliveryRow, EventRow, UID_MAX, UID_MIN, View, decode},
};

/// Effects of an adoption.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lost {
    /// Events with outcomes that no longer exist.
    pub events: Named,
    /// Events that are delivered again, or for the first time.
    pub delivered: Named,
    /// Redrives and replays that have not ended.
    pub runs: u64,
    /// Dead letters of lost events.
    pub dead_letters: Named,
}

/// A number of items, and the ids of the first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// The number of all.
    pub count: u64,
    /// The first, as many as were asked for.
    pub names: Vec<String>,
}

impl Named {
    fn add(&mut self, limit: usize, name: impl FnOnce() -> String) {
        self.count += 1;
        if self.names.len() < limit {
            self.names.push(name());
        }
    }
}

/// The effects of an adoption of a shard that keeps events up to `events` and runs of commands up to `commands`.
pub(super) fn lost(
    view: &View,
    subscriptions: &Subscriptions,
    shard: ShardId,
    events: StreamSeq,
    commands: u64,
    limit: usize,
) -> Result<Lost, redb::Error> {
    let shard = shard.0;
    let mut lost = Lost::default();
    let first = events.0.saturating_add(1);
    let mut seen = BTreeSet::new();
    for row in view.deliveries.range((shard, 0, &UID_MIN, 0)..=(shard, u64::MAX, &UID_MAX, u64::MAX))? {
        let (key, value) = row?;
        let (_, seq, _, run) = key.value();
        if seq < first && run <= commands {
            continue;
        }
        let row: DeliveryRow = decode(value.value())?;
        if run != 0 && row.outcome.is_none() {
            lost.runs += 1;
        }
        let stands = view.events.get((shard, seq))?.map(|event| decode::<EventRow>(event.value())).transpose()?;
        let is_lost = seq >= first && stands.is_none_or(|event| event.id != row.event_id);
        if is_lost && seen.insert(seq) {
            let id = EventId::from_slice(&row.event_id);
            lost.events.add(limit, || id.map_or_else(|| format!("sequence {seq}"), |id| format!("{id}@{seq}")));
        }
    }
    for row in view.events.range((shard, first)..=(shard, u64::MAX))? {
        let (key, value) = row?;
        let row: EventRow = decode(value.value())?;
        let seq = key.value().1;
        let id = EventId::from_slice(&row.id);
        lost.delivered.add(limit, || id.map_or_else(|| format!("sequence {seq}"), |id| id.to_string()));
    }
    for row in view.dead.range((shard, first, &UID_MIN)..=(shard, u64::MAX, &UID_MAX))? {
        let (key, value) = row?;
        let (_, seq, uid) = key.value();
        let row: DeadRow = decode(value.value())?;
        let id = row.outcome.as_ref().and_then(|outcome| EventId::from_slice(&outcome.event_id));
        let name = subscriptions.name(view, uid)?;
        lost.dead_letters.add(limit, || match id {
            Some(id) => format!("{name}:{id}@{seq}"),
            None => format!("{name}: sequence {seq}"),
        });
    }
    Ok(lost)
}
