//! How long a group may grow before it is sent: for those who have just been answered.
//!
//! Senders come again as soon as they have their answers, and a batch costs about the same whatever rides in it. A group
//! that is sent the moment the last one has landed holds only those that came meanwhile; the many that come a moment later
//! wait for it, and so two groups of half the size take turns. So after a batch the next one waits until everybody is
//! there who is known: who was answered, and who came meanwhile.
//!
//! That pays where senders do come again. Where they come by themselves, however fast others are answered, it is only
//! lost time: after a wait in which fewer than half of those answered came, the next batches do not wait, more of them
//! after each such wait. After single publishes nothing waits: there is no batch to be filled. Pure.

use std::time::Duration;

use tokio::time::Instant;
use weft_nats::append::BATCH_MESSAGES_MAX;

/// How often the last append's time gathering may take: with two groups that take turns everybody waits for the other one
/// as long.
const WAIT_APPENDS: u32 = 2;
/// The most that it may take, however slow the disk is.
const WAIT_MAX: Duration = Duration::from_millis(10);
/// The most batches that do not wait after one that waited in vain, as a power of two: it is tried again several times a
/// second.
const SKIPS_MAX: u32 = 6;

/// Whom the next group waits for.
#[derive(Debug, Default)]
pub(super) struct Gather {
    round: Option<Round>,
    /// Waits in a row in which too few came.
    in_vain: u32,
    /// So many batches do not wait.
    skips: u32,
}

#[derive(Debug)]
struct Round {
    /// With so many everybody is there.
    expected: usize,
    /// With so many it has been worth it.
    enough: usize,
    until: Instant,
}

impl Gather {
    /// A batch of `sent` messages has landed, `took` after it was sent, and all of their senders have been answered. `there`
    /// have come meanwhile.
    pub fn landed(&mut self, sent: usize, there: usize, took: Duration, now: Instant) {
        self.round = None;
        if self.skips > 0 {
            self.skips -= 1;
            return;
        }
        self.round = Some(Round {
            expected: (there + sent).min(BATCH_MESSAGES_MAX - 1),
            enough: (there + sent.div_ceil(2)).min(BATCH_MESSAGES_MAX - 1),
            until: now + (took * WAIT_APPENDS).min(WAIT_MAX),
        });
    }

    /// An append has failed, or was no batch: whoever is there goes at once.
    pub fn nobody(&mut self) {
        self.round = None;
    }

    /// Whether a group of `there` is to wait, and until when at the most.
    pub fn waits(&self, there: usize, now: Instant) -> Option<Instant> {
        let round = self.round.as_ref()?;
        (there < round.expected && now < round.until).then_some(round.until)
    }

    /// A group of `there` is sent.
    pub fn launched(&mut self, there: usize) {
        let Some(round) = self.round.take() else { return };
        if there >= round.enough {
            self.in_vain = 0;
        } else {
            self.in_vain = (self.in_vain + 1).min(SKIPS_MAX);
            self.skips = 1 << self.in_vain;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_millis(3);

    #[test]
    fn a_group_waits_for_everybody_who_is_known_and_not_for_long() {
        let now = Instant::now();
        let mut gather = Gather::default();
        assert_eq!(gather.waits(1, now), None, "nobody has been answered yet");
        gather.landed(10, 5, TOOK, now);
        assert_eq!(gather.waits(14, now), Some(now + TOOK * WAIT_APPENDS));
        assert_eq!(gather.waits(15, now), None, "all are there");
        assert_eq!(gather.waits(5, now + TOOK * WAIT_APPENDS), None, "its time is over");
        gather.landed(10, 5, Duration::from_secs(1), now);
        assert_eq!(gather.waits(5, now), Some(now + WAIT_MAX));
        gather.landed(990, 100, TOOK, now);
        assert_eq!(gather.waits(BATCH_MESSAGES_MAX - 1, now), None, "no more fit into a batch");
        gather.landed(10, 5, TOOK, now);
        gather.nobody();
        assert_eq!(gather.waits(1, now), None);
    }

    /// Who comes by himself is not kept waiting for those who do not come again.
    #[test]
    fn waiting_in_vain_becomes_rare() {
        let now = Instant::now();
        let mut gather = Gather::default();
        let mut waited = 0;
        for _ in 0..650 {
            gather.landed(4, 3, TOOK, now);
            waited += usize::from(gather.waits(4, now).is_some());
            gather.launched(4);
        }
        assert!((7..=16).contains(&waited), "{waited}");
        while gather.skips > 0 {
            gather.landed(4, 3, TOOK, now);
        }
        for _ in 0..10 {
            gather.landed(4, 3, TOOK, now);
            assert!(gather.waits(4, now).is_some(), "now they come again");
            gather.launched(5);
        }
    }
}
