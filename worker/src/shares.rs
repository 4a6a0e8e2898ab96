//! The bounds of the process, divided among the shards that it drives at present: one that drives a single shard has all
//! of it for that.
//!
//! Whoever drives a shard holds a [`Share`] from the moment its lease is claimed. Shares that become smaller end nothing:
//! what is under way above them ends by itself, within a time-out.

use std::sync::Arc;

use tokio::sync::watch;

use crate::lane::Limits;

/// What there is to be divided, and among how many.
#[derive(Debug)]
pub(crate) struct Shares {
    whole: Limits,
    driven: watch::Sender<usize>,
}

/// One shard's part of the bounds, until it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    shares: Arc<Shares>,
    driven: watch::Receiver<usize>,
}

impl Shares {
    /// Nobody has a share of `whole` yet.
    pub fn new(whole: Limits) -> Arc<Self> {
        Arc::new(Self { whole, driven: watch::Sender::new(0) })
    }

    /// One more share; the others become smaller.
    pub fn take(self: &Arc<Self>) -> Share {
        self.driven.send_modify(|driven| *driven += 1);
        Share { shares: Arc::clone(self), driven: self.driven.subscribe() }
    }
}

impl Share {
    /// What it is now.
    pub fn limits(&mut self) -> Limits {
        let (whole, shards) = (self.shares.whole, (*self.driven.borrow_and_update()).max(1));
        Limits {
            attempts_max: (whole.attempts_max / shards).max(1),
            buffered_bytes_max: whole.buffered_bytes_max / shards,
            ..whole
        }
    }

    /// Waits until it is another than [`limits`](Self::limits) has said. Safe to cancel.
    pub async fn changed(&mut self) {
        if self.driven.changed().await.is_err() {
            // Not while this holds the sender.
            std::future::pending().await
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shares.driven.send_modify(|driven| *driven -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_whole_is_divided_among_those_who_are_there() {
        let shares = Shares::new(Limits { attempts_max: 100, buffered_bytes_max: 1000, ..Limits::default() });
        let bounds = |share: &mut Share| (share.limits().attempts_max, share.limits().buffered_bytes_max);
        let mut first = shares.take();
        assert_eq!(bounds(&mut first), (100, 1000), "alone it has everything");
        let others: Vec<Share> = (0..7).map(|_| shares.take()).collect();
        first.changed().await;
        assert_eq!(bounds(&mut first), (12, 125));
        drop(others);
        first.changed().await;
        assert_eq!(bounds(&mut first), (100, 1000));
        let many: Vec<Share> = (0..500).map(|_| shares.take()).collect();
        assert_eq!(bounds(&mut first), (1, 1), "nobody is left without a place");
        drop(many);
    }
}
