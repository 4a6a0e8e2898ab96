//! Readiness of a worker: why its shards are not delivered.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;
use weft_nats::{subject::Layout, watch_value::set_if_changed};
use weft_proto::ids::ShardId;

/// Shards that the text lists.
const NAMED_MAX: usize = 4;

/// The readiness of the worker's shards, as one text.
#[derive(Debug)]
pub(crate) struct Readiness {
    /// Reasons why shards are not ready; under `None`, why none is.
    waiting: Mutex<BTreeMap<Option<ShardId>, String>>,
    /// The text; `None` while all are ready.
    text: watch::Sender<Option<String>>,
}

impl Readiness {
    /// All shards are starting.
    pub fn new(layout: Layout, text: watch::Sender<Option<String>>) -> Arc<Self> {
        let waiting = layout.all().map(|shard| (Some(shard), "starting".to_owned())).collect();
        Arc::new(Self { waiting: Mutex::new(waiting), text })
    }

    /// Sets why a shard is not ready; `None`: it is delivered, by this or another worker.
    pub fn set(&self, shard: ShardId, what: Option<String>) {
        self.update(Some(shard), what);
    }

    /// Sets why no shard is ready; `None`: the log is available.
    pub fn set_log(&self, what: Option<String>) {
        self.update(None, what);
    }

    fn update(&self, shard: Option<ShardId>, what: Option<String>) {
        let mut waiting = self.waiting.lock();
        match what {
            Some(what) => drop(waiting.insert(shard, what)),
            None => drop(waiting.remove(&shard)),
        }
        let text = (!waiting.is_empty()).then(|| in_one_line(&waiting));
        set_if_changed(&self.text, text);
    }
}

/// The reasons, of up to [`NAMED_MAX`] shards.
fn in_one_line(waiting: &BTreeMap<Option<ShardId>, String>) -> String {
    let named = waiting.iter().take(NAMED_MAX).map(|(shard, what)| match shard {
        Some(shard) => format!("shard {shard}: {what}"),
        None => what.clone(),
    });
    let mut text = named.collect::<Vec<_>>().join("; ");
    if let Some(more @ 1..) = waiting.len().checked_sub(NAMED_MAX) {
        text.push_str(&format!("; and {more} more shards"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_lists_a_few_shards_and_is_none_when_all_are_ready() {
        let (sender, text) = watch::channel(None);
        let readiness = Readiness::new(Layout::new(6), sender);
        readiness.set(ShardId(5), None);
        let starting = "shard 0: starting; shard 1: starting; shard 2: starting; shard 3: starting; and 1 more shards";
        assert_eq!(text.borrow().as_deref(), Some(starting));
        (0..5).for_each(|shard| readiness.set(ShardId(shard), None));
        assert_eq!(text.borrow().as_deref(), None);
        readiness.set_log(Some("nats: not connected".into()));
        assert_eq!(text.borrow().as_deref(), Some("nats: not connected"));
    }
}
