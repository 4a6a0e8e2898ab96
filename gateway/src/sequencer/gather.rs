//! How long a group may grow before it is sent: for those who have just been answered.
//!
//! Senders come again as soon as they have their answers, and a batch costs about the same whatever rides in it. A group
//! that is sent the moment the last one has landed holds only the few that waited meanwhile; the many that come a moment
//! later wait for it, and so large and tiny groups would take turns. So after a batch the next one waits until as many are
//! there as were answered, at most for a part of what the last one took. After single publishes nothing waits: there is no
//! batch to be filled, and at such a rate nobody comes again at once. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// The part of the last append's time that gathering may take: a group that is twice as large for half as much waiting
/// more is a gain for everybody in it.
const WAIT_SHARE: u32 = 2;
/// The most that gathering may take, however slow the disk is.
const WAIT_MAX: Duration = Duration::from_millis(4);

/// Whom the next group waits for.
#[derive(Debug, Default)]
pub(super) struct Gather {
    /// How many are expected, and until when they are waited for.
    expected: Option<(usize, Instant)>,
}

impl Gather {
    /// A batch of `sent` messages has landed, `took` after it was sent, and all of their senders have been answered.
    pub fn landed(&mut self, sent: usize, took: Duration, now: Instant) {
        self.expected = Some((sent, now + (took / WAIT_SHARE).min(WAIT_MAX)));
    }

    /// An append has failed, or was no batch: whoever is there goes at once.
    pub fn nobody(&mut self) {
        self.expected = None;
    }

    /// Whether a group of `there` is to wait, and until when at the most.
    pub fn waits(&self, there: usize, now: Instant) -> Option<Instant> {
        self.expected.filter(|(expected, until)| there < *expected && now < *until).map(|(_, until)| until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_waits_for_as_many_as_were_answered_and_not_for_long() {
        let (start, took) = (Instant::now(), Duration::from_millis(3));
        let mut gather = Gather::default();
        assert_eq!(gather.waits(1, start), None, "nobody has been answered yet");
        gather.landed(10, took, start);
        assert_eq!(gather.waits(9, start), Some(start + took / 2));
        assert_eq!(gather.waits(10, start), None, "all are there");
        assert_eq!(gather.waits(1, start + took / 2), None, "its time is over");
        gather.landed(10, Duration::from_secs(1), start);
        assert_eq!(gather.waits(1, start), Some(start + WAIT_MAX));
        gather.nobody();
        assert_eq!(gather.waits(1, start), None);
    }
}
