//! The position up to which the bucket is known: a process that has written or read a change never reads the catalog without it.
//!
//! A replicated stream's leader may lag: one that was stopped or cut off answers for some seconds from before the change.

use std::time::Instant;

use jiff::Timestamp;
use weft_nats::{position::BehindWatch, streams::LeaderView};
use weft_proto::ids::StreamSeq;

/// The end of the bucket, as far as this process knows it. Pure.
#[derive(Debug, Default)]
pub(super) struct Reached {
    /// Creation of the bucket's stream; `None`: it has not been read yet.
    created: Option<Timestamp>,
    sequence: StreamSeq,
    behind: BehindWatch,
}

impl Reached {
    /// A message of the bucket was stored or read at this sequence.
    pub fn note(&mut self, sequence: StreamSeq) {
        self.sequence = self.sequence.max(sequence);
    }

    /// Whether a leader's view may be read from: it reaches as far as is known, or the bucket is another one, or was restored
    /// from an earlier copy. Else it is to be asked again.
    pub fn accepts(&mut self, view: &LeaderView, now: Instant) -> bool {
        let is_same = self.created.is_none_or(|created| created == view.state.created);
        if is_same && view.state.last < self.sequence && !self.behind.believes(view, now.into()) {
            return false;
        }
        *self = Self { created: Some(view.state.created), sequence: view.state.last, behind: BehindWatch::default() };
        true
    }

    /// The sequence up to which the bucket is known.
    pub fn sequence(&self) -> StreamSeq {
        self.sequence
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use weft_nats::{position::LAGGING_LEADER_MAX, streams::StreamState};

    fn view(created: i64, last: u64, clustered: bool) -> LeaderView {
        let created = Timestamp::from_second(created).unwrap();
        let state = StreamState { created, first: StreamSeq(1), last: StreamSeq(last) };
        let replicas = if clustered { 3 } else { 1 };
        LeaderView { state, replicas, clustered, leader: None, quorum: true, removed: 0 }
    }

    #[test]
    fn a_leader_that_lags_is_not_read_from() {
        let (mut reached, now) = (Reached::default(), Instant::now());
        reached.note(StreamSeq(7));
        assert!(!reached.accepts(&view(1, 6, true), now), "its own change is missing");
        assert!(reached.accepts(&view(1, 7, true), now));
        assert!(reached.accepts(&view(1, 9, true), now));
        let later = now + LAGGING_LEADER_MAX;
        assert!(!reached.accepts(&view(1, 8, true), later), "what was read is not unread");
        assert!(reached.accepts(&view(1, 9, true), later));
    }

    #[test]
    fn a_bucket_that_was_restored_or_is_another_is_read() {
        let (mut reached, now) = (Reached::default(), Instant::now());
        assert!(reached.accepts(&view(1, 9, true), now));
        assert!(!reached.accepts(&view(1, 4, true), now));
        assert!(!reached.accepts(&view(1, 4, true), now + LAGGING_LEADER_MAX - Duration::from_secs(1)));
        assert!(reached.accepts(&view(1, 4, true), now + LAGGING_LEADER_MAX));
        assert_eq!(reached.sequence(), StreamSeq(4));
        assert!(reached.accepts(&view(2, 1, true), now), "another bucket");
        let mut alone = Reached::default();
        alone.note(StreamSeq(9));
        assert!(alone.accepts(&view(1, 4, false), now), "a server alone is the stream");
    }
}
