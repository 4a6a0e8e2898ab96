//! The limits of the process, divided among the shards that it drives.
//!
//! The owner of a shard holds a [`Share`] from when its lease is claimed. A share that becomes smaller aborts nothing: attempts
//! above it end within their timeout.

use std::sync::Arc;

use tokio::sync::watch;

use crate::lane::Limits;

/// The limits of the process, and the number of shares.
#[derive(Debug)]
pub(crate) struct Shares {
    whole: Limits,
    driven: watch::Sender<usize>,
}

/// One shard's part of the limits, until it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    shares: Arc<Shares>,
    driven: watch::Receiver<usize>,
}

impl Shares {
    /// The limits `whole`, without shares.
    pub fn new(whole: Limits) -> Arc<Self> {
        Arc::new(Self { whole, driven: watch::Sender::new(0) })
    }

    /// Takes a share; the others become smaller.
    pub fn take(self: &Arc<Self>) -> Share {
        self.driven.send_modify(|driven| *driven += 1);
        Share { shares: Arc::clone(self), driven: self.driven.subscribe() }
    }
}

impl Share {
    /// The current limits of the share.
    pub fn limits(&mut self) -> Limits {
        let (whole, shards) = (self.shares.whole, (*self.driven.borrow_and_update()).max(1));
        Limits {
            attempts_max: (whole.attempts_max / shards).max(1),
            buffered_bytes_max: whole.buffered_bytes_max / shards,
            ..whole
        }
    }

    /// Waits until [`limits`](Self::limits) has changed since its last call. Cancel safe.
    pub async fn changed(&mut self) {
        if self.driven.changed().await.is_err() {
            // Impossible, since this holds the sender.
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
    async fn the_limits_are_divided_among_the_shares() {
        let shares = Shares::new(Limits { attempts_max: 100, buffered_bytes_max: 1000, ..Limits::default() });
        let bounds = |share: &mut Share| (share.limits().attempts_max, share.limits().buffered_bytes_max);
        let mut first = shares.take();
        assert_eq!(bounds(&mut first), (100, 1000), "a single share has everything");
        let others: Vec<Share> = (0..7).map(|_| shares.take()).collect();
        first.changed().await;
        assert_eq!(bounds(&mut first), (12, 125));
        drop(others);
        first.changed().await;
        assert_eq!(bounds(&mut first), (100, 1000));
        let many: Vec<Share> = (0..500).map(|_| shares.take()).collect();
        assert_eq!(bounds(&mut first), (1, 1), "each share has at least one");
        drop(many);
    }
}
