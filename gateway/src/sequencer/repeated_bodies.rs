//! Signed bodies on their way into a log of several shards.
//!
//! A body under another id may go to another shard, since what names its workflow is often not signed. The other shards are
//! asked whether they know it before it is submitted, which finds nothing while the first of the two is under way. So within
//! a gateway the same body waits until the one before has its answer.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use weft_proto::ids::EventId;

use super::Receipt;

/// Held by the submitter of a body; the receipt of the first one for those that wait.
type Turn = Arc<tokio::sync::Mutex<Option<Receipt>>>;

/// The bodies that are under way, by their replay keys: no more than there are requests. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct RepeatedBodies {
    turns: Arc<Mutex<HashMap<EventId, Turn>>>,
}

/// A request that submits a body or waits to do so. The last one removes the body from the map.
#[derive(Debug)]
struct Place {
    bodies: RepeatedBodies,
    key: EventId,
    turn: Turn,
}

/// The right to submit a body.
#[derive(Debug)]
pub(super) struct Held {
    // Dropped before the place, which counts who else has the turn.
    receipt: OwnedMutexGuard<Option<Receipt>>,
    _place: Place,
}

impl RepeatedBodies {
    /// Waits until no other request submits this body. Safe to cancel.
    pub async fn hold(&self, key: EventId) -> Held {
        let turn = Turn::clone(self.turns.lock().entry(key).or_default());
        let place = Place { bodies: self.clone(), key, turn };
        let receipt = Turn::clone(&place.turn).lock_owned().await;
        Held { receipt, _place: place }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.turns.lock().len()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut turns = self.bodies.turns.lock();
        // Its own and the list's.
        if Arc::strong_count(&self.turn) == 2 {
            turns.remove(&self.key);
        }
    }
}

impl Held {
    /// The receipt that the one before has got.
    pub fn first(&self) -> Option<Receipt> {
        self.receipt.clone()
    }

    /// It has a receipt.
    pub fn accepted(&mut self, receipt: &Receipt) {
        *self.receipt = Some(Receipt { duplicate: true, ..receipt.clone() });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// Waiting requests continue one by one, also after one that gave up, and no entry remains.
    #[tokio::test]
    async fn a_body_is_submitted_by_one_at_a_time() {
        let (bodies, key) = (RepeatedBodies::default(), EventId::unique());
        let first = bodies.hold(key).await;
        let mut waits = Box::pin(bodies.hold(key));
        let mut gives_up = Box::pin(bodies.hold(key));
        assert!(waits.as_mut().now_or_never().is_none() && gives_up.as_mut().now_or_never().is_none());
        assert!(bodies.hold(EventId::unique()).now_or_never().is_some(), "another body does not wait");
        drop(first);
        let second = waits.await;
        assert!(second.first().is_none(), "the first had no receipt");
        assert!(gives_up.as_mut().now_or_never().is_none());
        drop(second);
        assert_eq!(bodies.len(), 1, "one is waiting");
        drop(gives_up);
        assert_eq!(bodies.len(), 0);
    }
}
