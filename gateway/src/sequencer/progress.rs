//! The missing parts of all shards, as one text for `/readyz`.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use weft_nats::watch_value::set_if_changed;
use weft_proto::ids::ShardId;

/// Where all shards say what they wait for. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    shards: Arc<Mutex<Vec<Option<String>>>>,
    told: watch::Sender<Option<String>>,
}

impl Progress {
    /// For this number of shards, none of which has started; reports to `told`.
    pub fn new(shards: u32, told: watch::Sender<Option<String>>) -> Self {
        let waiting = vec![Some("receipts: starting".to_owned()); shards as usize];
        told.send_replace(waiting.first().cloned().flatten());
        Self { shards: Arc::new(Mutex::new(waiting)), told }
    }

    /// Sets what a shard waits for; `None`: nothing. The first shard that waits is reported.
    pub fn set(&self, shard: ShardId, waits_for: Option<String>) {
        let mut shards = self.shards.lock();
        if let Some(place) = shards.get_mut(shard.0 as usize) {
            *place = waits_for;
        }
        let first = shards.iter().flatten().next().cloned();
        set_if_changed(&self.told, first);
    }
}

/// `12,000 of 40,000`.
pub(super) fn count_of(done: u64, all: u64) -> String {
    format!("{} of {}", grouped(done), grouped(all))
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_written_for_people() {
        assert_eq!(count_of(0, 999), "0 of 999");
        assert_eq!(count_of(12_000, 1_040_000), "12,000 of 1,040,000");
    }

    #[test]
    fn readiness_shows_the_first_waiting_shard() {
        let (told, telling) = watch::channel(None);
        let progress = Progress::new(2, told);
        assert!(telling.borrow().is_some());
        progress.set(ShardId(0), None);
        progress.set(ShardId(1), Some("receipts: 1 of 2 events".into()));
        assert_eq!(telling.borrow().as_deref(), Some("receipts: 1 of 2 events"));
        progress.set(ShardId(1), None);
        assert_eq!(*telling.borrow(), None);
    }
}
